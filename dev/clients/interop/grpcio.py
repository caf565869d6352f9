"""gRPC's interop cases with grpcio: `grpcio.py ADDRESS DESCRIPTORS [CERTIFICATE]`, where the second is a FileDescriptorSet of
grpc.testing; with a certificate over TLS, to a server that has it.

What each case has to do stands in gRPC's interop-test-descriptions.md. Nothing is generated: messages are made from the
descriptors.
"""

import socket
import sys
import threading
import time
import traceback
from concurrent import futures
from pathlib import Path

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "/grpc.testing.TestService/"
LARGE_REQUEST, LARGE_RESPONSE = 271828, 314159
REQUEST_SIZES, RESPONSE_SIZES = (27182, 8, 1828, 45904), (31415, 9, 2653, 58979)
TIMEOUT = 20
# Calls of each soak, and how many are under way at once.
SOAK_CALLS, SOAK_AT_ONCE = 200, 4


class Tap:
    """A way to the server on which what comes back is counted, and what goes there can be held back."""

    def __init__(self, server):
        host, _, port = server.rpartition(":")
        self.server = (host, int(port))
        self.came, self.is_mute = 0, False
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % listener.getsockname()[1]
        threading.Thread(target=self.accept, args=(listener,), daemon=True).start()

    def accept(self, listener):
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(self.server)
            for way in ((client, server, False), (server, client, True)):
                threading.Thread(target=self.carry, args=way, daemon=True).start()

    def carry(self, source, target, is_answer):
        try:
            while data := source.recv(65536):
                if is_answer:
                    self.came += len(data)
                elif self.is_mute:
                    continue
                target.sendall(data)
        except OSError:
            pass

    def weigh(self, wanted, call):
        """Whether about so many bytes come for what `call` asks for: framing, heads and acknowledgements may add a little."""
        before = self.came
        call()
        came = self.came - before
        if not wanted <= came < wanted + 8192:
            raise AssertionError(f"{came} bytes came, and not about {wanted}")


class Stub:
    """The calls of grpc.testing.TestService, and its messages by name."""

    def __init__(self, address, descriptors, certificate, options=()):
        self.made_of = (descriptors, certificate)
        self.address = address
        # Each has connections of its own.
        options = [("grpc.use_local_subchannel_pool", 1), *options]
        if certificate:
            self.channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(certificate), options)
        else:
            self.channel = grpc.insecure_channel(address, options)
        pool = descriptor_pool.DescriptorPool()
        files = descriptor_pb2.FileDescriptorSet.FromString(descriptors)
        for file in files.file:
            pool.Add(file)
        self.pool = pool

    def __getattr__(self, name):
        package = "xds.orca." if name.startswith("Orca") else "grpc.testing."
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(package + name))

    def another(self, address=None, options=()):
        """One with a channel of its own."""
        return Stub(address or self.address, *self.made_of, options)

    def call(self, shape, name, request, response):
        """The multicallable of a method."""
        path = name if name.startswith("/") else SERVICE + name
        return getattr(self.channel, shape)(path, request.SerializeToString, response.FromString)

    def empty_call(self, **options):
        return self.call("unary_unary", "EmptyCall", self.Empty, self.Empty)(self.Empty(), timeout=TIMEOUT, **options)

    def unary(self, *, with_call=False, timeout=TIMEOUT, options=None, **fields):
        method = self.call("unary_unary", "UnaryCall", self.SimpleRequest, self.SimpleResponse)
        request = self.SimpleRequest(**fields)
        return (method.with_call if with_call else method)(request, timeout=timeout, **(options or {}))

    def large(self, **fields):
        return self.unary(response_size=LARGE_RESPONSE, payload=self.Payload(body=bytes(LARGE_REQUEST)), **fields)

    def output(self, request, **options):
        method = self.call("unary_stream", "StreamingOutputCall", self.StreamingOutputCallRequest, self.StreamingOutputCallResponse)
        return method(request, timeout=TIMEOUT, **options)

    def input(self, requests, **options):
        method = self.call("stream_unary", "StreamingInputCall", self.StreamingInputCallRequest, self.StreamingInputCallResponse)
        return method(requests, timeout=TIMEOUT, **options)

    def duplex(self, requests, timeout=TIMEOUT, **options):
        method = self.call("stream_stream", "FullDuplexCall", self.StreamingOutputCallRequest, self.StreamingOutputCallResponse)
        return method(requests, timeout=timeout, **options)

    def ask(self, size, body=0, **fields):
        """A request for one message of `size` bytes."""
        parameters = self.ResponseParameters(size=size)
        return self.StreamingOutputCallRequest(response_parameters=[parameters], payload=self.Payload(body=bytes(body)), **fields)


