"""One engine in a process of its own, and again with less when memory runs out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edge_mbm
from edge_mbm.errors import EngineError
from edge_mbm.runtime.trt.build_process import SubprocessBuilder
from edge_mbm.runtime.trt.builder import BuildJob, OutOfMemoryError, build_with_less
from edge_mbm.runtime.trt.release import BuildSettings
from edge_mbm.testing import tiny_bundle
from edge_mbm.testing.tensorrt import ScriptedBuilder

NEEDS = pytest.mark.needs("onnxruntime")
# The worker imports "tensorrt": this one is ours, and does what FAKE_TRT says in the middle of a build.
MODULE = """
import os, resource, signal, sys
from edge_mbm.testing.tensorrt import fake_tensorrt
mode, _, detail = os.environ["FAKE_TRT"].partition(":")
if mode == "broken":
    raise ImportError("libnvinfer.so.10: cannot open shared object file")
_trt = fake_tensorrt(os.environ.get("FAKE_VERSION", "10.3.0"), refuses=detail if mode == "refuse" else "")
globals().update(vars(_trt))
def Builder(logger):
    builder = _trt.Builder(logger)
    build = builder.build_serialized_network
    def build_serialized_network(network, config):
        print("chatter of the library", flush=True)
        level = getattr(config, "builder_optimization_level", None)
        if mode == "kill" and level not in (1, 0): os.kill(os.getpid(), signal.SIGKILL)
        if mode == "full":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        if mode == "crash": os.kill(os.getpid(), signal.SIGSEGV)
        if mode == "say":
            logger.log(_trt.ILogger.Severity.ERROR, detail)
            return None
        if mode == "hang":
            pipe = open(detail, "w")  # closed when this process ends
            print(os.getpid(), file=pipe, flush=True)
            signal.pause()
        return build(network, config)
    builder.build_serialized_network = build_serialized_network
    return builder
"""


def graph() -> bytes:
    with edge_mbm.load(tiny_bundle()) as bundle:
        return bundle.read(bundle.manifest.components["event"].variants["fp32"].graph or "")


JOB = BuildJob("event fp32", b"", "tensorrt", "TensorRT 10.3.0", BuildSettings(workspace=1 << 30, timing=b"old"))


class Heard(list[tuple[float, str]]):
    def __call__(self, share: float, what: str) -> None:
        self.append((share, what))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "tensorrt.py").write_text(MODULE)
    root = Path(edge_mbm.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'modules'}{os.pathsep}{root}")
    monkeypatch.setenv("FAKE_TRT", "well")
    return monkeypatch


def build(tmp_path: Path, heard: Heard | None = None) -> Any:
    job = replace(JOB, graph=graph())
    built = build_with_less(SubprocessBuilder(), job, tmp_path, heard if heard is not None else Heard())
    assert not list(tmp_path.glob("*.part"))
    return built


@NEEDS
def test_an_engine_comes_out_with_the_timings_and_the_progress(fake: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the library prints mixes with none of it, and nothing is left in the folder."""
    heard = Heard()
    built = build(tmp_path, heard)
    assert built.plan == b"FAKE 10.3.0\n" + graph()
    assert built.timing == b"old+"
    shares = [share for share, _ in heard]
    assert shares == sorted(shares)
    assert {0.125, 0.25, 0.375, 0.5, 0.875, 1.0} <= set(shares)
    assert "Timing" in {what for _, what in heard}
    assert heard[-1] == (1.0, "Building Engine")


