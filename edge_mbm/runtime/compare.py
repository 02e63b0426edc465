"""What changed from one bundle to another: contract, variants, figures, bytes, and answers on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import UNSET, Struct

from edge_mbm.bundle import BundleFiles
from edge_mbm.errors import InputError, ManifestError
from edge_mbm.runtime.bundle import Bundle
from edge_mbm.runtime.engine import EngineLoader
from edge_mbm.runtime.latency import LatencyHistogram
from edge_mbm.runtime.machine import look_at_machine
from edge_mbm.runtime.session import Session, SessionOptions
from edge_mbm.spec import Classification, ErrorFigures, FileEntry, GoldenSample, Manifest, Variant

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Change",
    "Comparison",
    "FileChange",
    "HeadChange",
    "HeadFigures",
    "OutputDifference",
    "Replayed",
    "Side",
    "VariantChange",
    "VariantSide",
    "compare_bundles",
    "replay_both",
]

_CAP_DB = 120.0
"""As in the manifest: a ratio that is always finite."""
_REPEATS = 20
"""Of each golden sample, in turns, for the median; ``_SECONDS`` may stop it earlier."""
_SECONDS = 5.0
_SECTIONS = ("components", "files", "provenance")
"""Parts of a manifest that are compared one by one."""


class Side(Struct, frozen=True, kw_only=True):
    """One of the two bundles."""

    path: str
    name: str
    files: int
    bytes: int


class Change(Struct, frozen=True, kw_only=True):
    """One value of the manifest that is not the same; a side that lacks it leaves it out."""

    where: str
    """"components.event.tolerance_ns.audio"."""
    a: Any = UNSET
    b: Any = UNSET


class VariantSide(Struct, frozen=True, kw_only=True):
    """A variant as one bundle has it."""

    variant: Variant
    file: FileEntry | None
    """Of its graph; None where it was not kept."""


class VariantChange(Struct, frozen=True, kw_only=True):
    """A variant that one side lacks, or of which anything differs."""

    component: str
    variant: str
    a: VariantSide | None
    b: VariantSide | None

    @property
    def flipped(self) -> bool:
        """Whether one keeps what the other does not."""
        return _kept(self.a) != _kept(self.b)


class HeadFigures(Struct, frozen=True, kw_only=True):
    """A head with all that the exporting machine runs, and with fp32, as ``report.json`` has it."""

    head: str
    error: ErrorFigures
    original: ErrorFigures


class HeadChange(Struct, frozen=True, kw_only=True):
    """A head that one side lacks, or whose fused figures differ."""

    head: str
    a: HeadFigures | None
    b: HeadFigures | None


class FileChange(Struct, frozen=True, kw_only=True):
    """A file that one side lacks, or whose bytes differ."""

    path: str
    a: FileEntry | None
    b: FileEntry | None


class OutputDifference(Struct, frozen=True, kw_only=True):
    """One output of b against a's, over a's golden samples, as this machine computes both."""

    output: str
    samples: int
    cosine: float
    """Mean over the samples."""
    sqnr_db: float
    """a's output over the difference, all samples together, dB, within +-120."""
    max_abs: float
    agreement: float | None
    """Share of samples with the same best label; classifications only."""


class Replayed(Struct, frozen=True, kw_only=True):
    """a's golden samples through both bundles."""

    processor: str
    threads: int
    samples: int
    """That both can run on."""
    a: dict[str, str]
    """Component -> the variant that ran."""
    b: dict[str, str]
    outputs: tuple[OutputDifference, ...]
    left_out: tuple[str, ...]
    """Golden samples and outputs that only one of them can do, with the reason."""
    a_us: float
    """Median of one pass over a sample, preprocessing included."""
    b_us: float


