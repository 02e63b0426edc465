"""A whole export: what is in the bundle, that it is the same each time, and what is left when there is none."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest
import torch

import edge_mbm
from edge_mbm.bundle import BundleFiles, write_bundle
from edge_mbm.calibration import DataDigest
from edge_mbm.errors import BudgetError, BundleError, CalibrationError, ExportError
from edge_mbm.export import Silent, export_bundle, load_recipe, prove
from edge_mbm.export.origin import Origin
from edge_mbm.export.recordings import importable, recordings
from edge_mbm.export.trace import Exporter
from edge_mbm.export.trace import trace as real_trace
from edge_mbm.runtime import Bundle
from edge_mbm.runtime.verify import verify_bundle
from edge_mbm.spec import Manifest
from edge_mbm.testing import tiny_bundle

Write: TypeAlias = Callable[..., Path]

SEARCHED = ("x86-cpu-int8", "trt-fp16", "trt-int8")

# --- what is in it ---------------------------------------------------------------------------------------------------


def test_the_device_agrees(exported: Any) -> None:
    """Every byte is what it should be, and each golden sample gives what torch gave, in each choice of variants."""
    with edge_mbm.load(exported.bundle) as bundle:
        for variants in (None, ["x86-cpu-int8"]):
            verified = verify_bundle(bundle, variants)
            verified.check()
            assert verified.samples == 5
            assert {o.output for replay in verified.replays for o in replay.outputs} == {
                "image_encoder.embedding",
                "audio_encoder.embedding",
                "both.logits",
                "seen.logits",
            }


def test_golden_samples_are_recordings_with_the_models_outputs(exported: Any) -> None:
    """In their order, one without sound among them; the outputs are torch's, computed here without the chain."""
    recipe = load_recipe(exported.recipe)
    with importable(recipe.python_path()), torch.inference_mode():
        wanted = list(recordings(recipe, recipe.data.golden))
        model = Origin(recipe).model
        files, samples = exported.files, exported.manifest.golden
        assert [sample.id for sample in samples] == [record.id for record in wanted]
        assert sorted(samples[4].inputs) == ["image"]
        for sample, record in zip(samples, wanted, strict=True):
            for modality, path in sample.inputs.items():
                assert np.array_equal(files.read_array(path), record.inputs[modality])
            seen = model.encoders["image"](torch.from_numpy(record.inputs["image"][None]))  # type: ignore[operator,index]
            logits = model.heads["seen"](seen)  # type: ignore[operator,index]
            np.testing.assert_allclose(files.read_array(sample.outputs["seen.logits"]), logits.numpy(), atol=1e-5)


def test_where_it_came_from(exported: Any) -> None:
    """Recipe, model and calibration recordings by digests made here anew, and the versions that made it."""
    recipe, manifest = load_recipe(exported.recipe), exported.manifest
    provenance = manifest.provenance
    folder = exported.recipe.parent
    both = (folder / "recipe.toml").read_bytes() + b"\0" + (folder / "data.toml").read_bytes()
    assert provenance.recipe_sha256 == hashlib.sha256(both).hexdigest()
    digest = DataDigest()
    with importable(recipe.python_path()):
        assert provenance.model_sha256 == Origin(recipe).sha256()
        for record in recordings(recipe, recipe.data.calibration):
            digest.add(record.id, record.inputs)
    record = provenance.calibration
    assert (record.samples, record.data_sha256, record.description) == (9, digest.hexdigest(), "Made by the test")
    assert json.loads(record.method) == {"method": "percentile", "percentile": 99.99}
    listed = json.loads(exported.files.read(manifest.assets["calibration_samples"].path))
    assert list(listed.items()) == digest.entries
    assert [*listed] == [f"calibration-{index}" for index in range(9)]
    assert provenance.versions.keys() == {"edge-mbm", "numpy", "onnx", "onnxruntime", "torch"}
    assert provenance.versions["torch"] == torch.__version__


