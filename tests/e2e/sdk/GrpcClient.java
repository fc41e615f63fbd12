// Calls a gRPC app with Dapr's SDK for Java: by HTTP, which is how it invokes methods, and by a stub of its own that goes
// through the sidecar's gRPC port.  Run as `java -cp 'jars/*' GrpcClient.java`, with the ports in DAPR_HTTP_PORT and
// DAPR_GRPC_PORT.

import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import io.dapr.client.DaprClient;
import io.dapr.client.DaprClientBuilder;
import io.dapr.client.domain.HttpExtension;
import io.dapr.exceptions.DaprException;
import io.dapr.v1.AppCallbackGrpc;
import io.dapr.v1.CommonProtos.InvokeRequest;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.util.Map;

public class GrpcClient {
    static final String APP = "mathService";
    static final Map<String, Integer> NUMBERS = Map.of("arg1", 10, "arg2", 23);
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

    static InvokeRequest request(String method) {
        Any data = Any.newBuilder().setValue(ByteString.copyFromUtf8("{\"arg1\": 10, \"arg2\": 23}")).build();
        return InvokeRequest.newBuilder().setMethod(method).setData(data).setContentType("application/json").build();
    }

    public static void main(String[] arguments) throws Exception {
        DaprClient client = new DaprClientBuilder().build();
        check("waits for the sidecar", () -> client.waitForSidecar(15000).block());
        check("adds two numbers", () -> {
            for (String method : new String[] {"add", "api/v1/add"}) {
                equal(client.invokeMethod(APP, method, NUMBERS, HttpExtension.POST, Integer.class).block(), 33);
            }
        });
        check("tells the app's errors", () -> {
            try {
                client.invokeMethod(APP, "broken", NUMBERS, HttpExtension.POST, Integer.class).block();
            } catch (DaprException error) {
                equal(error.getHttpStatusCode(), 500);
                equal(new String(error.getPayload()).contains("none left"), true);
                return;
            }
            throw new AssertionError("it did not fail");
        });
        AppCallbackGrpc.AppCallbackBlockingStub stub = client.newGrpcStub(APP, AppCallbackGrpc::newBlockingStub);
        check("calls by a stub", () -> {
            equal(stub.onInvoke(request("add")).getData().getValue().toStringUtf8(), "33");
            try {
                stub.onInvoke(request("broken"));
            } catch (StatusRuntimeException error) {
                equal(error.getStatus().getCode(), Status.Code.FAILED_PRECONDITION);
                equal(error.getStatus().getDescription(), "none left");
                return;
            }
            throw new AssertionError("it did not fail");
        });
        check("reads metadata", () -> equal(client.getMetadata().block().getId(), "caller"));
        check("needs its token", () -> {
            System.setProperty("dapr.api.token", "wrong");
            DaprClient wrong = new DaprClientBuilder().build();
            try {
                wrong.newGrpcStub(APP, AppCallbackGrpc::newBlockingStub).onInvoke(request("add"));
            } catch (StatusRuntimeException error) {
                equal(error.getStatus().getCode(), Status.Code.UNAUTHENTICATED);
                return;
            }
            throw new AssertionError("it did not fail");
        });
        System.exit(failed ? 1 : 0);
    }
}
