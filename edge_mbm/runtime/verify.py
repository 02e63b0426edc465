"""Replay a bundle's golden samples on this machine and hold the outputs against the framework's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import Struct

from edge_mbm.errors import InputError, ManifestError, VerificationError
from edge_mbm.runtime.backend import Provider
from edge_mbm.runtime.bundle import Bundle
from edge_mbm.runtime.engine import EngineLoader
from edge_mbm.runtime.plan import Planned, plan
from edge_mbm.runtime.session import Session, SessionOptions
from edge_mbm.spec import Classification, Decoder, GoldenSample, Manifest, Timing, Tokens, Variant

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OutputCheck", "Replay", "Verification", "verify_bundle"]

_EXACT_DB = 60.0
"""What an fp32 graph must reach: float32 in another order of summing gives 100 dB and more."""
_MARGIN_DB = 10.0
"""Golden samples are few, and other CPUs round other ties: a quantized one may be this far below its measured error."""
_CAP_DB = 120.0
"""As in the manifest: a signal to noise ratio that is always finite."""


class OutputCheck(Struct, frozen=True, kw_only=True):
    """One output over all golden samples that have a reference for it."""

    output: str
    """"component.output"."""
    variants: dict[str, str]
    """Component -> variant, of everything that computed it."""
    samples: int
    sqnr_db: float
    """Signal to noise ratio of all samples together, dB, within +-120."""
    required_db: float
    max_abs: float | None
    """Greatest difference; None where one is not a number."""
    agreement: float | None
    """Share of samples with the reference's label, or text; None of other outputs."""

    @property
    def passed(self) -> bool:
        """Whether it is as near to its reference as its variants must be."""
        return self.sqnr_db >= self.required_db


