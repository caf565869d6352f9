"""gRPC itself: metadata, statuses, limits, streams, cancellation, health, reflection."""

import asyncio
import json
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from .client import KEYVALUE, Client, Refusal, expect
from .run import check

QUEUE = "prism.queue.v1.QueueService"
MIB = 1 << 20


@check
def durability_and_record_stand_in_the_trailers(client):
    for namespace, level in (("keyvalue", "wal"), ("cache", "memory"), ("ledger", "strong")):
        _, trailers = client.with_call("Set", namespace=namespace, key="d/one", value=b"1")
        assert trailers["prism-durability"] == level, trailers
        assert ("prism-lsn" in trailers) == (level != "memory"), trailers
    _, trailers = client.with_call("Get", key="d/one")
    assert "prism-durability" not in trailers, trailers


@check
def durability_can_be_raised_and_never_lowered(client):
    for namespace, asked, reached in (("cache", "wal", "wal"), ("keyvalue", "memory", "wal"), ("cache", "strong", "strong")):
        metadata = {"prism-durability": asked}
        _, trailers = client.with_call("Set", namespace=namespace, metadata=metadata, key="d/two", value=b"1")
        assert trailers["prism-durability"] == reached, (namespace, asked, trailers)
    refusal = client.refusal("Set", metadata={"prism-durability": "most"}, key="d/two", value=b"1")
    expect(refusal, grpc.StatusCode.INVALID_ARGUMENT, "DURABILITY_INVALID")


@check
def reads_wait_for_the_record_they_name(client):
    for n in range(50):
        _, trailers = client.with_call("Set", key="d/after", value=b"%d" % n)
        answer = client.call("Get", metadata={"prism-after": trailers["prism-lsn"]}, key="d/after")
        assert answer.entry.value == b"%d" % n, answer
    refusal = client.refusal("Get", metadata={"prism-after": "nonsense"}, key="d/after")
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT, refusal


@check
def a_retried_key_gets_the_first_outcome(client):
    key = {"prism-idempotency-key": str(uuid.uuid4())}
    arguments = {"metadata": key, "key": "i/one", "expected_absent": {}, "value": b"1"}
    first, trailers = client.with_call("CompareAndSwap", **arguments)
    assert first.swapped and "prism-replayed" not in trailers
    again, replayed = client.with_call("CompareAndSwap", **arguments)
    assert again == first and replayed["prism-replayed"] == "true", (again, replayed)
    assert replayed["prism-lsn"] == trailers["prism-lsn"]
    refusal = client.refusal("CompareAndSwap", **{**arguments, "value": b"2"})
    expect(refusal, grpc.StatusCode.FAILED_PRECONDITION, "IDEMPOTENCY_KEY_REUSED")
    refusal = client.refusal("Set", metadata={"prism-idempotency-key": "k" * 129}, key="i/one", value=b"")
    expect(refusal, grpc.StatusCode.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_INVALID")


@check
def one_key_at_once_has_one_effect(client):
    key = {"prism-idempotency-key": str(uuid.uuid4())}

    def swap(_):
        return client.with_call("CompareAndSwap", metadata=key, key="i/race", expected_absent={}, value=b"1")

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(swap, range(16)))
    assert all(answer.swapped for answer, _ in answers)
    assert len({trailers["prism-lsn"] for _, trailers in answers}) == 1
    assert sum("prism-replayed" in trailers for _, trailers in answers) == 15


@check
def errors_carry_their_details(client):
    refusal = client.refusal("Get", namespace="nowhere", key="a")
    expect(refusal, grpc.StatusCode.NOT_FOUND, "NAMESPACE_UNKNOWN")
    assert refusal.info.metadata["namespace"] == "nowhere"
    expect(client.refusal("Get", namespace="", key="a"), grpc.StatusCode.INVALID_ARGUMENT, "NAMESPACE_MISSING")
    # A message with field 1 twice, which only a broken or malicious client sends.
    raw = client.channel.unary_unary(f"/{KEYVALUE}/Get")
    twice = b"\x0a\x08keyvalue\x0a\x05cache\x12\x01a"
    for bad in (twice, b"\xff\xff\xff", b"\x0a\x08key\xffalue\x12\x01a", b"\x0a\x7f"):
        try:
            raw(bad, timeout=20)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, (bad, error)
        else:
            raise AssertionError(f"{bad} was taken")


