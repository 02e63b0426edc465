"""The governor, on streams that a test makes up second by second."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_mbm
from edge_mbm import SessionOptions
from edge_mbm.errors import InputError
from edge_mbm.runtime.governor import Action, Governor, GovernorOptions, Lever, levers
from edge_mbm.runtime.heat import Heat, Rail, Zone
from edge_mbm.runtime.status import EncoderStatus, HeadStatus, LiveStatus
from edge_mbm.testing import NullEngine, tiny_bundle

MS, SECOND = 1_000_000, 1_000_000_000
FACE, SCENE = Lever("face", "image", is_pivot=True), Lever("scene", "wide", is_pivot=False)
HOT = Heat(zones=(Zone(name="cpu", temperature_c=97, limit_c=99),))
WARM = Heat(zones=(Zone(name="cpu", temperature_c=93, limit_c=99),))
COOL = Heat(zones=(Zone(name="cpu", temperature_c=60, limit_c=99),))


class Machine:
    """Two cameras at 30 Hz, and one second of encoding time a second: 40 ms for a face, 20 ms for a scene."""

    def __init__(self, governor: Governor, *, face_ms: int = 40, scene_ms: int = 20, work: float = 1.0) -> None:
        self.governor = governor
        self.cost = {"face": face_ms, "scene": scene_ms}
        self.work = work
        self.age: int | None = None
        self.heat: Heat | None = None
        self.done: list[tuple[int, Action]] = []
        self._t = 0
        self._held = {"face": 0, "scene": 0}
        self._runs = {"face": 0.0, "scene": 0.0}
        self._seen = 0

    @property
    def rates(self) -> dict[str, float]:
        """What encoders are let run at."""
        return {name: round(30 / max(1, round(ns * 30 / SECOND + 0.49)), 1) for name, ns in self._held.items()}

    def run(self, seconds: int) -> list[Action]:
        """Let time pass; what the governor did in it."""
        count = len(self.done)
        for _ in range(seconds):
            self._t, self._seen = self._t + SECOND, self._seen + 30
            wanted = {name: rate * self.cost[name] / 1e3 for name, rate in self.rates.items()}
            share = min(1.0, self.work / sum(wanted.values()))
            for name, rate in self.rates.items():
                self._runs[name] += rate * share
            for action in self.governor.update(self.status(), self.heat):
                self._held[action.encoder] = action.min_interval_ns
                self.done.append((self._t // SECOND, action))
        return [action for _, action in self.done[count:]]

    def status(self) -> LiveStatus:
        runs = {name: int(count) for name, count in self._runs.items()}
        return LiveStatus(
            t=self._t,
            sources=(),
            encoders=tuple(encoder(name, runs[name], self.cost[name] * MS) for name in runs),
            heads=(head(self._seen, self.age),),
            losses={"image.superseded": self._seen - runs["face"], "wide.superseded": self._seen - runs["scene"]},
        )


def encoder(name: str, runs: int, last_ns: int) -> EncoderStatus:
    return EncoderStatus(name=name, runs=runs, failed=0, gated=0, last_ns=last_ns, min_interval_ns=0)


def head(results: int, age: int | None) -> HeadStatus:
    return HeadStatus(name="who", enabled=True, results=results, last=0, age_ns=age, missing=())


def machine(
    *, given: Iterable[Lever] = (FACE, SCENE), face_ms: int = 40, scene_ms: int = 20, **options: Any
) -> Machine:
    governor = Governor(tuple(given), GovernorOptions(**{"recovery_s": 10.0} | options))
    return Machine(governor, face_ms=face_ms, scene_ms=scene_ms)


# --- overload --------------------------------------------------------------------------------------------------------


def test_a_stream_that_copes_is_left_alone() -> None:
    """For an hour."""
    calm = machine(face_ms=20, scene_ms=10)
    assert calm.run(3600) == []
    assert calm.governor.notes == ()


def test_what_supports_is_slowed_down_before_the_pivot() -> None:
    """1.8 s of work a second: the scene goes to a half and a quarter, then the faces to a half, and that is enough."""
    busy = machine(recovery_s=1000.0)
    assert [(a.encoder, round(SECOND / a.min_interval_ns, 1)) for a in busy.run(60)] == [
        ("scene", 20.0),  # a half is 15 Hz; half a frame's time is left for frames that come early
        ("scene", 8.6),
        ("face", 20.0),
    ]
    assert busy.rates == {"face": 15.0, "scene": 7.5}


def test_the_least_important_is_slowed_down_first() -> None:
    """Whatever it feeds; those without a number count as 0."""
    busy = machine(importance={"scene": 1}, recovery_s=1000.0)
    assert [action.encoder for action in busy.run(60)] == ["face"]
    assert busy.rates == {"face": 15.0, "scene": 30.0}


def test_a_moment_of_overload_is_not_enough() -> None:
    """It takes the whole window, 5 s."""
    busy = machine()
    assert busy.run(5) == []
    assert len(busy.run(1)) == 1


def test_it_says_what_it_does() -> None:
    """Which encoder, to what rate, and why; the same in the action and in the notes."""
    busy = machine()
    [action] = busy.run(8)
    assert action.note == "scene held to 15 Hz (1/2): 43% of the frames of 'image' were lost over 5 s"
    assert busy.governor.notes == (action.note,)


def test_full_rate_comes_back_when_there_is_time() -> None:
    """The load goes: step by step, each after the recovery time, in the opposite order; then nothing is held."""
    busy = machine()
    busy.run(20)
    busy.work = 10.0
    given_back = busy.run(60)
    assert [a.encoder for a in given_back] == ["face", "scene", "scene"][-len(given_back) :]
    assert [a.min_interval_ns for a in given_back][-1] == 0
    assert busy.rates == {"face": 30.0, "scene": 30.0}
    assert busy.governor.notes == ()
    assert given_back[-1].note == "scene runs as frames come again: there is time for it"


def test_giving_back_that_does_not_last_is_tried_less_and_less() -> None:
    """Constant overload: the times between tries double, up to eight times the recovery time."""
    busy = machine(given=(FACE,), face_ms=60, scene_ms=0)
    busy.run(600)
    tries = [t for t, action in busy.done if action.min_interval_ns == 0]
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert gaps == sorted(gaps)
    assert gaps[0] == pytest.approx(20 + 5, abs=3)
    assert gaps[-1] == pytest.approx(80 + 5, abs=3)


def test_after_a_good_time_it_is_patient_no_more() -> None:
    """What lasted was right: the next overload is met with the first recovery time again."""
    busy = machine(given=(FACE,), face_ms=60, scene_ms=0)
    busy.run(600)
    busy.work = 10.0
    busy.run(300)
    busy.work = 1.0
    start = len(busy.done)
    busy.run(40)
    held, freed, *_ = [t for t, _ in busy.done[start:]]
    assert freed - held == pytest.approx(10, abs=1)


def test_a_slow_consumer_is_not_overload() -> None:
    """Nine of ten frames lost, and the encoder idle: to hold it would help nobody."""
    governor = Governor([FACE])
    for second in range(60):
        status = LiveStatus(
            t=second * SECOND,
            sources=(),
            encoders=(encoder("face", 3 * second, 40 * MS),),
            heads=(head(3 * second, None),),
            losses={"image.superseded": 27 * second},
        )
        assert governor.update(status) == ()


def test_an_encoder_that_rests_is_not_overloaded() -> None:
    """Its head was disabled: it takes nothing, and is not touched."""
    governor = Governor([FACE, SCENE])
    for second in range(60):
        status = LiveStatus(
            t=second * SECOND,
            sources=(),
            encoders=(encoder("face", 30 * second, 30 * MS), encoder("scene", 7, 30 * MS)),
            heads=(head(30 * second, None),),
            losses={"image.superseded": 0, "wide.superseded": 5},
        )
        assert governor.update(status) == ()


def test_two_encoders_of_one_camera_are_told_apart() -> None:
    """The one that is held loses frames by design; the other, which keeps up, is no reason for another step."""
    detector = Lever("detector", "image", is_pivot=False)
    governor = Governor([FACE, detector], GovernorOptions(recovery_s=1000.0))
    actions: list[Action] = []
    for second in range(100):
        # From the first step on all is well: faces at 30 Hz, the detector at the 15 Hz that it is held to.
        face = 10 * min(second, 6) + 30 * max(0, second - 6)
        found = 10 * min(second, 6) + 15 * max(0, second - 6)
        status = LiveStatus(
            t=second * SECOND,
            sources=(),
            encoders=(encoder("face", face, 33 * MS), encoder("detector", found, 33 * MS)),
            heads=(head(face, None),),
            losses={"image.superseded": 30 * second - found},
        )
        actions += governor.update(status)
    assert [action.encoder for action in actions] == ["detector"]


# --- age, heat, power ------------------------------------------------------------------------------------------------


def test_results_that_are_too_old_are_overload() -> None:
    """Where a limit is given; what is just below it is no reason to give rate back."""
    calm = machine(face_ms=20, scene_ms=10, age_s=0.2)
    calm.age = 250 * MS
    [action] = calm.run(6)
    assert action.note.endswith("results are 250 ms old, and 200 ms is what they may be")
    calm.age = 190 * MS
    assert calm.run(100) == []
    calm.age = 100 * MS
    assert [a.min_interval_ns for a in calm.run(12)] == [0]


def test_a_step_back_that_lasted_was_no_mistake() -> None:
    """After one that did not, and one that did, the next overload is met with the first recovery time again."""
    calm = machine(face_ms=20, scene_ms=10, age_s=0.2)
    for age, seconds, acts in ((250, 6, 1), (100, 12, 1), (250, 7, 1), (100, 12, 0), (100, 12, 1), (190, 60, 0)):
        calm.age = age * MS
        assert len(calm.run(seconds)) == acts
    calm.age = 250 * MS
    assert len(calm.run(6)) == 1
    calm.age = 100 * MS
    assert [a.min_interval_ns for a in calm.run(12)] == [0]


def test_near_its_own_throttling_the_machine_is_relieved() -> None:
    """Within 3 degrees of the kernel's trip point; rate comes back 5 degrees further down, not before."""
    calm = machine(face_ms=20, scene_ms=10)
    calm.heat = HOT
    [action] = calm.run(6)
    assert action.note.endswith("cpu is at 97 C, and the machine slows down at 99 C")
    calm.heat = WARM
    assert calm.run(100) == []
    calm.heat = COOL
    assert [a.min_interval_ns for a in calm.run(12)] == [0]


