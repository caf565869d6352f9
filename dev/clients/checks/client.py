"""A grpcio client whose messages and methods come from the server's reflection alone."""

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

KEYVALUE = "prism.keyvalue.v1.KeyValueService"
TIMEOUT = 10


class Client:
    """One channel with a connection of its own."""

    def __init__(self, endpoint, options=(), authority=None, **arguments):
        options = [("grpc.use_local_subchannel_pool", 1), *options]
        if authority:
            credentials = grpc.ssl_channel_credentials(authority.read_bytes())
            self.channel = grpc.secure_channel(endpoint, credentials, options, **arguments)
        else:
            self.channel = grpc.insecure_channel(endpoint, options, **arguments)
        self.pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    def message(self, name):
        """The class of a message."""
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(name))

    def request(self, method, service=KEYVALUE, **fields):
        """A request of a method."""
        descriptor = self.pool.FindServiceByName(service).FindMethodByName(method)
        return message_factory.GetMessageClass(descriptor.input_type)(**fields)

    def stub(self, method, service=KEYVALUE):
        """What grpcio calls a multi-callable."""
        descriptor = self.pool.FindServiceByName(service).FindMethodByName(method)
        kind = self.channel.unary_stream if descriptor.server_streaming else self.channel.unary_unary
        return kind(
            f"/{service}/{method}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(descriptor.output_type).FromString,
        )

    def call(self, method, service=KEYVALUE, namespace="keyvalue", metadata=None, timeout=TIMEOUT, **fields):
        """Calls a unary method; returns its answer."""
        return self.with_call(method, service, namespace, metadata, timeout, **fields)[0]

    def with_call(self, method, service=KEYVALUE, namespace="keyvalue", metadata=None, timeout=TIMEOUT, **fields):
        """Calls a unary method; returns its answer and its trailers."""
        request = self.request(method, service, namespace=namespace, **fields)
        metadata = list((metadata or {}).items())
        answer, call = self.stub(method, service).with_call(request, metadata=metadata, timeout=timeout)
        return answer, dict(call.trailing_metadata())

    def stream(self, method, namespace="keyvalue", timeout=TIMEOUT, **fields):
        """Calls a server-streaming method."""
        return self.stub(method)(self.request(method, namespace=namespace, **fields), timeout=timeout)

    def refusal(self, method, **arguments):
        """Calls a unary method that must fail; returns how it did."""
        try:
            answer = self.call(method, **arguments)
        except grpc.RpcError as error:
            return Refusal(error)
        raise AssertionError(f"{method} was not refused, it answered {answer}")


class Refusal:
    """A failed call: its code, and its details decoded."""

    def __init__(self, error):
        self.code = error.code()
        self.message = error.details()
        self.info = self.retry = self.fields = None
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, error_details_pb2.BadRequest):
                if detail.Is(kind.DESCRIPTOR):
                    unpacked = kind()
                    detail.Unpack(unpacked)
                    if kind is error_details_pb2.ErrorInfo:
                        self.info = unpacked
                    elif kind is error_details_pb2.RetryInfo:
                        self.retry = unpacked.retry_delay.ToTimedelta()
                    else:
                        self.fields = [violation.field for violation in unpacked.field_violations]
        self.reason = self.info.reason if self.info else None

    def __repr__(self):
        return f"{self.code} {self.reason}: {self.message}"


def expect(refusal, code, reason):
    """The refusal has this code, and this reason in its ErrorInfo."""
    assert refusal.code is code and refusal.reason == reason, refusal
    assert refusal.info.domain == "prism", refusal.info
    assert refusal.message, "a refusal says in words what to do"
