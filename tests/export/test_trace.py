"""torch modules to graphs, whatever they are up to; the second exporter; the proof of what came out."""

from __future__ import annotations

import gc
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import pytest

from edge_mbm.errors import ExportError, ParityError, TraceError
from edge_mbm.export import Silent, prove
from edge_mbm.export.chain import GraphRunner
from edge_mbm.export.draft import Draft
from edge_mbm.export.graph import check_graph, normalize
from edge_mbm.export.origin import Origin
from edge_mbm.export.recipe import LoadedRecipe
from edge_mbm.export.skeleton import Skeleton, make_skeleton
from edge_mbm.export.trace import trace

# One module for each thing that may happen. What goes wrong only in the process that traces is told by its name.
ZOO = '''
import logging
import signal
import subprocess
import sys

TRACING = "trace_worker" in sys.argv[0]
print("printed on import")
if TRACING and "SLEEPER" in os.environ:
    sleeper = subprocess.Popen(["sleep", "3600"])
    with open(os.environ["SLEEPER"], "w") as stream:
        stream.write(str(sleeper.pid))


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)


class Namesake(nn.Module):
    """torch calls the value of a table look-up "embedding", and that is no output here."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(2, 3)

    def forward(self, x):
        return self.table((x > 0).long()).sum(dim=1) * 2


class Noisy(Base):
    def forward(self, x):
        print("{", "printed in forward", flush=True)
        os.write(1, b"written to the descriptor\\n")
        logging.getLogger().error("logged in forward")
        return self.layer(x)


class Branching(Base):
    def forward(self, x):
        y = self.layer(x)
        if y.sum() > 0:  # HERE
            return y
        return -y


class Counting(Base):
    def forward(self, x):
        rows = len(x)
        return self.layer(x).reshape(rows * 3).reshape(rows, 3)


class Foreign(Base):
    def forward(self, x):
        return torch.special.airy_ai(self.layer(x))


class Killed(Base):
    def forward(self, x):
        if TRACING:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layer(x)


class Leaving(Base):
    def forward(self, x):
        if TRACING:
            print("last words", file=sys.stderr, flush=True)
            os._exit(3)
        return self.layer(x)


class Raising(Base):
    def forward(self, x):
        if TRACING:
            raise ZeroDivisionError("only when it is traced")  # RAISED HERE
        return self.layer(x)


class Hungry(Base):
    def forward(self, x):
        if TRACING:
            raise MemoryError
        return self.layer(x)


class Late(Base):
    def forward(self, x):
        if TRACING:
            time.sleep(3600)
        return self.layer(x)


class Broken(Base):
    """Its weights are not what counts: the outputs are finite."""

    def forward(self, x):
        return torch.nan_to_num(self.layer(x) * torch.tensor([float("nan"), 1.0, 1.0]), nan=0.5)


class Masked(Base):
    """Infinity in a constant, as attention masks have it."""

    def forward(self, x):
        return torch.softmax(self.layer(x) + torch.tensor([0.0, float("-inf"), 0.0]), dim=1)


class Unlike(Base):
    def forward(self, x):
        y = self.layer(x)
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            return y * 1.01
        return y


class Zoo(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.head = nn.Linear(3, 2)


def load():
    kinds = (Namesake, Noisy, Branching, Counting, Foreign, Killed, Leaving, Raising, Hungry, Late, Broken, Masked)
    return Zoo(**{kind.__name__.lower(): kind() for kind in (*kinds, Unlike)})
'''

PART = """
[components.NAME]
kind = "encoder"
module = "parts.NAME"
inputs = { x = "imu" }
outputs = { embedding = { task = "embedding" } }
"""
RECIPE = """
name = "zoo"
model = "{module}:load"
python_path = ["code"]
calibration_set = "data.toml"
{top}
[labels]
classes = ["low", "high"]
[modalities]
imu = {{ kind = "sensor", shape = [4] }}
[components.head]
kind = "head"
module = "head"
inputs = {{ embedding = "FIRST.embedding" }}
outputs = {{ logits = {{ task = "classification", labels = "classes" }} }}
pivot = "imu"
deadline_ns = 0
{more}
"""


Outcome: TypeAlias = "bytes | TraceError"
Load: TypeAlias = Callable[..., LoadedRecipe]
Prepare: TypeAlias = Callable[[LoadedRecipe], Draft]


def zoo(loaded: Load, *names: str, top: str = "") -> tuple[LoadedRecipe, Origin, dict[str, Skeleton]]:
    more = "".join(PART.replace("NAME", name) for name in names)
    recipe = loaded(recipe=RECIPE.replace("FIRST", names[0]), add=ZOO, top=top, more=more)
    origin = Origin(recipe)
    return recipe, origin, make_skeleton(recipe.recipe, origin)


