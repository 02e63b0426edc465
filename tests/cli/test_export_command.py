"""``edge-mbm export``: what it says and how it ends; the export itself is tested in ``tests/export``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from msgspec.structs import replace

import edge_mbm.export
from edge_mbm.bundle import BundleFiles
from edge_mbm.errors import BudgetError, TraceError
from edge_mbm.export import Progress
from edge_mbm.spec import Decision, ErrorFigures, Manifest, SpeedFigures, Variant
from edge_mbm.testing import tiny_bundle

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def projects() -> ModuleType:
    """Where ``write_project`` is."""
    path = Path(__file__).parents[1] / "export" / "conftest.py"
    spec = importlib.util.spec_from_file_location("projects_to_export", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(projects: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(**named: Any) -> Path:
        path: Path = projects.write_project(tmp_path / "project", **named)
        return path

    return write


@pytest.fixture
def manifest() -> Manifest:
    """The tiny bundle's, where the image encoder has an int8 variant and one that was not kept."""
    with BundleFiles(tiny_bundle()) as files:
        tiny = files.manifest
    encoder = tiny.components["image_encoder"]
    fp32 = encoder.variants["fp32"]
    figures = ErrorFigures(samples=9, cosine=0.98765, sqnr_db=23.4, max_abs=0.5, agreement=0.9, accuracy=0.875)
    speed = SpeedFigures(host="here", median_us=123.4, iqr_us=5.0, speedup=1.75)
    int8 = Variant(
        target="x86-cpu",
        precision="int8",
        decision=Decision(kept=True, reason="within budget"),
        opset=20,
        graph=fp32.graph,
        error=figures,
        speed=speed,
    )
    half = Variant(
        target="tensorrt", precision="fp16", decision=Decision(kept=False, reason="cosine 0.1\x1b[31m"), opset=20
    )
    variants = {"fp32": fp32, "x86-cpu-int8": int8, "trt-fp16": half}
    return replace(tiny, components={**tiny.components, "image_encoder": replace(encoder, variants=variants)})


@pytest.fixture
def exporting(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Put something in the place of the export."""

    def put(function: Callable[..., Any]) -> None:
        monkeypatch.setattr(edge_mbm.export, "export_bundle", function)

    return put


def test_what_was_written_is_shown(cli: Cli, exporting: Any, manifest: Manifest) -> None:
    """A row for each variant, the reason of each that was not kept, and what to do next; bars are on stderr."""

    def export(recipe: Path, output: Path, progress: Progress, *, targets: Sequence[str]) -> Manifest:
        assert (str(recipe), str(output), targets) == ("r.toml", "b.mbm", ["rtx", "arm-cpu"])
        progress.stage("look at \x1b[2J things", 3)
        progress.step("one\x1b]0;title\x07")
        return manifest

    exporting(export)
    done = cli("export", "r.toml", "-o", "b.mbm", "--target", "rtx", "--target", "arm-cpu")
    assert done.code == 0
    rows = {tuple(line.split()[:2]): line.split() for line in done.out.splitlines() if line.strip()}
    assert rows["image_encoder", "fp32"][-1] == "kept"
    [int8] = [row for row in rows.values() if row[0] == "x86-cpu-int8" and row[-1] == "kept"]
    assert int8[2:] == ["0.9877", "23.4", "0.875", "123", "1.75x", "kept"]
    [half] = [row for row in rows.values() if row[0] == "trt-fp16"]
    assert half[1:] == ["-", "-", "-", "-", "-", "-", "no"]
    assert r"image_encoder trt-fp16: cosine 0.1\x1b[31m" in done.out
    assert done.out.splitlines()[-1].endswith("Next: edge-mbm verify b.mbm")
    assert "\x1b" not in done.out
    assert "\x1b]0" not in done.err


def test_json_is_the_manifest(cli: Cli, exporting: Any, manifest: Manifest) -> None:
    """On stdout alone."""
    exporting(lambda *_, **__: manifest)
    found = cli("export", "r.toml", "-o", "b.mbm", "--json").json
    assert found["bundle"] == "b.mbm"
    assert found["manifest"]["name"] == "tiny"
    assert found["manifest"]["components"]["image_encoder"]["variants"]["trt-fp16"]["decision"]["kept"] is False


def test_a_dry_run_says_what_would_be_made(cli: Cli, project: Callable[..., Path], tmp_path: Path) -> None:
    """Components, shapes, variants and times; no place for a bundle is needed, and nothing is written."""
    recipe = project()
    done = cli("export", recipe, "--dry-run")
    assert done.code == 0
    assert "encoder: encoder, x float32[batch, 4] -> embedding float32[batch, 6]; 30 parameters" in done.out
    rows = [line.split() for line in done.out.splitlines()]
    assert ["x86-cpu-int8", "x86-cpu"] in [row[:2] for row in rows]
    assert ["head", "fp32", "any"] in [row[:3] for row in rows]
    assert done.out.splitlines()[-1].startswith(
        "sensor: at most 9 calibration, 12 heldout, 5 golden recordings; all in"
    )
    assert not (tmp_path / "cache").exists()
    assert not list(recipe.parent.glob("*.mbm"))


def test_a_dry_run_as_json(cli: Cli, project: Callable[..., Path]) -> None:
    """The same facts, for scripts."""
    found = cli("export", project(), "--dry-run", "--json").json
    assert found["components"]["encoder"]["variants"]["fp32"]["bytes"] == 120
    assert found["targets"] == ["x86-cpu"]
    assert found["recordings"] == {"calibration": 9, "heldout": 12, "golden": 5}


def test_targets_may_be_added(cli: Cli, project: Callable[..., Path]) -> None:
    """The recipe's own stay, and what it requires of them."""
    added = cli("export", project(), "--dry-run", "--json", "--target", "rtx", "--target", "x86-cpu").json
    assert added["targets"] == ["x86-cpu", "rtx"]
    assert {"x86-cpu-int8", "trt-fp16"} <= added["components"]["encoder"]["variants"].keys()
    unknown = cli("export", project(), "--dry-run", "--target", "jetson-orn")
    assert (unknown.code, "did you mean 'jetson-orin'?" in unknown.err) == (2, True)


def test_recordings_are_locked_and_a_change_is_noticed(cli: Cli, project: Callable[..., Path], tmp_path: Path) -> None:
    """A list is written beside the calibration set; with other recordings the export ends, and says how to renew it."""
    recipe = project()
    done = cli("export", recipe, "--lock")
    assert done.code == 0
    [lock] = recipe.parent.glob("*.samples.json")
    assert str(lock) in done.out.replace("\n", "")
    [code] = (recipe.parent / "code").glob("*.py")
    code.write_text(code.read_text().replace("rng.normal(0, 1, 4)", "rng.normal(0, 2, 4)"))
    sys.modules.pop(code.stem, None)
    done = cli("export", recipe, "-o", tmp_path / "b.mbm")
    assert (done.code, done.out) == (4, "")
    assert "--lock" in done.err.splitlines()[-1]


@pytest.mark.parametrize(("kind", "code"), [(BudgetError, 5), (TraceError, 4)])
def test_what_was_tried_is_a_list(cli: Cli, exporting: Any, kind: type[Exception], code: int) -> None:
    """A line each, as the error has them, none of which steers the terminal; then the error, in one line."""

    def fail(*_: object, **__: object) -> None:
        raise kind("the first\n  one   12x\n  two\x1b[31m")

    exporting(fail)
    done = cli("export", "r.toml", "-o", "b.mbm")
    assert (done.code, done.out) == (code, "")
    assert done.err.splitlines()[-3:] == ["  one   12x", r"  two\x1b[31m", "error: the first"]


def test_ctrl_c_is_exit_code_130(cli: Cli, exporting: Any) -> None:
    """Without a trace; the bars are let go of."""

    def stop(recipe: Path, output: Path, progress: Progress, **_: object) -> None:
        progress.stage("something", 2)
        raise KeyboardInterrupt

    exporting(stop)
    done = cli("export", "r.toml", "-o", "b.mbm")
    assert (done.code, done.out) == (130, "")
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("change", "ending"),
    [
        ({"top": "descripton = 'x'"}, (2, "unknown key 'descripton': did you mean 'description'?")),
        ({"add": "def load(): raise OSError('no weights here')"}, (2, "raised OSError: no weights here")),
        ({"add": "def recordings(split): return []"}, (4, "gives no recordings for the split 'calibration'")),
        (
            {"add": "Encoder.forward = lambda self, x: self.layer(x) * float('nan')"},
            (4, "gives NaN or infinite values"),
        ),
    ],
)
def test_what_is_wrong_has_its_exit_code(
    cli: Cli, project: Callable[..., Path], tmp_path: Path, change: dict[str, str], ending: tuple[int, str]
) -> None:
    """A line on stderr, nothing on stdout, and no bundle."""
    code, said = ending
    done = cli("export", project(**change), "-o", tmp_path / "b.mbm")
    assert (done.code, done.out) == (code, "")
    assert said in done.err.splitlines()[-1]
    assert done.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.err
    assert not (tmp_path / "b.mbm").exists()


