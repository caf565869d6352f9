// gRPC's interop cases with @grpc/grpc-js: `node grpc_js.mjs ADDRESS FOLDER-OF-PROTOS [CERTIFICATE]`, with NODE_MODULES naming where it is
// installed; with a certificate over TLS, to a server that has it.
//
// What each case has to do stands in gRPC's interop-test-descriptions.md.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const require = createRequire(path.join(process.env.NODE_MODULES, "x.js"));
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, protos, certificate] = process.argv.slice(2);
const LARGE_REQUEST = 271828;
const LARGE_RESPONSE = 314159;
const REQUEST_SIZES = [27182, 8, 1828, 45904];
const RESPONSE_SIZES = [31415, 9, 2653, 58979];
const GZIP = 2;

const loaded = loader.loadSync("grpc/testing/test.proto", { includeDirs: [protos], keepCase: true });
const testing = grpc.loadPackageDefinition(loaded).grpc.testing;
const credentials = certificate
  ? grpc.credentials.createSsl(readFileSync(certificate))
  : grpc.credentials.createInsecure();
const clients = [];

function client(options = {}, service = testing.TestService) {
  const made = new service(address, credentials, options);
  clients.push(made);
  return made;
}

const plain = client();
const packing = client({ "grpc.default_compression_algorithm": GZIP });

const zeros = (size) => ({ body: Buffer.alloc(size) });
const until = () => ({ deadline: Date.now() + 20_000 });
const large = (more = {}) => ({ response_size: LARGE_RESPONSE, payload: zeros(LARGE_REQUEST), ...more });
const ask = (size, body, more = {}) => ({ response_parameters: [{ size }], payload: zeros(body), ...more });

/** A unary call: its answer, its head and its trailers. */
function unary(stub, method, request, metadata = new grpc.Metadata()) {
  return new Promise((resolve, reject) => {
    let head;
    let trailers;
    const call = stub[method](request, metadata, until(), (error, answer) => {
      if (error) reject(error);
      else setImmediate(() => resolve({ answer, head, trailers }));
    });
    call.on("metadata", (metadata) => (head = metadata));
    call.on("status", (status) => (trailers = status.metadata));
  });
}

/** What has come of a call that streams, once it has ended. */
function whole(call) {
  return new Promise((resolve, reject) => {
    const seen = { messages: [] };
    call.on("data", (message) => seen.messages.push(message));
    call.on("metadata", (metadata) => (seen.head = metadata));
    call.on("error", reject);
    call.on("status", (status) => {
      seen.status = status;
      if (status.code === grpc.status.OK) resolve(seen);
    });
  });
}

/** A client-streaming call of these requests. */
function input(stub, requests) {
  return new Promise((resolve, reject) => {
    const call = stub.StreamingInputCall(new grpc.Metadata(), until(), (error, answer) => (error ? reject(error) : resolve(answer)));
    for (const request of requests) call.write(request);
    call.end();
  });
}

async function fails(code, promise, details) {
  await assert.rejects(promise, (error) => {
    assert.equal(error.code, code, error.message);
    if (details !== undefined) assert.equal(error.details, details);
    return true;
  });
}

const sizes = (messages) => messages.map((message) => message.payload.body.length);

