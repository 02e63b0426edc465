"""Reading and writing bundles: what was written is what is read, or a BundleError says why not."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import random
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_mbm import bundle as bundle_module
from edge_mbm.bundle import MANIFEST, BundleFiles, Limits, write_bundle
from edge_mbm.errors import BundleError, BundleIntegrityError, ManifestError
from edge_mbm.spec import Manifest
from edge_mbm.testing import tiny_bundle


@pytest.fixture(scope="module")
def written() -> tuple[Manifest, dict[str, bytes]]:
    with BundleFiles(tiny_bundle()) as files:
        return files.manifest, {path: files.read(path) for path in files.manifest.files}


@pytest.fixture
def folder(tmp_path: Path, written: tuple[Manifest, dict[str, bytes]]) -> Path:
    write_bundle(tmp_path / "bundle", *written)
    return tmp_path / "bundle"


def everything_in(path: Path) -> tuple[bytes, dict[str, bytes]]:
    with BundleFiles(path) as files:
        return files.manifest_bytes, {name: files.read(name) for name in files.manifest.files}


def tree(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


# --- both forms ------------------------------------------------------------------------------------------------------


def test_directory_and_archive_hold_the_same(folder: Path, tmp_path: Path) -> None:
    """A bundle reads the same from a directory and from one file, manifest bytes included."""
    assert everything_in(folder) == everything_in(tiny_bundle())


def test_equal_contents_give_equal_bytes(tmp_path: Path, written: tuple[Manifest, dict[str, bytes]]) -> None:
    """The order in which contents are given, and the time of day, leave no trace; a shipped bundle is one such."""
    manifest, contents = written
    write_bundle(tmp_path / "a.mbm", manifest, contents)
    write_bundle(tmp_path / "b.mbm", manifest, dict(reversed(contents.items())))
    assert (tmp_path / "a.mbm").read_bytes() == (tmp_path / "b.mbm").read_bytes() == tiny_bundle().read_bytes()


def test_any_zip_program_reads_an_archive(folder: Path) -> None:
    """The one file is a plain zip: Python's own reader finds every file whole, with plain permissions."""
    with zipfile.ZipFile(tiny_bundle()) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == tree(folder)
        assert {info.external_attr >> 16 for info in archive.infolist()} == {stat.S_IFREG | 0o644}


def test_an_archive_beyond_four_gigabytes_is_a_valid_zip64(tmp_path: Path) -> None:
    """Sizes and offsets past 32 bits are found again by Python's own reader (the data is a hole, never read)."""
    entries = [("small.bin", 5, zlib.crc32(bytes(5))), ("large.bin", 5 << 30, 2), ("exact.bin", 0xFFFFFFFF, 3)]
    entries.append(("after.bin", 7, zlib.crc32(bytes(7))))
    headers, tail = bundle_module._zip_frame(entries)
    with (tmp_path / "sparse.mbm").open("wb") as stream:
        for header, (_, size, _) in zip(headers, entries, strict=True):
            stream.write(header)
            stream.seek(size, os.SEEK_CUR)
        stream.write(tail)
    with zipfile.ZipFile(tmp_path / "sparse.mbm") as archive:
        assert [(i.filename, i.file_size, i.CRC) for i in archive.infolist()] == entries
        for name in ("small.bin", "large.bin", "after.bin"):  # opening reads the header in place
            with archive.open(name) as stream:
                assert stream.read(4) == b"\0\0\0\0"


