"""Engines on disk: whole or absent, ours or nobody's, whatever happens to the process, the disk or the file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from edge_mbm.errors import EngineError, InputError
from edge_mbm.runtime.trt.cache import EngineCache, EngineKey, EngineRecord, Latency, engine_folder

KEY = EngineKey(
    graph="a" * 64,
    product="TensorRT",
    version="10.3.0",
    gpu="Orin",
    capability="8.7",
    driver="CUDA 12.6",
    machine="0123",
    options=("strongly typed",),
)
PLAN = bytes(range(256)) * 40
OTHERS = {
    "graph": "b" * 64,
    "product": "TensorRT-RTX",
    "version": "10.16.1",
    "gpu": "Thor",
    "capability": "11.0",
    "driver": "CUDA 13.2",
    "machine": "4567",
    "profile": "batch 8",
    "options": ("weakly typed",),
}


def record(key: EngineKey = KEY, **fields: object) -> EngineRecord:
    made = EngineRecord(sha256="", size=0, key=key, component="eyes", variant="trt-fp16", asked="fp16")
    return structs.replace(made, **fields)


def file_of(cache: EngineCache, key: EngineKey = KEY) -> Path:
    return cache.folder / f"{key.digest}.engine"


def test_what_is_stored_is_found(cache: EngineCache) -> None:
    """The same bytes, and what was known of them."""
    latency = Latency(median_us=812.5, iqr_us=3.0, runs=200)
    stored = cache.store(record(got={"fp16": 3}, level=1, build_s=2.5, latency=latency), PLAN)
    found = cache.find(KEY)
    assert found is not None
    assert (found.plan, found.record) == (PLAN, stored)
    assert cache.look(KEY) == stored
    assert stored.latency == latency


@pytest.mark.parametrize("field", OTHERS)
def test_an_engine_for_something_else_is_not_found(cache: EngineCache, field: str) -> None:
    """Another graph, TensorRT, GPU, driver, machine, profile or options: each is another engine."""
    cache.store(record(), PLAN)
    assert cache.find(structs.replace(KEY, **{field: OTHERS[field]})) is None


def test_the_folder_is_ours_alone(cache: EngineCache) -> None:
    """Mode 0700 and 0600; a folder that was opened to others is closed again."""
    cache.store(record(), PLAN)
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert file_of(cache).stat().st_mode & 0o777 == 0o600
    cache.folder.chmod(0o755)
    EngineCache(cache.folder)
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_it_is_where_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the XDG base directories."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engine_folder() == tmp_path / "edge-mbm" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert engine_folder() == Path.home() / ".cache" / "edge-mbm" / "engines"


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_engine_is_never_found(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever byte is flipped, wherever it is cut, and whatever is added: built anew, not run, and no exception."""
    cache = EngineCache(tmp_path / "engines")
    cache.store(record(), PLAN)
    path = file_of(cache)
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    spoiled = data.draw(
        st.sampled_from(
            [
                whole[:place],
                whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :],
                whole + b"\0",
            ]
        )
    )
    path.write_bytes(spoiled)
    assert cache.find(KEY) is None
    if place < len(whole) - len(PLAN):
        assert cache.look(KEY) is None or spoiled.startswith(whole)
        [entry] = cache.entries()
        assert entry.problem or spoiled.startswith(whole)