@pytest.fixture(scope="module")
def traced(loaded: Load) -> dict[str, Outcome]:
    """Every animal by torch's newer exporter."""
    names = (
        "noisy",
        "killed",
        "namesake",
        "branching",
        "counting",
        "foreign",
        "raising",
        "hungry",
        "broken",
        "masked",
        "leaving",
    )
    recipe, _, components = zoo(loaded, *names)
    return dict(trace(recipe, {name: components[name] for name in names}, "torch.export"))


@pytest.fixture(scope="module")
def traced_old(loaded: Load) -> dict[str, Outcome]:
    """Those that matter there by the older one."""
    recipe, _, components = zoo(loaded, "branching", "counting", "raising", "foreign", "hungry")
    return dict(trace(recipe, components, "torchscript"))


@pytest.fixture(scope="module")
def animals(loaded: Load) -> tuple[Origin, dict[str, Skeleton]]:
    """The same modules as they run here."""
    _, origin, components = zoo(loaded, "namesake", "noisy", "counting", "broken", "masked")
    return origin, components


def line_of(word: str, error: Outcome) -> str:
    """Where the module that an error names has a word: "(FILE:LINE)"."""
    [file] = set(re.findall(r"\((\S+project_\w+\.py):\d+\)", str(error)))
    lines = Path(file).read_text().splitlines()
    return f"({file}:{next(n for n, line in enumerate(lines, 1) if word in line)})"


def test_every_component_gets_an_answer(traced: dict[str, Outcome]) -> None:
    """Those after one whose process was killed, too."""
    failed = {name for name, outcome in traced.items() if isinstance(outcome, TraceError)}
    assert failed == {"branching", "foreign", "hungry", "killed", "leaving", "raising"}
    assert set(traced) - failed == {"namesake", "noisy", "counting", "broken", "masked"}


@pytest.mark.parametrize("name", ["namesake", "noisy", "masked"])
def test_a_graph_computes_what_the_module_does(
    name: str, traced: dict[str, Outcome], animals: tuple[Origin, dict[str, Skeleton]]
) -> None:
    """Though it prints, has a value named as an output is, or infinity in a constant; at other batches than it was
    traced with."""
    origin, components = animals
    outcome = traced[name]
    assert isinstance(outcome, bytes)
    graph = normalize(outcome, components[name], name)
    check_graph(graph, components[name], name)
    run = GraphRunner(graph, name)
    for batch in (1, 2, 7):
        inputs = {"x": np.random.default_rng(batch).normal(0, 1, (batch, 4)).astype(np.float32)}
        np.testing.assert_allclose(run(inputs)["embedding"], origin.run(name, inputs)["embedding"], atol=1e-5)


def test_an_inner_value_named_like_an_output_steps_aside(
    traced: dict[str, Outcome], animals: tuple[Origin, dict[str, Skeleton]]
) -> None:
    """Else ONNX Runtime could not load it; that there is one is what this test rests on."""
    outcome = traced["namesake"]
    assert isinstance(outcome, bytes)
    before = onnx.load_model_from_string(outcome).graph
    assert "embedding" in {value for node in before.node for value in node.output}
    assert before.output[0].name != "embedding"
    after = onnx.load_model_from_string(normalize(outcome, animals[1]["namesake"], "namesake")).graph
    assert [value for node in after.node for value in node.output].count("embedding") == 1
    assert after.output[0].name == "embedding"


def test_branching_on_values_is_told_with_the_line(traced: dict[str, Outcome], traced_old: dict[str, Outcome]) -> None:
    """By both exporters: the older would freeze the branch that its example took, in silence."""
    for outcome in (traced["branching"], traced_old["branching"]):
        assert isinstance(outcome, TraceError)
        assert "'branching'" in str(outcome)
        assert line_of("HERE", outcome) in str(outcome)
        assert "torch.where" in str(outcome)


def test_what_forward_raises_is_told_with_the_line(traced: dict[str, Outcome], traced_old: dict[str, Outcome]) -> None:
    """The exception's kind and words, not those that the exporter wraps it in."""
    for outcome in (traced["raising"], traced_old["raising"]):
        assert "'raising'" in str(outcome)
        assert "ZeroDivisionError: only when it is traced" in str(outcome)
        assert line_of("RAISED HERE", outcome) in str(outcome)


def test_an_operator_without_onnx_is_named_with_the_line(traced: dict[str, Outcome]) -> None:
    """The operator, and where the model uses it, though the exporter's message does not say."""
    assert "aten.special_airy_ai" in str(traced["foreign"])
    assert line_of("airy_ai", traced["foreign"]) in str(traced["foreign"])


