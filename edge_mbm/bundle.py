"""Read, verify and write a bundle: a directory, or the same files in one ``.mbm``.

A ``.mbm`` is a zip archive whose entries are stored, not compressed, in the manifest's order with a fixed date, and
any other layout is refused: equal contents give equal bytes, every byte is either hashed or checked, and an archive
cannot unpack to more than its own size. Nothing in a bundle is ever executed,
linked or unpacked to disk. Whatever a reader hands out has been hashed against the manifest in that very read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import math
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec
import numpy as np

from edge_mbm.errors import BundleError, BundleIntegrityError, ManifestError
from edge_mbm.spec import FileEntry, Manifest, decode_manifest, encode_manifest

__all__ = ["MANIFEST", "BundleFiles", "Limits", "check_target", "write_bundle"]

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

MANIFEST = "manifest.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a bundle may hold before reading it is refused."""

    files: int = 4096
    file_bytes: int = 4 << 30
    total_bytes: int = 16 << 30
    manifest_bytes: int = 16 << 20


class _Container(Protocol):
    """A directory or an archive: a flat map from path to bytes."""

    def sizes(self, most: int) -> dict[str, int]: ...

    def chunks(self, path: str, most: int) -> Iterator[bytes]: ...

    def close(self) -> None: ...


class BundleFiles:
    """The verified, read-only files of one bundle.

    Opening it hashes every file, so a truncated or altered bundle is refused before anything is loaded.

    Args:
        path: a bundle directory or ``.mbm`` file.
        limits: sizes beyond which it is refused.

    Raises:
        BundleError: there is no bundle at ``path``.
        BundleIntegrityError: a file is missing, unlisted, altered, too large, a link, or compressed.
        BundleVersionError, ManifestError: see ``spec.decode_manifest``.
    """

    def __init__(self, path: str | os.PathLike[str], limits: Limits | None = None) -> None:
        self.path = Path(path)
        limits = limits or Limits()
        self._container = _open_container(self.path)
        try:
            sizes = self._container.sizes(limits.files + 1)
            self.manifest_bytes = _read_manifest(self._container, sizes, limits)
            self.manifest = decode_manifest(self.manifest_bytes)
            _check_listing(self.manifest, sizes, limits)
            self.verify()
        except BaseException:
            self._container.close()
            raise

    def read(self, path: str) -> bytes:
        """The bytes of a listed file, hashed on the way.

        Raises:
            BundleIntegrityError: not listed, or no longer what the manifest says.
        """
        entry = self._entry(path)
        data = b"".join(self._chunks(path, entry))
        _check_digest(path, hashlib.sha256(data).hexdigest(), entry)
        return data

    def read_array(self, path: str) -> NDArray[np.generic]:
        """A listed ``.npy`` file as an array; never unpickles.

        Raises:
            BundleIntegrityError: as ``read``, or the file is not a plain array.
        """
        data = self.read(path)
        try:
            return _parse_npy(data)
        except Exception as error:  # the header is a Python literal, so numpy's parser may raise anything
            raise BundleIntegrityError(f"'{path}' in the bundle is not a plain .npy array: {error}") from error

    def read_labels(self, asset: str) -> tuple[str, ...]:
        """The lines of a label asset.

        Raises:
            BundleIntegrityError: as ``read``, or the file is not UTF-8.
        """
        path = self.manifest.assets[asset].path
        try:
            return tuple(self.read(path).decode("utf-8").splitlines())
        except UnicodeDecodeError as error:
            raise BundleIntegrityError(f"'{path}' in the bundle is not UTF-8 text: {error}") from error

    def verify(self) -> None:
        """Hash every file again, in constant memory.

        Raises:
            BundleIntegrityError: the first file that is not what the manifest says.
        """
        for path, entry in self.manifest.files.items():
            digest = hashlib.sha256()
            for chunk in self._chunks(path, entry):
                digest.update(chunk)
            _check_digest(path, digest.hexdigest(), entry)

    def close(self) -> None:
        """Release the archive; reading afterwards fails."""
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _entry(self, path: str) -> FileEntry:
        try:
            return self.manifest.files[path]
        except KeyError:
            raise BundleIntegrityError(f"'{path}' is not a file of the bundle {self.path}") from None

    def _chunks(self, path: str, entry: FileEntry) -> Iterator[bytes]:
        """Its bytes, one more than listed at most: a file that grew is not read to its end."""
        try:
            yield from self._container.chunks(path, entry.size + 1)
        except OSError as error:
            raise BundleIntegrityError(
                f"'{path}' in {self.path} cannot be read: {error}. Copy the bundle again."
            ) from error


