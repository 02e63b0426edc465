"""The search for a quantized graph that keeps its budget: presets first, then parts of it in float, then a fine-tune.

Without labels, by the SQNR of the component's own outputs, it finds out which preset errs least and which groups of
nodes are to blame. Groups that err more than their share and compute next to nothing go back to float first: the first
layers of a network and its residual sums, most often. Only what is promising is held against the recipe's budget, on
the held-out recordings through the heads. Everything that is found out is kept in the cache, so a search that was
stopped goes on where it was, and the same search again gives the same graph. It is bounded by a number of graphs; where
the recipe bounds it in seconds as well, what it finds depends on how fast the machine was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edge_mbm.errors import EdgeMbmError, ExportError
from edge_mbm.export import quantize as quantizing
from edge_mbm.export.candidates import Bench, Score, Trial, digest
from edge_mbm.export.chain import Arrays, downstream
from edge_mbm.export.decide import broken_head, faults_of, within
from edge_mbm.export.draft import Candidate, Draft, GroupEffect, LayerError, Recovery, Searched, Tried, given
from edge_mbm.export.emit import left_float
from edge_mbm.export.measure import HeldOut, Placed, baseline, speed_of
from edge_mbm.export.progress import Progress
from edge_mbm.export.quantize import Material
from edge_mbm.export.recover import recover, why_not
from edge_mbm.export.sensitivity import Group, groups_of, layer_errors
from edge_mbm.export.variants import DIALECTS, quantizable, runs_here

__all__ = ["search"]

_BATCH = 8
"""Graphs that are scored at a time: they are in memory together, and share a process that tries them first."""
_CONTENDERS = 2
"""Presets of one kind that are held against the budget, best SQNR first."""
_SAME_SPEED = 1.05
"""Timings that differ by less are taken for equal: the smaller error decides."""
_NOTHING = "there is nothing to quantize: no convolution or matrix product with constant weights"
_LEAST_SHARE = 0.02
"""A group of no arithmetic to speak of still costs something in float: the conversions around it."""
_CHEAP_SHARE = 0.06
"""Of a component's multiply-accumulates: in float they cost less time than two timings differ by."""
_NO_NOISE_DB = 120.0
_SENSITIVITY = 2, 3
"""The share of the graphs left after the presets that tell groups apart; the others are mixes."""


def search(draft: Draft, progress: Progress) -> Draft:
    """A quantized graph for each component and target that wants one, as good and fast as the budgets ask for."""
    draft = baseline(draft)
    heldout = HeldOut(draft)
    faults, hunts = dict(draft.faults), dict[Tried, _Hunt]()
    for name, variant in _wanted(draft):
        if quantizable(given(draft.calibrated).graphs[name]):
            hunts[name, variant] = _Hunt(_Ground(draft, name, variant, heldout, progress))
        else:
            faults[name, variant] = _NOTHING
    searched = _settled(draft, hunts, {key: hunt.run() for key, hunt in hunts.items()})
    chosen = {key: found.chosen for key, found in searched.items() if found.chosen is not None}
    faults |= {key: _why_none(found) for key, found in searched.items() if found.chosen is None}
    made = {key: hunts[key].graph(candidate) for key, candidate in chosen.items()}
    made_by = {key: _made_by(candidate) for key, candidate in chosen.items()}
    return replace(
        draft,
        graphs={**given(draft.graphs), **made},
        faults=faults,
        made_by={**draft.made_by, **made_by},
        search=searched,
    )