def test_every_variant_has_its_evidence(exported: Any) -> None:
    """Errors of all that could be made, speeds of those that run here, on held-out recordings that have the modality;
    how it was made; opset as it is."""
    for name, component in exported.manifest.components.items():
        heads = ["fp32", "trt-fp16"]
        assert list(component.variants) == (heads if name in {"both", "seen"} else ["fp32", *SEARCHED])
        for key, variant in component.variants.items():
            if not variant.decision.kept:
                assert "would not take it" in variant.decision.reason or "error" in variant.decision.reason
                continue
            assert variant.error is not None
            assert variant.error.samples == (10 if name == "audio_encoder" else 12)
            assert (variant.speed is None) == key.startswith("trt")
            assert bool(variant.made_by) == (key != "fp32")
            graph = onnx.load_model_from_string(exported.files.read(variant.graph))
            assert [(o.domain, o.version) for o in graph.opset_import] == [("", variant.opset)]
        assert component.variants["fp32"].error.sqnr_db > 90
        assert component.variants["fp32"].speed.speedup == 1.0
    image = exported.manifest.components["image_encoder"].variants
    assert all(variant.decision.kept for variant in image.values())
    assert [image[key].target for key in SEARCHED] == ["x86-cpu", "tensorrt", "tensorrt"]
    assert all("graphs tried" in image[key].decision.reason for key in ("x86-cpu-int8", "trt-int8"))


def test_labels_travel_as_lines(exported: Any) -> None:
    """As the recipe has them, under the name by which outputs refer to them."""
    assert exported.files.read_labels("classes") == ("red", "green", "blue")
    assert exported.manifest.components["both"].outputs["logits"].task.labels == "classes"
    assert exported.manifest.default_heads == ("both",)


def test_the_report_travels_as_page_and_as_data(exported: Any) -> None:
    """Both name every component and what was decided."""
    page = exported.files.read(exported.manifest.assets["report"].path).decode()
    data = json.loads(exported.files.read(exported.manifest.assets["report_data"].path))
    assert page.startswith("<!")
    assert list(data["components"]) == list(exported.manifest.components)
    for name in exported.manifest.components:
        assert name in page
    assert exported.manifest.provenance.calibration.data_sha256[:12] in page


def test_progress_is_told_stage_by_stage(exported: Any) -> None:
    """Each once, in order, with no more steps than it announced."""
    stages = [line for line in exported.told if not line.startswith("  ")]
    assert [stage.partition(" (")[0] for stage in stages] == [
        "describe the components",
        "look at the recordings",
        "run the model on the held-out recordings",
        "trace to ONNX and check parity",
        "calibrate on recordings",
        "emit the variants",
        *(
            f"search {name} {key}"
            for name in ("image_encoder", "audio_encoder")
            for key in ("x86-cpu-int8", "trt-int8")
        ),
        "check against the targets",
        "measure error and speed",
        "decide",
        "write the bundle",
    ]
    assert stages[1] == "look at the recordings (21)"
    starts = [exported.told.index(stage) for stage in stages] + [len(exported.told)]
    for stage, start, end in zip(stages, starts, starts[1:], strict=False):
        assert 0 < end - start - 1 <= int(stage.rpartition("(")[2].rstrip(")")), stage


def test_nothing_temporary_is_left(exported: Any) -> None:
    """Neither files nor processes."""
    assert exported.left == []
    assert [path.name for path in exported.bundle.parent.glob("*.mbm*")] == ["tones.mbm"]


# --- the same each time ----------------------------------------------------------------------------------------------