def test_a_poisoned_engine_is_refused_and_said(cache: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    """Another engine's bytes in the place of ours: their digest tells."""
    cache.store(record(), PLAN)
    path = file_of(cache)
    path.write_bytes(path.read_bytes().replace(PLAN, PLAN[::-1]))
    assert cache.find(KEY) is None
    assert f"the engine {path.name} is not used: it is damaged. It is built anew." in caplog.text


def test_a_cache_from_another_machine_is_refused(
    cache: EngineCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Copied whole it is not found; renamed to what is looked for, it says itself for what it was built."""
    theirs = EngineCache(tmp_path / "theirs")
    away = structs.replace(KEY, machine="4567")
    theirs.store(record(away), PLAN)
    cache.store(record(structs.replace(KEY, graph="c" * 64)), PLAN)
    (cache.folder / file_of(theirs, away).name).write_bytes(file_of(theirs, away).read_bytes())
    assert cache.find(KEY) is None
    file_of(cache).write_bytes(file_of(theirs, away).read_bytes())
    assert cache.find(KEY) is None
    assert cache.look(KEY) is None
    assert "it was built for something else, or on another machine" in caplog.text
    [entry] = [entry for entry in cache.entries() if entry.name == KEY.digest]
    assert entry.problem == "it was built for something else, or on another machine"


def test_an_engine_that_others_could_write_is_refused(cache: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    """Engines are machine code: also a whole one."""
    cache.store(record(), PLAN)
    file_of(cache).chmod(0o666)
    assert cache.find(KEY) is None
    assert "others may write to it" in caplog.text


def test_an_engine_of_somebody_else_is_refused(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file of another user, and a folder of another user."""
    cache.store(record(), PLAN)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert cache.find(KEY) is None
    assert "it is not a file of yours" in caplog.text
    with pytest.raises(EngineError, match=r"is not a folder of yours: engines are machine code.*XDG_CACHE_HOME"):
        EngineCache(cache.folder)


def test_a_link_is_not_followed(cache: EngineCache, tmp_path: Path) -> None:
    """Neither to an engine nor in the place of the folder."""
    cache.store(record(), PLAN)
    real = file_of(cache).rename(tmp_path / "elsewhere")
    file_of(cache).symlink_to(real)
    assert cache.find(KEY) is None
    (tmp_path / "link").symlink_to(cache.folder)
    with pytest.raises(EngineError, match="is not a folder of yours"):
        EngineCache(tmp_path / "link")


def test_what_an_update_made_useless_goes(cache: EngineCache) -> None:
    """After a new TensorRT or driver the old engine of the same graph is no longer kept; others stay."""
    old, other = structs.replace(KEY, version="10.0.0", driver="CUDA 12.2"), structs.replace(KEY, graph="d" * 64)
    rtx = structs.replace(KEY, product="TensorRT-RTX")
    for key in (old, other, rtx, KEY):
        cache.store(record(key), PLAN)
    assert cache.find(old) is None
    assert {entry.name for entry in cache.entries()} == {KEY.digest, other.digest, rtx.digest}


def test_timings_are_kept_for_the_place_where_they_were_taken(cache: EngineCache) -> None:
    """For every graph on this GPU and TensorRT, and for no other; damaged ones are as good as none."""
    cache.keep_timing(KEY, b"timed")
    assert cache.timing(structs.replace(KEY, graph="e" * 64)) == b"timed"
    assert cache.timing(structs.replace(KEY, version="10.16.1")) == b""
    [path] = cache.folder.glob("*.timing")
    path.write_bytes(path.read_bytes()[:-1])
    assert cache.timing(KEY) == b""


def test_engines_are_removed_by_the_beginning_of_their_names(cache: EngineCache) -> None:
    """As far as it is one engine's; the rest stays."""
    other = structs.replace(KEY, graph="f" * 64)
    for key in (KEY, other):
        cache.store(record(key), PLAN)
    with pytest.raises(InputError, match="2 engines of the cache begin with ''"):
        cache.remove("")
    with pytest.raises(InputError, match="no engines of the cache begin with 'zz'"):
        cache.remove("zz")
    assert cache.remove(KEY.digest[:12]).name == KEY.digest
    assert [entry.name for entry in cache.entries()] == [other.digest]
    cache.keep_timing(KEY, b"timed")
    assert len(cache.clear()) == 1
    assert {path.name for path in cache.folder.iterdir()} <= {"lock"}


def test_reading_makes_no_folder(tmp_path: Path) -> None:
    """A device that never compiled has none."""
    cache = EngineCache(tmp_path / "none")
    assert (cache.find(KEY), cache.entries(), cache.timing(KEY)) == (None, [], b"")
    assert not (tmp_path / "none").exists()


FULL = """
import resource, signal, sys
from pathlib import Path
from edge_mbm.errors import EngineError
from edge_mbm.runtime.trt.cache import EngineCache
sys.path.insert(0, sys.argv[2])
from test_cache import KEY, record
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
cache = EngineCache(Path(sys.argv[1]))
cache.store(record(), b"small")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    cache.store(record(), bytes(100_000))
except EngineError as error:
    print(error)
print(cache.find(KEY).plan, sorted(path.suffix for path in cache.folder.iterdir()))
"""


def test_a_full_disk_is_an_error_and_the_cache_is_as_it_was(tmp_path: Path) -> None:
    """Where the system refuses to write in the middle of an engine: the old one stays, and no half of the new one."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "engines"), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == ""
    message, rest = done.stdout.splitlines()
    assert "where engines are kept: File too large" in message
    assert "MiB are free there. Make room (edge-mbm cache ls, edge-mbm cache rm), or set XDG_CACHE_HOME" in message
    assert rest == "b'small' ['.engine']"


HOLDER = """
import sys
from pathlib import Path
from edge_mbm.runtime.trt.cache import EngineCache
cache = EngineCache(Path(sys.argv[1]))
with cache.building() as folder:
    (folder / "half.engine.1.part").write_bytes(b"half")
    print("building", flush=True)
    sys.stdin.read()
"""


def holder(cache: EngineCache) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(cache.folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"
    return process


def test_two_processes_do_not_build_at_once(cache: EngineCache) -> None:
    """The second is told once that it waits, and goes on when the first is done."""
    first = holder(cache)
    waits, entered = threading.Event(), threading.Event()

    def build() -> None:
        with cache.building(waits.set):
            entered.set()

    second = threading.Thread(target=build)
    second.start()
    assert waits.wait(60)
    assert not entered.is_set()
    first.communicate("")
    second.join(60)
    assert entered.is_set()


def test_kill_9_in_the_middle_of_a_build_leaves_the_cache_sound(cache: EngineCache) -> None:
    """The lock is free, what was half done goes, and what was whole is whole."""
    cache.store(record(), PLAN)
    process = holder(cache)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in cache.folder.glob("*.part")] == ["half.engine.1.part"]
    with cache.building(lambda: pytest.fail("the lock of a dead process is held")) as folder:
        assert not list(folder.glob("*.part"))
    found = cache.find(KEY)
    assert found is not None
    assert found.plan == PLAN


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """Before anything is built."""
    (tmp_path / "file").write_bytes(b"")
    cache = EngineCache(tmp_path / "file" / "engines")
    assert cache.find(KEY) is None
    with pytest.raises(EngineError, match=r"cannot make .*(Not a directory|File exists)"):
        cache.store(record(), PLAN)