def test_unknown_manifest_fields_are_kept_in_the_bytes(folder: Path) -> None:
    """A newer minor version's fields are ignored by the types and kept for whoever copies the bundle."""
    data = json.loads((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_text(json.dumps({**data, "format_version": "1.9", "hologram": 3}))
    with BundleFiles(folder) as files:
        assert json.loads(files.manifest_bytes)["hologram"] == 3


def test_the_manifest_is_returned_as_written(tmp_path: Path, written: tuple[Manifest, dict[str, bytes]]) -> None:
    """``write_bundle`` fills in the files itself, whatever the manifest listed."""
    manifest, contents = written
    empty = msgspec.structs.replace(manifest, files={})
    assert write_bundle(tmp_path / "x.mbm", empty, contents) == BundleFiles(tmp_path / "x.mbm").manifest == manifest


# --- damage ----------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_an_archive_is_noticed(tmp_path: Path) -> None:
    """Headers, data, manifest, gaps: a flip of any of 2000 sampled bits is refused with a BundleError."""
    good = tiny_bundle().read_bytes()
    path = tmp_path / "flipped.mbm"
    for position in random.Random(1).sample(range(len(good) * 8), 2000):
        data = bytearray(good)
        data[position // 8] ^= 1 << (position % 8)
        path.write_bytes(data)
        with pytest.raises(BundleError):
            BundleFiles(path)


def test_every_flipped_bit_of_an_archives_frame_is_noticed(tmp_path: Path) -> None:
    """The zip's own records, which hold no data, hide nothing either: each of their bytes is checked."""
    good = tiny_bundle().read_bytes()
    path = tmp_path / "flipped.mbm"
    with zipfile.ZipFile(tiny_bundle()) as archive:
        starts = [info.header_offset for info in archive.infolist()[:2]]
        directory = archive.start_dir
    places = [p for start in starts for p in range(start, start + 40)] + list(range(directory, len(good), 3))
    for position in places:
        data = bytearray(good)
        data[position] ^= 1 << (position % 8)
        path.write_bytes(data)
        with pytest.raises(BundleError):
            BundleFiles(path)


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: b"\0" + d, lambda d: d + d])
def test_an_archive_with_other_ends_is_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    """Nothing stands before or after the archive that a reader of zips would overlook."""
    (tmp_path / "x.mbm").write_bytes(change(tiny_bundle().read_bytes()))
    with pytest.raises(BundleIntegrityError):
        BundleFiles(tmp_path / "x.mbm")


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    """Cut at any of 200 lengths, from nothing to one byte short."""
    good = tiny_bundle().read_bytes()
    path = tmp_path / "short.mbm"
    for length in [*range(0, len(good), len(good) // 200), len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(BundleIntegrityError):
            BundleFiles(path)


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    """Two thousand heavier edits of an archive raise nothing but BundleError."""
    chance, good = random.Random(2), tiny_bundle().read_bytes()
    path = tmp_path / "fuzzed.mbm"
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            start = chance.randrange(len(data))
            if chance.random() < 0.5:
                data[start : start + 4] = chance.randbytes(4)
            else:
                data[-chance.randint(1, 600)] = chance.randrange(256)
        if data == good:
            continue
        path.write_bytes(data)
        with pytest.raises(BundleError):
            BundleFiles(path)


def test_a_damaged_file_in_a_directory_is_refused(folder: Path) -> None:
    """One bit flipped, one byte missing or one file gone is noticed for each listed file, and named."""
    for name in sorted(set(tree(folder)) - {MANIFEST}):
        path, good = folder / name, (folder / name).read_bytes()
        flipped = bytes([good[0] ^ 1]) + good[1:]
        for bad in (flipped, good[:-1], good + b"\0"):
            path.write_bytes(bad)
            with pytest.raises(BundleIntegrityError, match=name):
                BundleFiles(folder)
        path.unlink()
        with pytest.raises(BundleIntegrityError, match=name):
            BundleFiles(folder)
        path.write_bytes(good)
    BundleFiles(folder)


def test_what_changes_after_opening_is_not_handed_out(folder: Path) -> None:
    """Each read is hashed again: an altered, grown or vanished file raises, it is never returned."""
    with BundleFiles(folder) as files:
        path = folder / "labels" / "events.txt"
        for change in (lambda: path.write_bytes(b"x" * 20), lambda: path.write_bytes(b"x" * 10**6), path.unlink):
            change()
            with pytest.raises(BundleIntegrityError, match="events"):
                files.read("labels/events.txt")
            with pytest.raises(BundleIntegrityError, match="events"):
                files.verify()


def test_only_listed_files_are_read(folder: Path) -> None:
    """Neither the manifest's neighbours nor anything outside can be asked for."""
    with BundleFiles(folder) as files:
        for path in ("nothing.txt", "../x", "/etc/passwd", MANIFEST):
            with pytest.raises(BundleIntegrityError, match="not a file of the bundle"):
                files.read(path)


def test_unlisted_files_are_refused(folder: Path) -> None:
    """A file that the manifest does not list makes the whole directory untrusted."""
    (folder / "graphs" / "extra.so").write_bytes(b"\x7fELF")
    with pytest.raises(BundleIntegrityError, match=r"extra\.so.*not listed"):
        BundleFiles(folder)


def test_arrays_are_never_unpickled(tmp_path: Path, written: tuple[Manifest, dict[str, bytes]]) -> None:
    """An object array, or bytes that are no array, is refused though its digest is right."""
    manifest, contents = written
    stream = io.BytesIO()
    np.save(stream, np.array([{"run": "me"}], object), allow_pickle=True)
    good = contents["golden/0.image.npy"]
    packed = io.BytesIO()
    np.savez(packed, a=np.zeros(3))
    huge = good.replace(b"(8, 8, 3)", b"(9999999999, 8, 3)")
    for data in (stream.getvalue(), packed.getvalue(), huge, good[:-1], good + b"0", b"\x93NUMPY", b"", b"PK\3\4"):
        write_bundle(tmp_path / "x.mbm", manifest, contents | {"golden/0.image.npy": data})
        with (
            BundleFiles(tmp_path / "x.mbm") as files,
            pytest.raises(BundleIntegrityError, match=r"0\.image\.npy.*not a plain"),
        ):
            files.read_array("golden/0.image.npy")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_damaged_arrays_raise_bundle_errors_only(tmp_path: Path, written: tuple[Manifest, dict[str, bytes]]) -> None:
    """Whatever stands in a .npy header, it is an array or a BundleIntegrityError."""
    manifest, contents = written
    good, chance = contents["golden/0.image.npy"], random.Random(3)
    for _ in range(300):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(80)] = chance.choice(b"()[]{}'\"\\,:0919-+*abOV\0\n \xff")
        write_bundle(tmp_path / "x.mbm", manifest, contents | {"golden/0.image.npy": bytes(data)})
        with BundleFiles(tmp_path / "x.mbm") as files, contextlib.suppress(BundleIntegrityError):
            assert isinstance(files.read_array("golden/0.image.npy"), np.ndarray)


def test_arrays_are_read_as_numpy_writes_them(tmp_path: Path, written: tuple[Manifest, dict[str, bytes]]) -> None:
    """C and Fortran order, scalars, empty arrays and every dtype come back equal to what was saved."""
    manifest, contents = written
    block = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for array in (block, np.asfortranarray(block), np.float16(1.5), np.zeros((0, 3), np.int64), block > 3):
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=False)
        write_bundle(tmp_path / "x.mbm", manifest, contents | {"golden/0.image.npy": stream.getvalue()})
        with BundleFiles(tmp_path / "x.mbm") as files:
            np.testing.assert_array_equal(files.read_array("golden/0.image.npy"), array, strict=True)


def test_labels_must_be_text(tmp_path: Path, written: tuple[Manifest, dict[str, bytes]]) -> None:
    """Label bytes that are no UTF-8 are refused by name."""
    manifest, contents = written
    write_bundle(tmp_path / "x.mbm", manifest, contents | {"labels/events.txt": b"\xff\xfe"})
    with BundleFiles(tmp_path / "x.mbm") as files, pytest.raises(BundleIntegrityError, match=r"events\.txt"):
        files.read_labels("events")


# --- what must not be in it ------------------------------------------------------------------------------------------


def test_links_are_refused(folder: Path, tmp_path: Path) -> None:
    """A link is refused even where what it points to has the right bytes: a file, a folder, a dangling one."""
    labels = folder / "labels"
    moved = tmp_path / "labels"
    shutil.move(labels, moved)
    for place, points_to in ((labels, moved), (folder / "extra", tmp_path / "nowhere")):
        place.symlink_to(points_to)
        with pytest.raises(BundleIntegrityError, match="link"):
            BundleFiles(folder)
        place.unlink()
    labels.mkdir()
    (labels / "colors.txt").write_bytes((moved / "colors.txt").read_bytes())
    (labels / "events.txt").symlink_to(moved / "events.txt")
    with pytest.raises(BundleIntegrityError, match=r"events\.txt.*link"):
        BundleFiles(folder)


def test_a_link_put_there_later_is_refused(folder: Path, tmp_path: Path) -> None:
    """Swapping a file for a link after opening does not lead the reader out."""
    path = folder / "labels" / "events.txt"
    outside = tmp_path / "outside"
    outside.write_bytes(path.read_bytes())
    with BundleFiles(folder) as files:
        path.unlink()
        path.symlink_to(outside)
        with pytest.raises(BundleIntegrityError, match="events"):
            files.read("labels/events.txt")


@pytest.mark.timeout(10)
def test_a_pipe_is_refused_without_hanging(folder: Path, tmp_path: Path) -> None:
    """A FIFO in the directory, one put there after opening, and one in the bundle's place are all refused."""
    path = folder / "labels" / "events.txt"
    with BundleFiles(folder) as files:
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(BundleIntegrityError, match="events"):
            files.read("labels/events.txt")
    with pytest.raises(BundleIntegrityError, match=r"events\.txt"):
        BundleFiles(folder)
    os.mkfifo(tmp_path / "pipe.mbm")
    with pytest.raises(BundleError, match=r"pipe\.mbm"):
        BundleFiles(tmp_path / "pipe.mbm")


def zipped(path: Path, entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_with_tricks_are_refused(tmp_path: Path, folder: Path) -> None:
    """Paths that leave, names twice, compression (and so bombs), folders and links: each is refused."""
    good = list(tree(folder).items())
    path = tmp_path / "trick.mbm"
    for name in ("../evil", "/etc/evil", "a/../../evil", "C:\\evil", "évil", "labels/"):
        with pytest.raises(BundleIntegrityError):
            BundleFiles(zipped(path, [*good, (name, b"")]))
    with pytest.raises(BundleIntegrityError, match="twice"):
        BundleFiles(zipped(path, [*good, good[0]]))
    with pytest.raises(BundleIntegrityError, match="compressed"):
        BundleFiles(zipped(path, good, zipfile.ZIP_DEFLATED))
    with pytest.raises(BundleIntegrityError, match="compressed"):
        BundleFiles(zipped(path, [*good, ("bomb", b"\0" * 10**7)], zipfile.ZIP_DEFLATED))
    link = zipfile.ZipInfo("labels/link.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    zipped(path, good)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, b"/etc/passwd")
    with pytest.raises(BundleIntegrityError, match="regular"):
        BundleFiles(path)


def test_sizes_beyond_the_limits_are_refused(folder: Path) -> None:
    """Files, bytes of one, bytes of all and the manifest's own bytes are each limited, in both forms."""
    for path in (folder, tiny_bundle()):
        for limits in (Limits(files=3), Limits(file_bytes=100), Limits(total_bytes=500), Limits(manifest_bytes=50)):
            with pytest.raises(BundleIntegrityError, match=r"at most|more than"):
                BundleFiles(path, limits)


def test_an_archive_that_claims_huge_sizes_is_refused_at_once(tmp_path: Path) -> None:
    """Claimed sizes cost no memory: the file on disk is compared first."""
    headers, tail = bundle_module._zip_frame([(MANIFEST, 1 << 20, 0), ("big.bin", 1 << 50, 0)])
    (tmp_path / "liar.mbm").write_bytes(b"".join(headers) + tail)
    with pytest.raises(BundleIntegrityError):
        BundleFiles(tmp_path / "liar.mbm")


@pytest.mark.parametrize("path", ["nowhere", "nowhere.mbm", "with\0nul", "/dev/null", "x" * 300])
def test_where_there_is_no_bundle(tmp_path: Path, path: str) -> None:
    """A missing, impossible or special path is a BundleError that names it."""
    with pytest.raises(BundleError):
        BundleFiles(tmp_path / path)


def test_folders_that_are_not_bundles(tmp_path: Path) -> None:
    """An empty folder, and a manifest that is a folder, say that this is not a bundle."""
    with pytest.raises(BundleIntegrityError, match="not an edge-mbm bundle"):
        BundleFiles(tmp_path)
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(BundleIntegrityError, match="not an edge-mbm bundle"):
        BundleFiles(tmp_path)


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["old.mbm", "old"])
@pytest.mark.parametrize("step", ["replace", "rename", "fsync", "mkdir", "chmod", "write", "open"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), PermissionError(1, "no"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("nth", [1, 2])
def test_a_write_that_fails_leaves_the_old_bundle(
    tmp_path: Path,
    written: tuple[Manifest, dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    *,
    name: str,
    step: str,
    error: BaseException,
    nth: int,
) -> None:
    """Whichever system call fails, and whether by a full disk or Ctrl-C: old or new is there whole, and no rubbish."""
    manifest, contents = written
    place = tmp_path / name
    write_bundle(place, manifest, contents)
    old = everything_in(place)
    changed = contents | {"labels/events.txt": b"a\nb\nc\nd\n"}
    write_bundle(tmp_path / "expected.mbm", manifest, changed)
    new = everything_in(tmp_path / "expected.mbm")
    calls = 0

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise error
            return real(*args, **options)

        return call

    if step in ("rename", "mkdir", "chmod", "open"):
        monkeypatch.setattr(Path, step, failing(getattr(Path, step)))
    elif step == "write":

        class FailingFile(io.FileIO):
            write = failing(io.FileIO.write)

        monkeypatch.setattr(bundle_module.os, "fdopen", FailingFile)
    else:
        monkeypatch.setattr(bundle_module.os, step, failing(getattr(os, step)))
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else BundleError
    with contextlib.suppress(expected):
        write_bundle(place, manifest, changed)
    monkeypatch.undo()
    assert everything_in(place) in (old, new)
    if calls < nth:
        assert everything_in(place) == new
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "expected.mbm"])


def test_a_full_disk_is_said(
    tmp_path: Path, written: tuple[Manifest, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is about the disk, not about an errno."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundle_module.os, "fsync", full)
    with pytest.raises(BundleError, match="disk is full"):
        write_bundle(tmp_path / "x.mbm", *written)
    assert not list(tmp_path.iterdir())


def test_a_bundle_replaces_a_bundle(tmp_path: Path, written: tuple[Manifest, dict[str, bytes]]) -> None:
    """In both forms, and a damaged one too, so that exporting again mends it."""
    manifest, contents = written
    for name in ("x.mbm", "x"):
        write_bundle(tmp_path / name, manifest, contents)
        write_bundle(tmp_path / name, manifest, contents | {"labels/events.txt": b"a\nb\nc\nd\n"})
        assert BundleFiles(tmp_path / name).read("labels/events.txt") == b"a\nb\nc\nd\n"
    (tmp_path / "x" / "labels" / "events.txt").unlink()
    (tmp_path / "x.mbm").write_bytes((tmp_path / "x.mbm").read_bytes()[:500])
    for name in ("x.mbm", "x"):
        write_bundle(tmp_path / name, manifest, contents)
        assert everything_in(tmp_path / name) == everything_in(tiny_bundle())


def test_nothing_foreign_is_replaced(tmp_path: Path, written: tuple[Manifest, dict[str, bytes]]) -> None:
    """A folder with other files, a foreign manifest.json or a foreign file in the place is refused, and untouched."""
    places = {
        "notes": {"notes.txt": b"mine"},
        "extension": {MANIFEST: b'{"manifest_version": 3}', "popup.html": b"<p>"},
        "mixed": {MANIFEST: b'{"format": "edge-mbm", "files": {}}', "thesis.tex": b"mine"},
        "file": b"mine",
        "file.mbm": b"mine",
        "folder.mbm": {"notes.txt": b"mine"},
    }
    for name, content in places.items():
        place = tmp_path / name
        if isinstance(content, bytes):
            place.write_bytes(content)
        else:
            place.mkdir()
            for file, data in content.items():
                (place / file).write_bytes(data)
        with pytest.raises(BundleError, match=name):
            write_bundle(place, *written)
        assert (place.read_bytes() if place.is_file() else tree(place)) == content


def test_what_the_manifest_names_must_be_given(tmp_path: Path, written: tuple[Manifest, dict[str, bytes]]) -> None:
    """A missing graph, an unsafe path or a second manifest is refused before anything is written."""
    manifest, contents = written
    lacking = {path: data for path, data in contents.items() if "color" not in path}
    for bad in (lacking, contents | {"../x": b""}, contents | {MANIFEST: b"{}"}):
        with pytest.raises(ManifestError):
            write_bundle(tmp_path / "x.mbm", manifest, bad)
    assert not list(tmp_path.iterdir())
