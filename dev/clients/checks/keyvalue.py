"""All six KeyValue interfaces, as a stranger would call them."""

import time

import grpc

from .client import expect
from .run import check

SCANNED = 10_000


@check
def basic_get_set_delete_exists(client):
    assert not client.call("Get", key="b/none").found
    assert not client.call("Exists", key="b/none").exists
    for value in (b"", b"hello", bytes(range(256))):
        assert client.call("Set", key="b/one", value=value).applied
        answer = client.call("Get", key="b/one")
        assert answer.found and answer.entry.value == value and answer.entry.version, answer
        assert not answer.entry.HasField("expires_at")
    assert client.call("Exists", key="b/one").exists
    client.call("Delete", key="b/one")
    client.call("Delete", key="b/one")
    assert not client.call("Get", key="b/one").found


@check
def basic_set_under_a_condition(client):
    absent = client.request("Set").DESCRIPTOR.fields_by_name["only_if"].enum_type.values_by_name
    absent, exists = absent["SET_CONDITION_ABSENT"].number, absent["SET_CONDITION_EXISTS"].number
    assert not client.call("Set", key="b/if", value=b"1", only_if=exists).applied
    assert client.call("Set", key="b/if", value=b"1", only_if=absent).applied
    assert not client.call("Set", key="b/if", value=b"2", only_if=absent).applied
    answer = client.call("Set", key="b/if", value=b"3", only_if=exists, return_previous=True)
    assert answer.applied and answer.previous.value == b"1", answer
    assert client.call("Get", key="b/if").entry.value == b"3"


@check
def basic_keys_of_every_kind(client):
    for key in ("ключ", "{tag}:1", "a b", "k" * 1024, "../etc/passwd", "'; DROP TABLE", "\u00a0"):
        client.call("Set", key=key, value=key.encode())
        assert client.call("Get", key=key).entry.value == key.encode(), key
        client.call("Delete", key=key)
    for key in ("", "k" * 1025, "a\nb", "\x00", "\x7f", "\x85"):
        refusal = client.refusal("Set", key=key, value=b"")
        expect(refusal, grpc.StatusCode.INVALID_ARGUMENT, "KEY_INVALID")
        assert refusal.fields == ["key"], refusal.fields


@check
def scan_of_many_keys(client):
    items = [{"key": f"s/{n:05}", "value": b"%d" % n} for n in range(SCANNED)]
    for first in range(0, SCANNED, 1000):
        answer = client.call("BatchSet", items=items[first : first + 1000])
        assert len(answer.results) == 1000 and not any(result.HasField("status") for result in answer.results)
    found = {}
    for page in client.stream("Scan", prefix="s/"):
        found.update((entry.key, entry.value) for entry in page.entries)
    assert found == {item["key"]: item["value"] for item in items}, len(found)
    keys = {key for page in client.stream("ScanKeys", glob="s/*") for key in page.keys}
    assert keys == set(found), len(keys)
    few = {key for page in client.stream("ScanKeys", glob="s/0000[1-3]") for key in page.keys}
    assert few == {"s/00001", "s/00002", "s/00003"}, few
    assert [list(page.keys) for page in client.stream("ScanKeys", prefix="no-such/") if page.keys] == []


@check
def scan_goes_on_where_it_stopped(client):
    found, token = set(), ""
    while True:
        stream = client.stream("ScanKeys", prefix="s/", page_size=700, page_token=token)
        page = next(stream)
        stream.cancel()
        assert len(page.keys) <= 700
        found |= set(page.keys)
        token = page.next_page_token
        if not token:
            break
    assert len(found) == SCANNED, len(found)
    try:
        list(client.stream("ScanKeys", prefix="other/", page_token=first_token(client)))
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    else:
        raise AssertionError("a token of another selection was taken")


def first_token(client):
    """The token after the first page of a walk over `s/`."""
    stream = client.stream("ScanKeys", prefix="s/", page_size=10)
    token = next(stream).next_page_token
    stream.cancel()
    assert token
    return token


@check
def scan_counts(client):
    answer = client.call("Count", prefix="s/")
    assert answer.count == SCANNED and answer.exact, answer
    answer = client.call("Count", prefix="s/", limit=100)
    assert answer.count == 100 and not answer.exact, answer
    refusal = client.refusal("Count", glob="[z-a")
    expect(refusal, grpc.StatusCode.INVALID_ARGUMENT, "GLOB_INVALID")


