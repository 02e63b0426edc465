"""An export that was killed: no half bundle, nothing found out twice, and in the end the same bytes."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edge_mbm.bundle import BundleFiles
from edge_mbm.export import prove
from edge_mbm.export.cache import Store, key_of, prune
from edge_mbm.export.draft import Draft
from edge_mbm.export.recipe import LoadedRecipe
from edge_mbm.export.speed import probe

Write = Callable[..., Path]

# A process that exports, and that ends itself at the given step of a stage as kill -9 would end it.
KILLED = """
import os, signal, sys

from edge_mbm.export import export_bundle, speed

speed._SECONDS = 0.05
recipe, target, title, at = sys.argv[1:]


class Progress:
    inside, steps = False, 0

    def stage(self, name, total):
        self.inside, self.steps = name.startswith(title) if title else False, 0
        self.look()

    def step(self, what=""):
        self.steps += 1
        self.look()

    def look(self):
        if self.inside and self.steps == int(at):
            os.kill(os.getpid(), signal.SIGKILL)


export_bundle(recipe, target, Progress())
"""
# So that there is something to search for: no preset is within, and mixes are tried until the bound.
TOP = """
search = { evaluations = 9 }

[budget]
min_cosine = -1
min_agreement = 0
max_accuracy_drop = 1
min_sqnr_db = 90
min_speedup = 0.001
"""
CODE = """
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.next = nn.Linear(4, 16), nn.Linear(16, 6)

    def forward(self, x):
        return self.next(torch.relu(self.layer(x)))
"""


def run(recipe: Path, target: Path, folder: Path, title: str = "", at: int = 0) -> int:
    (folder / "temporary").mkdir(exist_ok=True)
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder / "temporary")}
    arguments = [str(recipe), str(target), title, str(at)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    return done.returncode


def kept(folder: Path) -> dict[str, tuple[int, int]]:
    """Every result in the cache, by what tells whether it was written anew."""
    files = [
        path for path in (folder / "cache" / "edge-mbm").rglob("*") if path.is_file() and not path.name.startswith(".")
    ]
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_a_killed_export_goes_on_where_it_was(project: Write, tmp_path: Path) -> None:
    """Killed in one stage after the other: there is no bundle and no part of one, what was in the cache is never made
    again, and the last run's bundle is that of an export which nobody disturbed."""
    recipe, target = project(add=CODE, top=TOP), tmp_path / "out" / "sensor.mbm"
    before: dict[str, tuple[int, int]] = {}
    for title, at in (
        ("calibrate", 3),
        ("search encoder", 5),
        ("measure", 1),
        ("write", 0),
    ):
        assert run(recipe, target, tmp_path, title, at) == -signal.SIGKILL, f"it was never at {title} {at}"
        assert not target.parent.exists()
        now = kept(tmp_path)
        assert {path: now[path] for path in before} == before, f"something was found out again before {title}"
        before = now
    assert {Path(path).parent.name for path in before} >= {"traced", "ranges", "calls", "scores", "errors", "speed"}
    assert run(recipe, target, tmp_path) == 0
    now = kept(tmp_path)
    assert {path: now[path] for path in before} == before
    assert list(target.parent.iterdir()) == [target]
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(tmp_path / "cache" / "edge-mbm" / "speed", undisturbed / "cache" / "edge-mbm" / "speed")
    shutil.copytree(
        tmp_path / "cache" / "edge-mbm" / "export" / "traced",
        undisturbed / "cache" / "edge-mbm" / "export" / "traced",
    )
    assert run(recipe, undisturbed / "sensor.mbm", undisturbed) == 0
    assert (undisturbed / "sensor.mbm").read_bytes() == target.read_bytes()
    with BundleFiles(target) as files:
        reason = files.manifest.components["encoder"].variants["x86-cpu-int8"].decision.reason
    assert " graphs tried" in reason


def test_an_export_that_was_killed_leaves_the_old_bundle(exported: object, project: Write, tmp_path: Path) -> None:
    """Even in the last moment before it is put in its place."""
    target = tmp_path / "sensor.mbm"
    shutil.copy(exported.bundle, target)  # type: ignore[attr-defined]
    shutil.copytree(exported.cache, tmp_path / "cache")  # type: ignore[attr-defined]
    old = target.read_bytes()
    assert run(exported.recipe, target, tmp_path, "write", 0) == -signal.SIGKILL  # type: ignore[attr-defined]
    assert target.read_bytes() == old
    assert [path.name for path in tmp_path.glob("*.mbm*")] == ["sensor.mbm"]


