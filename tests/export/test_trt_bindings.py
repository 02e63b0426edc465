"""The names of TensorRT's Python API that we use, in every release that a target's devices have."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from edge_mbm.export import trt_worker
from edge_mbm.export.targets import TARGETS

ROOT = Path(__file__).parents[2]
RECORDED: dict[str, dict[str, bool]] = json.loads(Path(__file__).with_name("trt_api.json").read_text())
DEVICES = ("10.3", "10.13", "10.16", "11.4")
NEEDS = pytest.mark.needs


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trt_api", ROOT / "scripts" / "trt_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_has_every_name_and_every_release_of_a_target(script: ModuleType) -> None:
    """A release that a target names and nobody looked into would be a guess."""
    assert {label: set(names) for label, names in RECORDED.items()} == {key: set(script.NAMES) for key in RECORDED}
    releases = {release.tensorrt for target in TARGETS.values() for release in target.releases}
    assert releases <= RECORDED.keys()
    assert set(DEVICES) <= RECORDED.keys()


@pytest.mark.parametrize("release", [*DEVICES, "rtx-1.7"])
def test_what_building_an_engine_takes_is_in_every_release(release: str, script: ModuleType) -> None:
    """From JetPack 6 to TensorRT 11, and in TensorRT-RTX: one code for all."""
    assert [name for name in script.COMPILE if not RECORDED[release][name]] == []


def test_building_ahead_of_time_is_tensorrt_rtxs_alone(script: ModuleType) -> None:
    """So the check on a workstation has to be TensorRT-RTX."""
    assert all(RECORDED["rtx-1.7"][name] for name in script.AHEAD_OF_TIME)
    assert not any(RECORDED[release][name] for release in DEVICES for name in script.AHEAD_OF_TIME)


def test_weak_typing_is_gone_from_11_and_used_for_8_5_and_the_dla_alone(script: ModuleType) -> None:
    """What 10 still has of it would fail on the next release, which is asked first; calibrators are used nowhere."""
    for name in script.REMOVED:
        assert RECORDED["8.5"][name]
        assert RECORDED["10.3"][name]
        assert not RECORDED["11.4"][name]
    sources = {path.name: path.read_text() for path in (ROOT / "edge_mbm").rglob("*.py")}
    users = {file for file, source in sources.items() for name in script.REMOVED if f".{name}" in source}
    assert users == {"release.py"}
    assert not any("IInt8Calibrator" in source for source in sources.values())


def test_8_5_has_what_is_used_without_asking_and_none_of_what_is_asked_for(script: ModuleType) -> None:
    """JetPack 5's TensorRT: no levels, no progress, weak typing, and nodes by their number."""
    assert [name for name in (*script.EVERYWHERE, *script.WEAK) if not RECORDED["8.5"][name]] == []
    assert [name for name in script.SINCE_10 if RECORDED["8.5"][name]] == []


def test_every_release_has_the_names_for_the_dla(script: ModuleType) -> None:
    """So no name is asked for; whether there is a DLA, the builder and the runtime know by their number of cores."""
    assert [(release, name) for release in RECORDED for name in script.DLA if not RECORDED[release][name]] == []


@pytest.mark.parametrize("module", ["release", "engine"])
def test_every_name_that_the_device_uses_is_in_the_table(module: str, script: ModuleType) -> None:
    """Attributes of whatever TensorRT made: whoever adds one looks it up in the old releases first."""
    tree = ast.parse((ROOT / "edge_mbm" / "runtime" / "trt" / f"{module}.py").read_text())
    made = {"trt", "builder", "network", "config", "parser", "error"}
    made |= {"engine", "inspector", "profile", "layer", "context", "runtime"}
    found = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).rpartition(".")[2].partition("(")[0] in made
    }
    assert found
    own = {"__version__", "Builder", "Runtime", "OnnxParser", "ILogger", "IProgressMonitor", "IBuilderConfig"}
    classes = {"NetworkDefinitionCreationFlag", "ComputeCapability", "BuilderFlag"}
    table = {part for name in script.NAMES for part in name.split(".")}
    assert found - own - classes <= table


def test_every_name_that_the_worker_uses_is_in_the_table(script: ModuleType) -> None:
    """Whoever adds a call looks it up in the old releases first."""
    tree = ast.parse(Path(trt_worker.__file__).read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    own = {"Callable", "Any", "environ", "fdopen", "dup", "dup2", "stdin", "load", "write", "dumps", "import_module"}
    python = {"read_bytes", "rpartition", "lower", "exit", "argv", "__name__", "__init__"}
    # Logger is what ILogger stands for, and getattr takes the compute capability by its name.
    plain = {"Builder", "OnnxParser", "ILogger", "ComputeCapability", "log", "__version__"}
    table = {part for name in (*script.COMPILE, *script.AHEAD_OF_TIME) for part in name.split(".")}
    assert used - own - python - plain <= table


@NEEDS("tensorrt_bindings")
def test_the_table_is_what_the_bindings_of_tensorrt_11_say(script: ModuleType) -> None:
    """Read from them anew, with empty libraries in the place of TensorRT's."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    installed = version("tensorrt-cu13-bindings")
    assert installed.startswith("11.4."), "record the new release: scripts/trt_api.py"
    assert script.present(bindings("tensorrt_bindings", "tensorrt.so")) == RECORDED["11.4"]


@NEEDS("tensorrt_rtx_bindings")
def test_the_table_is_what_tensorrt_rtx_says(script: ModuleType) -> None:
    """In a process of its own: the module itself, with its libraries."""
    code = "import json, operator, sys, tensorrt_rtx_bindings as trt\nfound = {}\nfor name in sys.argv[1:]:\n"
    code += (
        "    try: operator.attrgetter(name)(trt); found[name] = True\n    except AttributeError: found[name] = False\n"
    )
    code += "print(json.dumps(found))"
    done = subprocess.run([sys.executable, "-c", code, *script.NAMES], capture_output=True, check=True)
    assert json.loads(done.stdout) == RECORDED["rtx-1.7"]


def bindings(package: str, library: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name(library)


def test_a_file_that_is_no_binding_is_an_error(script: ModuleType, tmp_path: Path) -> None:
    """And not an empty table."""
    if shutil.which("cc") is None or shutil.which("readelf") is None:
        pytest.skip("no C compiler")
    library = tmp_path / "tensorrt.so"
    (tmp_path / "none.c").write_text("int none;\n")
    subprocess.run(["cc", "-shared", "-o", library, tmp_path / "none.c"], check=True)
    with pytest.raises(SystemExit, match="cannot be imported"):
        script.present(library)
