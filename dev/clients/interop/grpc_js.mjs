// gRPC's interop cases with @grpc/grpc-js: `node grpc_js.mjs ADDRESS FOLDER-OF-PROTOS [CERTIFICATE]`, with NODE_MODULES naming where it is
// installed; with a certificate over TLS, to a server that has it.
//
// What each case has to do stands in gRPC's interop-test-descriptions.md.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import net from "node:net";
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

// Calls of each soak, and how many are under way at once.
const SOAK = { calls: 200, atOnce: 4 };

const loaded = loader.loadSync(["grpc/testing/test.proto", "xds/orca.proto"], { includeDirs: [protos], keepCase: true });
const { grpc: { testing }, xds: { orca } } = grpc.loadPackageDefinition(loaded);
const deserialize = orca.OpenRcaService.service.StreamCoreMetrics.responseDeserialize;
const credentials = certificate
  ? grpc.credentials.createSsl(readFileSync(certificate))
  : grpc.credentials.createInsecure();
const clients = [];

function client(options = {}, service = testing.TestService, to = address) {
  // Each has connections of its own.
  const made = new service(to, credentials, { "grpc.use_local_subchannel_pool": 1, ...options });
  clients.push(made);
  return made;
}

const plain = client();
const packing = client({ "grpc.default_compression_algorithm": GZIP });

/** A way to the server on which what comes back is counted, and what goes there can be held back. */
async function tap() {
  const made = { came: 0, isMute: false };
  const [host, port] = [address.slice(0, address.lastIndexOf(":")), Number(address.slice(address.lastIndexOf(":") + 1))];
  const server = net.createServer((socket) => {
    const upstream = net.connect(port, host);
    socket.on("data", (data) => made.isMute || upstream.write(data));
    upstream.on("data", (data) => {
      made.came += data.length;
      socket.write(data);
    });
    for (const [one, other] of [[socket, upstream], [upstream, socket]]) {
      one.on("error", () => other.destroy());
      one.on("close", () => other.destroy());
    }
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  server.unref();
  made.address = `127.0.0.1:${server.address().port}`;
  /** Whether about so many bytes come for what `call` asks for: framing, heads and acknowledgements may add a little. */
  made.weigh = async (wanted, call) => {
    const before = made.came;
    await call();
    const came = made.came - before;
    assert.ok(wanted <= came && came < wanted + 8192, `${came} bytes came, and not about ${wanted}`);
  };
  return made;
}

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
    // grpc-js does not tell how a message came; what came over the wire does.
    const way = await tap();
    const tapped = client({}, testing.TestService, way.address);
    await unary(tapped, "EmptyCall", {});
    for (const value of [true, false]) {
      // Zeros in gzip are next to nothing.
      await way.weigh(value ? 0 : LARGE_RESPONSE, async () => {
        const { answer } = await unary(tapped, "UnaryCall", large({ response_compressed: { value } }));
        assert.equal(answer.payload.body.length, LARGE_RESPONSE);
      });
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
    const way = await tap();
    const tapped = client({}, testing.TestService, way.address);
    await unary(tapped, "EmptyCall", {});
    for (const first of [true, false]) {
      const response_parameters = [
        { size: 31415, compressed: { value: first } },
        { size: 92653, compressed: { value: !first } },
      ];
      await way.weigh(first ? 92653 : 31415, async () => {
        const { messages } = await whole(tapped.StreamingOutputCall({ response_parameters }, new grpc.Metadata(), until()));
        assert.deepEqual(sizes(messages), [31415, 92653]);
      });
    }
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
    // grpc-js watches the time itself; so it is kept from telling the server, which has to end the call by what it was sent.
    const expired = async () => Number((await unary(plain, "EmptyCall", {})).trailers.get("x-prism-expired")[0]);
    const before = await expired();
    const way = await tap();
    const tapped = client({}, testing.TestService, way.address);
    await unary(tapped, "EmptyCall", {});
    const call = tapped.FullDuplexCall(new grpc.Metadata(), { deadline: Date.now() + 500 });
    call.once("data", () => (way.isMute = true)); // The server has the call.
    call.write(ask(1, 27182));
    await fails(grpc.status.DEADLINE_EXCEEDED, whole(call));
    assert.ok(way.isMute, "no answer came in time");
    const last = Date.now() + 20_000;
    while ((await expired()) === before) assert.ok(Date.now() < last, "the server lets the call go on");
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
  async pick_first_unary() {
    const picking = client({ "grpc.service_config": JSON.stringify({ loadBalancingConfig: [{ pick_first: {} }] }) });
    const ids = new Set();
    for (let call = 0; call < 100; call += 1) ids.add((await unary(picking, "UnaryCall", { fill_server_id: true })).answer.server_id);
    assert.deepEqual([...ids], ["prism"]);
  },
  async orca_per_rpc() {
    // Read where it is sent: grpc-js tells load reports to its load balancing policies alone.
    const load = { cpu_utilization: 0.821, memory_utilization: 0.5847, request_cost: { cost: 3456.32 }, utilization: { util: 0.30499 } };
    const { trailers } = await unary(plain, "UnaryCall", { orca_per_query_report: load });
    const told = report(trailers.get("endpoint-load-metrics-bin")[0]);
    assert.deepEqual(told, asTold(load));
  },
  async orca_oob() {
    const watcher = new grpc.Client(address, credentials);
    clients.push(watcher);
    const reports = watcher.makeServerStreamRequest(
      "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics", () => Buffer.alloc(0), report, {}, new grpc.Metadata(), until());
    const cancelled = new Promise((resolve) => reports.on("error", resolve));
    const call = plain.FullDuplexCall(new grpc.Metadata(), until());
    for (const [cpu_utilization, memory_utilization, util] of [[0.821, 0.5847, 0.30499], [0.29309, 0.2, 0.2039]]) {
      const load = { cpu_utilization, memory_utilization, request_cost: {}, utilization: { util } };
      call.write(ask(1, 0, { orca_oob_report: load }));
      const wanted = JSON.stringify(asTold(load));
      await new Promise((resolve, reject) => {
        const look = (told) => {
          if (JSON.stringify(told) !== wanted) return;
          reports.off("data", look);
          resolve();
        };
        reports.on("data", look);
        cancelled.then(reject);
      });
    }
    call.on("data", () => {});
    call.end();
    reports.cancel();
    assert.equal((await cancelled).code, grpc.status.CANCELLED);
  },
  async rpc_soak() {
    await soak(() => plain);
  },
  async channel_soak() {
    await soak(() => client());
  },
};

/** A load report that has come. */
const report = (bytes) => asTold(deserialize(bytes));

const asTold = ({ cpu_utilization = 0, mem_utilization, memory_utilization, request_cost = {}, utilization = {} }) => ({
  cpu_utilization,
  mem_utilization: mem_utilization ?? memory_utilization ?? 0,
  request_cost: { ...request_cost },
  utilization: { ...utilization },
});

/** Large calls, some at a time. */
async function soak(stub) {
  let left = SOAK.calls;
  const work = async () => {
    while (left > 0) {
      left -= 1;
      const used = stub();
      assert.equal((await unary(used, "UnaryCall", large())).answer.payload.body.length, LARGE_RESPONSE);
      if (used !== plain) used.close();
    }
  };
  await Promise.all(Array.from({ length: SOAK.atOnce }, work));
}

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
