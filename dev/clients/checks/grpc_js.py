"""@grpc/grpc-js: the checks themselves are in grpc_js.mjs."""

from . import node


def run(tally, server, modules, root, name="grpc-js"):
    """Runs the checks, if Node and the package are there."""
    node.run(tally, name, "grpc_js.mjs", modules, server, str(root / "proto" / "proto"))
