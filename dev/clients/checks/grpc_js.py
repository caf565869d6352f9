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

    def end():
        assert done.returncode == 0 and results, done.stdout + done.stderr

    for result in results:

        def check(result=result):
            assert not result["error"], result["error"]

        tally.run("grpc-js", result["name"], lambda check=check: check(), {})
    tally.run("grpc-js", "ends_in_order", end, {})
