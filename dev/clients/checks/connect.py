"""@connectrpc/connect-node with all of its transports: the checks themselves are in connect.mjs."""

from google.protobuf import descriptor_pb2

from . import node
from .client import KEYVALUE


def run(tally, server, client, modules, name="connect-node"):
    """Runs the checks, if Node and the packages are there, with the descriptors that the server itself gives out."""
    files = descriptor_pb2.FileDescriptorSet()
    add(client.pool.FindServiceByName(KEYVALUE).file, files, set())
    descriptors = server.folder / "descriptors.bin"
    descriptors.write_bytes(files.SerializeToString())
    node.run(tally, name, "connect.mjs", modules, server, str(descriptors))


def add(file, files, known):
    """Appends a file behind those that it imports."""
    if file.name in known:
        return
    known.add(file.name)
    for imported in file.dependencies:
        add(imported, files, known)
    file.CopyToProto(files.file.add())