def write_bundle(path: str | os.PathLike[str], manifest: Manifest, contents: Mapping[str, bytes]) -> Manifest:
    """Write a bundle so that ``path`` holds either what it held before or the whole new bundle.

    Args:
        path: ends in ``.mbm`` for a single file, else a directory. Only a bundle is ever replaced.
        manifest: its ``files`` is ignored and made from ``contents``.
        contents: path inside the bundle -> bytes.

    Returns:
        The manifest as written, with ``files`` filled in.

    Raises:
        ManifestError: the manifest breaks a rule, or names a file that ``contents`` lacks.
        BundleError: the place cannot be written, or holds something that is not a bundle.
    """
    target = Path(path)
    if MANIFEST in contents:
        raise ManifestError(f"contents has {MANIFEST}, which is made from the manifest: leave it out")
    entries = {p: FileEntry(sha256=hashlib.sha256(d).hexdigest(), size=len(d)) for p, d in sorted(contents.items())}
    manifest = msgspec.structs.replace(manifest, files=entries)
    manifest.check()
    files = {MANIFEST: encode_manifest(manifest), **{p: contents[p] for p in entries}}
    try:
        _refuse_foreign(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        write = _write_archive if target.suffix == ".mbm" else _write_directory
        write(target, files)
    except OSError as error:
        raise BundleError(f"the bundle cannot be written to {target}: {_why(error)}") from error
    return manifest


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse a place where ``write_bundle`` would not write, before work is spent on what is to go there.

    Raises:
        BundleError: it holds something that is not a bundle, or its folder cannot be written to.
    """
    target = Path(path)
    try:
        _refuse_foreign(target)
        existing = next(folder for folder in target.absolute().parents if folder.exists())
    except OSError as error:
        raise BundleError(f"the bundle cannot be written to {target}: {_why(error)}") from error
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise BundleError(f"the bundle cannot be written to {target}: {existing} is no folder that you may write to")


# --- containers ------------------------------------------------------------------------------------------------------


class _Directory:
    def __init__(self, root: Path) -> None:
        self._root = root

    def sizes(self, most: int) -> dict[str, int]:
        found: dict[str, int] = {}
        try:
            for item in self._walk():
                mode = item.lstat()
                relative = item.relative_to(self._root).as_posix()
                if stat.S_ISREG(mode.st_mode):
                    found[relative] = mode.st_size
                elif not stat.S_ISDIR(mode.st_mode):
                    raise BundleIntegrityError(
                        f"'{relative}' in {self._root} is a link or a device: a bundle holds regular files only"
                    )
                if len(found) > most:
                    raise BundleIntegrityError(f"{self._root} holds more than {most} files")
        except OSError as error:
            raise BundleIntegrityError(f"{self._root} cannot be read: {_why(error)}") from error
        return found

    def chunks(self, path: str, most: int) -> Iterator[bytes]:
        # A link, or a pipe that would block, put there after the listing is refused too.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(self._root / path, flags), "rb") as stream:
            while most and (chunk := stream.read(min(most, _CHUNK))):
                most -= len(chunk)
                yield chunk

    def close(self) -> None:
        pass

    def _walk(self) -> Iterator[Path]:
        def fail(error: OSError) -> None:
            raise error

        for folder, folders, names in os.walk(self._root, onerror=fail):
            yield from (Path(folder, name) for name in [*folders, *names])


class _Archive:
    """A ``.mbm``, read strictly: its directory, written anew, must come out as it stands in the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._places: dict[str, tuple[int, int, int]] = {}

    def sizes(self, most: int) -> dict[str, int]:
        try:
            return self._list(most)
        except (OSError, struct.error, UnicodeError) as error:
            raise self._damaged(str(error)) from error

    def chunks(self, path: str, most: int) -> Iterator[bytes]:
        position, size, expected = self._places[path]
        left, crc = min(size, most), 0
        while left:
            chunk = self._read(position, min(left, _CHUNK))
            position, left, crc = position + len(chunk), left - len(chunk), zlib.crc32(chunk, crc)
            yield chunk
        # All but the manifest have a better one in the manifest.
        if size <= most and crc != expected:
            raise OSError("the checksum is wrong")

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1

    def _list(self, most: int) -> dict[str, int]:
        entries = self._entries(most)
        headers, tail = _zip_frame(entries)
        position = 0
        for (name, size, crc), header in zip(entries, headers, strict=True):
            self._expect(position, header)
            self._places[name] = (position + len(header), size, crc)
            position += len(header) + size
        self._expect(position, tail)
        if position + len(tail) != os.fstat(self._handle).st_size:
            raise self._damaged("bytes where none belong")
        return {name: size for name, size, _ in entries}

    def _entries(self, most: int) -> list[tuple[str, int, int]]:
        """Name, size and CRC-32 of each entry as the directory at the end says; ``_list`` checks all the rest."""
        end = os.fstat(self._handle).st_size - _END.size
        signature, *_, count, size, offset, _ = _END.unpack(self._read(end, _END.size))
        if count == _FULL_16 or offset == _FULL:
            position = end - _LOCATOR_64.size - _END_64.size
            *_, count, size, offset = _END_64.unpack(self._read(position, _END_64.size))
        if signature != b"PK\5\6" or size > count * (_CENTRAL.size + 512):
            raise self._damaged("no directory at its end")
        if count > most:
            raise BundleIntegrityError(f"{self._path} holds more than {most} files")
        directory, position = self._read(offset, size), 0
        found: dict[str, tuple[str, int, int]] = {}
        for _ in range(count):
            entry, position = self._entry(directory, position)
            if entry[0] in found:
                raise BundleIntegrityError(f"{self._path} holds '{entry[0]}' twice")
            found[entry[0]] = entry
        return list(found.values())

    def _entry(self, directory: bytes, position: int) -> tuple[tuple[str, int, int], int]:
        fields = _CENTRAL.unpack_from(directory, position)
        flags, method, crc, size, attributes = fields[3], fields[4], fields[7], fields[9], fields[15]
        body = position + _CENTRAL.size
        after = body + fields[10]
        name = directory[body:after].decode("ascii")
        if method or flags & 0x1:
            raise BundleIntegrityError(
                f"'{name}' in {self._path} is compressed or encrypted: a .mbm holds stored files"
            )
        if stat.S_IFMT(attributes >> 16) not in (0, stat.S_IFREG):
            raise BundleIntegrityError(f"'{name}' in {self._path} is not a regular file")
        if size == _FULL:
            (size,) = struct.unpack_from("<Q", directory, after + 4)
        return (name, size, crc), after + fields[11] + fields[12]

    def _expect(self, position: int, piece: bytes) -> None:
        if self._read(position, len(piece)) != piece:
            raise self._damaged(f"near byte {position} it is not laid out as edge-mbm does")

    def _read(self, position: int, size: int) -> bytes:
        data = os.pread(self._handle, size, position) if position >= 0 else b""
        if len(data) != size:
            raise OSError("it ends too early")
        return data

    def _damaged(self, why: str) -> BundleIntegrityError:
        return BundleIntegrityError(
            f"{self._path} is not a whole .mbm archive ({why}): it may be truncated or altered. "
            "Copy or export it again; a bundle that was unpacked opens as a directory."
        )


def _open_container(path: Path) -> _Container:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _Directory(path)
        if stat.S_ISREG(mode):
            return _Archive(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise BundleError(f"there is no bundle at {path}: {_why(error)}") from error
    raise BundleError(f"{path} is neither a bundle directory nor a .mbm file")


def _read_manifest(container: _Container, sizes: Mapping[str, int], limits: Limits) -> bytes:
    if MANIFEST not in sizes:
        raise BundleIntegrityError(f"there is no {MANIFEST}: this is not an edge-mbm bundle")
    if sizes[MANIFEST] > limits.manifest_bytes:
        raise BundleIntegrityError(f"{MANIFEST} has {sizes[MANIFEST]} bytes; at most {limits.manifest_bytes} are read")
    try:
        return b"".join(container.chunks(MANIFEST, limits.manifest_bytes))
    except OSError as error:
        raise BundleIntegrityError(f"{MANIFEST} cannot be read: {error}. Copy the bundle again.") from error


def _check_listing(manifest: Manifest, sizes: Mapping[str, int], limits: Limits) -> None:
    if len(manifest.files) > limits.files:
        raise BundleIntegrityError(f"the manifest lists {len(manifest.files)} files; at most {limits.files} are read")
    if sum(entry.size for entry in manifest.files.values()) > limits.total_bytes:
        raise BundleIntegrityError(f"the bundle has more than {limits.total_bytes} bytes")
    for path, entry in manifest.files.items():
        if path not in sizes:
            raise BundleIntegrityError(f"'{path}' is listed in the manifest but missing. Copy the bundle again.")
        if sizes[path] != entry.size:
            raise BundleIntegrityError(
                f"'{path}' has {sizes[path]} bytes, the manifest says {entry.size}. Copy it again."
            )
        if entry.size > limits.file_bytes:
            raise BundleIntegrityError(f"'{path}' has {entry.size} bytes; at most {limits.file_bytes} are read")
    unlisted = sorted(set(sizes) - set(manifest.files) - {MANIFEST})
    if unlisted:
        raise BundleIntegrityError(f"'{unlisted[0]}' is not listed in the manifest: a bundle holds listed files only")


def _parse_npy(data: bytes) -> NDArray[np.generic]:
    """Not ``np.load``, which also opens archives, and believes a header about how much memory to take."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(stream)
    if dtype.hasobject or len(data) - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{dtype}{list(shape)} in {len(data)} bytes")
    flat: NDArray[np.generic] = np.frombuffer(data, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C").copy()


def _check_digest(path: str, digest: str, entry: FileEntry) -> None:
    if digest != entry.sha256:
        raise BundleIntegrityError(
            f"'{path}' is not what the manifest says: sha256 {digest[:12]}..., expected {entry.sha256[:12]}.... "
            "The file was altered or damaged: copy or export the bundle again."
        )


# --- writing ---------------------------------------------------------------------------------------------------------


def _refuse_foreign(target: Path) -> None:
    """Replace nothing but a bundle, whole or damaged: never somebody's folder that happens to have the name."""
    if not target.exists():
        return
    if target.suffix == ".mbm":
        if not target.is_file() or not _looks_like_archive(target):
            raise BundleError(f"{target} exists and is not a bundle: choose another name, or remove it yourself")
    elif not target.is_dir() or not _holds_only_a_bundle(target):
        raise BundleError(
            f"{target} exists and is not a bundle, or holds other files too: choose another name, or remove it yourself"
        )


def _looks_like_archive(path: Path) -> bool:
    with path.open("rb") as stream:
        start = stream.read(_LOCAL.size + len(MANIFEST))
    return not start or (start.startswith(b"PK\3\4") and start.endswith(MANIFEST.encode()))


class _Listing(msgspec.Struct):
    """As much of a manifest as tells which files are its own, whatever its version."""

    format: Literal["edge-mbm"]
    files: dict[str, object]


def _holds_only_a_bundle(folder: Path) -> bool:
    found = {
        item.relative_to(folder).as_posix() for item in folder.rglob("*") if item.is_symlink() or not item.is_dir()
    }
    if not found:
        return True
    try:
        listing = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=_Listing)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return found <= {MANIFEST, *listing.files}


def _write_archive(target: Path, files: Mapping[str, bytes]) -> None:
    import tempfile  # noqa: PLC0415 - devices only read, and start sooner without it

    headers, tail = _zip_frame([(path, len(data), zlib.crc32(data)) for path, data in files.items()])
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            for header, data in zip(headers, files.values(), strict=True):
                stream.write(header)
                stream.write(data)
            stream.write(tail)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    _sync_directory(target.parent)


_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_VERSION, _VERSION_64 = 20, 45
_EPOCH = 0x21
"""1 January 1980, the format's first date: entries carry no real one."""
_FULL, _FULL_16 = 0xFFFFFFFF, 0xFFFF
"""In a small field: the real value stands in the zip64 field."""


def _zip_frame(entries: Iterable[tuple[str, int, int]]) -> tuple[list[bytes], bytes]:
    """All of a stored zip but the data (PKWARE APPNOTE 6.3, 4.3): the header before each entry, and the end.

    Not ``zipfile``: its bytes depend on the Python version, it reads past much that is wrong, and it loads slowly.

    Args:
        entries: path, size and CRC-32, in order.
    """
    headers, directory, offset = [], [], 0
    for path, size, crc in entries:
        name, small = path.encode("ascii"), min(size, _FULL)
        wide = [size, size] if small == _FULL else []
        extra = _zip64_field(wide)
        version = _VERSION_64 if wide else _VERSION
        shared = (0, 0, 0, _EPOCH, crc, small, small, len(name))
        headers.append(_LOCAL.pack(b"PK\3\4", version, *shared, len(extra)) + name + extra)
        wide += [offset] if offset >= _FULL else []
        extra = _zip64_field(wide)
        version = _VERSION_64 if wide else _VERSION
        unix = 3 << 8 | version
        place = (0, 0, 0, (stat.S_IFREG | 0o644) << 16, min(offset, _FULL))
        directory.append(_CENTRAL.pack(b"PK\1\2", unix, version, *shared, len(extra), *place) + name + extra)
        offset += len(headers[-1]) + size
    return headers, b"".join(directory) + _zip_end(len(directory), sum(map(len, directory)), offset)


def _zip64_field(values: list[int]) -> bytes:
    return struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values) if values else b""


