// Calls an app with Dapr's SDK for Node.  Run as `node client.cjs`, with the sidecar's port in DAPR_HTTP_PORT.
// `node client.cjs stop` stops the sidecar.
const assert = require("node:assert/strict");
const { DaprClient, HttpMethod } = require("@dapr/dapr");

const app = "mathService";
const numbers = { arg1: 10, arg2: 23 };
const client = new DaprClient();
const post = (method, body, options) => client.invoker.invoke(app, method, HttpMethod.POST, body, options);

// The SDK puts what it knows of a failed call into the message of an Error.
const failure = async (call) => {
  try {
    await call;
  } catch (error) {
    return JSON.parse(error.message);
  }
  throw new Error("it did not fail");
};

const checks = {
  "waits for the sidecar": async () => {
    await client.start();
    assert.equal(await client.health.isHealthy(), true);
  },
  "adds two numbers": async () => {
    assert.equal(await post("add", numbers), 33);
    assert.equal(await post("api/v1/add", numbers), 33);
  },
  "carries headers and a query": async () => {
    const told = await client.invoker.invoke(app, "told/it?x=1&x=%C3%A4+b", HttpMethod.PUT, "abc", {
      headers: { "X-Asked": "yes", "Content-Type": "text/plain" },
    });
    assert.deepEqual([told.verb, told.length, told.path], ["PUT", 3, "/told/it?x=1&x=%C3%A4+b"]);
    assert.deepEqual([told.headers["x-asked"], told.headers["content-type"]], ["yes", "text/plain"]);
    assert.deepEqual([told.headers["dapr-caller-app-id"], told.headers["dapr-callee-app-id"]], ["caller", app]);
    assert.match(told.headers["user-agent"], /^dapr-sdk-js\//);
  },
  "tells the app's errors": async () => {
    const missing = await failure(client.invoker.invoke(app, "no/such/method", HttpMethod.GET));
    assert.deepEqual([missing.status, missing.error, missing.error_msg], [404, "Not Found", "no such method"]);
    const broken = await failure(post("broken", numbers));
    assert.deepEqual([broken.status, JSON.parse(broken.error_msg).message], [500, "none left"]);
  },
  "explains an unknown app": async () => {
    const told = await failure(client.invoker.invoke("nobody", "add", HttpMethod.POST, numbers));
    const { errorCode, message } = JSON.parse(told.error_msg);
    assert.deepEqual([told.status, errorCode], [500, "ERR_DIRECT_INVOKE"]);
    assert.match(message, /^failed to invoke, id: nobody, err: /);
  },
  "echoes 2 MiB": async () => {
    const text = "0123456789abcde\u00e4".repeat(1 << 17);
    assert.equal((await post("echo", { text })).text, text);
  },
  "makes many calls at once": async () => {
    const wanted = Array.from({ length: 50 }, (_, call) => ({ call }));
    assert.deepEqual(await Promise.all(wanted.map((body) => post("echo", body))), wanted);
  },
  "takes an endpoint": async () => {
    process.env.DAPR_HTTP_ENDPOINT = `http://localhost:${process.env.DAPR_HTTP_PORT}`;
    delete process.env.DAPR_HTTP_PORT;
    const other = new DaprClient();
    assert.equal(await other.invoker.invoke(app, "add", HttpMethod.POST, numbers), 33);
  },
  "needs its token": async () => {
    const wrong = new DaprClient({ daprPort: process.env.DAPR_HTTP_ENDPOINT.split(":").at(-1), daprApiToken: "wrong" });
    wrong.daprClient.setIsInitialized(true); // or it would wait for a sidecar that lets it in
    assert.equal((await failure(wrong.invoker.invoke(app, "add", HttpMethod.POST, numbers))).status, 401);
  },
  "reads and sets metadata": async () => {
    assert.equal((await client.metadata.get()).id, "caller");
    await client.metadata.set("colour", "gr\u00fcn");
    assert.equal((await client.metadata.get()).extended.colour, "gr\u00fcn");
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
