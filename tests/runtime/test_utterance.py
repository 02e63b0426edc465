"""Utterances: the same ones however the sound comes, cut where speech begins and ends.

At 1000 Hz with a detector that hears 10 ms at a time; sample ``k`` has the value ``k``, so a cut says where it is from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_mbm.runtime.utterance import Cut, UtteranceRing
from edge_mbm.spec import Utterances, Window

MS = 1_000_000
RATE = 1000
HEARD = 10


def ring(length: int = 400, hop: int = 50, capacity: int = 2000, **cut: Any) -> UtteranceRing:
    chosen = {"silence_ns": 30 * MS, "speech_ns": 20 * MS, "padding_ns": 10 * MS} | cut
    return UtteranceRing(
        sample_rate=RATE,
        window=Window(length=length, hop=hop),
        cut=Utterances(source="voice.speech", **chosen),
        heard=HEARD,
        capacity=capacity,
        max_slip_ns=50 * MS,
    )


def ramp(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.float32)


def say(target: UtteranceRing, speech: list[float], start: int = 0, *, look: bool = True) -> list[Cut]:
    """Windows of 10 ms with a probability of speech each; all cuts, taken as soon as they are there."""
    found = []
    for index, probability in enumerate(speech):
        target.push(ramp(start + index * HEARD, HEARD), (start + index * HEARD) * MS)
        target.hear((start + (index + 1) * HEARD) * MS, probability)
        while look and (cut := target.next_cut()) is not None:
            found.append(cut)
    return found


def spans(cuts: list[Cut]) -> list[tuple[int, int, bool]]:
    return [(c.segment.start // MS, c.segment.end // MS, c.segment.is_final) for c in cuts]


def finals(cuts: list[Cut]) -> list[Cut]:
    return [cut for cut in cuts if cut.segment.is_final]


def test_an_utterance_begins_before_the_first_voice_and_ends_after_a_silence() -> None:
    """Voice from 50 to 100 ms: what is cut has the padding before it, and is over when 30 ms were silent."""
    [cut] = finals(say(ring(), [0.0] * 5 + [0.9] * 5 + [0.0] * 5))
    assert spans([cut]) == [(40, 130, True)]
    assert cut.t == 130 * MS
    assert cut.samples.tolist() == [*range(40, 130), *[0] * 310]


def test_an_unfinished_utterance_is_looked_at_now_and_then() -> None:
    """Each look has more of it, from the same beginning; the last word is the finished one's."""
    cuts = say(ring(), [0.0] * 5 + [0.9] * 20 + [0.0] * 5)
    assert spans(cuts) == [(40, 90, False), (40, 140, False), (40, 190, False), (40, 240, False), (40, 280, True)]
    assert [cut.t for cut in cuts] == sorted({cut.t for cut in cuts})


def test_without_partials_only_finished_ones_come() -> None:
    """For those who have no use for half a sentence."""
    assert spans(say(ring(partials=False), [0.0] * 5 + [0.9] * 20 + [0.0] * 5)) == [(40, 280, True)]


def test_a_look_that_was_not_taken_in_time_is_replaced_by_the_next() -> None:
    """Newest first, as for frames: one cut is there, with all there is."""
    target = ring()
    say(target, [0.0] * 5 + [0.9] * 14, look=False)
    assert spans([cut for cut in [target.next_cut(), target.next_cut()] if cut]) == [(40, 190, False)]


def test_a_click_is_no_speech() -> None:
    """What is voiced for less than 20 ms gives nothing, and speech after it begins where it begins."""
    assert spans(finals(say(ring(), [0.0] * 5 + [0.9] + [0.0] * 9 + [0.9] * 5 + [0.0] * 5))) == [(140, 230, True)]