def _zip_end(count: int, size: int, offset: int) -> bytes:
    wide = b""
    if count >= _FULL_16 or offset >= _FULL:
        wide = _END_64.pack(b"PK\6\6", 44, _VERSION_64, _VERSION_64, 0, 0, count, count, size, offset)
        wide += _LOCATOR_64.pack(b"PK\6\7", 0, offset + size, 1)
    few = min(count, _FULL_16)
    return wide + _END.pack(b"PK\5\6", 0, 0, few, few, min(size, _FULL), min(offset, _FULL), 0)


def _write_directory(target: Path, files: Mapping[str, bytes]) -> None:
    import shutil  # noqa: PLC0415 - as above
    import tempfile  # noqa: PLC0415

    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for path, data in files.items():
            place = fresh / path
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        fresh.chmod(0o755)
        _swap(fresh, target)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    _sync_directory(target.parent)


def _swap(fresh: Path, target: Path) -> None:
    """Put ``fresh`` where ``target`` is: a directory is not replaced in one step, so the old one steps aside first."""
    if not target.exists():
        fresh.rename(target)
        return
    import shutil  # noqa: PLC0415 - as above
    import tempfile  # noqa: PLC0415

    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    try:
        target.rename(aside / "bundle")
        fresh.rename(target)
    finally:
        # Whatever stopped it, Ctrl-C included: the old one comes back unless the new one is there.
        if not target.exists():
            (aside / "bundle").rename(target)
        shutil.rmtree(aside, ignore_errors=True)


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        if error.errno == errno.ENOSPC:
            return "the disk is full; free some space and try again"
        return error.strerror or str(error)
    return str(error)
