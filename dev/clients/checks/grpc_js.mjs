// @grpc/grpc-js against a running Prism. Prints one JSON object per check: {name, error}.
//
// usage: node grpc_js.mjs HOST:PORT FOLDER_OF_PROTO_FILES
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [endpoint, protos] = process.argv.slice(2);
const definition = loader.loadSync(["prism/keyvalue/v1/keyvalue.proto", "grpc/health/v1/health.proto"], {
  includeDirs: [protos],
  longs: Number,
  oneofs: true,
});
const { prism, grpc: own } = grpc.loadPackageDefinition(definition);
const authority = process.env.PRISM_AUTHORITY;
const credentials = authority ? grpc.credentials.createSsl(readFileSync(authority)) : grpc.credentials.createInsecure();
const client = new prism.keyvalue.v1.KeyValueService(endpoint, credentials);

function call(method, request, metadata = {}) {
  const sent = new grpc.Metadata();
  for (const [name, value] of Object.entries(metadata)) sent.set(name, value);
  return new Promise((resolve, reject) => {
    let trailers;
    const options = { deadline: Date.now() + 20_000 };
    const running = client[method]({ namespace: "keyvalue", ...request }, sent, options, (error, answer) =>
      error ? reject(error) : setImmediate(() => resolve({ answer, trailers })),
    );
    running.on("status", (status) => (trailers = status.metadata));
  });
}

const checks = {
  async sets_and_gets() {
    const value = Buffer.from([0, 1, 2, 255]);
    await call("Set", { key: "js/1", value });
    const { answer } = await call("Get", { key: "js/1" });
    assert.ok(answer.found);
    assert.deepEqual(answer.entry.value, value);
  },
  async reads_trailers() {
    const { trailers } = await call("Set", { key: "js/2", value: Buffer.from("x") }, { "prism-durability": "strong" });
    assert.deepEqual(trailers.get("prism-durability"), ["strong"]);
    assert.equal(trailers.get("prism-lsn").length, 1);
  },
  async gets_statuses_with_details() {
    const error = await call("Get", { namespace: "nowhere", key: "a" }).then(
      () => assert.fail("it was not refused"),
      (error) => error,
    );
    assert.equal(error.code, grpc.status.NOT_FOUND);
    assert.ok(error.metadata.get("grpc-status-details-bin")[0].includes("NAMESPACE_UNKNOWN"));
  },
  async streams() {
    let keys = 0;
    for await (const page of client.ScanKeys({ namespace: "keyvalue", prefix: "s/" })) keys += page.keys.length;
    assert.equal(keys, 10_000);
  },
  async cancels_midway() {
    const stream = client.Scan({ namespace: "keyvalue", prefix: "s/", page_size: 5 });
    const error = await new Promise((resolve) => {
      stream.once("data", () => stream.cancel());
      stream.once("error", resolve);
    });
    assert.equal(error.code, grpc.status.CANCELLED);
  },
  async moves_large_values() {
    const value = Buffer.alloc(1 << 20, 7);
    await call("Set", { key: "js/large", value });
    const { answer } = await call("Get", { key: "js/large" });
    assert.ok(value.equals(answer.entry.value));
  },
  async calls_many_at_once() {
    const numbers = [...Array(1000).keys()];
    await Promise.all(numbers.map((n) => call("Set", { key: `js/many/${n}`, value: Buffer.from(String(n)) })));
    const answers = await Promise.all(numbers.map((n) => call("Get", { key: `js/many/${n}` })));
    answers.forEach(({ answer }, n) => assert.equal(answer.entry.value.toString(), String(n)));
  },
  async asks_for_health() {
    const health = new own.health.v1.Health(endpoint, credentials);
    const answer = await new Promise((resolve, reject) =>
      health.Check({ service: "" }, (error, answer) => (error ? reject(error) : resolve(answer))),
    );
    assert.equal(answer.status, 1);
    health.close();
  },
};

for (const [name, check] of Object.entries(checks)) {
  let error = null;
  try {
    await check();
  } catch (thrown) {
    error = String(thrown.stack ?? thrown);
  }
  console.log(JSON.stringify({ name, error }));
}
client.close();
