// Calls an app with Dapr's SDK for Java.  Run as `java -cp 'jars/*' Client.java`, with the sidecar's port in
// DAPR_HTTP_PORT, or its address in DAPR_HTTP_ENDPOINT.

import io.dapr.client.DaprClient;
import io.dapr.client.DaprClientBuilder;
import io.dapr.client.DaprHttp;
import io.dapr.client.domain.HttpExtension;
import io.dapr.exceptions.DaprException;
import io.dapr.utils.TypeRef;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import reactor.core.publisher.Flux;

public class Client {
    static final String APP = "mathService";
    static final Map<String, Integer> NUMBERS = Map.of("arg1", 10, "arg2", 23);
    static final Map<String, String> BYTES = Map.of("content-type", "application/octet-stream");
    static DaprClient client;
    static boolean failed;

    interface Check { void run() throws Exception; }

    static void check(String name, Check check) {
        try {
            check.run();
            System.out.println("ok " + name);
        } catch (Throwable error) {
            System.err.println("failed: " + name);
            error.printStackTrace();
            failed = true;
        }
    }

    static void equal(Object got, Object wanted) {
        if (!wanted.equals(got)) throw new AssertionError("got " + got + ", wanted " + wanted);
    }

    static DaprException failure(String app, String method) {
        try {
            client.invokeMethod(app, method, NUMBERS, HttpExtension.POST, Integer.class).block();
        } catch (DaprException error) {
            return error;
        }
        throw new AssertionError("it did not fail");
    }

    static void adds() {
        for (String method : List.of("add", "api/v1/add")) {
            equal(client.invokeMethod(APP, method, NUMBERS, HttpExtension.POST, Integer.class).block(), 33);
        }
    }

    @SuppressWarnings("unchecked")
    public static void main(String[] arguments) throws Exception {
        client = new DaprClientBuilder().build();
        check("waits for the sidecar", () -> client.waitForSidecar(15000).block());
        check("adds two numbers", Client::adds);
        check("carries headers and a query", () -> {
            Map<String, List<String>> query = Map.of("x", List.of("1", "\u00e4 b"));
            HttpExtension put = new HttpExtension(DaprHttp.HttpMethods.PUT, query, Map.of("x-asked", "yes"));
            Map<String, Object> told =
                client.invokeMethod(APP, "told/it", "abc", put, new TypeRef<Map<String, Object>>() {}).block();
            equal(told.get("verb"), "PUT");
            equal(told.get("path"), "/told/it?x=1&x=%C3%A4+b");
            Map<String, String> headers = (Map<String, String>) told.get("headers");
            equal(headers.get("x-asked"), "yes");
            equal(headers.get("dapr-caller-app-id"), "caller");
            equal(headers.get("dapr-callee-app-id"), APP);
            equal(headers.get("user-agent").startsWith("dapr-sdk-java/"), true);
        });
        check("tells the app's errors", () -> {
            DaprException missing = failure(APP, "no/such/method");
            equal(missing.getHttpStatusCode(), 404);
            equal(new String(missing.getPayload()), "no such method");
            DaprException broken = failure(APP, "broken");
            equal(broken.getHttpStatusCode(), 500);
            equal(broken.getErrorCode(), "OUT_OF_STOCK");
            equal(broken.getMessage().startsWith("OUT_OF_STOCK: none left"), true);
        });
        check("explains an unknown app", () -> {
            DaprException told = failure("nobody", "add");
            equal(told.getHttpStatusCode(), 500);
            equal(told.getErrorCode(), "ERR_DIRECT_INVOKE");
            String start = "ERR_DIRECT_INVOKE: failed to invoke, id: nobody, err: ";
            equal(told.getMessage().startsWith(start), true);
        });
        check("echoes 2 MiB", () -> {
            byte[] body = new byte[2 << 20];
            for (int at = 0; at < body.length; at++) body[at] = (byte) (at * 31);
            byte[] got = client.invokeMethod(APP, "echo", body, HttpExtension.POST, BYTES).block();
            if (!Arrays.equals(got, body)) throw new AssertionError("got " + got.length + " bytes");
        });
        check("makes many calls at once", () -> {
            List<byte[]> got = Flux.range(0, 50)
                .flatMapSequential(n -> client.invokeMethod(APP, "echo", ("" + n).getBytes(), HttpExtension.POST, BYTES), 50)
                .collectList().block();
            List<String> texts = new ArrayList<>();
            for (byte[] one : got) texts.add(new String(one));
            List<String> wanted = new ArrayList<>();
            for (int n = 0; n < 50; n++) wanted.add("" + n);
            equal(texts, wanted);
        });
        check("takes an endpoint", () -> {
            // By a system property: a program cannot change its own environment.
            System.setProperty("dapr.http.endpoint", "http://localhost:" + System.getenv("DAPR_HTTP_PORT"));
            System.setProperty("dapr.http.port", "1");
            client = new DaprClientBuilder().build();
            adds();
        });
        check("needs its token", () -> {
            System.setProperty("dapr.api.token", "wrong");
            client = new DaprClientBuilder().build();
            equal(failure(APP, "add").getHttpStatusCode(), 401);
        });
        System.exit(failed ? 1 : 0);
    }
}