@check
def what_is_not_offered_is_said(client):
    refusal = client.refusal("Send", service=QUEUE, queue="a")
    expect(refusal, grpc.StatusCode.UNIMPLEMENTED, "INTERFACE_NOT_OFFERED")
    assert refusal.info.metadata["interface"] == "queue_basic", refusal.info
    for path in (f"/{KEYVALUE}/Nothing", "/no.such.Service/Get", "/", "/a/b/c"):
        try:
            client.channel.unary_unary(path)(b"", timeout=20)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED, (path, error)
        else:
            raise AssertionError(f"{path} was answered")


@check
def large_values_pass_and_larger_ones_are_refused(client):
    for size in (16 * 1024, MIB, 4 * MIB - 4096):
        value = bytes(n % 251 for n in range(size))
        client.call("Set", key="l/one", value=value)
        assert client.call("Get", key="l/one").entry.value == value, size
    for size in (4 * MIB - 100, 4 * MIB + 1, 16 * MIB):
        refusal = client.refusal("Set", key="l/one", value=bytes(size))
        assert refusal.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT), (size, refusal)
    assert len(client.call("Get", key="l/one").entry.value) == 4 * MIB - 4096
    client.call("Delete", key="l/one")
    refusal = client.refusal("Set", namespace="narrow", key="l/one", value=bytes(MIB + 1))
    expect(refusal, grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")


@check
def a_full_namespace_says_when_to_come_back(client):
    stub = client.stub("Set")
    request = client.request("Set", namespace="narrow", key="n/one", value=bytes(800_000))
    refused = []
    # One fits. Together they cannot, until the disk has taken the first.
    for _ in range(50):
        calls = [stub.future(request, timeout=20) for _ in range(8)]
        refused += [error for error in (call.exception() for call in calls) if error]
        assert len(refused) < 8 * 50, "at least one at a time goes through"
        if refused:
            break
    assert refused, "the budget of the namespace was never used up"
    refusal = Refusal(refused[0])
    expect(refusal, grpc.StatusCode.RESOURCE_EXHAUSTED, "NAMESPACE_BUSY")
    assert refusal.retry.total_seconds() > 0, refusal.retry
    assert client.call("Set", namespace="narrow", key="n/one", value=b"").applied


@check
def a_deadline_ends_a_call_or_leaves_it_alone(client):
    # How many end is the machine's affair; what the server says of them is tested in core/tests/promises.rs.
    for n in range(200):
        try:
            client.call("Set", key="e/one", value=b"%d" % n, timeout=0.0005)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED, error
    assert client.call("Set", key="e/one", value=b"last").applied
    assert client.call("Get", key="e/one").entry.value == b"last"


@check
def unknown_metadata_is_passed_over(client):
    metadata = {"x-any": "thing", "any-bin": b"\x00\xff", "x-long": "v" * 2000}
    assert client.call("Set", metadata=metadata, key="e/two", value=b"1").applied


@check
def unary_calls_at_once(client):
    def turn(n):
        key, value = f"u/{n}", b"%d" % n
        client.call("Set", key=key, value=value)
        assert client.call("Get", key=key).entry.value == value

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(turn, range(1000)))
    assert client.call("Count", prefix="u/").count == 1000


@check
def asyncio_calls_at_once(server, client):
    get = client.request("Get", namespace="keyvalue", key="u/7").SerializeToString()
    answer = client.message("prism.keyvalue.v1.GetResponse")

    async def run():
        async with grpc.aio.insecure_channel(server.endpoint) as channel:
            stub = channel.unary_unary(f"/{KEYVALUE}/Get", response_deserializer=answer.FromString)
            return await asyncio.gather(*(stub(get, timeout=20) for _ in range(3000)))

    answers = asyncio.run(run())
    assert len(answers) == 3000 and all(one.entry.value == b"7" for one in answers)


@check
def many_connections(server):
    clients = [Client(server.endpoint) for _ in range(50)]
    try:
        for n, one in enumerate(clients):
            one.call("Set", key=f"m/{n}", value=b"x")
        assert clients[0].call("Count", prefix="m/").count == 50
    finally:
        for one in clients:
            one.channel.close()