def same(seen, wanted):
    if seen != wanted:
        raise AssertionError(f"{seen!r} is not {wanted!r}")


def fails(code, call, details=None):
    """What `call` has to fail with."""
    try:
        call()
    except grpc.RpcError as error:
        same(error.code(), code)
        if details is not None:
            same(error.details(), details)
    else:
        raise AssertionError(f"{code} was to come")


def empty_unary(stub):
    same(stub.empty_call(), stub.Empty())


def large_unary(stub):
    same(stub.large().payload.body, bytes(LARGE_RESPONSE))


def client_compressed_unary(stub):
    expect = {flag: stub.BoolValue(value=flag) for flag in (True, False)}
    fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: stub.large(expect_compressed=expect[True]))
    packed = stub.large(expect_compressed=expect[True], options={"compression": grpc.Compression.Gzip})
    same(len(packed.payload.body), LARGE_RESPONSE)
    same(len(stub.large(expect_compressed=expect[False]).payload.body), LARGE_RESPONSE)


def unknown_encoding_is_told_what_there_is(stub):
    """The encoding deflate, which Prism does not know."""
    try:
        stub.large(options={"compression": grpc.Compression.Deflate})
    except grpc.RpcError as error:
        same(error.code(), grpc.StatusCode.UNIMPLEMENTED)
    else:
        raise AssertionError("deflate is not known")


def server_compressed_unary(stub):
    """grpcio does not tell how a message came; what came over the wire does."""
    tap = Tap(stub.address)
    tapped = stub.another(tap.address)
    tapped.empty_call()
    for flag in (True, False):
        def call():
            same(len(tapped.large(response_compressed=tapped.BoolValue(value=flag)).payload.body), LARGE_RESPONSE)

        # Zeros in gzip are next to nothing.
        tap.weigh(0 if flag else LARGE_RESPONSE, call)
    tapped.channel.close()


def client_streaming(stub):
    requests = [stub.StreamingInputCallRequest(payload=stub.Payload(body=bytes(size))) for size in REQUEST_SIZES]
    same(stub.input(iter(requests)).aggregated_payload_size, sum(REQUEST_SIZES))


def client_compressed_streaming(stub):
    def requests(flag, size):
        yield stub.StreamingInputCallRequest(payload=stub.Payload(body=bytes(size)), expect_compressed=stub.BoolValue(value=flag))

    fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: stub.input(requests(True, 27182)))
    packed = stub.input(requests(True, 27182), compression=grpc.Compression.Gzip)
    same(packed.aggregated_payload_size, 27182)
    same(stub.input(requests(False, 45904)).aggregated_payload_size, 45904)


def server_streaming(stub):
    parameters = [stub.ResponseParameters(size=size) for size in RESPONSE_SIZES]
    responses = stub.output(stub.StreamingOutputCallRequest(response_parameters=parameters))
    same([len(response.payload.body) for response in responses], list(RESPONSE_SIZES))


