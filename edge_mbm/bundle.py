"""Read, verify and write a bundle: a directory, or the same files in one ``.mbm``.

A ``.mbm`` is a zip archive whose entries are stored, not compressed, in the manifest's order with a fixed date: equal
contents give equal bytes, and an archive cannot unpack to more than its own size. Nothing in a bundle is ever executed,
linked or unpacked to disk. Whatever a reader hands out has been hashed against the manifest in that very read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_mbm.errors import BundleError, BundleIntegrityError
from edge_mbm.spec import FileEntry, Manifest, decode_manifest, encode_manifest

__all__ = ["MANIFEST", "BundleFiles", "Limits", "write_bundle"]

if TYPE_CHECKING:
    from typing_extensions import Self

MANIFEST = "manifest.json"
_CHUNK = 1 << 20
# The zip format's first representable moment: entries carry no real date, so that equal contents give equal bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Limits:
    """What a bundle may hold before reading it is refused."""

    files: int = 4096
    file_bytes: int = 4 << 30
    total_bytes: int = 16 << 30
    manifest_bytes: int = 16 << 20


class _Container(Protocol):
    """A directory or an archive: a flat map from path to bytes."""

    def sizes(self) -> dict[str, int]: ...

    def open(self, path: str) -> IO[bytes]: ...

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
            sizes = self._container.sizes()
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
        data = b"".join(self._chunks(path))
        _check_digest(path, hashlib.sha256(data).hexdigest(), entry)
        return data

    def read_array(self, path: str) -> NDArray[np.generic]:
        """A listed ``.npy`` file as an array; never unpickles.

        Raises:
            BundleIntegrityError: as ``read``, or the file is not a plain array.
        """
        try:
            array: NDArray[np.generic] = np.load(io.BytesIO(self.read(path)), allow_pickle=False)
        except (ValueError, EOFError, OSError, SyntaxError) as error:
            raise BundleIntegrityError(f"'{path}' in the bundle is not a plain .npy array: {error}") from error
        return array

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
            for chunk in self._chunks(path):
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

    def _chunks(self, path: str) -> Iterator[bytes]:
        try:
            with self._container.open(path) as stream:
                while chunk := stream.read(_CHUNK):
                    yield chunk
        except (OSError, zipfile.BadZipFile, EOFError, ValueError) as error:
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
    entries = {p: FileEntry(sha256=hashlib.sha256(d).hexdigest(), size=len(d)) for p, d in sorted(contents.items())}
    manifest = msgspec.structs.replace(manifest, files=entries)
    manifest.check()
    _refuse_foreign(target)
    files = {MANIFEST: encode_manifest(manifest), **{p: contents[p] for p in entries}}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write = _write_archive if target.suffix == ".mbm" else _write_directory
        write(target, files)
    except OSError as error:
        raise BundleError(f"the bundle cannot be written to {target}: {_why(error)}") from error
    return manifest


# --- containers ------------------------------------------------------------------------------------------------------


class _Directory:
    def __init__(self, root: Path) -> None:
        self._root = root

    def sizes(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for folder, folders, names in os.walk(self._root):
            for name in [*folders, *names]:
                item = Path(folder, name)
                mode = item.lstat()
                relative = item.relative_to(self._root).as_posix()
                if stat.S_ISREG(mode.st_mode):
                    found[relative] = mode.st_size
                elif not stat.S_ISDIR(mode.st_mode):
                    raise BundleIntegrityError(
                        f"'{relative}' in {self._root} is a link or a device: a bundle holds regular files only"
                    )
        return found

    def open(self, path: str) -> IO[bytes]:
        # O_NOFOLLOW: a link put there after the listing is refused too.
        return os.fdopen(os.open(self._root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")

    def close(self) -> None:
        pass


class _Archive:
    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, EOFError, ValueError, OverflowError) as error:
            raise BundleIntegrityError(
                f"{path} is not a whole .mbm archive ({error}): it may be truncated. Copy or export it again."
            ) from error
        self._path = path

    def sizes(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for info in self._zip.infolist():
            if info.filename in found:
                raise BundleIntegrityError(f"{self._path} holds '{info.filename}' twice")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1 or info.is_dir():
                raise BundleIntegrityError(
                    f"'{info.filename}' in {self._path} is compressed, encrypted or a folder: a .mbm holds stored files"
                )
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                raise BundleIntegrityError(f"'{info.filename}' in {self._path} is not a regular file")
            found[info.filename] = info.file_size
        return found

    def open(self, path: str) -> IO[bytes]:
        try:
            return self._zip.open(path)
        except (KeyError, NotImplementedError, RuntimeError) as error:
            raise OSError(str(error)) from error

    def close(self) -> None:
        self._zip.close()


def _open_container(path: Path) -> _Container:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _Directory(path)
        if stat.S_ISREG(mode):
            return _Archive(path)
    except OSError as error:
        raise BundleError(f"there is no bundle at {path}: {_why(error)}") from error
    raise BundleError(f"{path} is neither a bundle directory nor a .mbm file")


def _read_manifest(container: _Container, sizes: Mapping[str, int], limits: Limits) -> bytes:
    if MANIFEST not in sizes:
        raise BundleIntegrityError(f"there is no {MANIFEST}: this is not an edge-mbm bundle")
    if sizes[MANIFEST] > limits.manifest_bytes:
        raise BundleIntegrityError(f"{MANIFEST} has {sizes[MANIFEST]} bytes; at most {limits.manifest_bytes} are read")
    try:
        with container.open(MANIFEST) as stream:
            return stream.read(limits.manifest_bytes)
    except (OSError, zipfile.BadZipFile, EOFError, ValueError) as error:
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


def _check_digest(path: str, digest: str, entry: FileEntry) -> None:
    if digest != entry.sha256:
        raise BundleIntegrityError(
            f"'{path}' is not what the manifest says: sha256 {digest[:12]}..., expected {entry.sha256[:12]}.... "
            "The file was altered or damaged: copy or export the bundle again."
        )


# --- writing ---------------------------------------------------------------------------------------------------------


def _refuse_foreign(target: Path) -> None:
    if not target.exists():
        return
    if target.suffix == ".mbm":
        if not target.is_file():
            raise BundleError(f"{target} exists and is not a file: choose another name")
    elif not target.is_dir() or (any(target.iterdir()) and not (target / MANIFEST).is_file()):
        raise BundleError(f"{target} exists and is not a bundle: choose another name, or remove it yourself")


def _write_archive(target: Path, files: Mapping[str, bytes]) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
                for path, data in files.items():
                    archive.writestr(_zip_info(path), data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    _sync_directory(target.parent)


def _zip_info(path: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(path, date_time=_EPOCH)
    info.create_system = 3  # Unix, wherever it is written
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info


def _write_directory(target: Path, files: Mapping[str, bytes]) -> None:
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
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(aside / "bundle")
    try:
        fresh.rename(target)
    except OSError:
        (aside / "bundle").rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _why(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the disk is full; free some space and try again"
    return error.strerror or str(error)
