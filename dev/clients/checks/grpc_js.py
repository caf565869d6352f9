"""@grpc/grpc-js: the checks themselves are in grpc_js.mjs."""

from . import node


def run(tally, server, modules, root):
    """Runs the checks, if Node and the package are there."""
    node.run(tally, "grpc-js", "grpc_js.mjs", modules, server.endpoint, str(root / "proto" / "proto"))
