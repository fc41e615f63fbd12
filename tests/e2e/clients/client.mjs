// Calls an app through its sidecar with Node's own fetch.  Run as `node client.mjs PORT`.
import assert from "node:assert/strict";

const root = `http://127.0.0.1:${process.argv.at(-1)}/v1.0/invoke`;
const base = `${root}/mathService/method`;
const json = { "content-type": "application/json" };
const numbers = JSON.stringify({ arg1: 10, arg2: 23 });
const post = (url, body, more = {}) => fetch(url, { method: "POST", body, ...more });

const checks = {
  "adds two numbers": async () => {
    const answer = await post(`${base}/add`, numbers, { headers: json });
    assert.equal(answer.status, 200);
    assert.equal(await answer.json(), 33);
  },
  "takes a nested path": async () => assert.equal(await (await post(`${base}/api/v1/add`, numbers)).text(), "33"),
  "carries headers both ways": async () => {
    const answer = await fetch(`${base}/told?x=1`, { headers: { "x-asked": "yes" } });
    const told = await answer.json();
    assert.equal(told.path, "/told?x=1");
    assert.equal(told.headers["x-asked"], "yes");
    assert.equal(answer.headers.get("x-answer"), "from the app");
  },
  "explains an unknown app": async () => {
    for (const body of [numbers, Buffer.alloc(2 << 20)]) {
      const answer = await post(`${root}/nobody/method/add`, body);
      assert.equal(answer.status, 500);
      assert.match((await answer.json()).message, /^failed to invoke, id: nobody/);
      assert.equal(answer.headers.get("tieline-cause"), "name-unknown");
    }
  },
  "echoes 2 MiB": async () => {
    const big = Buffer.alloc(2 << 20, "0123456789abcdef!");
    assert.ok(big.equals(Buffer.from(await (await post(`${base}/echo`, big)).arrayBuffer())));
    const stream = new Blob([big]).stream();
    const answer = await post(`${base}/echo`, stream, { duplex: "half" });
    assert.ok(big.equals(Buffer.from(await answer.arrayBuffer())));
  },
  "makes many calls at once": async () => {
    const wanted = Array.from({ length: 100 }, (_, n) => `call ${n}`);
    const texts = await Promise.all(wanted.map(async (text) => (await post(`${base}/echo`, text)).text()));
    assert.deepEqual(texts, wanted);
  },
  "keeps its connection": async () => {
    for (let n = 0; n < 20; n += 1) assert.equal((await (await fetch(`${base}/told`)).json()).verb, "GET");
  },
};

for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`ok ${name}`);
  } catch (error) {
    console.error(`failed: ${name}`, error);
    process.exitCode = 1;
  }
}
