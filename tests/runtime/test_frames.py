"""Frames in windows: in their places whatever the camera's times, none lost without being counted."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge_mbm.errors import InputError
from edge_mbm.preprocess import frame_windows
from edge_mbm.runtime.frames import FrameTimes, FrameWindow, FrameWindows
from edge_mbm.runtime.result import EmbeddingOutput, Segment, SequenceOutput
from edge_mbm.spec import Window

PERIOD = 40_000_000  # 25 frames a second
START = 7_000_000


def frame(number: int) -> np.ndarray:
    return np.full((1, 1, 3), number % 256, np.uint8)


def numbers(window: FrameWindow) -> tuple[int, ...]:
    return tuple(int(image[0, 0, 0]) for image in window.frames)


def make(window: Window, capacity: int = 10_000) -> FrameWindows:
    return FrameWindows(rate=25, window=window, capacity=capacity)


def taken(part: FrameWindows) -> list[FrameWindow]:
    found = []
    while (window := part.next_window()) is not None:
        found.append(window)
    return found


def pushed(part: FrameWindows, times: list[int]) -> list[FrameWindow]:
    for number, t in enumerate(times):
        part.push(frame(number), t)
    part.finish()
    return taken(part)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    length = draw(st.integers(1, 9))
    margin = draw(st.integers(0, (length - 1) // 2))
    padding = draw(st.sampled_from(["none", "repeat"]))
    return Window(length=length, hop=draw(st.integers(1, 12)), margin=margin, padding=padding)


@given(windows(), st.integers(1, 60))
def test_streamed_windows_are_those_of_the_whole_video(window: Window, frames: int) -> None:
    """Frame by frame or all at once: the same frames in the same windows, answering for the same stretch."""
    assume(window.padding == "repeat" or frames >= window.length)
    streamed = pushed(make(window), [START + index * PERIOD for index in range(frames)])
    whole = list(frame_windows(frames, window))
    assert [numbers(found) for found in streamed] == [found.indices for found in whole]
    spans = [((w.segment.start - START) // PERIOD, (w.segment.end - START) // PERIOD) for w in streamed]
    assert spans == [(found.first, found.end) for found in whole]


@given(st.integers(1, 9), st.integers(0, 4), st.integers(1, 60))
def test_each_frame_is_answered_for_once(middle: int, margin: int, frames: int) -> None:
    """Where the hop is what lies between the margins, answers tile the padded video without a gap."""
    window = Window(length=middle + 2 * margin, hop=middle, margin=margin, padding="repeat")
    answered = [index for found in frame_windows(frames, window) for index in range(found.first, found.end)]
    assert answered == list(range(frames))


@given(st.lists(st.integers(PERIOD // 8, 12 * PERIOD), min_size=1, max_size=40))
def test_variable_frame_rate_takes_the_nearest_frame(gaps: list[int]) -> None:
    """Whatever the gaps, a frame stands on the grid no further from its own time than from one neighbour's to it."""
    times = [START, *(START + int(total) for total in np.cumsum(gaps))]
    part = make(Window(length=1, hop=1))
    streamed = pushed(part, times)
    assert len(streamed) == len(times) - part.superseded + part.repeated
    for found in streamed:
        own = abs(times[numbers(found)[0]] - found.t)
        nearest = min(abs(t - found.t) for t in times)
        # Of several frames for one place the first stays, and the grid follows the camera by part of a period.
        assert own <= nearest + PERIOD
    assert all(later.t - earlier.t > 0 for earlier, later in pairwise(streamed))


def test_a_slower_camera_is_repeated_and_a_faster_one_thinned() -> None:
    """10 and 50 frames a second give a grid of 25, with the repeats and the skipped frames counted."""
    slow, fast = make(Window(length=1, hop=1)), make(Window(length=1, hop=1))
    assert len(pushed(slow, [index * 100_000_000 for index in range(11)])) == 26
    assert slow.repeated == 15
    assert len(pushed(fast, [index * 20_000_000 for index in range(51)])) in (26, 27)
    assert fast.superseded in (24, 25)


@pytest.mark.parametrize("off", [0.999, 1.001])
def test_the_grid_follows_a_clock_that_is_a_little_off(off: float) -> None:
    """Of a camera 0.1 % fast or slow, with jitter, no frame is skipped or repeated in ten minutes."""
    rng = np.random.default_rng(5)
    part = make(Window(length=10, hop=10), capacity=20_000)
    pushed(part, [round(index * PERIOD * off + rng.uniform(-0.2, 0.2) * PERIOD) for index in range(1, 15_000)])
    assert part.repeated + part.superseded == 0


def test_a_pause_ends_the_video_and_begins_a_new_one() -> None:
    """What was before the pause is padded and answered; nothing after it is in one window with what was before."""
    part = make(Window(length=4, hop=2, margin=1, padding="repeat"))
    assert [part.push(frame(n), n * PERIOD) for n in range(3)] == [False] * 3
    assert part.push(frame(9), 3_000_000_000)
    part.finish()
    assert [numbers(found) for found in taken(part)] == [(0, 0, 1, 2), (1, 2, 2, 2), (9, 9, 9, 9)]
    assert part.gaps == 1


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 20), st.integers(1, 300))
def test_memory_is_bounded_when_nobody_takes(length: int, hop: int, capacity: int, frames: int) -> None:
    """However long the video, no more is held than the capacity and a window or two; what is given up is counted."""
    part = make(Window(length=length, hop=hop), capacity)
    for number in range(frames):
        part.push(frame(number), number * PERIOD)
        assert part.held <= capacity + hop + 2 * length
    complete = len(list(frame_windows(frames, Window(length=length, hop=hop)))) if frames >= length else 0
    assert len(taken(part)) + part.dropped == complete


def test_an_overflow_breaks_continuity() -> None:
    """The push that gives up the oldest window says so, since a carried state must start anew."""
    part = make(Window(length=2, hop=2), capacity=2)
    assert [part.push(frame(n), n * PERIOD) for n in range(6)] == [False, False, False, True, False, True]
    assert [numbers(found) for found in taken(part)] == [(4, 5)]


def test_without_padding_a_short_video_is_refused() -> None:
    """The message says how many frames there are and how many it takes."""
    with pytest.raises(InputError, match="3 frames are fewer than one window of 4"):
        list(frame_windows(3, Window(length=4, hop=1)))


def test_steps_get_the_times_of_their_frames() -> None:
    """Margins and padding are cut off a sequence; an output that is none stays as it is."""
    frames = FrameTimes(Window(length=6, hop=2, margin=2), 25)
    outputs = {"cut": SequenceOutput(np.arange(6, dtype=np.float32)), "mean": EmbeddingOutput(np.ones(6, np.float32))}
    timed = frames.timed(outputs, Segment(START, START + 2 * PERIOD, is_final=True))
    cut = timed["cut"]
    assert isinstance(cut, SequenceOutput)
    assert cut.values.tolist() == [2, 3]
    assert cut.times is not None
    assert cut.times.tolist() == [START, START + PERIOD]
    assert timed["mean"] is outputs["mean"]
    assert frames.timed(outputs, None) is outputs
