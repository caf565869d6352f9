"""The life of a connection, each with a server of its own: how old it may get, and who asks whom whether he is still there."""

import json
import threading
import time
from contextlib import contextmanager

from .client import Client
from .run import check
from .serving import CONFIG, Folder, Serving

# How long anything may take.
PATIENCE = 60


@contextmanager
def serving(prism, beside, grpc):
    """A server with these settings of `grpc`."""
    with Folder(beside) as folder:
        server = Serving(prism, folder, CONFIG + f"grpc: {{{grpc}}}\n")
        try:
            yield server
        finally:
            code = server.stop()
        assert code == 0, code


def refused(server, kind):
    """How often the transport has refused something of this kind."""
    start = f'prism_transport_refused_total{{kind="{kind}"}} '
    (line,) = (line for line in server.get("/metrics").splitlines() if line.startswith(start))
    return float(line.removeprefix(start))


def wait(what, happened):
    """Waits until something has happened."""
    until = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < until, f"{what} did not happen"


@check
def a_client_calls_through_the_age_of_its_connections(prism, beside):
    """Calls without a pause and streams that last, while one connection after the other is asked to leave: none of them fails."""
    with serving(prism, beside, "connection_age_max: 1s, connection_age_grace: 30s") as server, Client(server.endpoint) as client:
        for n in range(50):
            client.call("Set", key=f"age/{n:02}", value=bytes(20_000))
        ended, failures = threading.Event(), []

        def work(turn):
            try:
                while not ended.is_set():
                    turn()
            except Exception as error:  # noqa: BLE001: whatever it is, it is told
                failures.append(error)

        def call():
            client.call("Set", key="age/00", value=bytes(20_000), timeout=PATIENCE)
            assert client.call("Get", key="age/00", timeout=PATIENCE).found

        def stream():
            """A scan that is read slowly enough to outlive its connection's age, and is whole all the same."""
            keys = []
            for page in client.stream("Scan", prefix="age/", page_size=1, timeout=PATIENCE):
                keys += [entry.key for entry in page.entries]
                ended.wait(0.05)
            assert keys == [f"age/{n:02}" for n in range(50)], keys

        threads = [threading.Thread(target=work, args=(turn,)) for turn in (call, call, call, stream)]
        for thread in threads:
            thread.start()
        accepted = server.metric("prism_connections_accepted_total")
        try:
            wait("a new connection, five times", lambda: failures or server.metric("prism_connections_accepted_total") >= accepted + 5)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert not failures, failures
        wait("an age, five times", lambda: refused(server, "connection_age") >= 5)


@check
def a_silent_client_is_asked_and_stays(prism, beside):
    """Its library answers the server's PINGs by itself."""
    with serving(prism, beside, "keepalive_interval: 1s, keepalive_timeout: 20s") as server, Client(server.endpoint) as client:
        client.call("Set", key="silent", value=b"1")

        def connections():
            return {one["number"]: one for one in json.loads(server.get("/debug/connections"))["connections"]}

        def asked():
            return [number for number, one in connections().items() if one["keepalives_sent"] >= 3]

        wait("a PING, three times", asked)
        (number,) = asked()
        calls = connections()[number]["streams_succeeded"]
        assert client.call("Get", key="silent").entry.value == b"1"
        wait("a call on the same connection", lambda: connections()[number]["streams_succeeded"] == calls + 1)


@check
def a_client_that_asks_too_often_is_told_and_comes_again(prism, beside):
    """Its library hears `too_many_pings`, asks less often on the next connection, and its calls go on."""
    options = [
        ("grpc.keepalive_time_ms", 100),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    with serving(prism, beside, "ping_interval_min: 1h, ping_strikes_max: 1") as server, Client(server.endpoint, options) as client:
        client.call("Set", key="often", value=b"1")
        wait("a GOAWAY for PINGs", lambda: refused(server, "pings") >= 1)
        assert client.call("Get", key="often", timeout=PATIENCE).entry.value == b"1"