def server_compressed_streaming(stub):
    tap = Tap(stub.address)
    tapped = stub.another(tap.address)
    tapped.empty_call()
    for first in (True, False):
        def call():
            parameters = [
                stub.ResponseParameters(size=31415, compressed=stub.BoolValue(value=first)),
                stub.ResponseParameters(size=92653, compressed=stub.BoolValue(value=not first)),
            ]
            responses = tapped.output(stub.StreamingOutputCallRequest(response_parameters=parameters))
            same([len(response.payload.body) for response in responses], [31415, 92653])

        tap.weigh(92653 if first else 31415, call)
    tapped.channel.close()


class Pipe:
    """Requests that are sent one by one."""

    def __init__(self):
        import queue

        self.queue = queue.Queue()

    def send(self, request):
        self.queue.put(request)

    def close(self):
        self.queue.put(None)

    def __iter__(self):
        return iter(self.queue.get, None)


def ping_pong(stub):
    pipe = Pipe()
    responses = stub.duplex(iter(pipe))
    for request_size, response_size in zip(REQUEST_SIZES, RESPONSE_SIZES):
        pipe.send(stub.ask(response_size, request_size))
        same(len(next(responses).payload.body), response_size)
    pipe.close()
    same(list(responses), [])


def empty_stream(stub):
    same(list(stub.duplex(iter(()))), [])


def cancel_after_begin(stub):
    pipe = Pipe()
    method = stub.call("stream_unary", "StreamingInputCall", stub.StreamingInputCallRequest, stub.StreamingInputCallResponse)
    call = method.future(iter(pipe), timeout=TIMEOUT)
    call.cancel()
    pipe.close()
    same(call.cancelled(), True)
    same(call.code(), grpc.StatusCode.CANCELLED)


def cancel_after_first_response(stub):
    pipe = Pipe()
    responses = stub.duplex(iter(pipe))
    pipe.send(stub.ask(31415, 27182))
    same(len(next(responses).payload.body), 31415)
    responses.cancel()
    fails(grpc.StatusCode.CANCELLED, lambda: next(responses))
    pipe.close()


def expired(stub):
    """How many calls have ended under their handlers at the server."""
    method = stub.call("unary_unary", "EmptyCall", stub.Empty, stub.Empty)
    _, call = method.with_call(stub.Empty(), timeout=TIMEOUT)
    return int(dict(call.trailing_metadata())["x-prism-expired"])


def timeout_on_sleeping_server(stub):
    """grpcio watches the time itself; so it is kept from telling the server, which has to end the call by what it was sent."""
    before, tap = expired(stub), Tap(stub.address)
    tapped, pipe = stub.another(tap.address), Pipe()
    tapped.empty_call()
    responses = tapped.duplex(iter(pipe), timeout=0.5)
    pipe.send(stub.ask(1, 27182))
    next(responses)  # The server has the call.
    tap.is_mute = True
    fails(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: next(responses))
    pipe.close()
    until = time.monotonic() + TIMEOUT
    while expired(stub) == before:
        if time.monotonic() > until:
            raise AssertionError("the server lets the call go on")
        time.sleep(0.005)
    tapped.channel.close()


def custom_metadata(stub):
    initial, trailing = ("x-grpc-test-echo-initial", "test_initial_metadata_value"), ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab")
    _, call = stub.large(with_call=True, options={"metadata": (initial, trailing)})
    same(initial in tuple(call.initial_metadata()), True)
    same(trailing in tuple(call.trailing_metadata()), True)
    call = stub.duplex(iter([stub.ask(LARGE_RESPONSE, LARGE_REQUEST)]), metadata=(initial, trailing))
    same(len(list(call)), 1)
    same(initial in tuple(call.initial_metadata()), True)
    same(trailing in tuple(call.trailing_metadata()), True)


def status_code_and_message(stub):
    status = stub.EchoStatus(code=2, message="test status message")
    fails(grpc.StatusCode.UNKNOWN, lambda: stub.unary(response_status=status), status.message)
    request = stub.StreamingOutputCallRequest(response_status=status)
    fails(grpc.StatusCode.UNKNOWN, lambda: list(stub.duplex(iter([request]))), status.message)


