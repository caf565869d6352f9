"""grpcurl, and with it grpc-go: list, describe, call, stream, fail."""

import json
import subprocess

from .client import KEYVALUE


def run(tally, server, binary, name="grpcurl"):
    """Runs the checks, if there is a grpcurl."""
    if not binary:
        tally.skip(name, "there is none, and no Go that could install it")
        return

    trusting = ["-cacert", str(server.authority)] if server.authority else ["-plaintext"]

    def grpcurl(*arguments, code=0):
        done = subprocess.run(
            [binary, *trusting, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code, f"{arguments}: {done.returncode} {done.stdout}{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def call(method, request, *flags, **arguments):
        return grpcurl(*flags, "-d", json.dumps(request), server.endpoint, f"{KEYVALUE}/{method}", **arguments)

    def lists_services():
        services = grpcurl(server.endpoint, "list").split()
        assert {KEYVALUE, "grpc.health.v1.Health"} <= set(services), services

    def describes_methods_with_their_interface():
        text = grpcurl(server.endpoint, "describe", f"{KEYVALUE}.Expire")
        assert "rpc Expire" in text, text
        text = grpcurl(server.endpoint, "describe", "prism.keyvalue.v1.SetRequest")
        assert "bytes value = 15" in text, text

    def sets_and_gets():
        call("Set", {"namespace": "keyvalue", "key": "go/1", "value": "aGVsbG8=", "ttl": "60s"})
        answer = json.loads(call("Get", {"namespace": "keyvalue", "key": "go/1"}))
        assert answer["found"] and answer["entry"]["value"] == "aGVsbG8=" and "expiresAt" in answer["entry"], answer

    def scans():
        text = call("ScanKeys", {"namespace": "keyvalue", "prefix": "s/"}, "-max-time", "30")
        assert text.count('"s/') == 10_000, len(text)

    def shows_trailers():
        text = call("Set", {"namespace": "keyvalue", "key": "go/1"}, "-v")
        assert "prism-durability: wal" in text, text

    def shows_error_details():
        # grpcurl ends with 64 + the status code.
        text = call("Get", {"namespace": "nowhere", "key": "a"}, code=64 + 5)
        assert "NAMESPACE_UNKNOWN" in text, text

    def asks_for_health():
        text = grpcurl(server.endpoint, "grpc.health.v1.Health/Check")
        assert "SERVING" in text, text

    for check in (
        lists_services,
        describes_methods_with_their_interface,
        sets_and_gets,
        scans,
        shows_trailers,
        shows_error_details,
        asks_for_health,
    ):
        tally.run(name, check.__name__, check, {})