@check
def ttl_expire_get_persist(client):
    client.call("Set", key="t/one", value=b"x", ttl={"seconds": 1000})
    left = client.call("GetTtl", key="t/one")
    assert left.found and 990 < left.ttl.seconds <= 1000 and left.expires_at.seconds > time.time(), left
    assert client.call("Get", key="t/one").entry.HasField("expires_at")
    client.call("Persist", key="t/one")
    left = client.call("GetTtl", key="t/one")
    assert left.found and not left.HasField("ttl"), left
    client.call("Expire", key="t/one", ttl={"seconds": 50})
    client.call("Set", key="t/one", value=b"y", keep_ttl=True)
    assert 0 < client.call("GetTtl", key="t/one").ttl.seconds <= 50
    client.call("Set", key="t/one", value=b"z")
    assert not client.call("GetTtl", key="t/one").HasField("ttl"), "a Set clears the expiry"
    client.call("Expire", key="t/one", expires_at={"seconds": 1})
    assert not client.call("Get", key="t/one").found, "an expiry in the past counts at once"
    refusal = client.refusal("Set", key="t/one", value=b"", ttl={"seconds": -1})
    expect(refusal, grpc.StatusCode.INVALID_ARGUMENT, "TTL_INVALID")


@check
def ttl_runs_out(client):
    client.call("Set", key="t/brief", value=b"x", ttl={"nanos": 30_000_000})
    deadline = time.monotonic() + 10
    while client.call("Get", key="t/brief").found:
        assert time.monotonic() < deadline, "30 ms have long passed"
    assert not client.call("Exists", key="t/brief").exists
    assert client.call("Count", prefix="t/brief").count == 0


@check
def transactional_all_or_nothing(client):
    put = {"key": "x/a", "put": {"value": b"1"}}
    answer = client.call("Transact", conditions=[{"key": "x/a", "absent": {}}], operations=[put])
    assert answer.committed and len(answer.results) == 1, answer
    version = client.call("Get", key="x/a").entry.version
    answer = client.call(
        "Transact",
        conditions=[{"key": "x/a", "version": version}, {"key": "x/b", "absent": {}}],
        operations=[{"key": "x/a", "delete": {}}, {"key": "x/b", "put": {"value": b"2"}}],
    )
    assert answer.committed, answer
    assert not client.call("Exists", key="x/a").exists and client.call("Get", key="x/b").entry.value == b"2"
    answer = client.call(
        "Transact",
        conditions=[{"key": "x/b", "value": b"not this"}],
        operations=[{"key": "x/b", "put": {"value": b"3"}}, {"key": "x/c", "put": {"value": b"3"}}],
    )
    assert not answer.committed and answer.failures[0].index == 0 and answer.failures[0].current.value == b"2", answer
    assert not client.call("Exists", key="x/c").exists


@check
def batch_answers_in_order(client):
    client.call("BatchSet", items=[{"key": f"y/{n}", "value": b"%d" % n} for n in range(5)])
    answer = client.call("BatchGet", keys=["y/4", "y/none", "y/0"])
    values = [(result.found, result.entry.value) for result in answer.results]
    assert values == [(True, b"4"), (False, b""), (True, b"0")], values
    answer = client.call("BatchDelete", keys=["y/0", "y/1", "y/none"])
    assert len(answer.results) == 3 and not any(result.HasField("status") for result in answer.results), answer
    assert client.call("Count", prefix="y/").count == 3
    refusal = client.refusal("BatchGet", keys=["y/1", "y/1"])
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT and refusal.reason, refusal


@check
def cas_by_value_absence_and_version(client):
    assert client.call("CompareAndSwap", key="c/one", expected_absent={}, value=b"1").swapped
    assert not client.call("CompareAndSwap", key="c/one", expected_absent={}, value=b"2").swapped
    answer = client.call("CompareAndSwap", key="c/one", expected_value=b"9", value=b"2")
    assert not answer.swapped and answer.current.value == b"1", answer
    assert client.call("CompareAndSwap", key="c/one", expected_value=b"1", value=b"2").swapped
    old = client.call("Get", key="c/one").entry.version
    assert client.call("CompareAndSwap", key="c/one", expected_version=old, value=b"3").swapped
    assert not client.call("CompareAndDelete", key="c/one", expected_version=old).deleted
    assert client.call("CompareAndDelete", key="c/one", expected_value=b"3").deleted
    assert not client.call("Exists", key="c/one").exists