class Comparison(Struct, frozen=True, kw_only=True):
    """Everything in which two bundles differ."""

    a: Side
    b: Side
    same: bool
    """Whether every byte of every file is: the manifests are, and these hold each file's digest."""
    manifest: tuple[Change, ...]
    """The contract: modalities, components, labels, golden samples; all but variants, files and provenance."""
    variants: tuple[VariantChange, ...]
    heads: tuple[HeadChange, ...]
    """What the exports measured of all chosen variants together."""
    provenance: tuple[Change, ...]
    """Digests of recipe, model and calibration data, and versions."""
    files: tuple[FileChange, ...]
    notes: tuple[str, ...]
    """What could not be compared."""
    replayed: Replayed | None = None


def compare_bundles(a: BundleFiles, b: BundleFiles, replayed: Replayed | None = None) -> Comparison:
    """Hold two opened bundles against each other; nothing is run.

    Args:
        a: the one before.
        b: the one after.
        replayed: what ``replay_both`` found of them, to go with the rest.
    """
    plain_a, plain_b = (msgspec.json.decode(side.manifest_bytes) for side in (a, b))
    heads_a, heads_b = _reported(a), _reported(b)
    return Comparison(
        a=_side(a),
        b=_side(b),
        same=a.manifest_bytes == b.manifest_bytes,
        manifest=tuple(_differences(_contract(plain_a), _contract(plain_b))),
        variants=tuple(_variant_changes(a.manifest, b.manifest)),
        heads=() if heads_a is None or heads_b is None else tuple(_head_changes(heads_a, heads_b)),
        provenance=tuple(_differences(plain_a.get("provenance") or {}, plain_b.get("provenance") or {})),
        files=tuple(_file_changes(a.manifest, b.manifest)),
        notes=tuple(_notes({"A": heads_a, "B": heads_b})),
        replayed=replayed,
    )


def _side(files: BundleFiles) -> Side:
    entries = files.manifest.files.values()
    total = sum(entry.size for entry in entries) + len(files.manifest_bytes)
    return Side(path=str(files.path), name=files.manifest.name, files=len(entries) + 1, bytes=total)


# --- manifests -------------------------------------------------------------------------------------------------------