def _settled(draft: Draft, hunts: Mapping[Tried, _Hunt], searched: dict[Tried, Searched]) -> dict[Tried, Searched]:
    """Errors add up: where all together break a head's budget, the worst is exchanged for one that errs less."""
    while True:
        picked = {
            key: found.chosen for key, found in searched.items() if _is_within(found.chosen) and runs_here(key[1])
        }
        graphs = {**given(draft.graphs), **{key: hunts[key].graph(given(c)) for key, c in picked.items()}}
        broken = broken_head(replace(draft, graphs=graphs), list(picked))
        if broken is None:
            return searched
        feeding = [key for key in picked if broken in downstream(given(draft.components), [key[0]])]
        milder = {key: _milder(searched[key]) for key in sorted(feeding, key=lambda key: _closeness(picked[key]))}
        key = next((key for key, candidate in milder.items() if candidate is not None), None)
        if key is None:  # the decision will leave one of them out
            return searched
        searched = {**searched, key: hunts[key].instead(searched[key], given(milder[key]))}


def _is_within(candidate: Candidate | None) -> bool:
    return candidate is not None and candidate.error is not None and not candidate.faults


def _milder(found: Searched) -> Candidate | None:
    """The fastest of those within budget that err less than the chosen one."""
    least = _closeness(found.chosen)
    return _best([c for c in found.candidates if c.error is not None and _closeness(c) > least])


def _closeness(candidate: Candidate | None) -> tuple[float, float]:
    error = given(given(candidate).error)
    return 1.0 if error.agreement is None else error.agreement, error.cosine


def _wanted(draft: Draft) -> list[Tried]:
    return [
        (name, variant)
        for name in given(draft.components)
        for variant in draft.variants(name)
        if DIALECTS[variant].form is not None and (name, variant) not in draft.faults
    ]


def _why_none(found: Searched) -> str:
    faults = dict.fromkeys(fault for candidate in found.candidates for fault in candidate.faults)
    return "; ".join(faults) or found.ended or "no preset is for it"


def _made_by(chosen: Candidate) -> str:
    tuned = ", weights fine-tuned by distillation from the float model" if chosen.tuned else ""
    return f"preset {chosen.preset} ({_described(chosen.preset)}){tuned}; {left_float(chosen.float_nodes)}"[:500]


def _described(key: str) -> str:
    preset = quantizing.PRESETS[key]
    steps = [
        f"{preset.activations} ranges",
        "weights equalized" if preset.equalize else "",
        f"SmoothQuant {preset.smooth:g}" if preset.smooth is not None else "",
        "biases corrected" if preset.correct_bias else "",
        "weights rounded to fit real data" if preset.fit_rounding else "",
    ]
    return ", ".join(filter(None, steps))


class _Stop(Exception):  # noqa: N818 - no error: the search's own bound is reached
    pass


@dataclass(frozen=True)
class _Ground:
    """What a search is about, and who judges."""

    draft: Draft
    name: str
    variant: str
    heldout: HeldOut
    progress: Progress

    @property
    def here(self) -> bool:
        """Whether the variant is for this machine, so that its speed can be measured."""
        return DIALECTS[self.variant].runs_here

    def timed(self, candidate: Candidate, graph: bytes) -> Candidate:
        """With its speed, where it can be measured."""
        if not self.here or candidate.speed is not None:
            return candidate
        return replace(candidate, speed=speed_of(self.draft, self.name, self.variant, graph)[self.variant])

    def judged(self, candidate: Candidate, graph: bytes) -> Candidate:
        """With its error on the held-out recordings, its speed, and which budgets it breaks."""
        original = self.heldout.error(self.name, Placed(given(self.draft.fp32)[self.name], here=True))
        try:
            error = self.heldout.error(self.name, Placed(graph, self.here))
        except ExportError as fault:
            return replace(candidate, faults=(str(fault),))
        candidate = self.timed(candidate, graph)
        budget = self.draft.loaded.recipe.budget_of(self.name)
        return replace(candidate, error=error, faults=tuple(faults_of(budget, error, original, candidate.speed)))

    def accurate(self, candidate: Candidate) -> bool:
        """Whether it breaks no budget but perhaps that of speed."""
        if candidate.error is None:
            return False
        original = self.heldout.error(self.name, Placed(given(self.draft.fp32)[self.name], here=True))
        return not list(within(self.draft.loaded.recipe.budget_of(self.name), candidate.error, original))

    def fast_enough(self, candidate: Candidate) -> bool:
        """Where speed is measured, whether it is worth it."""
        least = self.draft.loaded.recipe.budget_of(self.name).min_speedup
        return candidate.speed is None or candidate.speed.speedup >= least