@pytest.mark.parametrize(
    ("heat", "why"),
    [
        (Heat(rails=(Rail(name="VDD_IN", watts=16.0, alarm=False),)), "it draws 16.0 W of 15.0 W"),
        (Heat(rails=(Rail(name="VDD_IN", watts=9.0, alarm=True),)), "VDD_IN draws more than its sensor allows"),
    ],
)
def test_power_above_its_limit_is_met(heat: Heat, why: str) -> None:
    """The limit that was given, or the sensor's own alarm."""
    calm = machine(face_ms=20, scene_ms=10, power_w=15.0)
    calm.heat = heat
    [action] = calm.run(6)
    assert action.note.endswith(why)


def test_cut_clocks_are_met() -> None:
    """A Jetson counts how often too high a current made it cut its clocks: the count at the start is history."""
    calm = machine(face_ms=20, scene_ms=10)
    calm.heat = Heat(throttles=100)
    assert calm.run(30) == []
    actions = []
    for count in range(101, 108):
        calm.heat = Heat(throttles=count)
        actions += calm.run(1)
    assert actions[0].note.endswith("the board cuts its clocks for too high a current")


def test_at_a_quarter_of_everything_there_is_nothing_left_to_do() -> None:
    """And no step is taken twice."""
    calm = machine(face_ms=20, scene_ms=10)
    calm.heat = HOT
    assert len(calm.run(600)) == 4
    assert calm.rates == {"face": 7.5, "scene": 7.5}