def test_a_kept_graph_must_compute_what_the_model_does(
    loaded: Callable[..., LoadedRecipe], prepare: Callable[[LoadedRecipe], Draft], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model's code may change and its weights not: the graph of the code before is not taken."""
    draft = prepare(loaded())
    linear = draft.origin.module("head")
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["embedding", "w", "b"], ["logits"], transB=1)],
        "head",
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(linear.weight.numpy(), "w"), numpy_helper.from_array(linear.bias.numpy(), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    keys = prove._keys(draft)
    assert prove._kept(draft, keys) == {}
    Store("traced").store_bytes(keys["head"], b"torchscript\n" + model)
    assert prove._kept(draft, keys) == {"head": (model, "torchscript")}
    monkeypatch.setattr(linear, "forward", lambda x: torch.nn.functional.linear(x, linear.weight, linear.bias).tanh())
    assert prove._keys(draft) == keys
    assert prove._kept(draft, keys) == {}


# --- the store -------------------------------------------------------------------------------------------------------


def test_what_is_stored_is_found() -> None:
    """By its key alone; another key, or another kind, is another result."""
    store, key = Store("test"), key_of(["a", b"b", 3])
    assert store.load(key, dict[str, int]) is None
    store.store(key, {"x": 1})
    assert Store("test").load(key, dict[str, int]) == {"x": 1}
    assert store.load(key, list[int]) is None
    assert Store("other").load(key, dict[str, int]) is None
    assert store.load(key_of(["a", b"b", 4]), dict[str, int]) is None


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:40] + b"x" + data[41:], lambda _: b""])
def test_a_damaged_result_counts_as_absent(cache: Path, damage: Callable[[bytes], bytes]) -> None:
    """Cut off, altered, or empty: it is found out anew."""
    store, key = Store("test"), key_of(["damaged"])
    store.store_bytes(key, b"0123456789" * 5)
    path = cache / "edge-mbm" / "export" / "test" / key
    path.write_bytes(damage(path.read_bytes()))
    assert store.load_bytes(key) is None


def test_a_full_disk_or_a_read_only_home_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept, and nothing lies about."""
    (tmp_path / "file").write_text("where the cache would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    store = Store("test")
    store.store_bytes("key", b"data")
    assert store.load_bytes("key") is None


# --- memory ----------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_is_told(exported: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system does it when memory runs out; what to do is said."""
    monkeypatch.setattr(sys, "executable", _script_that_dies(exported))
    fault = probe({"fp32": b"graph"}, {}).faults["fp32"]
    assert fault is not None
    assert "signal 9: out of memory?" in fault
    assert "Close other programs" in fault


def test_a_graph_that_needs_too_much_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that may have four gigabytes of address space, one that makes twelve."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    shape = numpy_helper.from_array(np.array([3_000_000_000], np.int64), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("Add", ["huge", "x"], ["sum"]),
        helper.make_node("ReduceSum", ["sum"], ["y"], keepdims=0),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [shape]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    original = subprocess.run

    def limited(*arguments: Any, **named: Any) -> Any:
        limit = 4 << 30
        named["preexec_fn"] = lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return original(*arguments, **named)

    monkeypatch.setattr(subprocess, "run", limited)
    fault = probe({"fp32": model.SerializeToString()}, {"x": np.ones(1, np.float32)}).faults["fp32"]
    assert fault is not None
    assert "out of memory: close other programs" in fault


def _script_that_dies(exported: object) -> str:
    path = Path(exported.recipe).parent / "dies.sh"  # type: ignore[attr-defined]
    path.write_text("#!/bin/sh\nkill -9 $$\n")
    path.chmod(0o755)
    return str(path)


def test_the_cache_forgets_what_was_longest_unused(cache: Path) -> None:
    """And only as much as it must."""
    store, keys = Store("test"), [key_of([number]) for number in range(3)]
    for age, key in enumerate(reversed(keys)):
        store.store_bytes(key, bytes(68))  # 100 with its digest
        os.utime(cache / "edge-mbm" / "export" / "test" / key, ns=(age, age))
    store.load_bytes(keys[2])  # the oldest, until now
    prune(most_bytes=200)
    assert [store.load_bytes(key) is not None for key in keys] == [True, False, True]
