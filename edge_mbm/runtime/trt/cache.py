"""Engines on disk: found by all that they depend on, trusted only when whole and ours, written whole or not at all.

An engine is machine code, so nothing is taken that another user could have written, that is not the bytes that were
built here, or that was built for something else; such an entry counts as absent, and is built anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct, structs

from edge_mbm.errors import EngineError, InputError
from edge_mbm.runtime.log import warn
from edge_mbm.runtime.trt.layers import DlaShare, Precisions

__all__ = ["CacheEntry", "CachedEngine", "EngineCache", "EngineKey", "EngineRecord", "Latency", "engine_folder"]

_MAGIC = b"EMBMENG1"
_LENGTH_BYTES, _DIGEST_BYTES = 4, 32
_MOST_RECORD_BYTES = 1 << 20
_ENGINE, _PART, _TIMING = ".engine", ".part", ".timing"
_BLOCK = 1 << 20


def engine_folder() -> Path:
    """``$XDG_CACHE_HOME/edge-mbm/engines``, or the same under ``~/.cache``. Removing it is safe at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-mbm" / "engines"


class EngineKey(Struct, frozen=True, kw_only=True):
    """All that an engine depends on."""

    graph: str
    """sha256 of the ONNX graph."""
    product: str
    """"TensorRT" or "TensorRT-RTX"."""
    version: str
    gpu: str
    """Its name."""
    capability: str
    """"8.7"."""
    driver: str
    machine: str
    """A digest of this machine's id: an engine that was copied from another one is not found."""
    profile: str = "batch 1"
    options: tuple[str, ...] = ()
    """Of the build, as far as they decide what the engine computes."""

    @property
    def digest(self) -> str:
        """64 hexadecimal digits: the entry's name."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()

    @property
    def place(self) -> str:
        """As ``digest``, of where it was built alone: what a timing cache depends on."""
        where = structs.replace(self, graph="", profile="", options=())
        return where.digest

    def replaces(self, other: EngineKey) -> bool:
        """Whether ``other`` is of the same graph here, made before an update of TensorRT or of the driver."""
        return self != other and structs.replace(other, version=self.version, driver=self.driver) == self


class Latency(Struct, frozen=True, kw_only=True):
    """Of one call, measured on this GPU; microseconds."""

    median_us: float
    iqr_us: float
    runs: int


class _Sealed(Struct, frozen=True, kw_only=True):
    """What every file of the cache begins with."""

    sha256: str
    """Of what follows."""
    size: int


class EngineRecord(_Sealed, frozen=True, kw_only=True):
    """What is known of an engine."""

    key: EngineKey
    component: str
    variant: str
    asked: str
    """The variant's precision."""
    got: Precisions = {}
    """Layers by the precision that they compute in, where it could be read back."""
    level: int | None = None
    """The optimisation level that it was built with; None for TensorRT's own."""
    build_s: float = 0.0
    latency: Latency | None = None
    """None where there was no GPU to measure on."""
    dla: DlaShare | None = None
    """How much of it runs on the DLA; None where it is the GPU's."""


class _TimingRecord(_Sealed, frozen=True, kw_only=True):
    place: str


@dataclass(frozen=True)
class CachedEngine:
    """A sound entry."""

    record: EngineRecord
    plan: bytes


@dataclass(frozen=True)
class CacheEntry:
    """A file of the cache, sound or not; ``problem`` says why it is not used."""

    name: str
    size: int
    record: EngineRecord | None
    problem: str = ""


class _Refused(Exception):  # noqa: N818 - says why, and never leaves this module
    """An entry is not used, for this reason."""


_R = TypeVar("_R", bound=_Sealed)