class _Hunt:
    """The whole search for one component's variant: a round with its own weights, and perhaps one with tuned ones."""

    def __init__(self, ground: _Ground) -> None:
        self._ground = ground
        calibrated, name = given(ground.draft.calibrated), ground.name
        graph, calls = calibrated.graphs[name], calibrated.calls[name]
        material = Material(name, graph, calibrated.ranges[name], calls)
        self._rounds = [_Round(ground, self._bench(material, calibrated.keys[name], None), tuned=False)]

    def run(self) -> Searched:
        """Everything that was tried, and what was taken."""
        own = self._rounds[0]
        ended, recovery = own.run(), None
        if _best(own.tried) is None:
            recovery, fault = self._recovered()
            ended = "; ".join(filter(None, [ended, fault]))
        tried = [candidate for part in self._rounds for candidate in part.tried]
        chosen = _best(tried) or _least_bad(tried)
        layers = self._layers(chosen) if chosen else ()
        evaluations = sum(part.evaluations for part in self._rounds)
        groups = next((part.groups for part in reversed(self._rounds) if part.groups), ())
        return Searched(tried, chosen, evaluations, groups, layers, recovery, ended)

    def graph(self, candidate: Candidate) -> bytes:
        """A candidate's graph."""
        return self._rounds[int(candidate.tuned)].graph(candidate)

    def instead(self, found: Searched, chosen: Candidate) -> Searched:
        """The same search with another choice."""
        return replace(found, chosen=chosen, layers=self._layers(chosen))

    def _bench(self, material: Material, key: str, reference: Sequence[Arrays] | None) -> Bench:
        ground = self._ground
        return Bench(
            ground.draft,
            ground.name,
            ground.variant,
            material=material,
            key=digest(key, material.graph),
            reference=reference,
        )

    def _recovered(self) -> tuple[Recovery | None, str]:
        """A round with tuned weights, where the recipe offers it and it can help."""
        ground, own = self._ground, self._rounds[0]
        leader = own.leader()
        if (fault := why_not(ground.draft, ground.name)) is not None:
            return None, fault
        if leader is None or not ground.fast_enough(leader):
            return None, "no fine-tune: it would be as slow" if leader else ""
        try:
            tuned = recover(ground.draft, ground.name, ground.progress)
        except EdgeMbmError as error:
            return None, f"the fine-tune failed: {error}"
        material = replace(own.bench.material, graph=tuned.graph, ranges=tuned.ranges)
        bench = self._bench(material, tuned.key, own.bench.reference())
        self._rounds.append(_Round(ground, bench, tuned=True))
        ended = self._rounds[1].run()
        after = self._rounds[1].leader()
        recovery = Recovery(
            steps=tuned.steps,
            seconds=tuned.seconds,
            host=tuned.host,
            before_db=leader.sqnr_db or 0.0,
            after_db=(after.sqnr_db if after else None) or 0.0,
        )
        return recovery, ended

    def _layers(self, chosen: Candidate) -> tuple[LayerError, ...]:
        """Of a tuned graph against the untuned one, since that is what it is to be like."""
        preset, own = quantizing.PRESETS[chosen.preset], self._rounds[0].bench.material
        rescaled = preset.equalize or preset.smooth is not None
        return layer_errors(own.graph, self.graph(chosen), own.calls, own.name, rescaled=rescaled)


