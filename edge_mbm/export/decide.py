"""Which variants ship: a budget against what was measured, alone and together, and the reason in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from edge_mbm.errors import BudgetError
from edge_mbm.export.chain import downstream
from edge_mbm.export.draft import Draft, Fused, Tried, given
from edge_mbm.export.measure import fused_figures
from edge_mbm.export.progress import Progress
from edge_mbm.export.prove import IMPORTED
from edge_mbm.export.recipe import Budget
from edge_mbm.spec import Decision, ErrorFigures, SpeedFigures

__all__ = ["broken_head", "chosen_variants", "decide", "faults_of", "judge", "within"]

_UNSEEN = "not checked by TensorRT's parser, which is not installed"


def decide(draft: Draft, progress: Progress) -> Draft:
    """Keep what is within its budget and worth it, alone and together; then hold the whole to the recipe."""
    errors, speeds = given(draft.errors), given(draft.speeds)
    recipe = draft.loaded.recipe
    progress.stage("decide", 1)
    decisions: dict[Tried, Decision] = {}
    for name in given(draft.components):
        exporter = given(draft.exporters)[name]
        how = "imported" if exporter == IMPORTED else f"traced with {exporter}"
        decisions[name, "fp32"] = Decision(kept=True, reason=f"the reference: {how}, equal to the model")
        for variant in draft.variants(name):
            key = (name, variant)
            decision = (
                Decision(kept=False, reason=draft.faults[key])
                if key in draft.faults
                else judge(recipe.budget_of(name), errors[key], errors[name, "fp32"], speeds.get(key))
            )
            decisions[key] = Decision(kept=decision.kept, reason=decision.reason + _how(draft, key))
    draft = _together(replace(draft, decisions=decisions))
    _check_required(draft)
    progress.step()
    return draft


def _how(draft: Draft, key: Tried) -> str:
    """What a search and a fine-tune went into a variant, for its reason."""
    unseen = key in (draft.checks or {}) and given(draft.checks)[key].unparsed
    return "".join(f"; {word}" for word in (*_searched(draft, key), *((_UNSEEN,) if unseen else ())))


def _searched(draft: Draft, key: Tried) -> Sequence[str]:
    found = (draft.search or {}).get(key)
    if found is None:
        return ()
    said = [f"the best of {found.evaluations} graphs tried"]
    if found.chosen is not None and found.chosen.reverted:
        count = len(found.chosen.reverted)
        said.append(f"{count} group{'s' * (count > 1)} of nodes in float")
    if found.recovery is not None:
        cost = found.recovery
        said.append(f"a fine-tune of {cost.seconds:.0f} s made {cost.before_db:.1f} dB {cost.after_db:.1f} dB")
    return [*said, found.ended] if found.ended else said


def chosen_variants(draft: Draft) -> dict[str, str]:
    """What a machine of this kind runs of each component: the fastest kept variant of those that run here."""
    speeds, chosen = given(draft.speeds), dict[str, str]()
    for (name, variant), decision in given(draft.decisions).items():
        best = speeds[name, chosen[name]].speedup if name in chosen else -1.0
        if decision.kept and (name, variant) in speeds and speeds[name, variant].speedup > best:
            chosen[name] = variant
    return chosen


def broken_head(draft: Draft, together: Iterable[Tried]) -> str | None:
    """The first head whose budget does not hold with some variants in place at once."""
    quantized = dict(together)
    for figures in fused_figures(draft, quantized) if quantized else ():
        if list(within(draft.loaded.recipe.budget_of(figures.head), figures.error, figures.original)):
            return figures.head
    return None


def _together(draft: Draft) -> Draft:
    """Errors add up: where all chosen variants together break a head's budget, the one that costs most gives way."""
    while True:
        quantized = {name: variant for name, variant in chosen_variants(draft).items() if variant != "fp32"}
        fused = fused_figures(draft, quantized)
        broken = _broken(draft, fused, quantized)
        if broken is None:
            return replace(draft, fused=fused)
        worst, fault = broken
        reason = f"within budget alone, but together with the others {fault}"
        draft = replace(draft, decisions={**given(draft.decisions), worst: Decision(kept=False, reason=reason)})