@check
def a_stream_cancelled_midway_costs_nothing(client, server):
    for _ in range(50):
        stream = client.stream("Scan", prefix="s/", page_size=10)
        next(stream)
        stream.cancel()
    assert len({key for page in client.stream("ScanKeys", prefix="s/") for key in page.keys}) == 10_000
    deadline = time.monotonic() + 10
    while server.metric("prism_streams"):
        assert time.monotonic() < deadline, "cancelled streams are still open"


@check
def a_slow_reader_holds_up_nobody(client, server):
    with Client(server.endpoint) as slow:
        for n in range(20):
            client.call("Set", key=f"w/{n}", value=bytes(MIB))
        stream = slow.stream("Scan", prefix="w/", page_size=1)
        first = next(stream)
        # It reads no further; others go on.
        for _ in range(100):
            client.call("Get", key="u/7")
        rest = [entry.key for page in stream for entry in page.entries]
        assert len({entry.key for entry in first.entries} | set(rest)) == 20
        client.call("BatchDelete", keys=[f"w/{n}" for n in range(20)])


@check
def a_client_that_vanishes_takes_nobody_along(client, server):
    done = threading.Event()

    def vanish():
        for _ in range(20):
            gone = Client(server.endpoint)
            next(gone.stream("Scan", prefix="s/", page_size=1))
            gone.channel.close()
        done.set()

    thread = threading.Thread(target=vanish)
    thread.start()
    while not done.is_set():
        assert client.call("Get", key="u/7").found
    thread.join()


@check
def compressed_requests_are_understood(server):
    with Client(server.endpoint, compression=grpc.Compression.Gzip) as client:
        assert client.call("Set", key="z/one", value=bytes(10_000)).applied
        assert client.call("Get", key="z/one").entry.value == bytes(10_000)
    with Client(server.endpoint, compression=grpc.Compression.Deflate) as client:
        try:
            client.call("Set", key="z/one", value=bytes(10_000))
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED, error
        else:
            raise AssertionError("deflate is not known")


@check
def health_is_told(client):
    stub = health_pb2_grpc.HealthStub(client.channel)
    for service in ("", KEYVALUE):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, service
    try:
        stub.Check(health_pb2.HealthCheckRequest(service="no.such"), timeout=20)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.NOT_FOUND, error
    listed = stub.List(health_pb2.HealthListRequest(), timeout=20).statuses
    assert {"", KEYVALUE} <= set(listed), listed
    assert all(one.status == health_pb2.HealthCheckResponse.SERVING for one in listed.values()), listed
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="no.such"), timeout=20)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


@check
def reflection_speaks_v1_and_v1alpha(client):
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=f"{KEYVALUE}.Get"),
        reflection_pb2.ServerReflectionRequest(file_by_filename="prism/type/v1/entry.proto"),
        reflection_pb2.ServerReflectionRequest(all_extension_numbers_of_type="google.protobuf.MethodOptions"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.such.Symbol"),
    ]
    for version in ("v1", "v1alpha"):
        # Both versions have the same messages under two names.
        call = client.channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        listed, symbol, file, numbers, unknown = call(iter(requests), timeout=20)
        names = {service.name for service in listed.list_services_response.service}
        assert {KEYVALUE, "grpc.health.v1.Health", f"grpc.reflection.{version}.ServerReflection"} <= names, names
        assert symbol.file_descriptor_response.file_descriptor_proto
        assert file.file_descriptor_response.file_descriptor_proto
        assert numbers.all_extension_numbers_response.extension_number
        assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0], unknown


@check
def the_admin_port_tells_what_happened(client, server):
    metrics = server.get("/metrics")
    for line in ('prism_requests_total{namespace="keyvalue",api="keyvalue",status="success"}', "prism_backend_errors_total"):
        assert line in metrics, line
    assert server.get("/healthz") == "ok\n" and server.get("/readyz") == "ready\n"
    assert "narrow" in server.get("/config")
    client.call("Get", key="admin/one")
    # What others see of a connection is brought up to date four times a second.
    deadline = time.monotonic() + 10
    while True:
        page = json.loads(server.get("/debug/connections"))
        if any(one["streams_succeeded"] and one["messages_sent"] and one["sent_bytes"] for one in page["connections"]):
            break
        assert time.monotonic() < deadline, page
    assert page["open"] == len(page["connections"]) and page["omitted"] == 0, page