@NEEDS
def test_tensorrt_8_5_builds_without_progress_and_levels(fake: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What it lacks is not asked for."""
    fake.setenv("FAKE_VERSION", "8.5.3.1")
    heard = Heard()
    assert build(tmp_path, heard).plan.startswith(b"FAKE 8.5.3.1")
    assert heard == []


@NEEDS
def test_a_builder_that_linux_killed_is_started_again_with_less(fake: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SIGKILL is how want of memory shows: here until level 1, with half the workspace each time."""
    fake.setenv("FAKE_TRT", "kill")
    heard = Heard()
    built = build(tmp_path, heard)
    assert built.settings == BuildSettings(workspace=1 << 28, level=1, timing=b"old")
    said = [what for _, what in heard if "memory" in what]
    assert said == [
        "out of memory: again with less (TensorRT's own level and 1024 MiB of workspace was too much)",
        "out of memory: again with less (level 2 and 512 MiB of workspace was too much)",
    ]


@pytest.mark.parametrize(
    "words", ["CUDA out of memory", "Requested amount of GPU memory: OutOfMemory", "std::bad_alloc"]
)
@NEEDS
def test_tensorrts_own_words_for_want_of_memory_count_too(fake: pytest.MonkeyPatch, tmp_path: Path, words: str) -> None:
    """Not every builder is killed; after the last step it is said what can be done."""
    fake.setenv("FAKE_TRT", f"say:{words}")
    with pytest.raises(
        EngineError, match=r"event fp32: memory ran out 4 times, .*level 0 and 128 MiB.*add swap"
    ) as info:
        build(tmp_path)
    assert words in str(info.value)


@NEEDS
def test_a_crash_is_not_tried_again(fake: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the code, the release, and the last that it printed."""
    fake.setenv("FAKE_TRT", "crash")
    with pytest.raises(EngineError, match=r"event fp32: TensorRT 10\.3\.0 ended with code -11 .*chatter.*To mend it"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("version", "where"), [("10.3.0", r"at 'make_y' \(Relu\)"), ("8.5.3.1", r"at 'node 7'")], ids=["10.3", "8.5"]
)
@NEEDS
def test_a_graph_that_cannot_be_read_names_node_release_and_remedy(
    fake: pytest.MonkeyPatch, tmp_path: Path, version: str, where: str
) -> None:
    """8.5 knows the node by its number alone."""
    fake.setenv("FAKE_VERSION", version)
    fake.setenv("FAKE_TRT", "refuse:Non-zero zero point is not supported")
    message = rf"event fp32: TensorRT 10\.3\.0 cannot build it {where}: Non-zero zero point.*quantize symmetrically"
    with pytest.raises(EngineError, match=message):
        build(tmp_path)


@NEEDS
def test_what_only_the_builder_refuses_has_its_words(fake: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It returns nothing, and says why in its log."""
    fake.setenv("FAKE_TRT", "say:Could not find any implementation for node conv1")
    with pytest.raises(EngineError, match=r"Could not find any implementation for node conv1.*free memory"):
        build(tmp_path)


@NEEDS
def test_a_library_that_does_not_load_says_what_is_missing(fake: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Found in the worker too."""
    fake.setenv("FAKE_TRT", "broken")
    with pytest.raises(EngineError, match=r"event fp32: running TensorRT engines \(libnvinfer.so.10: cannot open"):
        build(tmp_path)


PARENT = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_builder import JOB, graph, Heard
from edge_mbm.runtime.trt.build_process import SubprocessBuilder
SubprocessBuilder().build(replace(JOB, graph=graph()), Path(sys.argv[1]), Heard())
"""


@NEEDS
def test_the_builder_ends_when_the_program_that_wants_it_is_killed(fake: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody is left behind who takes all memory for an engine that nobody waits for."""
    sign = tmp_path / "worker"
    os.mkfifo(sign)
    fake.setenv("FAKE_TRT", f"hang:{sign}")
    command = [sys.executable, "-c", PARENT, str(tmp_path), str(Path(__file__).parent)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with sign.open() as pipe:  # waits for the worker
        assert int(pipe.readline()) != parent.pid
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
        assert pipe.read() == ""  # its end: nothing else closes it


def test_steps_after_want_of_memory_are_each_smaller_than_the_last(tmp_path: Path) -> None:
    """And end with the error that says what can be done."""
    builder = ScriptedBuilder(*(OutOfMemoryError(f"{k}") for k in range(9)))
    with pytest.raises(EngineError, match="memory ran out 4 times"):
        build_with_less(builder, JOB, tmp_path, Heard())
    tried = [(job.settings.level, job.settings.workspace) for job in builder.jobs]
    assert tried == [(None, 1 << 30), (2, 1 << 29), (1, 1 << 28), (0, 1 << 27)]


def test_other_failures_are_not_tried_again(tmp_path: Path) -> None:
    """A graph that is refused is refused at every level."""
    builder = ScriptedBuilder(EngineError("refused"))
    with pytest.raises(EngineError, match="refused"):
        build_with_less(builder, JOB, tmp_path, Heard())
    assert len(builder.jobs) == 1


@NEEDS
def test_a_full_disk_is_said_before_the_build(fake: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the graph cannot be written there."""
    with pytest.raises(
        EngineError, match=r"event fp32: the disk of .*nowhere refuses: No such file.*edge-mbm cache rm"
    ):
        SubprocessBuilder().build(replace(JOB, graph=graph()), tmp_path / "nowhere", Heard())


@NEEDS
def test_a_disk_that_is_full_after_the_build_is_said_too(fake: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the worker cannot write the engine."""
    fake.setenv("FAKE_TRT", "full")
    with pytest.raises(EngineError, match=r"event fp32: the engine cannot be written: File too large\. Make room"):
        build(tmp_path)
    assert not list(tmp_path.glob("*.part"))