# --- what it can be told ---------------------------------------------------------------------------------------------


def test_only_encoders_of_frames_can_be_held() -> None:
    """Of the tiny bundle the picture's, which is a pivot; sound has no frames to leave out."""
    with edge_mbm.load(tiny_bundle()).session(SessionOptions(heads=("event",)), load_engine=NullEngine) as session:
        assert session.encoders == ("image_encoder", "audio_encoder")
        assert levers(session) == (Lever("image_encoder", "image", is_pivot=True),)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-7, 7), min_size=40, max_size=40), st.sampled_from([2, 4]))
def test_a_held_encoder_takes_every_second_or_fourth_frame(jitter: list[int], factor: int) -> None:
    """Of a real session, though frames at 30 Hz come up to 7 ms early or late."""
    intervals = []
    with edge_mbm.load(tiny_bundle()).session(SessionOptions(heads=("color",)), load_engine=NullEngine) as session:
        governor = Governor(levers(session))
        for second in range(20):
            state = LiveStatus(
                t=second * SECOND,
                sources=(),
                encoders=(encoder("image_encoder", 30 * second, 20 * MS),),
                heads=(head(30 * second, None),),
                losses={"image.superseded": 0},
            )
            intervals += [action.min_interval_ns for action in governor.update(state, HOT)]
        session.hold_rate("image_encoder", intervals[factor // 4])
        taken = []
        for k, late in enumerate(jitter):
            session.push("image", np.zeros((8, 8, 3), np.uint8), k * SECOND // 30 + late * MS + SECOND)
            taken += [k] if session.poll() else []
    assert taken == list(range(0, 40, factor))


def test_a_name_that_cannot_be_held_is_refused() -> None:
    """With those that can."""
    with pytest.raises(InputError, match=r"'ears'.*\['face', 'scene'\]"):
        Governor([FACE, SCENE], GovernorOptions(importance={"ears": 1}))


@pytest.mark.parametrize(
    "wrong",
    [{"window_s": 0}, {"recovery_s": -1}, {"lost_share": 1.0}, {"age_s": -1}, {"power_w": -5}, {"margin_c": 90}],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    """When they are made."""
    with pytest.raises(InputError):
        GovernorOptions(**wrong)


def test_looks_may_come_as_often_as_they_like() -> None:
    """A thousand a second: the window is as long, and memory as small."""
    governor = Governor([FACE])
    actions: list[Action] = []
    for k in range(6000):
        runs = k * 15 // 1000
        status = LiveStatus(
            t=k * MS,
            sources=(),
            encoders=(encoder("face", runs, 66 * MS),),
            heads=(head(runs, None),),
            losses={"image.superseded": k * 30 // 1000 - runs},
        )
        actions += governor.update(status)
    assert len(actions) == 1
    assert len(governor._looks) <= 200


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 90), st.sampled_from([None, HOT, WARM, COOL])),
        max_size=200,
    )
)
def test_whatever_happens_rates_stay_on_the_ladder(seconds: list[tuple[int, int, int, Heat | None]]) -> None:
    """A half or a quarter, one step at a time, and every hold can be taken back."""
    governor = Governor([FACE, SCENE], GovernorOptions(recovery_s=3.0))
    runs, lost = [0, 0], 0
    for t, (face, scene, dropped, heat) in enumerate(seconds):
        runs, lost = [runs[0] + face, runs[1] + scene], lost + dropped
        status = LiveStatus(
            t=t * SECOND,
            sources=(),
            encoders=(encoder("face", runs[0], 30 * MS), encoder("scene", runs[1], 30 * MS)),
            heads=(head(runs[0], None),),
            losses={"image.superseded": lost, "wide.superseded": lost},
        )
        assert len(governor.update(status, heat)) <= 1
        assert all("(1/2)" in note or "(1/4)" in note for note in governor.notes)
        assert len(governor.notes) <= 2
