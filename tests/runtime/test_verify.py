"""Verifying on the device: what passes, and what a failure says."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from edge_mbm.bundle import BundleFiles, write_bundle
from edge_mbm.errors import InputError, ManifestError, VerificationError
from edge_mbm.runtime import Bundle, load
from edge_mbm.runtime.verify import OutputCheck, verify_bundle
from edge_mbm.spec import Component, Decision, ErrorFigures, GoldenSample, Manifest, SpeedFigures, Variant
from edge_mbm.testing import NullEngine, tiny_bundle

REFERENCE = np.array([[0.0, 8.0, 0.0, 0.6]], np.float32)


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    with BundleFiles(tiny_bundle()) as files:
        return files.manifest


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def rewritten(tmp_path: Path, contents: dict[str, bytes] | None = None, **fields: Any) -> Bundle:
    """The tiny bundle, changed and hashed anew."""
    with BundleFiles(tiny_bundle()) as files:
        manifest = msgspec.structs.replace(files.manifest, **fields)
        whole = {path: files.read(path) for path in manifest.files if path in files.manifest.files}
    write_bundle(tmp_path / "b.mbm", manifest, whole | (contents or {}))
    return load(tmp_path / "b.mbm")


def referenced(tmp_path: Path, *references: np.ndarray, **fields: Any) -> Bundle:
    """Samples that differ in nothing but the reference of the head "event"."""
    inputs = {"image": "golden/0.image.npy", "audio": "golden/0.audio.npy"}
    files = {f"golden/r{k}.npy": npy(reference) for k, reference in enumerate(references)}
    golden = tuple(
        GoldenSample(id=f"s{k}", inputs=inputs, outputs={"event.logits": path}) for k, path in enumerate(files)
    )
    return rewritten(tmp_path, files, golden=golden, **fields)


def int8(sqnr_db: float | None, precision: str = "int8") -> Variant:
    error = ErrorFigures(samples=9, cosine=1.0, sqnr_db=sqnr_db, max_abs=0.1) if sqnr_db is not None else None
    return Variant(
        target="any",
        precision=precision,  # type: ignore[arg-type]
        opset=20,
        graph="graphs/int8.onnx",
        decision=Decision(kept=True, reason="fast"),
        error=error,
        speed=SpeedFigures(host="x", median_us=1.0, iqr_us=0.1, speedup=3.0),
    )


def with_variants(manifest: Manifest, **variants: Variant) -> dict[str, Component]:
    """The components, some with another variant that is chosen here."""
    return {
        name: replace(c, variants=c.variants | {"int8": variants[name]}) if name in variants else c
        for name, c in manifest.components.items()
    }


class Noisy:
    """Engines of which only the head "event" gives anything: the reference, and noise so many dB below it.

    An int8 graph in any component makes the noise that of ``int8_db``.
    """

    def __init__(self, fp32_db: float = 200.0, int8_db: float = 200.0) -> None:
        self._db = fp32_db
        self._int8_db = int8_db
        self._fp32_db = fp32_db

    def __call__(self, name: str, component: Component, graph: bytes) -> NullEngine:
        if name == "image_encoder":  # the first to load
            self._db = self._fp32_db
        if graph == b"int8":
            self._db = self._int8_db
        return NullEngine(name, component, graph, compute=self._compute)

    def _compute(self, _: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if outputs.get("logits", np.zeros(0)).shape == REFERENCE.shape:
            noise = np.array([[1.0, -1.0, 1.0, -1.0]], np.float64) * np.linalg.norm(REFERENCE) / 2
            outputs["logits"][...] = REFERENCE + noise * 10 ** (-self._db / 20)


def one(check: tuple[OutputCheck, ...]) -> OutputCheck:
    [found] = check
    return found


# --- what passes -----------------------------------------------------------------------------------------------------


@pytest.mark.needs("onnxruntime")
def test_the_tiny_bundle_passes() -> None:
    """Exactly, once: auto comes to the same fp32 graphs here."""
    with load(tiny_bundle()) as bundle:
        found = verify_bundle(bundle)
    assert (found.bundle, found.samples, found.files, found.passed) == ("tiny", 1, 9, True)
    [replayed] = found.replays
    assert replayed.variant == "fp32"
    check = one(replayed.outputs)
    assert (check.output, check.sqnr_db, check.agreement, check.max_abs) == ("event.logits", 120.0, 1.0, 0.0)
    found.check()


@pytest.mark.parametrize(("noise_db", "passed"), [(61.0, True), (59.0, False)])
def test_fp32_must_be_within_60_db(tmp_path: Path, noise_db: float, passed: bool) -> None:
    """Nothing but the order of sums may differ."""
    found = verify_bundle(referenced(tmp_path, REFERENCE), load_engine=Noisy(noise_db))
    check = one(found.replays[0].outputs)
    assert check.sqnr_db == pytest.approx(noise_db, abs=0.1)
    assert (check.required_db, found.passed) == (60.0, passed)


@pytest.mark.parametrize(
    ("variants", "required_db"),
    [
        ({"event": int8(40.0)}, 30.0),
        ({"event": int8(None)}, 60.0),
        ({"event": int8(90.0)}, 60.0),
        ({"image_encoder": int8(20.0)}, 10.0),  # upstream
        ({"image_encoder": int8(35.0), "event": int8(25.0)}, 15.0),  # the lowest
        ({"image_encoder": int8(30.0), "event": int8(None)}, 20.0),
        ({"image_encoder": int8(20.0, "fp32")}, 60.0),  # its error is another's
        ({"color": int8(10.0)}, 60.0),  # another head
    ],
)
def test_others_must_be_as_good_as_on_export_less_10_db(
    tmp_path: Path, manifest: Manifest, variants: dict[str, Variant], required_db: float
) -> None:
    """The lowest error measured in the output's own chain counts, and never asks for more than of fp32."""
    components = with_variants(manifest, **variants)
    for noise_db, passed in ((required_db + 1, True), (required_db - 1, False)):
        loaded = written_with_int8(tmp_path, components)
        found = verify_bundle(loaded, ["auto"], load_engine=Noisy(noise_db, noise_db))
        check = one(found.replays[0].outputs)
        assert (check.required_db, check.passed) == (required_db, passed)


