"""curl: JSON over HTTP/1.1 and HTTP/2, as the README and the port's own page have it."""

import gzip
import json
import re
import shutil
import subprocess

from .client import KEYVALUE


def run(tally, server, name="curl"):
    """Runs the checks, if there is a curl."""
    if not shutil.which("curl"):
        tally.skip(name, "there is none")
        return
    url = server.url
    trusting = ["--cacert", str(server.authority)] if server.authority else []

    def curl(*arguments):
        done = subprocess.run(
            ["curl", "-sS", *trusting, "--max-time", "20", *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{arguments}: {done.returncode} {done.stdout}{done.stderr}"
        return done.stdout

    def call(method, request, *arguments):
        arguments = ["-H", "content-type: application/json", *arguments]
        return curl(*arguments, "-d", json.dumps(request), f"{url}/{KEYVALUE}/{method}")

    def every_version():
        for number, version in enumerate(["--http1.0", "--http1.1", "--http2", "--http2-prior-knowledge"]):
            entry = {"namespace": "keyvalue", "key": f"curl/{number}", "value": "aGVsbG8="}
            assert json.loads(call("Set", entry, version))["applied"], version
            answer = json.loads(call("Get", {"namespace": "keyvalue", "key": f"curl/{number}"}, version))
            assert answer["entry"]["value"] == "aGVsbG8=", answer

    def a_body_in_chunks():
        entry = {"namespace": "keyvalue", "key": "curl/chunked", "value": "aGVsbG8="}
        assert json.loads(call("Set", entry, "-H", "transfer-encoding: chunked"))["applied"]

    def a_body_that_waits_for_leave():
        value = "A" * (512 << 10)
        entry = {"namespace": "keyvalue", "key": "curl/large", "value": value}
        # From standard input, for it is too long for an argument.
        done = subprocess.run(
            ["curl", "-sS", *trusting, "-v", "--http1.1", "-H", "content-type: application/json", "-H", "expect: 100-continue", "-d", "@-", f"{url}/{KEYVALUE}/Set"],
            input=json.dumps(entry),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert json.loads(done.stdout)["applied"] and "100 Continue" in done.stderr, done

    def what_the_page_says_works():
        # Over HTTP/2 the port does not keep what it is called, and names its default.
        page = curl("--http1.1", url)
        commands = re.findall(r"curl -H 'content-type: application/json' -d '([^']*)' \\\s+(\S+)", page)
        assert len(commands) == 2, page
        answers = [json.loads(curl("-H", "content-type: application/json", "-d", body, url)) for body, url in commands]
        assert answers[0]["applied"] and answers[1]["found"], answers

    def a_compressed_body():
        entry = {"namespace": "keyvalue", "key": "curl/gzip", "value": "A" * 4096}
        for version in ("--http1.1", "--http2" if server.authority else "--http2-prior-knowledge"):
            done = subprocess.run(
                ["curl", "-sS", *trusting, version, "-H", "content-type: application/json", "-H", "content-encoding: gzip"]
                + ["--data-binary", "@-", f"{url}/{KEYVALUE}/Set"],
                input=gzip.compress(json.dumps(entry).encode()),
                capture_output=True,
                timeout=60,
                check=True,
            )
            assert json.loads(done.stdout)["applied"], (version, done)

    def a_get():
        message = json.dumps({"namespace": "keyvalue", "key": "curl/1"})
        query = ["-G", "--data-urlencode", f"message={message}", "-d", "encoding=json"]
        answer = json.loads(curl(*query, f"{url}/{KEYVALUE}/Get"))
        assert answer["found"], answer

    def one_connection_for_many():
        urls = [f"{url}/{KEYVALUE}/Exists"] * 50
        body = json.dumps({"namespace": "keyvalue", "key": "curl/1"})
        text = curl("-H", "content-type: application/json", "-d", body, "-w", "%{num_connects}\n", *urls)
        assert text.count('{"exists":true}') == 50, text
        assert sum(map(int, re.findall(r"}(\d)", text))) == 1, text

    def mistakes_are_explained():
        text = curl("-d", "{}", f"{url}/{KEYVALUE}/Get")
        assert "content-type: application/json" in text, text
        text = curl(f"{url}/{KEYVALUE}/Gett")
        assert f"did you mean /{KEYVALUE}/Get?" in text, text
        text = call("Get", {"namespace": "keyvalue", "kee": "a"})
        assert "kee" in text and "invalid_argument" in text, text

    for check in (
        every_version,
        a_body_in_chunks,
        a_body_that_waits_for_leave,
        what_the_page_says_works,
        a_compressed_body,
        a_get,
        one_connection_for_many,
        mistakes_are_explained,
    ):
        tally.run(name, check.__name__, check, {})