def _broken(draft: Draft, fused: Sequence[Fused], quantized: Mapping[str, str]) -> tuple[Tried, str] | None:
    """The costliest of the variants that feed a head whose budget is broken, and how it is."""
    errors = given(draft.errors)
    for figures in fused:
        faults = list(within(draft.loaded.recipe.budget_of(figures.head), figures.error, figures.original))
        feeding = [(n, v) for n, v in quantized.items() if figures.head in downstream(given(draft.components), [n])]
        if faults and feeding:
            return min(feeding, key=lambda key: _closeness(errors[key])), f"{figures.head}: {faults[0]}"
    return None


def _closeness(error: ErrorFigures) -> tuple[float, float]:
    return 1.0 if error.agreement is None else error.agreement, error.cosine


def _check_required(draft: Draft) -> None:
    """Raise BudgetError, with everything that was tried, where the recipe's [require] does not hold."""
    require, decisions = draft.loaded.recipe.require, given(draft.decisions)
    broken = []
    accuracies = {fused.head: fused.error.accuracy for fused in given(draft.fused)}
    for head, least in require.accuracy.items():
        found = accuracies[head]
        if found is None or found < least:
            shown = "unknown: no held-out recording has a label" if found is None else f"{found:.3f}"
            broken.append(f"accuracy of '{head}' is {shown}, [require] asks for {least:.3f}")
    for name, variants in require.keep.items():
        broken += [
            f"'{variant}' of '{name}' was not kept: {decisions[name, variant].reason}"
            for variant in variants
            if not decisions[name, variant].kept
        ]
    if broken:
        raise BudgetError("\n".join([*broken, "No bundle was written. What was tried:", *_tried(draft)]))


def _tried(draft: Draft) -> Iterator[str]:
    errors, speeds = given(draft.errors), given(draft.speeds)
    for (name, variant), decision in given(draft.decisions).items():
        error, speed = errors.get((name, variant)), speeds.get((name, variant))
        figures = [f"cosine {error.cosine:.4f}" if error else "", f"{speed.speedup:.2f}x" if speed else ""]
        verdict = "kept" if decision.kept else "not kept"
        yield f"  {name:20} {variant:14} {' '.join(filter(None, figures)):24} {verdict}: {decision.reason}"


def judge(budget: Budget, error: ErrorFigures, original: ErrorFigures, speed: SpeedFigures | None) -> Decision:
    """Keep a variant or not.

    Args:
        budget: what it must hold.
        error: with the variant in place.
        original: with fp32 in its place.
        speed: None where this machine cannot measure it; then only accuracy decides.
    """
    faults = list(faults_of(budget, error, original, speed))
    if faults:
        return Decision(kept=False, reason="; ".join(faults))
    gain = f"{speed.speedup:.2f}x of fp32" if speed else "speed unmeasured until compiled on the device"
    return Decision(kept=True, reason=f"within budget ({_summary(error)}); {gain}")


def faults_of(budget: Budget, error: ErrorFigures, original: ErrorFigures, speed: SpeedFigures | None) -> Iterator[str]:
    """Each part of the budget that is broken, that of speed among them, in words; see ``judge``."""
    yield from within(budget, error, original)
    if speed is not None and speed.speedup < budget.min_speedup:
        yield f"not worth it: {speed.speedup:.2f}x of fp32, asked for {budget.min_speedup:.2f}x"


def within(budget: Budget, error: ErrorFigures, original: ErrorFigures) -> Iterator[str]:
    """Each part of the accuracy budget that is broken, in words."""
    if not error.cosine >= budget.min_cosine:
        yield f"cosine {error.cosine:.4f}, budget {budget.min_cosine:.4f}"
    if budget.min_sqnr_db is not None and error.sqnr_db < budget.min_sqnr_db:
        yield f"SQNR {error.sqnr_db:.1f} dB, budget {budget.min_sqnr_db:.1f} dB"
    if error.agreement is not None and error.agreement < budget.min_agreement:
        yield f"agreement {error.agreement:.3f}, budget {budget.min_agreement:.3f}"
    if error.accuracy is not None and original.accuracy is not None:
        drop = original.accuracy - error.accuracy
        # Shares of a few hundred recordings: their difference carries rounding.
        if drop > budget.max_accuracy_drop + 1e-9:
            yield f"accuracy falls by {drop:.3f} to {error.accuracy:.3f}, budget {budget.max_accuracy_drop:.3f}"


def _summary(error: ErrorFigures) -> str:
    parts = [f"cosine {error.cosine:.4f}", f"SQNR {error.sqnr_db:.1f} dB"]
    parts += [f"agreement {error.agreement:.3f}"] if error.agreement is not None else []
    return ", ".join(parts)