def written_with_int8(tmp_path: Path, components: dict[str, Component]) -> Bundle:
    golden = GoldenSample(
        id="s",
        inputs={"image": "golden/0.image.npy", "audio": "golden/0.audio.npy"},
        outputs={"event.logits": "golden/r.npy"},
    )
    files = {"golden/r.npy": npy(REFERENCE), "graphs/int8.onnx": b"int8"}
    return rewritten(tmp_path, files, golden=(golden,), components=components)


def test_what_runs_here_is_checked_beside_fp32(tmp_path: Path, manifest: Manifest) -> None:
    """Where auto is something else: both, and each says which graph ran."""
    bundle = written_with_int8(tmp_path, with_variants(manifest, event=int8(30.0)))
    found = verify_bundle(bundle, load_engine=Noisy(fp32_db=100.0, int8_db=25.0))
    assert [(r.variant, r.components["event"], r.components["image_encoder"]) for r in found.replays] == [
        ("fp32", "fp32", "fp32"),
        ("auto", "int8", "fp32"),
    ]
    assert [one(r.outputs).sqnr_db for r in found.replays] == pytest.approx([100.0, 25.0], abs=0.2)
    assert found.passed
    assert one(found.replays[1].outputs).variants == {
        "image_encoder": "fp32",
        "audio_encoder": "fp32",
        "event": "int8",
    }


def test_a_bundle_without_fp32_is_checked_as_it_runs(tmp_path: Path, manifest: Manifest) -> None:
    """There is nothing else."""
    components = {
        name: replace(c, variants={"int8": int8(30.0)}) if name == "event" else c
        for name, c in manifest.components.items()
    }
    components = {
        name: c if name == "event" else replace(c, variants={"plain": c.variants["fp32"]})
        for name, c in components.items()
    }
    found = verify_bundle(written_with_int8(tmp_path, components), load_engine=Noisy(int8_db=30.0))
    assert [r.variant for r in found.replays] == ["auto"]


