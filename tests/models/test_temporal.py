"""Clip encoders remember what they saw, in the order of time, and nothing that they did not see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from edge_mbm.errors import InputError
from edge_mbm.models import AttentionMemory, ClipEncoder, ConvEncoder, GRUMemory

DIM, BATCH, FRAMES = 8, 3, 4


def frames(count: int, seed: int = 1) -> Tensor:
    return torch.randn(BATCH, count, DIM, generator=torch.Generator().manual_seed(seed))


def memory(kind: type[nn.Module], **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(dim=DIM, **options).eval()


def stepped(part: Any, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Frame by frame, as a device runs it."""
    state, said = part.initial_state(len(seen)), []
    for frame in seen.unbind(1):
        embedding, state = part(frame, state)
        said.append(embedding)
    return torch.stack(said, 1), state


@settings(deadline=None, max_examples=15)
@given(count=st.integers(1, 12))
def test_a_gru_memory_is_torchs_gru_over_the_whole_clip(count: int) -> None:
    """Step by step it gives what torch's recurrent layer gives for all frames and their differences at once."""
    part, seen = memory(GRUMemory, hidden=6), frames(count)
    whole = nn.GRU(2 * DIM, 6, batch_first=True)
    whole.load_state_dict({f"{name}_l0": value for name, value in part.cell.state_dict().items()})
    changes = seen.diff(dim=1, prepend=torch.zeros(BATCH, 1, DIM))
    expected, last = whole(torch.cat([seen, changes], 2))
    said, state = stepped(part, seen)
    torch.testing.assert_close(said, part.project(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, torch.cat([last[0], seen[:, -1]], 1), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=15)
@given(count=st.integers(1, 12))
def test_an_attention_memory_is_torchs_attention_over_a_sliding_window(count: int) -> None:
    """At every frame it gives torch's own attention over the last four, or over as many as there have been."""
    part, seen = memory(AttentionMemory, frames=FRAMES, attention_heads=2), frames(count)
    said, _ = stepped(part, seen)
    for step in range(count):
        window = seen[:, max(0, step - FRAMES + 1) : step + 1]
        aged = window + part.age[-window.shape[1] :]
        parts = [layer(x).unflatten(2, (2, -1)).transpose(1, 2) for layer, x in ((part.key, aged), (part.value, aged))]
        query = part.query(seen[:, step : step + 1]).unflatten(2, (2, -1)).transpose(1, 2)
        attended = scaled_dot_product_attention(query, *parts).transpose(1, 2).flatten(1)
        expected = part.join(torch.cat([seen[:, step], attended], 1))
        torch.testing.assert_close(said[:, step], expected, rtol=1e-4, atol=1e-5)


def test_the_state_tells_how_many_frames_there_were() -> None:
    """Zeros are none; it fills up frame by frame and stays full."""
    part = memory(AttentionMemory, frames=FRAMES)
    state = part.initial_state(BATCH)
    counts = [part.filled(state).tolist()]
    for frame in frames(6).unbind(1):
        _, state = part(frame, state)
        counts.append(part.filled(state).tolist())
    assert counts == [[count] * BATCH for count in (0, 1, 2, 3, 4, 4, 4)]


def test_an_empty_slot_has_no_influence() -> None:
    """Whatever stands in a slot that is not marked, the answer is the same bit for bit."""
    part = memory(AttentionMemory, frames=FRAMES)
    _, state = stepped(part, frames(2))
    spoiled = state.clone()
    spoiled[:, :2, :DIM] = 123.0
    newest = frames(1, seed=2)[:, 0]
    assert torch.equal(part(newest, state)[0], part(newest, spoiled)[0])


def test_a_window_forgets_and_each_frame_in_it_counts() -> None:
    """A frame that has left the window changes nothing; each that is in it changes the answer."""
    part = memory(AttentionMemory, frames=FRAMES)
    seen = frames(6)
    said = stepped(part, seen)[0][:, -1]
    for step in range(6):
        changed = seen.clone()
        changed[:, step] += 1.0
        assert torch.equal(stepped(part, changed)[0][:, -1], said) == (step < 2)


def test_a_clip_is_encoded_as_its_frames_are() -> None:
    """Training on the whole clip sees at each frame what a device would see had the stream ended there."""
    torch.manual_seed(0)
    frame = ConvEncoder(widths=(4, 8), dim=DIM, grid=2)
    clip = torch.randint(0, 256, (BATCH, 5, 8, 8, 1), dtype=torch.uint8)
    for part in (memory(GRUMemory), memory(AttentionMemory, frames=FRAMES)):
        encoder = ClipEncoder(frame, part).eval()
        whole, last = encoder.every_frame(clip, encoder.initial_state(BATCH))
        state = encoder.initial_state(BATCH)
        for step, image in enumerate(clip.unbind(1)):
            embedding, state = encoder(image, state)
            torch.testing.assert_close(whole[:, step], embedding, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(last, state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"frames": 0}, {"attention_heads": 3}])
def test_a_window_that_cannot_be_is_refused(options: dict[str, int]) -> None:
    """No frames, or heads that do not share the dimensions equally."""
    with pytest.raises(InputError, match="a window of 1 frame or more"):
        AttentionMemory(dim=DIM, **options)