class _Round:
    """Presets, then mixes of the best of them with float, all from the same float graph."""

    def __init__(self, ground: _Ground, bench: Bench, *, tuned: bool) -> None:
        self.bench, self.evaluations = bench, 0
        self.groups: tuple[GroupEffect, ...] = ()
        self._ground, self._tuned = ground, tuned
        self._tried: dict[Trial, Candidate] = {}
        bound = ground.draft.loaded.recipe.search
        self._most, self._until = bound.evaluations, time.monotonic() + (bound.seconds or float("inf"))

    @property
    def tried(self) -> list[Candidate]:
        """In the order in which they were tried."""
        return list(self._tried.values())

    def run(self) -> str:
        """Try what there is; returns why it ended early, or nothing."""
        again = ", fine-tuned" if self._tuned else ""
        self._ground.progress.stage(f"search {self._ground.name} {self._ground.variant}{again}", self._most)
        try:
            if not self._presets():
                self._mixes()
        except _Stop as stop:
            return f"the search ended {stop}"
        return ""

    def graph(self, candidate: Candidate) -> bytes:
        """A candidate's graph."""
        return self.bench.graph(Trial(candidate.preset, candidate.float_nodes))

    def leader(self) -> Candidate | None:
        """The preset to mix with float: the smallest error of those that are fast enough, or else of all."""
        whole = [c for c in self.tried if not c.reverted and c.sqnr_db is not None]
        known = [c for c in whole if c.speed is not None or not self._ground.here]
        return max(known, key=lambda c: (self._ground.fast_enough(c), c.sqnr_db), default=None)

    # --- steps -------------------------------------------------------------------------------------------------------

    def _presets(self) -> bool:
        """Every preset scored, the best held against the budget; whether one is within."""
        made = [c for c in self._try([Trial(key) for key in self.bench.presets()]) if c.sqnr_db is not None]
        made.sort(key=lambda c: -(c.sqnr_db or 0.0))
        for kind in ("static", "dynamic"):
            same = [c for c in made if quantizing.PRESETS[c.preset].activations == kind]
            for contender in same[:_CONTENDERS]:
                if not self._judge(contender).faults:
                    break
        return _best(self.tried) is not None

    def _mixes(self) -> None:
        """Groups go back to float, those first that gain most for what they cost, until the budget holds."""
        base = self.leader()
        if base is None or not self._ground.fast_enough(base):
            return  # with parts in float it would be slower still
        ranked = self._ranked(base)
        if len(ranked) < 2:  # all in float is fp32
            raise _Stop(f"with {self._most} graphs ([search] evaluations): too few to tell which part is to blame")
        cheap = self._cheap(base, ranked) if self._ground.here else []
        if cheap and self._with_cheap(base, cheap):
            return
        ranked = [*cheap, *(group for group in ranked if group not in cheap)]
        enough = self._fewest(base, ranked)
        if enough is not None:
            self._fewer(base, ranked[:enough])

    def _with_cheap(self, base: Candidate, cheap: Sequence[Group]) -> bool:
        """The best presets of the leader's kind with what costs nothing in float; whether one is within budget.

        Groups were chosen on a quicker preset's word: only where the whole preset errs less with them is it judged.
        """
        kind = quantizing.PRESETS[base.preset].activations
        whole = [c for c in self.tried if not c.reverted and c.speed is not None and self._ground.fast_enough(c)]
        alike = [c for c in whole if quantizing.PRESETS[c.preset].activations == kind]
        for contender in sorted(alike, key=lambda c: -(c.sqnr_db or 0.0))[:_CONTENDERS]:
            nodes = tuple(node for group in cheap for node in group.nodes)
            [mixed] = self._try([Trial(contender.preset, nodes)], tuple(group.name for group in cheap))
            if (mixed.sqnr_db or -math.inf) > (contender.sqnr_db or -math.inf):
                self._judge(mixed)
        return _best(self.tried) is not None

    def _cheap(self, base: Candidate, ranked: Sequence[Group]) -> list[Group]:
        """Of ranked groups those that err more than their share of the cost, while they add up to little of it.

        Errors make up for each other, so one more in float may make things worse: each is taken only if it helps.
        """
        effects = {effect.group: effect for effect in self.groups}
        total = sum(_noise(effect) for effect in self.groups)
        taken, share, preset = list[Group](), 0.0, self._quick(base)
        [least] = self._score([Trial(preset)], ["nothing float"], rough=True)
        for group in ranked[:-1]:
            effect = effects[group.name]
            worse = _noise(effect) > total * (effect.share + _LEAST_SHARE)
            if not worse or share + effect.share > _CHEAP_SHARE:
                continue
            nodes = tuple(node for other in (*taken, group) for node in other.nodes)
            [found] = self._score([Trial(preset, nodes)], [f"float {group.name} too"], rough=True)
            if (found.sqnr_db or -math.inf) > (least.sqnr_db or -math.inf):
                taken, share, least = [*taken, group], share + effect.share, found
        return taken

    def _ranked(self, base: Candidate) -> list[Group]:
        """Groups by what they gain for what they cost; each was quantized alone to find out."""
        part, of = _SENSITIVITY
        most = (self._most - self.evaluations) * part // of
        groups = groups_of(self.bench.material.graph, max(1, most - 1))  # for sums it takes two
        alone = [group for group in groups if not group.sums]
        everything = [node for group in groups for node in group.nodes]
        preset = self._quick(base)
        trials = [Trial(preset, tuple(n for n in everything if n not in group.nodes)) for group in alone]
        scores = self._score(trials, [f"only {group.name}" for group in alone], rough=True)
        pairs = [(g, s.sqnr_db) for g, s in zip(alone, scores, strict=False) if s.sqnr_db is not None]
        pairs += [(g, self._sums_db(preset, g)) for g in groups if g.sums]
        total = max(1, sum(group.macs for group in groups))
        self.groups = tuple(GroupEffect(g.name, g.nodes, round(db, 3), round(g.macs / total, 4)) for g, db in pairs)
        # What cannot be timed here is to revert as little as it can.
        costs = [effect.share + _LEAST_SHARE if self._ground.here else 1.0 for effect in self.groups]
        gains = [_noise(effect) / cost for effect, cost in zip(self.groups, costs, strict=True)]
        return [pairs[index][0] for index in sorted(range(len(pairs)), key=lambda index: -gains[index])]

    def _sums_db(self, preset: str, sums: Group) -> float:
        """What sums alone do to the outputs: by how much less is wrong with all but them quantized."""
        trials = [Trial(preset), Trial(preset, sums.nodes)]
        scores = self._score(trials, ["for the sums: all", f"all but {sums.name}"], rough=True)
        noises = [10 ** (-score.sqnr_db / 10) for score in scores if score.sqnr_db is not None]
        gained = noises[0] - noises[1] if len(noises) == len(trials) else 0.0
        return -10 * math.log10(max(gained, 10 ** (-_NO_NOISE_DB / 10)))

    def _quick(self, base: Candidate) -> str:
        """A preset to tell groups apart by: one of the same kind that takes little time over each, if there is one.

        With biases corrected where the leader's are: errors that a correction takes away would mislead.
        """
        wanted = quantizing.PRESETS[base.preset]
        alike = [
            preset
            for preset in map(quantizing.PRESETS.__getitem__, self.bench.presets())
            if (preset.activations, preset.smooth) == (wanted.activations, wanted.smooth)
            and not (preset.equalize or preset.fit_rounding)
        ]
        alike.sort(key=lambda preset: preset.correct_bias != wanted.correct_bias)
        return alike[0].key if alike else base.preset

    def _fewest(self, base: Candidate, ranked: Sequence[Group]) -> int | None:
        """How many of the ranked groups must be float at least, by halving."""
        low, high, found = 1, len(ranked) - 1, None
        while low <= high:
            middle = (low + high) // 2
            mixed = self._mixed(base, ranked[:middle])
            if self._ground.accurate(mixed):
                found, high = middle, middle - 1
            elif self._ground.fast_enough(mixed):
                low = middle + 1
            else:
                break  # with more in float it would be slower still
        return found

    def _fewer(self, base: Candidate, reverted: Sequence[Group]) -> None:
        """One after the other, those that mattered least first: whether it is needed in float at all."""
        kept = list(reverted)
        for group in reversed(reverted):
            less = [other for other in kept if other is not group]
            if less and self._ground.accurate(self._mixed(base, less)):
                kept = less

    # --- graphs ------------------------------------------------------------------------------------------------------

    def _mixed(self, base: Candidate, reverted: Sequence[Group]) -> Candidate:
        nodes = tuple(node for group in reverted for node in group.nodes)
        [candidate] = self._try([Trial(base.preset, nodes)], tuple(group.name for group in reverted))
        return self._judge(candidate) if candidate.sqnr_db is not None else candidate

    def _try(self, trials: Sequence[Trial], reverted: tuple[str, ...] = ()) -> list[Candidate]:
        more = f", {len(reverted)} groups float" if reverted else ""
        for trial, score in zip(trials, self._score(trials, [trial.preset + more for trial in trials]), strict=False):
            self._tried[trial] = Candidate(
                trial.preset,
                reverted,
                self._tuned,
                sqnr_db=score.sqnr_db,
                faults=(score.fault,) if score.fault else (),
                float_nodes=trial.float_nodes,
            )
        return [self._tried[trial] for trial in trials if trial in self._tried]

    def _judge(self, candidate: Candidate) -> Candidate:
        judged = self._ground.judged(candidate, self.graph(candidate))
        self._tried[Trial(candidate.preset, candidate.float_nodes)] = judged
        return judged

    def _score(self, trials: Sequence[Trial], titles: Sequence[str], *, rough: bool = False) -> list[Score]:
        """As many as the bound leaves.

        Raises:
            _Stop: none.
        """
        scores: list[Score] = []
        while len(scores) < len(trials):
            if (bound := self._bound()) is not None:
                if scores:
                    break
                raise _Stop(bound)
            batch = trials[len(scores) :][: min(_BATCH, self._most - self.evaluations)]
            for score in self.bench.scores(batch, rough=rough):
                found = score.fault or f"{score.sqnr_db:.1f} dB"
                self._ground.progress.step(f"{titles[len(scores)]}: {found}")
                scores.append(score)
            self.evaluations += len(batch)
        return scores

    def _bound(self) -> str | None:
        """Which of the recipe's bounds is reached."""
        if self.evaluations >= self._most:
            return f"after {self._most} graphs ([search] evaluations)"
        if time.monotonic() > self._until:
            return "when its time was up ([search] seconds): the next export goes on from there"
        return None


