"""The data's digest: every byte counts, and only what matters."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from edge_mbm.calibration import DataDigest
from edge_mbm.errors import CalibrationError

ZEROS = np.zeros((2, 3), np.float32)


def digest(*recordings: tuple[str, dict[str, object]]) -> DataDigest:
    found = DataDigest()
    for recording, inputs in recordings:
        found.add(recording, inputs)  # type: ignore[arg-type]
    return found


def changed(index: int) -> np.ndarray:
    array = ZEROS.copy()
    array.flat[index] = 1e-45
    return array


VARIANTS: list[list[tuple[str, dict[str, object]]]] = [
    [],
    [("a", {})],
    [("a", {"image": ZEROS})],
    [("b", {"image": ZEROS})],
    [("a", {"audio": ZEROS})],
    [("a", {"image": changed(0)})],
    [("a", {"image": changed(5)})],
    [("a", {"image": -ZEROS})],
    [("a", {"image": ZEROS.reshape(3, 2)})],
    [("a", {"image": ZEROS.reshape(6)})],
    [("a", {"image": ZEROS.view(np.int32)})],
    [("a", {"image": ZEROS.view(np.float16)})],
    [("a", {"image": ZEROS[:0]})],
    [("a", {"image": np.float32(0)[None]})],
    [("a", {"image": np.zeros((), np.float32)})],
    [("a", {"image": np.zeros(1, np.bool_)})],
    [("a", {"image": ""})],
    [("a", {"image": "\0"})],
    [("a", {"image": "größer"})],
    [("a", {"image": np.frombuffer("größer".encode(), np.uint8)})],
    [("a", {"image": ZEROS, "audio": ZEROS})],
    [("a", {"image": ZEROS}), ("b", {"image": ZEROS})],
    [("b", {"image": ZEROS}), ("a", {"image": ZEROS})],
    [("ab", {}), ("", {})],
    [("a", {}), ("b", {})],
    [("a", {"x": "yz"})],
    [("a", {"xy": "z"})],
    [("ax", {"y": "z"})],
]


def test_no_two_data_sets_share_a_digest() -> None:
    """Each differs from the others in one thing alone: id, name, dtype, shape, a bit, the order, where a part ends."""
    assert len({digest(*recordings).hexdigest() for recordings in VARIANTS}) == len(VARIANTS)


def test_layout_does_not_count() -> None:
    """Byte order, strides and the order of the modalities are accidents of how the data was loaded."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    first = digest(("a", {"x": values, "y": "text"})).hexdigest()
    for same in (values.astype(">f4"), np.asfortranarray(values), np.repeat(values, 2, axis=1)[:, ::2]):
        assert digest(("a", {"y": "text", "x": same})).hexdigest() == first


def test_the_digest_is_what_it_says() -> None:
    """sha256 over the recordings' sha256, each over length-prefixed parts, written out by hand."""

    def part(content: bytes) -> bytes:
        return len(content).to_bytes(8, "little") + content

    array = np.array([[1, 2]], "<u2")
    parts = [b"r1", b"prompt", b"text", b"", b"hi", b"x", b"<u2", (1).to_bytes(8, "little") + (2).to_bytes(8, "little")]
    recording = hashlib.sha256(b"".join(map(part, [*parts, b"\x01\0\x02\0"])))
    found = digest(("r1", {"x": array, "prompt": "hi"}))
    assert found.entries == [("r1", recording.hexdigest())]
    assert found.hexdigest() == hashlib.sha256(recording.digest()).hexdigest()


def test_recordings_are_counted_and_listed_in_order() -> None:
    """A recording's own digest does not depend on those around it; asking for the whole does not end it."""
    found = digest(("b", {"x": ZEROS}))
    before = found.hexdigest()
    found.add("a", {"x": "text"})
    assert found.hexdigest() != before
    assert found.samples == 2
    assert found.entries == digest(("b", {"x": ZEROS})).entries + digest(("a", {"x": "text"})).entries


def test_an_id_twice_is_refused() -> None:
    """Even with the same data: the calibration set lists it twice."""
    found = digest(("a", {"x": ZEROS}))
    with pytest.raises(CalibrationError, match="recording 'a' is there twice"):
        found.add("a", {"x": ZEROS})
    assert found.samples == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.array(["x"]), "<U1"),
        (np.array([object()]), "object"),
        (np.zeros(1, np.complex64), "complex64"),
        ([1.0], "list"),
        (None, "NoneType"),
    ],
)
def test_what_is_neither_numbers_nor_text_is_refused(data: object, said: str) -> None:
    """With the recording, the modality and what it was; nothing is added."""
    found = DataDigest()
    with pytest.raises(CalibrationError, match=f"'x' of recording 'r7' is {said}"):
        found.add("r7", {"a": ZEROS, "x": data})  # type: ignore[dict-item]
    assert (found.samples, found.hexdigest()) == (0, DataDigest().hexdigest())
