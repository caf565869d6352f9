"""Starting, stopping, dying and coming back, as clients live through it."""

import threading

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from .client import Client
from .run import check
from .serving import Folder, Serving


@check
def sigterm_drains_and_exits_with_0(prism, beside):
    with Folder(beside) as folder:
        server = Serving(prism, folder)
        with Client(server.endpoint) as client:
            written = []
            stopped = threading.Event()

            def write():
                n = 0
                while not stopped.is_set():
                    try:
                        client.call("Set", key=f"k/{n}", value=b"%d" % n)
                    except grpc.RpcError as error:
                        assert error.code() is grpc.StatusCode.UNAVAILABLE, error
                        return
                    written.append(n)
                    n += 1

            watch = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            writer = threading.Thread(target=write)
            writer.start()
            while len(written) < 100:
                assert writer.is_alive()
            server.terminate()
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            code = server.wait()
            stopped.set()
            writer.join()
            assert code == 0, (code, (server.folder / "stderr.log").read_text())
        server.start()
        with Client(server.endpoint) as client:
            answers = client.call("BatchGet", keys=[f"k/{n}" for n in written[-1000:]]).results
            assert all(answer.found for answer in answers), "an acknowledged write is gone"
        assert server.stop() == 0


@check
def a_kill_loses_nothing_that_was_acknowledged(prism, beside):
    with Folder(beside) as folder:
        server = Serving(prism, folder)
        with Client(server.endpoint) as client:
            for n in range(200):
                client.call("Set", key=f"k/{n}", value=b"%d" % n)
            key = {"prism-idempotency-key": "once"}
            client.call("CompareAndSwap", metadata=key, key="k/cas", expected_absent={}, value=b"1")
        server.kill()
        server.start()
        assert "Recovered" in server.screen, server.screen
        with Client(server.endpoint) as client:
            answers = client.call("BatchGet", keys=[f"k/{n}" for n in range(200)]).results
            assert [answer.entry.value for answer in answers] == [b"%d" % n for n in range(200)]
            answer, trailers = client.with_call("CompareAndSwap", metadata=key, key="k/cas", expected_absent={}, value=b"1")
            assert answer.swapped and trailers["prism-replayed"] == "true", (answer, trailers)
        assert server.stop() == 0


@check
def the_example_configuration_is_accepted(prism, beside, example):
    with Folder(beside) as folder:
        server = Serving(prism, folder, config=None, arguments=["--config", str(example), "--shards", "1"])
        with Client(server.endpoint) as client:
            for namespace in ("orders", "sessions", "ledger"):
                assert client.call("Set", namespace=namespace, key="a", value=b"1").applied
        assert server.stop() == 0
