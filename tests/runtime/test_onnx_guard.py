"""The guard against graphs that reach outside themselves; the protobuf bytes are built by hand."""

from __future__ import annotations

import random

import pytest

from edge_mbm.bundle import BundleFiles
from edge_mbm.errors import BundleIntegrityError
from edge_mbm.runtime.onnx_guard import refuse_external_data
from edge_mbm.testing import tiny_bundle


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def message(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def nest(path: list[int], body: bytes) -> bytes:
    for field in reversed(path):
        body = message(field, body)
    return body


# Field numbers of onnx.proto from the model down to a tensor.
GRAPH, TRAINING, FUNCTION = 7, 20, 25
NODE, INITIALIZER, SPARSE = 1, 5, 15
NODE_ATTRIBUTE, T, G, TENSORS, GRAPHS, SPARSE_T, SPARSE_TS = 5, 5, 6, 10, 11, 22, 23
PLACES = {
    "initializer": [GRAPH, INITIALIZER],
    "sparse values": [GRAPH, SPARSE, 1],
    "sparse indices": [GRAPH, SPARSE, 2],
    "attribute": [GRAPH, NODE, NODE_ATTRIBUTE, T],
    "attribute list": [GRAPH, NODE, NODE_ATTRIBUTE, TENSORS],
    "sparse attribute": [GRAPH, NODE, NODE_ATTRIBUTE, SPARSE_T, 1],
    "sparse attribute list": [GRAPH, NODE, NODE_ATTRIBUTE, SPARSE_TS, 2],
    "subgraph": [GRAPH, NODE, NODE_ATTRIBUTE, G, INITIALIZER],
    "subgraph list": [GRAPH, NODE, NODE_ATTRIBUTE, GRAPHS, INITIALIZER],
    "subgraph of a subgraph": [GRAPH, *[NODE, NODE_ATTRIBUTE, G] * 3, NODE, NODE_ATTRIBUTE, T],
    "function": [FUNCTION, 7, NODE_ATTRIBUTE, T],
    "function default": [FUNCTION, 11, T],
    "function subgraph": [FUNCTION, 7, NODE_ATTRIBUTE, G, INITIALIZER],
    "training start": [TRAINING, 1, INITIALIZER],
    "training step": [TRAINING, 2, NODE, NODE_ATTRIBUTE, T],
}
FILE = message(13, message(1, b"location") + message(2, b"../../etc/passwd"))
SIGNS = {"location is external": number(14, 1), "names a file": FILE, "both": FILE + number(14, 1)}


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("place", PLACES)
def test_data_in_another_file_is_refused_wherever_it_hides(place: str, sign: str) -> None:
    """Every field of onnx.proto that can hold a tensor is looked into, and either mark of external data counts."""
    tensor = number(2, 1) + message(8, b"weight") + SIGNS[sign]
    with pytest.raises(BundleIntegrityError, match="another file"):
        refuse_external_data(nest(PLACES[place], tensor), "the graph")


@pytest.mark.parametrize("place", PLACES)
def test_data_inside_is_fine(place: str) -> None:
    """The same tensors with their data inside pass, the default location said out loud included."""
    tensor = number(2, 1) + message(8, b"weight") + message(9, b"\0" * 16) + number(14, 0)
    refuse_external_data(nest(PLACES[place], tensor), "the graph")


def test_a_later_copy_of_a_field_is_seen() -> None:
    """Protobuf merges a message that comes twice: the second graph, and the second mark, count."""
    inside = nest([GRAPH, INITIALIZER], message(9, b"\0" * 16))
    with pytest.raises(BundleIntegrityError, match="another file"):
        refuse_external_data(inside + nest([GRAPH, INITIALIZER], FILE), "the graph")
    with pytest.raises(BundleIntegrityError, match="another file"):
        refuse_external_data(nest([GRAPH, INITIALIZER], number(14, 0) + number(14, 1)), "the graph")


def test_field_numbers_that_readers_see_differently_are_refused() -> None:
    """A tag beyond 32 bits, which other readers cut off, cannot smuggle a graph past."""
    body = nest([INITIALIZER], FILE)
    smuggled = varint((GRAPH << 3 | 2) | 1 << 32) + varint(len(body)) + body
    with pytest.raises(BundleIntegrityError, match="field number"):
        refuse_external_data(smuggled, "the graph")


def test_endless_nesting_is_refused() -> None:
    """Neither a deep nor a very deep subgraph overflows the stack."""
    for depth in (20, 2000):
        with pytest.raises(BundleIntegrityError, match="too deep"):
            refuse_external_data(nest([GRAPH, *[NODE, NODE_ATTRIBUTE, G] * depth], b""), "the graph")


@pytest.mark.parametrize(
    "data",
    [b"\x3a\x7f", b"\x3a", b"\xff" * 20, b"\x0d\0", b"\x09\0\0", b"\x3b", b"PK\3\4 no model", b"\x08" + b"\xff" * 11],
)
def test_what_is_no_protobuf_is_refused(data: bytes) -> None:
    """Lengths past the end, numbers without end and unknown wire types are a BundleIntegrityError that names it."""
    with pytest.raises(BundleIntegrityError, match="the graph is not an ONNX model"):
        refuse_external_data(data, "the graph")


def test_fuzzed_graphs_raise_integrity_errors_only() -> None:
    """Five thousand edits of real graphs pass or raise BundleIntegrityError, nothing else."""
    chance, refused = random.Random(4), 0
    with BundleFiles(tiny_bundle()) as files:
        graphs = [files.read(path) for path in files.manifest.files if path.endswith(".onnx")]
    for graph in graphs:
        refuse_external_data(graph, "the graph")
    for _ in range(5000):
        data = bytearray(chance.choice(graphs))
        for _ in range(chance.randint(1, 5)):
            start = chance.randrange(len(data))
            data[start : start + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        try:
            refuse_external_data(bytes(data), "the graph")
        except BundleIntegrityError:
            refused += 1
    assert refused > 1000