class EngineCache:
    """The engines of one user on one machine.

    Args:
        folder: it is made with mode 0700 when something is written.

    Raises:
        EngineError: the folder is there and belongs to somebody else, or is no folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or engine_folder()
        if os.path.lexists(self.folder):
            self._check_folder()

    def find(self, key: EngineKey) -> CachedEngine | None:
        """The engine of a key; None where there is none, or none that can be trusted (which is logged)."""
        path = self._path(key)
        try:
            record, plan = _read(path, EngineRecord)
            _check_key(record, key)
        except FileNotFoundError:
            return None
        except _Refused as reason:
            warn(__name__, "the engine %s is not used: %s. It is built anew.", path.name, reason)
            return None
        return CachedEngine(record, plan)

    def look(self, key: EngineKey) -> EngineRecord | None:
        """As ``find``, of the record alone; whether the engine is whole is not looked at."""
        try:
            with _opened(self._path(key)) as file:
                record = _read_record(file, EngineRecord)
        except (FileNotFoundError, _Refused):
            return None
        return record if record.key == key else None

    def store(self, record: EngineRecord, plan: bytes) -> EngineRecord:
        """Keep an engine under ``record.key``; what an update of TensorRT or the driver made useless goes.

        Args:
            record: its digest and size are filled in.
            plan: the engine.

        Raises:
            EngineError: the disk is full, or cannot be written; the cache is as it was.
        """
        sealed = structs.replace(record, sha256=hashlib.sha256(plan).hexdigest(), size=len(plan))
        self._write(self._path(record.key), sealed, plan)
        for entry in self.entries():
            if entry.record is not None and record.key.replaces(entry.record.key):
                self._unlink(entry.name)
        return sealed

    def timing(self, key: EngineKey) -> bytes:
        """What TensorRT measured before in the same place, for its timing cache; b"" for nothing."""
        try:
            record, data = _read(self._timing_path(key), _TimingRecord)
        except (FileNotFoundError, _Refused):
            return b""
        return data if record.place == key.place else b""

    def keep_timing(self, key: EngineKey, data: bytes) -> None:
        """Keep a timing cache; it only saves time, so that a disk which takes no more is no error."""
        record = _TimingRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data), place=key.place)
        with suppress(EngineError):
            self._write(self._timing_path(key), record, data)

    @contextmanager
    def building(self, waiting: Callable[[], None] | None = None) -> Iterator[Path]:
        """Alone among all processes: engines are built one at a time, since each may take the machine's memory.

        Args:
            waiting: called once if another process is at it, before this one waits.

        Yields:
            A folder for files on the way; what a killed process left there is gone.

        Raises:
            EngineError: the folder cannot be written.
        """
        self._make_folder()
        with self._explain("lock"), open(self.folder / "lock", "wb") as lock:
            _acquire(lock.fileno(), waiting)
            self._clear_parts()
            yield self.folder

    def entries(self) -> list[CacheEntry]:
        """Every engine, by component; digests are not computed, which takes a while."""
        found = [self._entry(path) for path in self._files(_ENGINE)]
        return sorted(found, key=lambda e: (e.record.component if e.record else "", e.name))

    def remove(self, name: str) -> CacheEntry:
        """Delete an entry, by its name or a part of the name that is no other's.

        Raises:
            InputError: there is no such entry, or there are several.
        """
        matching = [entry for entry in self.entries() if entry.name.startswith(name)]
        if len(matching) != 1:
            raise InputError(
                f"{len(matching) or 'no'} engines of the cache begin with '{name}': edge-mbm cache ls shows their names"
            )
        self._unlink(matching[0].name)
        return matching[0]

    def clear(self) -> list[CacheEntry]:
        """Delete every engine, and what TensorRT measured to build them."""
        entries = self.entries()
        for path in (*self._files(_ENGINE), *self._files(_TIMING)):
            path.unlink(missing_ok=True)
        return entries

    # --- inside ------------------------------------------------------------------------------------------------------

    def _path(self, key: EngineKey) -> Path:
        return self.folder / f"{key.digest}{_ENGINE}"

    def _timing_path(self, key: EngineKey) -> Path:
        return self.folder / f"{key.place}{_TIMING}"

    def _files(self, suffix: str) -> list[Path]:
        return sorted(self.folder.glob(f"*{suffix}")) if self.folder.is_dir() else []

    def _unlink(self, name: str) -> None:
        (self.folder / f"{name}{_ENGINE}").unlink(missing_ok=True)

    def _entry(self, path: Path) -> CacheEntry:
        try:
            with _opened(path) as file:
                record = _read_record(file, EngineRecord)
                size = os.fstat(file).st_size
        except (_Refused, FileNotFoundError) as reason:
            return CacheEntry(path.stem, path.lstat().st_size if path.exists() else 0, None, str(reason))
        problem = "" if record.key.digest == path.stem else "it was built for something else, or on another machine"
        return CacheEntry(path.stem, size, record, problem)

    def _check_folder(self) -> None:
        found = self.folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise EngineError(
                f"{self.folder}, where engines are kept, is not a folder of yours: engines are machine code, and are "
                "taken from nobody else. Move it away, or set XDG_CACHE_HOME"
            )
        if stat.S_IMODE(found.st_mode) & 0o077:
            self.folder.chmod(0o700)

    def _make_folder(self) -> None:
        with self._explain("make"):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self._check_folder()

    def _clear_parts(self) -> None:
        for path in self._files(_PART):
            path.unlink(missing_ok=True)

    def _write(self, path: Path, record: _Sealed, body: bytes) -> None:
        """Whole or not at all, whenever the process or the power goes."""
        self._make_folder()
        part = path.with_name(f"{path.name}.{os.getpid()}{_PART}")
        header = msgspec.json.encode(record)
        try:
            with self._explain("write"):
                with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
                    file.write(_MAGIC + len(header).to_bytes(_LENGTH_BYTES, "little"))
                    file.write(hashlib.sha256(header).digest() + header)
                    file.write(body)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(path)
                _sync(self.folder)
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def _explain(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EngineError(
                f"cannot {action} {self.folder}, where engines are kept: {error.strerror or error}. "
                f"{_free(self.folder)}Make room (edge-mbm cache ls, edge-mbm cache rm), or set XDG_CACHE_HOME to a "
                "folder on another disk"
            ) from error


def _check_key(record: EngineRecord, key: EngineKey) -> None:
    if record.key != key:
        raise _Refused("it was built for something else, or on another machine")


def _acquire(lock: int, waiting: Callable[[], None] | None) -> None:
    """Closing the file, or dying, gives it back."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is not None:
            waiting()
        fcntl.flock(lock, fcntl.LOCK_EX)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A file of the cache, if nobody else can have written it."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _Refused(f"it cannot be read ({error.strerror})") from error
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise _Refused("it is not a file of yours")
        if found.st_mode & 0o022:
            raise _Refused("others may write to it")
        yield file
    finally:
        os.close(file)


