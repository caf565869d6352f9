// @connectrpc/connect-node against a running Prism: Connect in JSON and protobuf, and gRPC-Web, over HTTP/1.1 and HTTP/2. Prints
// one JSON object per check: {name, error}.
//
// usage: node connect.mjs HOST:PORT FILE_DESCRIPTOR_SET
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";

const [endpoint, descriptors] = process.argv.slice(2);
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(descriptors)));
const service = registry.getService("prism.keyvalue.v1.KeyValueService");
const baseUrl = `${process.env.PRISM_AUTHORITY ? "https" : "http"}://${endpoint}`;

const transports = {
  connect_json_http1: createConnectTransport({ baseUrl, httpVersion: "1.1", useBinaryFormat: false }),
  connect_json_http2: createConnectTransport({ baseUrl, httpVersion: "2", useBinaryFormat: false }),
  connect_proto_http1: createConnectTransport({ baseUrl, httpVersion: "1.1", useBinaryFormat: true }),
  connect_proto_http2: createConnectTransport({ baseUrl, httpVersion: "2", useBinaryFormat: true }),
  grpc_web_http1: createGrpcWebTransport({ baseUrl, httpVersion: "1.1" }),
  grpc_web_http2: createGrpcWebTransport({ baseUrl, httpVersion: "2" }),
  grpc_http2: createGrpcTransport({ baseUrl, httpVersion: "2" }),
};

const starting = (prefix) => ({ selection: { case: "prefix", value: prefix } });

const checks = {
  async sets_and_gets(client, name) {
    const [key, value] = [`connect/${name}`, new Uint8Array([0, 1, 2, 255])];
    let trailers;
    const onTrailer = (fields) => (trailers = fields);
    const headers = { "prism-durability": "strong" };
    const answer = await client.set({ namespace: "keyvalue", key, value }, { headers, onTrailer });
    assert.ok(answer.applied);
    assert.equal(trailers.get("prism-durability"), "strong");
    const { found, entry } = await client.get({ namespace: "keyvalue", key });
    assert.ok(found);
    assert.deepEqual([...entry.value], [...value]);
  },
  async gets_codes_and_details(client) {
    const error = await client.get({ namespace: "nowhere", key: "a" }).then(
      () => assert.fail("it was not refused"),
      (error) => ConnectError.from(error),
    );
    assert.equal(error.code, Code.NotFound, String(error));
    assert.equal(error.details[0].type, "google.rpc.ErrorInfo");
    assert.ok(Buffer.from(error.details[0].value).includes("NAMESPACE_UNKNOWN"));
  },
  async keeps_deadlines(client) {
    const late = { timeoutMs: 1 };
    // Whoever notices first, it is the same code.
    for (let round = 0; round < 20; round++) {
      const error = await client.set({ namespace: "keyvalue", key: "connect/late" }, late).then(
        () => null,
        (error) => ConnectError.from(error),
      );
      assert.ok(error === null || error.code === Code.DeadlineExceeded, String(error));
    }
  },
  async streams(client) {
    let keys = 0;
    for await (const page of client.scanKeys({ namespace: "keyvalue", ...starting("s/") })) keys += page.keys.length;
    assert.equal(keys, 10_000);
  },
  async leaves_a_stream(client) {
    for await (const page of client.scan({ namespace: "keyvalue", ...starting("s/"), pageSize: 5 })) {
      assert.ok(page.entries.length <= 5);
      break;
    }
    assert.ok((await client.exists({ namespace: "keyvalue", key: "connect/nothing" })).exists === false);
  },
  async fails_a_stream(client) {
    const error = await (async () => {
      for await (const page of client.scan({ namespace: "nowhere" })) assert.fail(String(page));
    })().then(
      () => assert.fail("it was not refused"),
      (error) => ConnectError.from(error),
    );
    assert.equal(error.code, Code.NotFound, String(error));
  },
  async moves_large_values(client, name) {
    const [key, value] = [`connect/large/${name}`, new Uint8Array(512 << 10).fill(7)];
    await client.set({ namespace: "keyvalue", key, value });
    const { entry } = await client.get({ namespace: "keyvalue", key });
    assert.ok(Buffer.from(entry.value).equals(Buffer.from(value)));
  },
  async calls_many_at_once(client, name) {
    const numbers = [...Array(100).keys()];
    const key = (n) => `connect/many/${name}/${n}`;
    const value = (n) => Buffer.from(String(n));
    await Promise.all(numbers.map((n) => client.set({ namespace: "keyvalue", key: key(n), value: value(n) })));
    const answers = await Promise.all(numbers.map((n) => client.get({ namespace: "keyvalue", key: key(n) })));
    answers.forEach(({ entry }, n) => assert.equal(Buffer.from(entry.value).toString(), String(n)));
  },
};

for (const [transport, made] of Object.entries(transports)) {
  const client = createClient(service, made);
  for (const [name, check] of Object.entries(checks)) {
    let error = null;
    try {
      await check(client, transport);
    } catch (thrown) {
      error = String(thrown.stack ?? thrown);
    }
    console.log(JSON.stringify({ name: `${transport}_${name}`, error }));
  }
}
process.exit(0);