def _contract(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """As it stands in the file, so that a newer version's fields count too, without what has a section of its own."""
    components = {
        name: {key: value for key, value in component.items() if key != "variants"}
        for name, component in manifest["components"].items()
    }
    return {key: value for key, value in manifest.items() if key not in _SECTIONS} | {"components": components}


def _differences(a: Any, b: Any, where: str = "") -> Iterator[Change]:
    """Every value that differs, as deep as both sides have the same shape."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in _both(a, b):
            yield from _differences(a.get(key, UNSET), b.get(key, UNSET), f"{where}.{key}" if where else key)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from _differences(left, right, f"{where}[{index}]")
    elif a != b or isinstance(a, bool) != isinstance(b, bool):  # 1 == True
        yield Change(where=where, a=a, b=b)


def _both(a: Iterable[str], b: Iterable[str]) -> list[str]:
    """The names of both, in a's order, then b's."""
    return list(dict.fromkeys(chain(a, b)))


def _variant_changes(a: Manifest, b: Manifest) -> Iterator[VariantChange]:
    for name in _both(a.components, b.components):
        left, right = _variants(a, name), _variants(b, name)
        for key in _both(left, right):
            if left.get(key) != right.get(key):
                yield VariantChange(component=name, variant=key, a=left.get(key), b=right.get(key))


def _variants(manifest: Manifest, name: str) -> dict[str, VariantSide]:
    """A component's variants; none where there is no such component."""
    variants = manifest.components[name].variants if name in manifest.components else {}
    return {key: VariantSide(variant=v, file=_graph(manifest, v)) for key, v in variants.items()}


def _graph(manifest: Manifest, variant: Variant) -> FileEntry | None:
    return manifest.files[variant.graph] if variant.graph else None


def _kept(side: VariantSide | None) -> bool:
    return side is not None and side.variant.decision.kept


def _file_changes(a: Manifest, b: Manifest) -> Iterator[FileChange]:
    for path in sorted({*a.files, *b.files}):
        left, right = a.files.get(path), b.files.get(path)
        if left != right:
            yield FileChange(path=path, a=left, b=right)


# --- reports ---------------------------------------------------------------------------------------------------------


class _Report(Struct):
    """As much of a bundle's ``report.json`` as is compared."""

    heads: tuple[HeadFigures, ...]


def _reported(files: BundleFiles) -> dict[str, HeadFigures] | None:
    """The fused figures by head; None where there is no report, or one of another shape."""
    paths = [asset.path for asset in files.manifest.assets.values() if asset.kind == "report"]
    path = next((path for path in paths if path.endswith(".json")), None)
    if path is None:
        return None
    try:
        report = msgspec.json.decode(files.read(path), type=_Report)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return {figures.head: figures for figures in report.heads}


def _head_changes(a: Mapping[str, HeadFigures], b: Mapping[str, HeadFigures]) -> Iterator[HeadChange]:
    for name in _both(a, b):
        left, right = a.get(name), b.get(name)
        if left != right:
            yield HeadChange(head=name, a=left, b=right)


def _notes(heads: Mapping[str, object]) -> Iterator[str]:
    if lacking := [side for side, found in heads.items() if found is None]:
        yield f"no report.json that can be read in {' and '.join(lacking)}: fused accuracy is not compared"


# --- answers ---------------------------------------------------------------------------------------------------------


def replay_both(
    a: Bundle,
    b: Bundle,
    variant: str = "auto",
    *,
    threads: int = 1,
    load_engine: EngineLoader | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Replayed:
    """Run both bundles on a's golden samples, and hold b's answers against a's.

    Args:
        a: gives the samples.
        b: must have heads and modalities of the same names to be compared on them.
        variant: choice of graphs for both, see ``plan``.
        threads: of each engine.
        load_engine: see ``Bundle.session``.
        clock: monotonic, ns.

    Raises:
        ManifestError: a has no golden sample on which both can run.
        InputError: one of them has no such variant.
        EngineError, MissingDependencyError: see ``Bundle.session``.
    """
    groups, left_out = _by_common_heads(a.manifest, b.manifest)
    if not groups:
        why = "; ".join(left_out) or "there are none"
        raise ManifestError(f"the golden samples of '{a.manifest.name}' cannot be run through both bundles: {why}")
    pair = _Pair(clock, left_out)
    for heads, samples in groups.items():
        options = SessionOptions(heads=heads, variant=variant, threads=threads)
        with ExitStack() as stack:
            sessions = [stack.enter_context(side.session(options, load_engine=load_engine)) for side in (a, b)]
            pair.run(sessions, [_inputs(a, sample) for sample in samples])
    return pair.replayed(look_at_machine().processor, threads)


def _by_common_heads(a: Manifest, b: Manifest) -> tuple[dict[tuple[str, ...], list[GoldenSample]], list[str]]:
    """The samples of a by the heads that both can run on them, and what is left out, with the reason."""
    groups: dict[tuple[str, ...], list[GoldenSample]] = {}
    only = a.results().keys() ^ b.results()
    left_out = [f"head '{name}': only in {'A' if name in a.results() else 'B'}" for name in only]
    for sample in a.golden:
        heads = tuple(n for n in a.results() if n in b.results() and all(_can_do(m, n, sample) for m in (a, b)))
        if heads:
            groups.setdefault(heads, []).append(sample)
        else:
            left_out.append(f"golden '{sample.id}': no head of both runs on {', '.join(sample.inputs)}")
    return groups, sorted(left_out)


def _can_do(manifest: Manifest, head: str, sample: GoldenSample) -> bool:
    used = manifest.modalities_of(head)
    lacking = [modality for modality in used if modality not in sample.inputs]
    return len(lacking) < len(used) and not manifest.results()[head].needs(lacking)


def _inputs(bundle: Bundle, sample: GoldenSample) -> dict[str, object]:
    return {modality: bundle.read_sample(modality, path) for modality, path in sample.inputs.items()}


class _Pair:
    """Two sessions' outputs and times, sample by sample."""

    def __init__(self, clock: Callable[[], int], left_out: Iterable[str]) -> None:
        self._clock = clock
        self._left_out = list(left_out)
        self._outputs: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {}
        self._classes: set[str] = set()
        self._times = (LatencyHistogram(), LatencyHistogram())
        self._ran: tuple[dict[str, str], dict[str, str]] = ({}, {})
        self._samples = 0

    def run(self, sessions: list[Session], samples: list[dict[str, object]]) -> None:
        """The same samples through both: once for the answers, then in turns for the time."""
        for ran, session in zip(self._ran, sessions, strict=True):
            ran.update({planned.name: planned.variant for planned in session.plan})
        for inputs in samples:
            left, right = (_outputs(session, inputs) for session in sessions)
            self._hold(left, right, sessions[0].manifest)
        self._samples += len(samples)
        self._take_times(sessions, samples)

    def _hold(self, left: Mapping[str, NDArray[Any]], right: Mapping[str, NDArray[Any]], manifest: Manifest) -> None:
        for name in _both(left, right):
            if name not in left or name not in right:
                self._leave_out(f"output '{name}': only in {'A' if name in left else 'B'}")
            elif left[name].shape != right[name].shape:
                self._leave_out(f"output '{name}': {list(left[name].shape)} in A, {list(right[name].shape)} in B")
            else:
                self._outputs.setdefault(name, []).append((left[name], right[name]))
                if _is_classification(manifest, name):
                    self._classes.add(name)

    def _leave_out(self, what: str) -> None:
        if what not in self._left_out:
            self._left_out.append(what)

    def _take_times(self, sessions: list[Session], samples: list[dict[str, object]]) -> None:
        end = self._clock() + int(_SECONDS * 1e9)
        for _ in range(_REPEATS):
            for inputs in samples:
                for session, times in zip(sessions, self._times, strict=True):
                    started = self._clock()
                    session.run_components(**inputs)
                    times.add(self._clock() - started)
            if self._clock() > end:
                return

    def replayed(self, processor: str, threads: int) -> Replayed:
        a, b = self._ran
        a_us, b_us = (times.figures().p50_us for times in self._times)
        return Replayed(
            processor=processor,
            threads=threads,
            samples=self._samples,
            a=a,
            b=b,
            outputs=tuple(_difference(name, pairs, name in self._classes) for name, pairs in self._outputs.items()),
            left_out=tuple(self._left_out),
            a_us=a_us,
            b_us=b_us,
        )


def _outputs(session: Session, inputs: Mapping[str, object]) -> dict[str, NDArray[Any]]:
    name = session.manifest.name
    try:
        got = session.run_components(**inputs)
    except InputError as error:
        raise ManifestError(f"a golden sample does not fit '{name}': {error}") from error
    for key, value in got.items():
        if not np.isfinite(value).all():
            raise ManifestError(f"'{name}' gives NaN or infinite values in '{key}': check it with edge-mbm verify")
    return got


def _is_classification(manifest: Manifest, name: str) -> bool:
    component, _, output = name.partition(".")
    return isinstance(manifest.components[component].outputs[output].task, Classification)


def _difference(name: str, pairs: list[tuple[NDArray[Any], NDArray[Any]]], classes: bool) -> OutputDifference:
    flat = [(a.astype(np.float64).ravel(), b.astype(np.float64).ravel()) for a, b in pairs]
    signal, noise = sum(float(a @ a) for a, _ in flat), sum(float((a - b) @ (a - b)) for a, b in flat)
    same = [int(a.argmax()) == int(b.argmax()) for a, b in flat]
    return OutputDifference(
        output=name,
        samples=len(flat),
        cosine=float(np.mean([_cosine(a, b) for a, b in flat])),
        sqnr_db=_decibel(signal, noise),
        max_abs=max(float(np.abs(a - b).max(initial=0.0)) for a, b in flat),
        agreement=float(np.mean(same)) if classes else None,
    )


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """1 for two zero vectors, 0 for a zero vector and another."""
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms > 0 else float(np.array_equal(a, b))


def _decibel(signal: float, noise: float) -> float:
    if noise == 0.0:
        return _CAP_DB
    return min(_CAP_DB, max(-_CAP_DB, 10 * math.log10(signal / noise))) if signal > 0 else -_CAP_DB