def _read(path: Path, kind: type[_R]) -> tuple[_R, bytes]:
    with _opened(path) as file:
        record = _read_record(file, kind)
        body = _read_bytes(file, record.size + 1)  # one more shows what was added
    if hashlib.sha256(body).hexdigest() != record.sha256:
        raise _Refused("it is damaged")
    return record, body


def _read_record(file: int, kind: type[_R]) -> _R:
    start = _read_bytes(file, len(_MAGIC) + _LENGTH_BYTES)
    length = int.from_bytes(start[len(_MAGIC) :], "little")
    if not start.startswith(_MAGIC) or length > _MOST_RECORD_BYTES:
        raise _Refused("it is no engine of this edge-mbm")
    digest, header = _read_bytes(file, _DIGEST_BYTES), _read_bytes(file, length)
    if hashlib.sha256(header).digest() != digest:
        raise _Refused("it is damaged")
    try:
        return msgspec.json.decode(header, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _Refused("it is of another edge-mbm") from error


def _read_bytes(file: int, count: int) -> bytes:
    """So many, or what there is."""
    blocks = []
    while count > 0 and (block := os.read(file, min(count, _BLOCK))):
        blocks.append(block)
        count -= len(block)
    return b"".join(blocks)


def _sync(folder: Path) -> None:
    """So that a new name survives a loss of power."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _free(folder: Path) -> str:
    with suppress(OSError):
        return f"{shutil.disk_usage(folder).free >> 20} MiB are free there. "
    return ""
