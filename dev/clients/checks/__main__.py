"""Runs every check of every client that is there, and ends with what came of it."""

import argparse
import sys
from pathlib import Path

from . import connect, connections, curl, grpc_js, grpcurl, keyvalue, lifecycle, transport  # noqa: F401: importing registers the checks
from .client import Client
from .run import CHECKS, Tally
from .serving import Folder, Serving

ROOT = Path(__file__).resolve().parents[3]


def secured(tally, arguments, beside, given):
    """The same clients over TLS; of grpcio what one client can check by itself."""
    with Folder(beside) as folder:
        server = Serving(arguments.prism, folder, secured=True)
        with Client(server.endpoint, authority=server.authority) as client:
            given = {**given, "client": client, "server": server}
            for function in CHECKS:
                if function.__code__.co_varnames[: function.__code__.co_argcount] == ("client",) and server.runs():
                    tally.run("grpcio, TLS", function.__name__, function, given)
            if server.runs():
                grpcurl.run(tally, server, arguments.grpcurl, "grpcurl, TLS")
                grpc_js.run(tally, server, arguments.node_modules, ROOT, "grpc-js, TLS")
                connect.run(tally, server, client, arguments.node_modules, "connect-node, TLS")
                curl.run(tally, server, "curl, TLS")
        code = server.stop()
        if code != 0:
            tally.failed += 1
            print(f"FAILED  prism serve with TLS ended with {code}: {(server.folder / 'stderr.log').read_text()}")


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--prism", required=True, help="the binary")
    arguments.add_argument("--node-modules", help="where the packages of package.json are installed")
    arguments.add_argument("--grpcurl", help="the grpcurl binary")
    arguments.add_argument("--only", default="", help="run the checks that have this in their name")
    arguments = arguments.parse_args()

    tally = Tally()
    beside = Path(arguments.prism).resolve().parent
    with Folder(beside) as folder:
        server = Serving(arguments.prism, folder)
        print(f"prism serve on {server.endpoint}: {sum(1 for _ in CHECKS)} checks with grpcio", flush=True)
        with Client(server.endpoint) as client:
            given = {
                "client": client,
                "server": server,
                "prism": arguments.prism,
                "beside": beside,
                "example": ROOT / "examples" / "prism.yaml",
            }
            for function in CHECKS:
                if arguments.only in function.__name__ and server.runs():
                    tally.run("grpcio", function.__name__, function, given)
            if not arguments.only and server.runs():
                grpcurl.run(tally, server, arguments.grpcurl)
                grpc_js.run(tally, server, arguments.node_modules, ROOT)
                connect.run(tally, server, client, arguments.node_modules)
                curl.run(tally, server)
            if not arguments.only and server.runs():
                secured(tally, arguments, beside, given)
        code = server.stop()
        if code != 0:
            tally.failed += 1
            print(f"FAILED  prism serve ended with {code}")
        log = (server.folder / "stderr.log").read_text()
        if log and tally.failed:
            print(f"prism serve logged:\n{log}")
    print(tally)
    sys.exit(1 if tally.failed else 0)


main()
