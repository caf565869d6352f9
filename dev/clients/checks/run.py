"""Runs the checks one after the other, and counts."""

import time
import traceback
from pathlib import Path

CHECKS = []


def check(function):
    """Registers a check; its parameters say what it wants to be given, by name."""
    CHECKS.append(function)
    return function


class Tally:
    """What passed, what failed."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def run(self, client, name, function, given):
        """Runs one check of one client."""
        began = time.monotonic()
        wanted = function.__code__.co_varnames[: function.__code__.co_argcount]
        try:
            function(**{name: given[name] for name in wanted})
        except Exception as error:  # noqa: BLE001: a check may fail in any way
            self.failed += 1
            print(f"FAILED  {client}: {name} ({1000 * (time.monotonic() - began):.0f} ms)", flush=True)
            here = str(Path(__file__).parent)
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(here)]
            for frame in frames[1:]:
                print(f"        {Path(frame.filename).name}:{frame.lineno}: {frame.line}")
            print("        " + str(error).strip().replace("\n", "\n        "), flush=True)
        else:
            self.passed += 1
            print(f"ok      {client}: {name} ({1000 * (time.monotonic() - began):.0f} ms)", flush=True)

    def skip(self, client, why):
        """Says that the checks of a client cannot be run here."""
        self.skipped += 1
        print(f"skipped {client}: {why}", flush=True)

    def __str__(self):
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"
