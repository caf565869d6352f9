"""gRPC's interop cases with grpcio: `grpcio.py ADDRESS DESCRIPTORS [CERTIFICATE]`, where the second is a FileDescriptorSet of
grpc.testing; with a certificate over TLS, to a server that has it.

What each case has to do stands in gRPC's interop-test-descriptions.md. Nothing is generated: messages are made from the
descriptors.
"""

import sys
import time
import traceback
from pathlib import Path

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "/grpc.testing.TestService/"
LARGE_REQUEST, LARGE_RESPONSE = 271828, 314159
REQUEST_SIZES, RESPONSE_SIZES = (27182, 8, 1828, 45904), (31415, 9, 2653, 58979)
TIMEOUT = 20


class Stub:
    """The calls of grpc.testing.TestService, and its messages by name."""

    def __init__(self, address, descriptors, certificate):
        if certificate:
            self.channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(certificate))
        else:
            self.channel = grpc.insecure_channel(address)
        pool = descriptor_pool.DescriptorPool()
        files = descriptor_pb2.FileDescriptorSet.FromString(descriptors)
        for file in files.file:
            pool.Add(file)
        self.pool = pool

    def __getattr__(self, name):
        found = self.pool.FindMessageTypeByName("grpc.testing." + name)
        return message_factory.GetMessageClass(found)

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
    for flag in (True, False):
        same(len(stub.large(response_compressed=stub.BoolValue(value=flag)).payload.body), LARGE_RESPONSE)


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
    for first in (True, False):
        parameters = [
            stub.ResponseParameters(size=31415, compressed=stub.BoolValue(value=first)),
            stub.ResponseParameters(size=92653, compressed=stub.BoolValue(value=not first)),
        ]
        responses = stub.output(stub.StreamingOutputCallRequest(response_parameters=parameters))
        same([len(response.payload.body) for response in responses], [31415, 92653])


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


def timeout_on_sleeping_server(stub):
    pipe = Pipe()
    pipe.send(stub.StreamingOutputCallRequest(payload=stub.Payload(body=bytes(27182))))
    fails(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: next(stub.duplex(iter(pipe), timeout=0.001)))
    pipe.close()


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


CASES = [
    empty_unary, large_unary, client_compressed_unary, unknown_encoding_is_told_what_there_is, server_compressed_unary,
    client_streaming, client_compressed_streaming, server_streaming, server_compressed_streaming, ping_pong, empty_stream,
    cancel_after_begin, cancel_after_first_response, timeout_on_sleeping_server, custom_metadata, status_code_and_message,
    special_status_message, unimplemented_method, unimplemented_service,
]  # fmt: skip


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
    sys.exit(1 if failed else 0)


main()
