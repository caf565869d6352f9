"""Stores a value and reads it back. Nothing is generated: the server itself says which messages it takes (reflection).

python3 -m venv .venv && .venv/bin/pip install -r examples/python/requirements.txt
.venv/bin/python examples/python/first_call.py
"""

import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

channel = grpc.insecure_channel(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7400")
service = DescriptorPool(ProtoReflectionDescriptorDatabase(channel)).FindServiceByName("prism.keyvalue.v1.KeyValueService")


def call(name, metadata=(), **fields):
    """Calls a method; returns its answer and what the server says about it."""
    method = service.methods_by_name[name]
    stub = channel.unary_unary(
        f"/{service.full_name}/{name}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    request = GetMessageClass(method.input_type)(namespace="keyvalue", **fields)
    answer, done = stub.with_call(request, metadata=metadata, timeout=5)
    return answer, dict(done.trailing_metadata())


_, said = call("Set", key="greeting", value=b"hello", ttl={"seconds": 3600})
print("stored, durable at level", said["prism-durability"])

answer, _ = call("Get", key="greeting")
print("read", answer.entry.value, "which expires at", answer.entry.expires_at.ToJsonString())

# The same idempotency key again: the first outcome, and no second effect, also after a crash of the server.
for attempt in ("first", "again"):
    retry = [("prism-idempotency-key", "order-42")]
    answer, said = call("CompareAndSwap", retry, key="order-42", expected_absent={}, value=b"paid")
    print(attempt, "swapped:", answer.swapped, "replayed:", said.get("prism-replayed", "false"))

try:
    call("Get", key="")
except grpc.RpcError as error:
    print("refused:", error.code().name, error.details())
