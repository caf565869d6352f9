"""@grpc/grpc-js: the checks themselves are in grpc_js.mjs; each of its lines becomes one result."""

import json
import subprocess
from pathlib import Path


def run(tally, server, modules, root):
    """Runs the checks, if Node and the package are there."""
    if not modules:
        tally.skip("grpc-js", "there is no Node with npm")
        return
    script = Path(__file__).with_suffix(".mjs")
    # Node looks for packages beside the script.
    copy = Path(modules).parent / script.name
    copy.write_text(script.read_text())
    done = subprocess.run(
        ["node", str(copy), server.endpoint, str(root / "proto" / "proto")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    for result in results:
        tally.run("grpc-js", result["name"], has_passed, {"result": result})
    tally.run("grpc-js", "ends_in_order", has_ended, {"done": done})


def has_passed(result):
    assert not result["error"], result["error"]


def has_ended(done):
    assert done.returncode == 0, done.stdout + done.stderr