def test_the_ratio_is_over_all_samples_together(tmp_path: Path) -> None:
    """A direct computation over the stacked references agrees, and so do the worst error and the labels."""
    references = [REFERENCE, REFERENCE * 3, np.array([[9.0, 1.0, 0.0, 0.0]], np.float32)]

    def compute(_: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if outputs.get("logits", np.zeros(0)).shape == REFERENCE.shape:
            outputs["logits"][...] = REFERENCE

    bundle = referenced(tmp_path, *references)
    found = verify_bundle(bundle, load_engine=lambda n, c, g: NullEngine(n, c, g, compute=compute))
    stacked = np.concatenate(references).astype(np.float64)
    error = stacked - REFERENCE
    check = one(found.replays[0].outputs)
    assert check.sqnr_db == pytest.approx(10 * np.log10(np.sum(stacked**2) / np.sum(error**2)))
    assert check.max_abs == pytest.approx(np.abs(error).max())
    assert (check.samples, check.agreement) == (3, pytest.approx(2 / 3))


def test_a_reference_of_zeros_is_met_by_zeros_only(tmp_path: Path) -> None:
    """No signal: any error at all is too much."""
    zeros = np.zeros((1, 4), np.float32)
    exact = verify_bundle(referenced(tmp_path, zeros), load_engine=NullEngine)
    assert one(exact.replays[0].outputs).sqnr_db == 120.0
    noisy = verify_bundle(referenced(tmp_path, zeros), load_engine=Noisy())
    assert one(noisy.replays[0].outputs).sqnr_db == -120.0


def test_not_a_number_never_passes(tmp_path: Path) -> None:
    """An encoder that gives NaN, which no comparison finds greater."""

    def compute(_: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if "color" in outputs:
            outputs["color"][...] = np.nan

    sample = GoldenSample(
        id="s", inputs={"image": "golden/0.image.npy"}, outputs={"image_encoder.color": "golden/c.npy"}
    )
    bundle = rewritten(tmp_path, {"golden/c.npy": npy(np.ones((1, 3), np.float32))}, golden=(sample,))
    found = verify_bundle(bundle, load_engine=lambda n, c, g: NullEngine(n, c, g, compute=compute))
    check = one(found.replays[0].outputs)
    assert (check.passed, check.sqnr_db, check.max_abs, check.agreement) == (False, -120.0, None, None)


# --- what a failure says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fp32_db", "wanted", "advice"),
    [
        (100.0, None, "use --variant fp32 here"),
        (20.0, None, "fp32 graphs are wrong already"),
        (100.0, ["auto"], "Try --variant fp32"),
    ],
)
def test_a_failure_says_what_to_do(
    tmp_path: Path, manifest: Manifest, fp32_db: float, wanted: list[str] | None, advice: str
) -> None:
    """Which output, by how much, and where the fault can lie."""
    bundle = written_with_int8(tmp_path, with_variants(manifest, event=int8(30.0)))
    found = verify_bundle(bundle, wanted, load_engine=Noisy(fp32_db, int8_db=5.0))
    with pytest.raises(VerificationError, match=r"'event.logits' with auto \(5.0 dB, 20.0 needed\)") as caught:
        found.check()
    assert advice in str(caught.value)


# --- samples that do not fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contents", "change", "message"),
    [
        ({"golden/x.npy": npy(np.zeros((1, 3), np.float32))}, {}, r"float32\[1, 3\], the graph gives float32\[1, 4\]"),
        ({"golden/x.npy": npy(np.zeros((1, 4), np.float64))}, {}, r"float64\[1, 4\]"),
        ({"golden/x.npy": npy(np.full((1, 4), np.nan, np.float32))}, {}, "NaN or infinite"),
        ({"golden/x.npy": npy(np.zeros((1, 4), np.float32))}, {"inputs": {}}, r"gives \[\], on which no head can run"),
        (
            {"golden/x.npy": npy(np.zeros((1, 3), np.float32))},
            {"inputs": {"audio": "golden/0.audio.npy"}, "outputs": {"image_encoder.color": "golden/x.npy"}},
            r"'image_encoder.color' is of a component that no head runs on \['audio'\]",
        ),
        (
            {"golden/x.npy": npy(np.zeros((1, 4), np.float32)), "golden/y.npy": npy(np.zeros((8, 8, 3), np.float32))},
            {"inputs": {"image": "golden/y.npy"}},
            r"does not fit the bundle: a frame is uint8",
        ),
    ],
    ids=["shape", "dtype", "NaN", "no inputs", "no such output", "wrong input"],
)
def test_a_sample_that_does_not_fit_is_said(
    tmp_path: Path, contents: dict[str, bytes], change: dict[str, Any], message: str
) -> None:
    """With its id, what is wrong, and that it must be exported again; before anything is compared."""
    sample = GoldenSample(
        id="the third", inputs={"image": "golden/0.image.npy"}, outputs={"event.logits": "golden/x.npy"}
    )
    bundle = rewritten(tmp_path, contents, golden=(replace(sample, **change),))
    with pytest.raises(ManifestError, match=message) as caught:
        verify_bundle(bundle, load_engine=NullEngine)
    assert "golden 'the third'" in str(caught.value)


def test_a_sample_may_lack_what_a_head_can_do_without(tmp_path: Path) -> None:
    """Sound alone: "event" answers, and "color", which cannot, is not asked."""
    inputs = {"audio": "golden/0.audio.npy"}
    sample = GoldenSample(id="dark", inputs=inputs, outputs={"event.logits": "golden/x.npy"})
    bundle = rewritten(tmp_path, {"golden/x.npy": npy(np.zeros((1, 4), np.float32))}, golden=(sample,))
    assert one(verify_bundle(bundle, load_engine=NullEngine).replays[0].outputs).passed


def test_no_samples_means_only_the_bytes(tmp_path: Path) -> None:
    """Nothing is loaded, nothing fails."""

    def refuse(*_: Any) -> NullEngine:
        raise AssertionError

    found = verify_bundle(rewritten(tmp_path, golden=()), load_engine=refuse)
    assert (found.samples, found.replays, found.passed) == (0, (), True)


def test_an_unknown_variant_is_refused_even_without_samples(tmp_path: Path) -> None:
    """A typing error must not look like a pass."""
    with pytest.raises(InputError, match="'int4'"):
        verify_bundle(rewritten(tmp_path, golden=()), ["int4"], load_engine=NullEngine)