def test_another_process_writes_the_same_bytes(exported: Any, tmp_path: Path) -> None:
    """With other hash seeds and without the ranges that were cached, from another folder, by a relative path, into a
    directory in a folder that is not there yet; only the measured speeds are kept."""
    shutil.copytree(exported.cache / "edge-mbm" / "speed", tmp_path / "cache" / "edge-mbm" / "speed")
    recipe = os.path.relpath(exported.recipe, tmp_path)
    for name in ("json", "numpy", "torch", "onnxruntime"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file in the current folder was imported')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "edge_mbm.cli", "export", recipe, "-o", "new/deep/tones"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONHASHSEED": "4711", "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "new/deep/tones: " in done.stdout.splitlines()[-1]
    assert "write the bundle" in done.stderr
    with BundleFiles(tmp_path / "new" / "deep" / "tones") as again:
        for path in exported.manifest.files:
            assert again.read(path) == exported.files.read(path), path
        assert again.manifest_bytes == exported.files.manifest_bytes


# --- when something is not as it should be ---------------------------------------------------------------------------

FALLING_BACK = """
class Encoder(Encoder):
    def forward(self, x):
        if torch.compiler.is_exporting():
            raise RuntimeError("not with this one")
        return torch.relu(self.layer(x))
"""


@pytest.fixture(scope="module")
def traced(project: Write) -> dict[tuple[str, str], Any]:
    """What both exporters make of the sensor's model, whose encoder only the older one can export."""
    recipe = load_recipe(project(add=FALLING_BACK))
    with importable(recipe.python_path()):
        from edge_mbm.export.skeleton import make_skeleton

        components = make_skeleton(recipe.recipe, Origin(recipe))
        new = dict(real_trace(recipe, components, "torch.export"))
        old = dict(real_trace(recipe, {"encoder": components["encoder"]}, "torchscript"))
    return {("torch.export", n): o for n, o in new.items()} | {("torchscript", n): o for n, o in old.items()}


@pytest.fixture
def quick(traced: dict[tuple[str, str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the sensor's model take those graphs, which spares them the seconds that tracing takes."""

    def trace(loaded: object, components: dict[str, object], exporter: Exporter) -> Iterator[tuple[str, Any]]:
        yield from ((name, traced[exporter, name]) for name in components)

    monkeypatch.setattr(prove, "trace", trace)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.mark.usefixtures("quick")
def test_the_other_exporter_is_tried_and_named(project: Write, tmp_path: Path) -> None:
    """In the reason of fp32, for the component that needed it alone; the bundle runs."""
    manifest = export_bundle(project(add=FALLING_BACK), tmp_path / "b.mbm")
    reasons = {name: c.variants["fp32"].decision.reason for name, c in manifest.components.items()}
    assert reasons == {
        "encoder": "the reference: traced with torchscript, equal to the model",
        "head": "the reference: traced with torch.export, equal to the model",
    }
    with Bundle(tmp_path / "b.mbm") as bundle:
        verify_bundle(bundle).check()


@pytest.mark.usefixtures("quick")
def test_what_is_not_worth_it_is_left_out(project: Write, tmp_path: Path) -> None:
    """No file, but the figures and the reason, in manifest and report."""
    recipe = project(add=FALLING_BACK, top="[budget]\nmin_cosine = 0\nmin_agreement = 0\nmin_speedup = 1000")
    manifest = export_bundle(recipe, tmp_path / "b.mbm")
    variant = manifest.components["encoder"].variants["x86-cpu-int8"]
    assert (variant.decision.kept, variant.graph) == (False, None)
    assert variant.decision.reason.startswith("not worth it: ")
    assert "asked for 1000.00x" in variant.decision.reason
    assert variant.error is not None
    assert variant.speed is not None
    assert [path for path in manifest.files if "int8" in path] == []
    with BundleFiles(tmp_path / "b.mbm") as files:
        assert "not worth it: " in files.read("report.html").decode()


@pytest.mark.usefixtures("quick")
def test_silence_in_calibration_does_no_harm(project: Write, tmp_path: Path) -> None:
    """Ranges that mean nothing are told in the report, and what they lead to is measured like anything else."""
    code = """
    def recordings(split):
        rng = np.random.default_rng(sum(split.encode()))
        for index in range(8):
            x = rng.normal(0, 5, 4).astype(np.float32) * (split != "calibration")
            yield Record(f"{split}-{index}", {"imu": x}, None)
    """
    manifest = export_bundle(project(add=FALLING_BACK + code.replace("\n    ", "\n")), tmp_path / "b.mbm")
    variant = manifest.components["encoder"].variants["x86-cpu-int8"]
    assert variant.error is not None
    assert "graphs tried" in variant.decision.reason
    with BundleFiles(tmp_path / "b.mbm") as files:
        data = json.loads(files.read("report.json"))
    assert "x" in [tensor["tensor"] for tensor in data["components"]["encoder"]["ranges"] if tensor.get("all_zero")]


@pytest.mark.usefixtures("quick")
def test_a_budget_that_cannot_be_met_leaves_nothing(project: Write, tmp_path: Path, temporary: Path) -> None:
    """No bundle, no folder for it, no temporary files; the error has all that was tried."""
    recipe = project(add=FALLING_BACK, more="[require]\naccuracy = { head = 1.0 }")
    with pytest.raises(BudgetError) as caught:
        export_bundle(recipe, tmp_path / "out" / "deep" / "b.mbm")
    assert caught.value.exit_code == 5
    assert "accuracy of 'head' is 0." in str(caught.value)
    assert "No bundle was written. What was tried:" in str(caught.value)
    assert str(caught.value).count("x86-cpu-int8") == 1
    assert not (tmp_path / "out").exists()
    assert list(temporary.iterdir()) == []


class Stopping(Silent):
    """Ctrl-C at the beginning of a stage, or at the first step of it."""

    def __init__(self, title: str, *, at_step: bool) -> None:
        self.title, self.at_step, self.reached = title, at_step, False

    def stage(self, title: str, total: int) -> None:
        self.reached = title.startswith(self.title)
        if self.reached and not self.at_step:
            raise KeyboardInterrupt

    def step(self, what: str = "") -> None:
        if self.reached:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("stop", "name"),
    [
        (Stopping("run the model", at_step=True), "old.mbm"),
        (Stopping("trace", at_step=True), "old.mbm"),
        (Stopping("emit", at_step=True), "old.mbm"),
        (Stopping("write", at_step=False), "old.mbm"),
        (Stopping("write", at_step=False), "old"),
    ],
)
def test_stopped_the_old_bundle_is_as_it_was(
    project: Write, tmp_path: Path, temporary: Path, stop: Stopping, name: str
) -> None:
    """Whenever that is; nothing lies beside it, and nothing is left for temporary files."""
    target = tmp_path / "out" / name
    with BundleFiles(tiny_bundle()) as files:
        write_bundle(target, files.manifest, {path: files.read(path) for path in files.manifest.files})
        before = files.manifest_bytes
    with pytest.raises(KeyboardInterrupt):
        export_bundle(project(add=FALLING_BACK), target, stop)
    with BundleFiles(target) as files:
        assert files.manifest_bytes == before
    assert list(target.parent.iterdir()) == [target]
    assert list(temporary.iterdir()) == []


def refused(recipe: Path, target: Path, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        export_bundle(recipe, target)
    assert not target.exists()


@pytest.fixture
def no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gets that far has done minutes of work."""

    def trace(*arguments: object) -> Iterator[None]:
        raise AssertionError("it came to tracing")
        yield

    monkeypatch.setattr(prove, "trace", trace)


@pytest.mark.usefixtures("no_tracing")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_target_that_holds_something_else_is_refused_before_any_work(
    project: Write, tmp_path: Path, kind: str
) -> None:
    """The model is not even made."""
    recipe = project(add="raise AssertionError('the project was imported')")
    target = tmp_path / ("taken.mbm" if kind == "file" else "taken")
    if kind == "file":
        target.write_text("somebody's")
    else:
        target.mkdir()
        (target / "thesis.txt").write_text("somebody's")
    with pytest.raises(BundleError, match="taken"):
        export_bundle(recipe, target)
    assert (target if kind == "file" else target / "thesis.txt").read_text() == "somebody's"


@pytest.mark.usefixtures("no_tracing")
@pytest.mark.parametrize("split", ["calibration", "heldout", "golden"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[Record('a', {'imu': np.full(4, np.nan, np.float32)}, 0)]", "'a'.* has NaN or infinite values in 'imu'"),
        ("[]", "gives no recordings for the split"),
        ("[Record('a', {'imu': np.zeros(4, np.float32)}, 0)] * 8", "recording 'a' is there twice"),
        ("[Record('a', {'smell': np.zeros(4, np.float32)}, 0)]", r"has \['smell'\]; modalities are \['imu'\]"),
    ],
    ids=["nan", "empty", "twice", "stranger"],
)
def test_bad_recordings_are_refused_before_tracing(
    project: Write, tmp_path: Path, split: str, value: str, said: str
) -> None:
    """In whichever split they are: what costs minutes comes after what costs none."""
    code = f"""
    original = recordings

    def recordings(split):
        return {value} if split == "{split}" else original(split)
    """
    refused(project(add=code), tmp_path / "b.mbm", CalibrationError, said)


@pytest.mark.usefixtures("no_tracing")
def test_held_out_recordings_must_be_held_out(project: Write, tmp_path: Path) -> None:
    """Of a function that gives the same for every split, errors would be measured on what calibrated."""
    code = """
    original = recordings

    def recordings(split):
        return original("all")
    """
    said = "recording 'all-0' and 7 more of the split 'heldout' is in 'calibration' too"
    refused(project(add=code), tmp_path / "b.mbm", CalibrationError, said)


@pytest.mark.usefixtures("no_tracing")
def test_a_model_that_gives_no_numbers_is_refused(project: Write, tmp_path: Path) -> None:
    """With the output and the recording, whether its weights are at fault or what it does with them."""
    code = """
    def load():
        model = Model()
        model.head.weight.data[0, 0] = float("nan")
        return model
    """
    said = "the model itself gives NaN or infinite values in 'head.logits' for recording 'heldout-0'"
    refused(project(add=code), tmp_path / "b.mbm", ExportError, said)


@pytest.mark.usefixtures("no_tracing")
def test_too_few_recordings_are_refused(project: Write, tmp_path: Path) -> None:
    """Parity needs several for each component."""
    code = """
    original = recordings

    def recordings(split):
        return list(original(split))[:4]
    """
    refused(project(add=code), tmp_path / "b.mbm", ExportError, r"too few .* reach \['encoder', 'head'\]: at least 5")


@pytest.mark.usefixtures("no_tracing")
def test_recordings_too_short_for_a_window_are_refused(project: Write, tones: dict[str, str], tmp_path: Path) -> None:
    """With the recording's id and both lengths."""
    code = """
    original = recordings

    def recordings(split):
        for record in original(split):
            record.inputs["audio"] = np.zeros(700, np.float32)
            yield record
    """
    recipe = project(tones["code"], tones["recipe"], add=code)
    refused(
        recipe,
        tmp_path / "b.mbm",
        CalibrationError,
        "'heldout-0' does not fit .*: it has 700 samples, a window takes 800",
    )


@pytest.mark.usefixtures("quick")
def test_a_cache_that_cannot_be_written_is_no_failure(
    project: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Homes may be read-only."""
    (tmp_path / "file").write_text("where the cache would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    manifest: Manifest = export_bundle(project(add=FALLING_BACK), tmp_path / "b.mbm")
    assert manifest.name == "sensor"


@pytest.mark.usefixtures("quick")
def test_ranges_that_were_cached_give_the_same_bundle(project: Write, tmp_path: Path, cache: Path) -> None:
    """Speeds too: the second export of a recipe measures and observes nothing anew."""
    recipe = project(add=FALLING_BACK)
    export_bundle(recipe, tmp_path / "one.mbm")
    assert len(list((cache / "edge-mbm" / "ranges").iterdir())) == 2
    export_bundle(recipe, tmp_path / "two.mbm")
    assert (tmp_path / "one.mbm").read_bytes() == (tmp_path / "two.mbm").read_bytes()