const CASES = {
  async empty_unary() {
    assert.deepEqual((await unary(plain, "EmptyCall", {})).answer, {});
  },
  async large_unary() {
    const { answer } = await unary(plain, "UnaryCall", large());
    assert.ok(answer.payload.body.equals(Buffer.alloc(LARGE_RESPONSE)));
  },
  async client_compressed_unary() {
    const expecting = (value) => large({ expect_compressed: { value } });
    await fails(grpc.status.INVALID_ARGUMENT, unary(plain, "UnaryCall", expecting(true)));
    assert.equal((await unary(packing, "UnaryCall", expecting(true))).answer.payload.body.length, LARGE_RESPONSE);
    assert.equal((await unary(plain, "UnaryCall", expecting(false))).answer.payload.body.length, LARGE_RESPONSE);
  },
  async server_compressed_unary() {
    for (const value of [true, false]) {
      const { answer, head } = await unary(plain, "UnaryCall", large({ response_compressed: { value } }));
      assert.equal(answer.payload.body.length, LARGE_RESPONSE);
    }
  },
  async client_streaming() {
    const answer = await input(plain, REQUEST_SIZES.map((size) => ({ payload: zeros(size) })));
    assert.equal(answer.aggregated_payload_size, 74922);
  },
  async client_compressed_streaming() {
    const expecting = (value, size) => ({ payload: zeros(size), expect_compressed: { value } });
    await fails(grpc.status.INVALID_ARGUMENT, input(plain, [expecting(true, 27182)]));
    const answer = await input(packing, [expecting(true, 27182), expecting(true, 45904)]);
    assert.equal(answer.aggregated_payload_size, 73086);
  },
  async server_streaming() {
    const request = { response_parameters: RESPONSE_SIZES.map((size) => ({ size })) };
    const { messages } = await whole(plain.StreamingOutputCall(request, new grpc.Metadata(), until()));
    assert.deepEqual(sizes(messages), RESPONSE_SIZES);
  },
  async server_compressed_streaming() {
    const response_parameters = [
      { size: 31415, compressed: { value: true } },
      { size: 92653, compressed: { value: false } },
    ];
    const { messages } = await whole(plain.StreamingOutputCall({ response_parameters }, new grpc.Metadata(), until()));
    assert.deepEqual(sizes(messages), [31415, 92653]);
  },
  async ping_pong() {
    const call = plain.FullDuplexCall(new grpc.Metadata(), until());
    const seen = [];
    const next = () => call.write(ask(RESPONSE_SIZES[seen.length], REQUEST_SIZES[seen.length]));
    call.on("data", (message) => {
      seen.push(message.payload.body.length);
      if (seen.length < RESPONSE_SIZES.length) next();
      else call.end();
    });
    next();
    await whole(call);
    assert.deepEqual(seen, RESPONSE_SIZES);
  },
  async empty_stream() {
    const call = plain.FullDuplexCall(new grpc.Metadata(), until());
    call.end();
    assert.deepEqual((await whole(call)).messages, []);
  },
  async cancel_after_begin() {
    const ended = new Promise((resolve, reject) => {
      const call = plain.StreamingInputCall(new grpc.Metadata(), until(), (error) => reject(error));
      setImmediate(() => call.cancel());
    });
    await fails(grpc.status.CANCELLED, ended);
  },
  async cancel_after_first_response() {
    const call = plain.FullDuplexCall(new grpc.Metadata(), until());
    call.once("data", () => call.cancel());
    call.write(ask(31415, 27182));
    await fails(grpc.status.CANCELLED, whole(call));
  },
  async timeout_on_sleeping_server() {
    const call = plain.FullDuplexCall(new grpc.Metadata(), { deadline: Date.now() + 1 });
    call.write({ payload: zeros(27182) });
    await fails(grpc.status.DEADLINE_EXCEEDED, whole(call));
  },
  async custom_metadata() {
    const metadata = new grpc.Metadata();
    metadata.set("x-grpc-test-echo-initial", "test_initial_metadata_value");
    metadata.set("x-grpc-test-echo-trailing-bin", Buffer.from("ababab", "hex"));
    const check = (head, trailers) => {
      assert.deepEqual(head.get("x-grpc-test-echo-initial"), ["test_initial_metadata_value"]);
      assert.deepEqual(trailers.get("x-grpc-test-echo-trailing-bin"), [Buffer.from("ababab", "hex")]);
    };
    const { head, trailers } = await unary(plain, "UnaryCall", large(), metadata);
    check(head, trailers);
    const call = plain.FullDuplexCall(metadata, until());
    call.write(ask(LARGE_RESPONSE, LARGE_REQUEST));
    call.end();
    const seen = await whole(call);
    check(seen.head, seen.status.metadata);
  },
  async status_code_and_message() {
    const response_status = { code: 2, message: "test status message" };
    await fails(grpc.status.UNKNOWN, unary(plain, "UnaryCall", { response_status }), response_status.message);
    const call = plain.FullDuplexCall(new grpc.Metadata(), until());
    call.write({ response_status });
    call.end();
    await fails(grpc.status.UNKNOWN, whole(call), response_status.message);
  },
  async special_status_message() {
    const message = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n";
    await fails(grpc.status.UNKNOWN, unary(plain, "UnaryCall", { response_status: { code: 2, message } }), message);
  },
  async unimplemented_method() {
    await fails(grpc.status.UNIMPLEMENTED, unary(plain, "UnimplementedCall", {}));
  },
  async unimplemented_service() {
    await fails(grpc.status.UNIMPLEMENTED, unary(client({}, testing.UnimplementedService), "UnimplementedCall", {}));
  },
};

let failed = 0;
for (const [name, run] of Object.entries(CASES)) {
  const began = performance.now();
  try {
    await run();
    console.log(`ok      grpc-js: ${name} (${Math.round(performance.now() - began)} ms)`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  grpc-js: ${name}\n${error.stack}`);
  }
}
for (const made of clients) made.close();
process.exit(failed ? 1 : 0);