def special_status_message(stub):
    message = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
    status = stub.EchoStatus(code=2, message=message)
    fails(grpc.StatusCode.UNKNOWN, lambda: stub.unary(response_status=status), message)


def unimplemented_method(stub):
    method = stub.call("unary_unary", "UnimplementedCall", stub.Empty, stub.Empty)
    fails(grpc.StatusCode.UNIMPLEMENTED, lambda: method(stub.Empty(), timeout=TIMEOUT))


def unimplemented_service(stub):
    method = stub.call("unary_unary", "/grpc.testing.UnimplementedService/UnimplementedCall", stub.Empty, stub.Empty)
    fails(grpc.StatusCode.UNIMPLEMENTED, lambda: method(stub.Empty(), timeout=TIMEOUT))


def pick_first_unary(stub):
    config = '{"loadBalancingConfig": [{"pick_first": {}}]}'
    picking = stub.another(options=[("grpc.service_config", config)])
    same({picking.unary(fill_server_id=True).server_id for _ in range(100)}, {"prism"})
    picking.channel.close()


def orca_oob(stub):
    path = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics"
    reports = stub.call("unary_stream", path, stub.OrcaLoadReportRequest, stub.OrcaLoadReport)(stub.OrcaLoadReportRequest(), timeout=TIMEOUT)
    pipe = Pipe()
    responses = stub.duplex(iter(pipe))
    for cpu, memory, util in ((0.8210, 0.5847, 0.30499), (0.29309, 0.2, 0.2039)):
        sent = stub.TestOrcaReport(cpu_utilization=cpu, memory_utilization=memory, utilization={"util": util})
        told = stub.OrcaLoadReport(cpu_utilization=cpu, mem_utilization=memory, utilization={"util": util})
        pipe.send(stub.ask(1, orca_oob_report=sent))
        next(responses)
        while next(reports) != told:
            pass
    pipe.close()
    reports.cancel()


def rpc_soak(stub):
    with futures.ThreadPoolExecutor(SOAK_AT_ONCE) as pool:
        for answer in pool.map(lambda _: stub.large(), range(SOAK_CALLS)):
            same(len(answer.payload.body), LARGE_RESPONSE)


def channel_soak(stub):
    def call(_):
        alone = stub.another()
        same(len(alone.large().payload.body), LARGE_RESPONSE)
        alone.channel.close()

    with futures.ThreadPoolExecutor(SOAK_AT_ONCE) as pool:
        list(pool.map(call, range(SOAK_CALLS)))


CASES = [
    empty_unary, large_unary, client_compressed_unary, unknown_encoding_is_told_what_there_is, server_compressed_unary,
    client_streaming, client_compressed_streaming, server_streaming, server_compressed_streaming, ping_pong, empty_stream,
    cancel_after_begin, cancel_after_first_response, timeout_on_sleeping_server, custom_metadata, status_code_and_message,
    special_status_message, unimplemented_method, unimplemented_service, pick_first_unary, orca_oob, rpc_soak,
    channel_soak,
]  # fmt: skip


# What cannot be looked at through it.
WITHOUT = {"orca_per_rpc": "it takes the trailer with the load report for its load balancing policies, and shows it to nobody"}


def main():
    address, descriptors, *more = sys.argv[1:]
    certificate = Path(more[0]).read_bytes() if more else None
    with open(descriptors, "rb") as file:
        stub = Stub(address, file.read(), certificate)
    failed = 0
    for case in CASES:
        began = time.monotonic()
        try:
            case(stub)
        except Exception:  # noqa: BLE001: a case may fail in any way
            failed += 1
            print(f"FAILED  grpcio: {case.__name__}")
            traceback.print_exc()
        else:
            print(f"ok      grpcio: {case.__name__} ({1000 * (time.monotonic() - began):.0f} ms)")
    for name, why in WITHOUT.items():
        print(f"without grpcio: {name} ({why})")
    sys.exit(1 if failed else 0)


main()