def _noise(effect: GroupEffect) -> float:
    """As a share of the outputs' power."""
    return float(10 ** (-effect.sqnr_db / 10))


# --- choosing --------------------------------------------------------------------------------------------------------


def _best(tried: Sequence[Candidate]) -> Candidate | None:
    """Of what is within budget the fastest; of about equally fast ones what has least in float, then errs least."""
    good = [c for c in tried if c.error is not None and not c.faults]
    if not good:
        return None
    top = max(map(_pace, good))
    fast = [c for c in good if _pace(c) >= _tie(top)]
    return min(fast, key=lambda c: (len(c.float_nodes), -(c.sqnr_db or 0.0)))


def _pace(candidate: Candidate) -> float:
    """Speed, or where it is unmeasured how little stays float."""
    return candidate.speed.speedup if candidate.speed else -float(len(candidate.float_nodes))


def _tie(top: float) -> float:
    return top / _SAME_SPEED if top > 0 else top


def _least_bad(tried: Sequence[Candidate]) -> Candidate | None:
    """What misses by least: it says by how much the budget is out of reach."""
    made = [c for c in tried if c.sqnr_db is not None]
    return min(made, key=lambda c: (c.error is None, len(c.faults), *_misses(c)), default=None)


def _misses(candidate: Candidate) -> tuple[float, float]:
    error = candidate.error
    agreement = error.agreement if error and error.agreement is not None else 0.0
    return -agreement, -(candidate.sqnr_db or 0.0)