class Replay(Struct, frozen=True, kw_only=True):
    """All golden samples through one choice of variants."""

    variant: str
    """As asked for: "auto", or a variant's name."""
    components: dict[str, str]
    """Component -> the variant that ran."""
    outputs: tuple[OutputCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every output passed."""
        return all(output.passed for output in self.outputs)


class Verification(Struct, frozen=True, kw_only=True):
    """What was verified. The bytes were: the bundle would not be open otherwise."""

    bundle: str
    files: int
    bytes: int
    samples: int
    replays: tuple[Replay, ...]
    """Empty when the bundle has no golden samples."""

    @property
    def passed(self) -> bool:
        """Whether every replay passed."""
        return all(replay.passed for replay in self.replays)

    def check(self) -> None:
        """Raise if something did not pass.

        Raises:
            VerificationError: names the outputs.
        """
        failed = [(replay.variant, output) for replay in self.replays for output in replay.outputs if not output.passed]
        if not failed:
            return
        listed = ", ".join(
            f"'{check.output}' with {variant} ({check.sqnr_db:.1f} dB, {check.required_db:.1f} needed)"
            for variant, check in failed
        )
        raise VerificationError(
            f"this machine does not compute what the framework computed: {listed}. {_advice(self.replays)}"
        )


def verify_bundle(
    bundle: Bundle,
    variants: Iterable[str] | None = None,
    *,
    threads: int = 1,
    provider: Provider = "cpu",
    dla: tuple[str, ...] = (),
    load_engine: EngineLoader | None = None,
) -> Verification:
    """Run every head of a bundle on its golden samples and compare each reference output.

    An output that only fp32 graphs computed must be within 60 dB of its reference. One that other variants had a part
    in must come within 10 dB of the lowest error that was measured for them on export, and never needs more than 60 dB.
    A text's noise is the words that are not in their places: one wrong word is one too many for fp32 graphs.

    Args:
        bundle: an opened bundle, so its bytes are verified.
        variants: choices to replay; None means "fp32", and "auto" where that is something else on this machine.
        threads: of each engine.
        provider: what runs them; without ``variants``, other providers than the CPU are held to "auto".
        dla: see ``SessionOptions.dla``.
        load_engine: see ``Bundle.session``.

    Raises:
        ManifestError: a golden sample does not fit the bundle.
        InputError: no such variant.
        EngineError, MissingDependencyError: see ``Bundle.session``.
    """
    manifest = bundle.manifest
    if variants is None:
        # Without samples nothing is run, so nothing needs to be runnable here.
        variants = _default_variants(manifest, provider) if manifest.golden else ()
    heads = tuple(manifest.results())
    options = [SessionOptions(heads=heads, variant=v, threads=threads, provider=provider, dla=dla) for v in variants]
    plans = [plan(manifest, o.heads, o.variant, o.open_backend(load_engine).choose) for o in options]
    return Verification(
        bundle=manifest.name,
        files=len(manifest.files),
        bytes=sum(entry.size for entry in manifest.files.values()),
        samples=len(manifest.golden),
        replays=tuple(
            _replay(bundle, o, p, load_engine) for o, p in zip(options, plans, strict=True) if manifest.golden
        ),
    )


class _Difference:
    """Sums over samples of one output."""

    def __init__(self) -> None:
        self.samples = 0
        self._signal = self._noise = self._max_abs = 0.0
        self._agreed = 0

    def add(self, got: NDArray[Any], reference: NDArray[Any]) -> None:
        wide, error = reference.astype(np.float64), got.astype(np.float64) - reference
        self.samples += 1
        self._signal += float(np.square(wide).sum())
        self._noise += float(np.square(error).sum())
        self._max_abs = float(np.maximum(self._max_abs, np.abs(error).max()))  # keeps NaN, which max does not
        self._agreed += int(got.argmax()) == int(reference.argmax())

    def add_text(self, got: str, reference: str) -> None:
        """A text counts as its words, in their places."""
        words, wanted = got.split(), reference.split()
        wrong = sum(a != b for a, b in zip_longest(words, wanted))
        self.samples += 1
        self._signal += max(1, len(wanted))
        self._noise += wrong
        self._max_abs = max(self._max_abs, float(wrong > 0))
        self._agreed += got == reference

    @property
    def agreement(self) -> float:
        return self._agreed / self.samples

    @property
    def max_abs(self) -> float | None:
        return self._max_abs if math.isfinite(self._max_abs) else None

    @property
    def sqnr_db(self) -> float:
        if not math.isfinite(self._noise):
            return -_CAP_DB
        if self._noise == 0.0:
            return _CAP_DB
        ratio = self._signal / self._noise
        return min(_CAP_DB, max(-_CAP_DB, 10 * math.log10(ratio))) if ratio > 0 else -_CAP_DB


def _replay(
    bundle: Bundle, options: SessionOptions, planned: tuple[Planned, ...], load_engine: EngineLoader | None
) -> Replay:
    differences: dict[str, _Difference] = {}
    for heads, samples in _by_heads(bundle.manifest).items():
        chosen = replace(options, heads=heads)
        with bundle.session(chosen, load_engine=load_engine) as session:
            for sample in samples:
                _compare(bundle, session, sample, differences)
    return Replay(
        variant=options.variant,
        components={p.name: p.variant for p in planned},
        outputs=tuple(_check(bundle.manifest, planned, name, found) for name, found in differences.items()),
    )


def _by_heads(manifest: Manifest) -> dict[tuple[str, ...], list[GoldenSample]]:
    """The samples by the heads that can do with what they give; usually all heads can."""
    groups: dict[tuple[str, ...], list[GoldenSample]] = {}
    for sample in manifest.golden:
        heads = tuple(name for name, head in manifest.results().items() if _can_do(manifest, name, head, sample))
        if not heads:
            raise ManifestError(
                f"golden '{sample.id}' gives {sorted(sample.inputs)}, on which no head can run: export the bundle again"
            )
        groups.setdefault(heads, []).append(sample)
    return groups


def _can_do(manifest: Manifest, name: str, timing: Timing, sample: GoldenSample) -> bool:
    used = manifest.modalities_of(name)
    lacking = [modality for modality in used if modality not in sample.inputs]
    return len(lacking) < len(used) and not timing.needs(lacking)


def _compare(bundle: Bundle, session: Session, sample: GoldenSample, differences: dict[str, _Difference]) -> None:
    inputs = {modality: bundle.read_sample(modality, path) for modality, path in sample.inputs.items()}
    try:
        got = session.run_components(**inputs)
    except InputError as error:
        raise ManifestError(f"golden '{sample.id}' does not fit the bundle: {error}. Export it again.") from error
    for name, path in sample.outputs.items():
        component = bundle.manifest.components[name.partition(".")[0]]
        difference = differences.setdefault(name, _Difference())
        if isinstance(component, Decoder):
            difference.add_text(_said(sample, name, got), bundle.read_text(path))
            continue
        reference = bundle.read_array(path)
        _check_reference(sample, name, reference, got)
        difference.add(got[name], reference)


def _said(sample: GoldenSample, name: str, got: Mapping[str, Any]) -> str:
    if name not in got:
        raise ManifestError(_not_run(sample, name))
    return str(got[name].text)


def _not_run(sample: GoldenSample, name: str) -> str:
    return (
        f"golden '{sample.id}': the reference for '{name}' is of a component that no head runs on "
        f"{sorted(sample.inputs)}: export it again"
    )


def _check_reference(sample: GoldenSample, name: str, reference: NDArray[Any], got: Mapping[str, NDArray[Any]]) -> None:
    where = f"golden '{sample.id}': the reference for '{name}'"
    if name not in got:
        raise ManifestError(_not_run(sample, name))
    if reference.shape != got[name].shape or reference.dtype != np.float32:
        raise ManifestError(
            f"{where} is {reference.dtype}{list(reference.shape)}, "
            f"the graph gives float32{list(got[name].shape)}: export the bundle again"
        )
    if not np.isfinite(reference).all():
        raise ManifestError(f"{where} has NaN or infinite values, so nothing can be held against it: export it again")


def _check(manifest: Manifest, planned: Iterable[Planned], name: str, found: _Difference) -> OutputCheck:
    component, _, output = name.partition(".")
    names = _chain(manifest, component)
    chain = {p.name: p.variant for p in planned if p.name in names}
    task = manifest.components[component].outputs[output].task
    return OutputCheck(
        output=name,
        variants=chain,
        samples=found.samples,
        sqnr_db=found.sqnr_db,
        required_db=_required_db(name, [manifest.components[key].variants[v] for key, v in chain.items()]),
        max_abs=found.max_abs,
        agreement=found.agreement if isinstance(task, Classification | Tokens) else None,
    )


def _chain(manifest: Manifest, component: str) -> set[str]:
    """A component and all that it takes input from."""
    sources = [value.source for value in manifest.components[component].inputs.values()]
    upstream = [source.partition(".")[0] for source in sources if "." in source]
    return {component}.union(*(_chain(manifest, name) for name in upstream))


def _required_db(output: str, chain: Iterable[Variant]) -> float:
    """What the export measured there with each quantized variant in place, less a margin."""
    errors = [v.error for v in chain if v.precision != "fp32" and v.error is not None]
    return min([_EXACT_DB, *(error.fed_sqnr_db.get(output, error.sqnr_db) - _MARGIN_DB for error in errors)])


def _default_variants(manifest: Manifest, provider: Provider) -> tuple[str, ...]:
    """fp32 where there is one, and auto where it is something else: a plan that fails for auto fails for both."""
    if provider != "cpu" or all(
        "fp32" not in c.variants or c.variants["fp32"].graph is None for c in manifest.components.values()
    ):
        return ("auto",)
    heads = tuple(manifest.results())
    same = plan(manifest, heads, "fp32") == plan(manifest, heads, "auto")
    return ("fp32",) if same else ("fp32", "auto")


def _advice(replays: Iterable[Replay]) -> str:
    if all(replay.passed for replay in replays if replay.variant == "fp32"):
        return (
            "Its fp32 graphs are right, so use --variant fp32 here, or export on this kind of machine."
            if any(replay.variant == "fp32" for replay in replays)
            else "Try --variant fp32, which tells whether the quantized graphs are at fault."
        )
    return "The fp32 graphs are wrong already: export the bundle again, and check it on the machine that exports."