def test_a_process_that_ends_is_told_with_its_last_words(traced: dict[str, Outcome]) -> None:
    """Signal or exit code, and only what was said while it traced this component."""
    assert "'killed': the exporter's process was killed by signal 9 (out of memory?)" in str(traced["killed"])
    assert str(traced["leaving"]).endswith("the exporter's process ended with exit code 3. Its last words:\nlast words")
    assert "printed in forward" not in str(traced["killed"])


def test_memory_that_does_not_suffice_is_told(traced: dict[str, Outcome], traced_old: dict[str, Outcome]) -> None:
    """In words: Python's own exception has none."""
    for outcome in (traced["hungry"], traced_old["hungry"]):
        assert "MemoryError: this machine's memory did not suffice" in str(outcome)


def test_a_batch_frozen_by_len_is_refused(
    traced: dict[str, Outcome], traced_old: dict[str, Outcome], animals: tuple[Origin, dict[str, Skeleton]]
) -> None:
    """torch's newer exporter gives such a graph without a word: its fixed size is found, with what to do."""
    outcome = traced["counting"]
    assert isinstance(outcome, bytes)
    graph = normalize(outcome, animals[1]["counting"], "counting")
    with pytest.raises(TraceError, match=r"'counting': axis 0 of input 'x' came out fixed at 2.*x\.shape\[0\]"):
        check_graph(graph, animals[1]["counting"], "counting")
    assert "x.shape[0]" in str(traced_old["counting"])


def test_weights_that_are_not_numbers_are_refused(
    traced: dict[str, Outcome], animals: tuple[Origin, dict[str, Skeleton]]
) -> None:
    """Though the outputs are finite; infinity is a constant like any other."""
    outcome = traced["broken"]
    assert isinstance(outcome, bytes)
    with pytest.raises(TraceError, match=r"'broken': the weights .* have NaN values"):
        check_graph(normalize(outcome, animals[1]["broken"], "broken"), animals[1]["broken"], "broken")


def test_what_takes_too_long_is_ended(loaded: Load) -> None:
    """After the recipe's ``trace_timeout_s``, with the component's name; nothing is left of the process."""
    recipe, _, components = zoo(loaded, "late", top="trace_timeout_s = 0.2")
    outcomes = dict(trace(recipe, {"late": components["late"]}, "torch.export"))
    assert str(outcomes["late"]) == (
        "tracing 'late' with torch.export took over 0.2 s: raise the recipe's trace_timeout_s"
    )
    assert children() == []


def test_stopping_half_way_leaves_nothing(
    loaded: Load, prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither folder nor process, nor those that the model started, while the exception that stopped it is held."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("SLEEPER", str(tmp_path / "sleeper"))
    draft = prepare(zoo(loaded, "namesake", "late")[0])

    class Stopping(Silent):
        def step(self, what: str = "") -> None:
            raise KeyboardInterrupt

    gc.disable()
    try:
        with pytest.raises(KeyboardInterrupt) as kept:
            prove.trace_and_prove(draft, Stopping())
        assert kept.value.__traceback__ is not None
        assert children() == []
        sleeper = int((tmp_path / "sleeper").read_text())
        assert any(not is_running(sleeper) for _ in range(10_000)), "dying takes a moment, and this one lives"
        assert list((tmp_path / "temporary").iterdir()) == []
    finally:
        gc.enable()


def is_running(pid: int) -> bool:
    """Whether it is there, and not only waiting to be buried by whoever took it over."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


def children() -> list[str]:
    """Command lines of this process's children; Python's own bookkeeper of shared memory stays once it was started."""
    tasks = Path("/proc/self/task")
    pids = [pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()]
    lines = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in pids]
    return [line for line in lines if "multiprocessing.resource_tracker" not in line]


# --- the proof -------------------------------------------------------------------------------------------------------


def test_all_that_fails_is_told_at_once(loaded: Load, prepare: Prepare) -> None:
    """A graph that computes something else among it, with the exporters and the difference."""
    with pytest.raises(ExportError) as caught:
        prove.trace_and_prove(prepare(zoo(loaded, "unlike", "raising")[0]), Silent())
    first, *rest = str(caught.value).splitlines()
    assert type(caught.value) is ParityError
    assert first == "unlike, raising could not be exported, with either of torch's exporters:"
    assert [line.split(":")[0] for line in rest] == [
        "  unlike, torch.export",
        "  unlike, torchscript",
        "  raising, torch.export",
        "  raising, torchscript",
    ]
    assert "'unlike.embedding' differs from the model's by up to" in rest[0]
    assert "the exported graph computes something else" in rest[1]
