"""TensorRT's nested phases as one share."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_mbm.runtime.trt.phases import Phases


def test_a_step_counts_as_far_as_the_phase_inside_it_is_done() -> None:
    """Of two steps, the first done and the second half: three quarters."""
    phases = Phases()
    assert phases.step("build", "", 0, 2) == 0.0
    assert phases.step("time", "build", 0, 4) == 0.0
    assert phases.step("time", "build", 2, 4) == 0.25
    assert phases.step("time", "build", -1, 4) == 0.25  # the step itself is told apart
    assert phases.step("build", "", 1, 2) == 0.5
    assert phases.step("time", "build", 0, 2) == 0.5
    assert phases.step("time", "build", 1, 2) == 0.75
    assert phases.step("deep", "time", 1, 2) == 0.875
    phases.step("deep", "time", -1, 2)
    phases.step("time", "build", -1, 2)
    assert phases.step("build", "", -1, 2) == 1.0


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["", *"abcd"]), st.integers(-1, 9), st.integers(0, 9)))
)
def test_whatever_it_is_told_the_share_is_a_share_and_never_goes_back(
    messages: list[tuple[str, str, int, int]],
) -> None:
    """Phases without an end, with an unknown parent, or that are their own parents are no reason to fail."""
    phases = Phases()
    shares = [phases.step(*message) for message in messages]
    assert all(0.0 <= share <= 1.0 for share in shares)
    assert shares == sorted(shares)
