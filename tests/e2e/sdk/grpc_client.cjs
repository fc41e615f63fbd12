// Calls an app by gRPC with Dapr's SDK for Node.  Run as `node grpc_client.cjs`, with the sidecar's port in DAPR_GRPC_PORT.
// `node grpc_client.cjs stop` stops the sidecar.
const assert = require("node:assert/strict");
const { DaprClient, HttpMethod, CommunicationProtocolEnum } = require("@dapr/dapr");

const app = "mathService";
const numbers = { arg1: 10, arg2: 23 };
const options = { daprPort: process.env.DAPR_GRPC_PORT, communicationProtocol: CommunicationProtocolEnum.GRPC };
const client = new DaprClient(options);
const post = (method, body) => client.invoker.invoke(app, method, HttpMethod.POST, body);

const failure = async (call) => {
  try {
    await call;
  } catch (error) {
    return error;
  }
  throw new Error("it did not fail");
};

const checks = {
  "waits for the sidecar": async () => {
    await client.start();
  },
  "adds two numbers": async () => {
    assert.equal(await post("add", numbers), 33);
    assert.equal(await post("api/v1/add", numbers), 33);
  },
  "carries metadata and a query": async () => {
    // It sends neither of its own.
    const told = await client.invoker.invoke(app, "told", HttpMethod.PUT, "abc");
    assert.deepEqual([told.method, told.verb, told.length, told.contentType], ["told", 4, 3, "text/plain"]);
    assert.deepEqual([told.metadata["dapr-caller-app-id"], told.metadata["dapr-callee-app-id"]], ["caller", app]);
  },
  "tells the app's errors": async () => {
    const broken = await failure(post("broken", numbers));
    assert.deepEqual([broken.code, broken.rawMessage], [9, "none left"]);
  },
  "explains an unknown app": async () => {
    const told = await failure(client.invoker.invoke("nobody", "add", HttpMethod.POST, numbers));
    assert.equal(told.code, 13);
    assert.match(told.rawMessage, /^failed to invoke, id: nobody, err: /);
  },
  "echoes 2 MiB": async () => {
    const text = "0123456789abcde\u00e4".repeat(1 << 17);
    assert.equal((await post("echo", { text })).text, text);
  },
  "makes many calls at once": async () => {
    const wanted = Array.from({ length: 50 }, (_, call) => ({ call }));
    assert.deepEqual(await Promise.all(wanted.map((body) => post("echo", body))), wanted);
  },
  "reads and sets metadata": async () => {
    assert.equal((await client.metadata.get()).id, "caller");
    await client.metadata.set("colour", "gr\u00fcn");
    assert.equal((await client.metadata.get()).extended.colour, "gr\u00fcn");
  },
  "needs its token": async () => {
    const wrong = new DaprClient({ ...options, daprApiToken: "wrong" });
    wrong.daprClient.setIsInitialized(true); // or it would wait for a sidecar that lets it in
    assert.equal((await failure(wrong.invoker.invoke(app, "add", HttpMethod.POST, numbers))).code, 16);
  },
};
const stop = { "stops the sidecar": () => client.sidecar.shutdown() };

const main = async () => {
  for (const [name, check] of Object.entries(process.argv.includes("stop") ? stop : checks)) {
    try {
      await check();
      console.log(`ok ${name}`);
    } catch (error) {
      console.error(`failed: ${name}`, error);
      process.exitCode = 1;
    }
  }
  await client.stop();
};
main();
