"""What the benchmark feeds and counts; never how fast something is."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from edge_mbm.bundle import BundleFiles, write_bundle
from edge_mbm.errors import InputError, ManifestError
from edge_mbm.runtime import Bundle, SessionOptions, load
from edge_mbm.runtime.bench import BenchReport, bench_bundle
from edge_mbm.spec import Component, Encoder, SensorModality, Window
from edge_mbm.testing import NullEngine, tiny_bundle

MS = 1_000_000


class Ticking:
    """A clock that is a millisecond later each time it is looked at."""

    def __init__(self) -> None:
        self.t = 0

    def __call__(self) -> int:
        self.t += MS
        return self.t


class Watching:
    """Engines that write down what they were given."""

    def __init__(self) -> None:
        self.seen: dict[str, list[np.ndarray]] = {}
        self.order: list[bytes] = []

    def __call__(self, name: str, component: Component, graph: bytes) -> NullEngine:
        def note(inputs: Mapping[str, Any], _: Mapping[str, Any]) -> None:
            for key, value in inputs.items():
                self.seen.setdefault(f"{name}.{key}", []).append(value[0].copy())
            if name == "event":
                self.order.append(graph)

        return NullEngine(name, component, graph, compute=note)


def rewritten(tmp_path: Path, contents: dict[str, bytes] | None = None, **fields: Any) -> Bundle:
    with BundleFiles(tiny_bundle()) as files:
        manifest = msgspec.structs.replace(files.manifest, **fields)
        whole = {path: files.read(path) for path in files.manifest.files} | (contents or {})
    write_bundle(tmp_path / "b.mbm", manifest, whole)
    return load(tmp_path / "b.mbm")


def bench(bundle: Bundle | None = None, watching: Watching | None = None, **options: Any) -> BenchReport:
    chosen = SessionOptions(**{k: options.pop(k) for k in ("heads", "variant", "threads") if k in options})
    return bench_bundle(
        bundle or load(tiny_bundle()), chosen, clock=Ticking(), load_engine=watching or NullEngine, **options
    )


def test_every_step_gives_a_result_of_every_head_with_nothing_missing() -> None:
    """One hop of sound and one frame, so the audio encoder runs once per frame, and every head hears."""
    watching = Watching()
    report = bench(watching=watching, heads=("event", "color"), seconds=0.1)
    [run] = report.runs
    assert run.results == run.end_to_end.count
    assert run.results % 2 == 0
    frames, windows = watching.seen["image_encoder.image"], watching.seen["audio_encoder.samples"]
    # Engines also run once for each result; loading runs none of these.
    assert len(frames) == len(windows)
    assert all(present.tolist() == [1.0, 1.0] for present in watching.seen["event.present"])
    assert set(run.stages) == {
        "preprocess.image_encoder",
        "infer.image_encoder",
        "preprocess.audio_encoder",
        "infer.audio_encoder",
        "infer.event",
        "infer.color",
    }


def test_golden_inputs_are_what_is_fed() -> None:
    """Frames as they are; sound cut into hops without a gap."""
    watching = Watching()
    report = bench(watching=watching, seconds=0.05)
    assert report.zeros == ()
    assert all((frame[:, :, 1] == 255).all() for frame in watching.seen["image_encoder.image"])
    assert all(np.allclose(samples, 0.1) for samples in watching.seen["audio_encoder.samples"])


def test_samples_take_turns(tmp_path: Path) -> None:
    """Two golden samples, one without a picture: black stands in every second step."""
    with BundleFiles(tiny_bundle()) as files:
        [sample] = files.manifest.golden
    dark = replace(sample, id="dark", inputs={"audio": sample.inputs["audio"]})
    watching = Watching()
    report = bench(rewritten(tmp_path, golden=(sample, dark)), watching, seconds=0.05)
    brightness = [float(frame.mean()) for frame in watching.seen["image_encoder.image"]]
    assert all((a == 0) != (b == 0) for a, b in pairwise(brightness))
    assert report.zeros == ()


def test_zeros_stand_in_where_there_is_nothing(tmp_path: Path) -> None:
    """Named in the report; a picture as large as the model sees it, so that no resizing library is needed."""
    watching = Watching()
    report = bench(rewritten(tmp_path, golden=()), watching, seconds=0.02)
    assert report.zeros == ("image", "audio")
    assert not np.any(watching.seen["image_encoder.image"])
    assert not np.any(watching.seen["audio_encoder.samples"])
    assert report.runs[0].results > 0


def test_overlapping_windows_fill_before_the_clock_counts(tmp_path: Path) -> None:
    """A window of ten hops: warm-up lasts until there are results, which then come with every step."""
    with BundleFiles(tiny_bundle()) as files:
        components = dict(files.manifest.components)
    encoder = components["audio_encoder"]
    assert isinstance(encoder, Encoder)
    components["audio_encoder"] = replace(encoder, window=Window(length=100, hop=7))
    components["event"] = replace(components["event"], present=None)
    watching = Watching()
    report = bench(rewritten(tmp_path, components=components), watching, seconds=0.1)
    assert report.runs[0].results > 0
    assert all(np.allclose(samples, 0.1) for samples in watching.seen["audio_encoder.samples"])


def test_times_come_from_the_clock() -> None:
    """Each step takes one tick; results a second follow from it, and the block ends when its time is over."""
    [run] = bench(seconds=0.2).runs
    assert run.end_to_end.p50_us == pytest.approx(1000, rel=0.01)
    assert run.end_to_end.max_us == 1000
    assert run.results_per_s == pytest.approx(1000)
    assert run.seconds == pytest.approx(run.results / 1000)


def test_two_choices_take_turns(tmp_path: Path) -> None:
    """Blocks of one, then of the other, and again; the ratio is of the medians."""
    with BundleFiles(tiny_bundle()) as files:
        components = dict(files.manifest.components)
    event = components["event"]
    twin = replace(event.variants["fp32"], graph="graphs/twin.onnx", precision="int8")
    components["event"] = replace(event, variants={"int8": twin, **event.variants})
    watching = Watching()
    bundle = rewritten(tmp_path, {"graphs/twin.onnx": b"twin"}, components=components)
    report = bench(bundle, watching, compare="fp32", seconds=0.6)
    assert [(run.variant, run.components["event"]) for run in report.runs] == [("auto", "int8"), ("fp32", "fp32")]
    changes = sum(a != b for a, b in pairwise(graph == b"twin" for graph in watching.order))
    assert changes >= 5  # three blocks each, after both warmed up
    assert report.speedup["end_to_end"] == pytest.approx(1.0)
    assert set(report.speedup) >= {"infer.event", "preprocess.image_encoder"}


def test_the_same_graphs_are_not_compared() -> None:
    """One run, and no ratio of noise to noise."""
    report = bench(compare="fp32", seconds=0.02)
    assert len(report.runs) == 1
    assert report.speedup == {}


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    """No time, an unknown choice, a golden input that does not fit, and a modality that the model never sees."""
    for seconds in (0.0, -1.0, float("nan"), 1e6):
        with pytest.raises(InputError, match="seconds"):
            bench(seconds=seconds)
    with pytest.raises(InputError, match="int4"):
        bench(compare="int4")
    with pytest.raises(InputError, match="smell"):
        bench(heads=("smell",))
    with BundleFiles(tiny_bundle()) as files:
        [sample] = files.manifest.golden
    wrong = replace(sample, inputs={"image": "golden/0.event.logits.npy"})
    with pytest.raises(ManifestError, match="golden input does not fit"):
        bench(rewritten(tmp_path, golden=(wrong,)))


def test_what_no_head_uses_is_not_fed(tmp_path: Path) -> None:
    """A sensor that the manifest knows and no running head reads needs no golden input."""
    with BundleFiles(tiny_bundle()) as files:
        modalities = {**files.manifest.modalities, "imu": SensorModality(shape=(6,))}
    report = bench(rewritten(tmp_path, modalities=modalities), seconds=0.02)
    assert report.zeros == ()
    assert report.runs[0].results > 0
