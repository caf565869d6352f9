"""Clients of Node: the checks are in a script; each line that it prints is one result."""

import json
import os
import subprocess
from pathlib import Path


def run(tally, client, script, modules, server, *arguments):
    """Runs a script of this folder, if there are Node and its packages."""
    if not modules:
        tally.skip(client, "there is no Node with npm")
        return
    # Node looks for packages beside the script.
    copy = Path(modules).parent / script
    copy.write_text((Path(__file__).parent / script).read_text())
    environment = dict(os.environ)
    environment.pop("PRISM_AUTHORITY", None)
    if server.authority:
        # What the scripts look at, and whom Node trusts besides.
        environment |= {"PRISM_AUTHORITY": str(server.authority), "NODE_EXTRA_CA_CERTS": str(server.authority)}
    command = ["node", str(copy), server.endpoint, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    for result in results:
        tally.run(client, result["name"], has_passed, {"result": result})
    tally.run(client, "ends_in_order", has_ended, {"done": done})


def has_passed(result):
    assert not result["error"], result["error"]


def has_ended(done):
    assert done.returncode == 0, done.stdout + done.stderr
