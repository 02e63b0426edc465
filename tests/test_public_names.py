"""What is public, and what importing it drags in."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import subprocess
import sys

import pytest

import edge_mbm

# Rooms that need torch or onnx: a device has neither.
WORKSTATION = ("edge_mbm.models", "edge_mbm.training", "edge_mbm.export", "edge_mbm.calibration")


def modules() -> list[str]:
    """Every module of the package, found without importing the workstation's rooms."""
    found, pending = [], [("edge_mbm", edge_mbm.__path__)]
    while pending:
        name, path = pending.pop()
        found.append(name)
        for info in pkgutil.iter_modules(path, f"{name}."):
            spec = info.module_finder.find_spec(info.name, None)
            if info.ispkg and spec is not None:
                pending.append((info.name, list(spec.submodule_search_locations or ())))
            elif not info.name.endswith(".__main__"):
                found.append(info.name)
    return sorted(found)


@pytest.mark.parametrize("name", modules())
def test_every_module_says_what_is_public(name: str) -> None:
    """``__all__`` is there, sorted as ruff sorts it, without repeats, and every name in it exists."""
    if name.startswith(WORKSTATION):
        pytest.importorskip("torch")
        pytest.importorskip("onnx")
    module = importlib.import_module(name)
    names = module.__all__
    assert len(set(names)) == len(names)
    # Constants first, then classes, then the rest.
    assert list(names) == sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert [n for n in names if not hasattr(module, n)] == []


def test_the_front_door() -> None:
    """``edge_mbm`` itself is a dozen names; a new one is a decision, made here and in the documentation."""
    assert set(edge_mbm.__all__) == {
        "Bundle",
        "DecodeOptions",
        "EdgeMbmError",
        "Live",
        "Result",
        "Sample",
        "Session",
        "SessionOptions",
        "Source",
        "__version__",
        "load",
        "open",
    }


BARE = """
import sys
for name in {blocked}:
    sys.modules[name] = None
import numpy as np
import edge_mbm, edge_mbm.runtime, edge_mbm.testing
from importlib.util import find_spec
if {cli} and find_spec("edge_mbm.cli"):
    import edge_mbm.cli
from edge_mbm.testing import NullEngine, tiny_bundle
bundle = edge_mbm.load(tiny_bundle())
engine = None if find_spec("onnxruntime") else NullEngine
with bundle.session(load_engine=engine) as session:
    [result] = session.infer(image=np.zeros((8, 8, 3), np.uint8), audio=np.ones(100, np.float32))
    print(result.output.label)
loaded = set(sys.modules)
print(*sorted(m for m in loaded if m.split(".")[0] in {watched} and sys.modules[m] is not None))
"""


def bare(blocked: list[str], watched: list[str], *, cli: bool) -> tuple[str, str]:
    script = BARE.format(blocked=blocked, watched=watched, cli=cli)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    label, heavy = done.stdout.splitlines()[-2:]
    return label, heavy


def test_a_device_needs_no_torch_and_no_onnx() -> None:
    """With both made impossible to import, everything on the device's side imports, and the tiny bundle runs."""
    label, heavy = bare(["torch", "onnx", "onnxscript", "scipy", "pandas"], ["torch", "onnx"], cli=True)
    expected = "loud" if importlib.util.find_spec("onnxruntime") else "red"
    assert (label, heavy) == (expected, "")


def test_the_runtime_imports_nothing_it_does_not_use() -> None:
    """A robot that loads a bundle waits for neither the command line, video, images nor resampling."""
    _, heavy = bare([], ["typer", "rich", "click", "av", "cv2", "soxr", "torch", "onnx"], cli=False)
    assert heavy == ""


def test_the_runtime_knows_nothing_of_calibration() -> None:
    """Nor of any other room of the workstation."""
    script = "import sys, edge_mbm.testing; print(*[m for m in sys.modules if m.startswith('edge_mbm.')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert not [m for m in done.stdout.split() if m.startswith(WORKSTATION)]