def test_what_does_not_trace_is_told_for_all_components(cli: Cli, project: Callable[..., Path], tmp_path: Path) -> None:
    """By name, with both exporters' words and the line of the model; exit code 4."""
    code = """
    def forward(self, x):
        return torch.relu(x) if x.sum() > 1e9 else self.layer(x)  # HERE

    Encoder.forward = forward
    """
    recipe = project(add=code)
    done = cli("export", recipe, "-o", tmp_path / "b.mbm")
    [file] = (recipe.parent / "code").glob("*.py")
    line = next(number for number, text in enumerate(file.read_text().splitlines(), 1) if "HERE" in text)
    *rest, first = done.err.splitlines()
    assert done.code == 4
    assert first == "error: encoder could not be exported, with either of torch's exporters:"
    assert [text.split(":")[0] for text in rest[-2:]] == ["  encoder, torch.export", "  encoder, torchscript"]
    assert all(f"({file}:{line})" in text for text in rest[-2:])


def test_a_target_that_is_taken_is_exit_code_3(cli: Cli, project: Callable[..., Path], tmp_path: Path) -> None:
    """Somebody else's file is never written over."""
    (tmp_path / "b.mbm").write_text("somebody's")
    done = cli("export", project(), "-o", tmp_path / "b.mbm")
    assert (done.code, done.out) == (3, "")
    assert (tmp_path / "b.mbm").read_text() == "somebody's"


@pytest.mark.parametrize("arguments", [("export",), ("export", "r.toml"), ("export", "no_such.toml", "-o", "b.mbm")])
def test_wrong_usage_is_exit_code_2(cli: Cli, arguments: tuple[str, ...]) -> None:
    """No recipe, no place for the bundle, or a recipe that is not there."""
    done = cli(*arguments)
    assert (done.code, done.out) == (2, "")


def test_without_torch_it_says_what_to_install(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 7; every other command needs none."""
    monkeypatch.delitem(sys.modules, "edge_mbm.export")
    monkeypatch.setitem(sys.modules, "torch", None)
    done = cli("export", "r.toml", "-o", "b.mbm")
    assert (done.code, done.out) == (7, "")
    assert "exporting needs the Python module 'torch'" in done.err
    assert "pip install 'edge-mbm[export]'" in done.err
