// An app made with Dapr's SDK for Node.  Run as `node server.cjs APP_PORT DAPR_HTTP_PORT`.
const { DaprServer, HttpMethod } = require("@dapr/dapr");

const [serverPort, daprPort] = process.argv.slice(2);
const server = new DaprServer({ serverHost: "127.0.0.1", serverPort, clientOptions: { daprHost: "127.0.0.1", daprPort } });

const main = async () => {
  await server.invoker.listen("hello", async () => ({ hello: "world" }));
  await server.invoker.listen(
    "told",
    async ({ body, query, headers }) => ({ body: JSON.parse(body), query, headers }),
    { method: HttpMethod.POST },
  );
  // It calls itself through its own sidecar, by the client that every server has.
  await server.invoker.listen("twice", async () => server.client.invoker.invoke("node-app", "hello", HttpMethod.GET));
  await server.start();
  console.log("started");
};
main();
