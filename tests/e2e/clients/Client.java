// Calls an app through its sidecar with the JDK's HTTP client as it is by default: it asks for HTTP/2 by
// `Upgrade: h2c` on every request.  Run as `java Client.java PORT`.

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.io.ByteArrayInputStream;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CompletableFuture;

public class Client {
    static String root;
    static HttpClient client = HttpClient.newHttpClient();
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
        if (!got.equals(wanted)) throw new AssertionError("got " + got + ", wanted " + wanted);
    }

    static HttpRequest.Builder to(String path) {
        return HttpRequest.newBuilder(URI.create(root + path)).timeout(Duration.ofSeconds(15));
    }

    static HttpResponse<String> post(String path, String body) throws Exception {
        HttpRequest request = to(path).header("Content-Type", "application/json")
            .POST(BodyPublishers.ofString(body)).build();
        return client.send(request, BodyHandlers.ofString());
    }

    static void echo(HttpClient client, byte[] body, BodyPublisher publisher) throws Exception {
        HttpRequest request = to("/mathService/method/echo").POST(publisher).build();
        HttpResponse<byte[]> answer = client.send(request, BodyHandlers.ofByteArray());
        equal(answer.statusCode(), 200);
        if (!Arrays.equals(answer.body(), body)) throw new AssertionError("got " + answer.body().length + " bytes");
    }

    static byte[] bytes(int size) {
        byte[] bytes = new byte[size];
        for (int at = 0; at < size; at++) bytes[at] = (byte) (at * 31);
        return bytes;
    }

    public static void main(String[] arguments) {
        root = "http://127.0.0.1:" + arguments[0] + "/v1.0/invoke";
        String numbers = "{ \"arg1\": 10, \"arg2\": 23}";
        check("adds two numbers", () -> {
            // In HTTP/1.1 still, as a rule: the body follows in a packet of its own, so the offer is declined.
            equal(post("/mathService/method/add", numbers).body(), "33");
        });
        check("takes a nested path", () -> equal(post("/mathService/method/api/v1/add", numbers).body(), "33"));
        check("carries headers both ways", () -> {
            HttpRequest request = to("/mathService/method/told?x=1").header("X-Asked", "yes").build();
            HttpResponse<String> answer = client.send(request, BodyHandlers.ofString());
            if (!answer.body().contains("\"x-asked\": \"yes\"")) throw new AssertionError(answer.body());
            equal(answer.headers().firstValue("x-answer").orElse(""), "from the app");
        });
        check("explains an unknown app", () -> {
            // The last two are answered long before their bodies are over: in HTTP/1.1, and in HTTP/2.
            for (String body : List.of(numbers, "x".repeat(1 << 20), "x".repeat(1 << 20))) {
                HttpResponse<String> answer = post("/nobody/method/add", body);
                equal(answer.statusCode(), 500);
                equal(answer.body().contains("failed to invoke, id: nobody"), true);
                equal(answer.headers().firstValue("tieline-cause").orElse(""), "name-unknown");
            }
        });
        check("echoes 2 MiB", () -> {
            // Each on a connection of its own, whose first request it is: with the offer to upgrade.
            byte[] big = bytes(2 << 20);
            for (int size : new int[] {0, 1, 16384, 65535, 65536, 65537, 100000, 1 << 20, 2 << 20}) {
                byte[] body = Arrays.copyOf(big, size);
                HttpClient fresh = HttpClient.newHttpClient();
                echo(fresh, body, BodyPublishers.ofByteArray(body));
                echo(fresh, body, BodyPublishers.ofByteArray(body));
            }
            HttpClient fresh = HttpClient.newHttpClient();
            echo(fresh, big, BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(big)));
            echo(client, big, BodyPublishers.ofByteArray(big));
            echo(client, big, BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(big)));
        });
        check("makes many calls at once", () -> {
            HttpClient fresh = HttpClient.newHttpClient();
            for (HttpClient used : List.of(fresh, fresh, client)) {
                List<CompletableFuture<HttpResponse<String>>> answers = new ArrayList<>();
                for (int n = 0; n < 50; n++) {
                    HttpRequest request = to("/mathService/method/echo").POST(BodyPublishers.ofString("call " + n)).build();
                    answers.add(used.sendAsync(request, BodyHandlers.ofString()));
                }
                for (int n = 0; n < 50; n++) equal(answers.get(n).get().body(), "call " + n);
            }
        });
        check("keeps its connection", () -> {
            for (int n = 0; n < 20; n++) {
                HttpResponse<String> answer = post("/mathService/method/add", numbers);
                equal(answer.body(), "33");
                equal(answer.version(), HttpClient.Version.HTTP_2);
            }
            HttpClient old = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
            byte[] body = bytes(1 << 20);
            for (int n = 0; n < 3; n++) echo(old, body, BodyPublishers.ofByteArray(body));
        });
        System.exit(failed ? 1 : 0);
    }
}