def test_a_soft_sound_within_speech_does_not_end_it() -> None:
    """Down to a tenth below the threshold it goes on; a short silence does not end it either."""
    speech = [0.9, 0.9, 0.45, 0.45, 0.45, 0.45, 0.9, 0.0, 0.0, 0.9, 0.9]
    assert spans(finals(say(ring(), [0.0] * 5 + speech + [0.0] * 5))) == [(40, 190, True)]
    assert spans(finals(say(ring(), [0.45] * 20))) == []


def test_one_that_fills_the_window_is_cut_there_and_goes_on_as_the_next() -> None:
    """No sample is lost in between."""
    cuts = finals(say(ring(length=100, partials=False), [0.9] * 25 + [0.0] * 5))
    assert spans(cuts) == [(0, 100, True), (100, 200, True), (200, 280, True)]
    assert np.concatenate([c.samples for c in cuts])[:280].tolist() == list(range(280))


def test_the_end_of_the_sound_ends_what_is_being_said() -> None:
    """And a second time there is nothing left."""
    target = ring()
    say(target, [0.0] * 5 + [0.9] * 5)
    target.finish()
    cut = target.next_cut()
    assert cut is not None
    assert spans([cut]) == [(40, 100, True)]
    target.finish()
    assert target.next_cut() is None


def test_a_gap_ends_what_was_being_said() -> None:
    """Sound that was lost cannot be made up: what was there before it is one utterance, what comes after another."""
    target = ring()
    found = say(target, [0.0] * 5 + [0.9] * 5)
    found += say(target, [0.9] * 5 + [0.0] * 5, start=1000)
    assert spans(finals(found)) == [(40, 100, True), (1000, 1080, True)]
    assert target.gaps == 1


def test_finished_ones_wait_up_to_a_bound_and_what_falls_out_is_counted() -> None:
    """A consumer that is away for long loses the oldest."""
    target = ring()
    say(target, ([0.9] * 5 + [0.0] * 5) * 12, look=False)
    waiting = []
    while (cut := target.next_cut()) is not None:
        waiting.append(cut)
    assert len(finals(waiting)) == 8
    assert target.lost_samples > 0


def test_sound_that_nobody_has_heard_is_bounded() -> None:
    """A detector that stands still costs the oldest sound, counted; afterwards it goes on with what is left."""
    target = ring(capacity=500)
    for index in range(500):
        target.push(ramp(index * 10, 10), index * 10 * MS)
    assert target.lost_samples > 0
    cuts = say(target, [0.9] * 5 + [0.0] * 5, start=5000)
    assert len(finals(cuts)) == 1
    assert all(cut.samples[0] == cut.segment.start // MS for cut in cuts)


@given(
    speech=st.lists(st.sampled_from([0.0, 0.45, 0.9]), max_size=120),
    chunks=st.lists(st.integers(1, 70), min_size=1, max_size=60),
    late=st.randoms(use_true_random=False),
)
@settings(max_examples=300, deadline=None)
def test_the_same_utterances_whatever_the_chunks_and_whenever_they_are_heard(
    speech: list[float], chunks: list[int], late: Any
) -> None:
    """Finished ones depend on the sound alone: the oracle is the ring that gets and hears it 10 ms at a time."""
    wanted = finals(say(ring(), speech))
    target, got, pushed, heard = ring(), [], 0, 0
    for wanted_size in [*chunks, len(speech) * HEARD]:
        size = min(wanted_size, len(speech) * HEARD - pushed)
        target.push(ramp(pushed, size), pushed * MS)
        pushed += size
        while (heard + 1) * HEARD <= pushed and late.random() < 0.7:
            target.hear((heard + 1) * HEARD * MS, speech[heard])
            heard += 1
            if late.random() < 0.5 and (cut := target.next_cut()) is not None:
                got.append(cut)
    while heard < len(speech):
        target.hear((heard + 1) * HEARD * MS, speech[heard])
        heard += 1
    while (cut := target.next_cut()) is not None:
        got.append(cut)
    assert [(c.segment, c.t, c.samples.tolist()) for c in finals(got)] == [
        (c.segment, c.t, c.samples.tolist()) for c in wanted
    ]
    assert target.lost_samples == 0
