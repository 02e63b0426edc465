"""Encoders take raw bytes and features, and streams."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_mbm.errors import InputError
from edge_mbm.models import ConvEncoder, GRUEncoder, SensorEncoder


def gru(seed: int = 0, **options: int) -> GRUEncoder:
    torch.manual_seed(seed)
    return GRUEncoder(features=6, hidden=8, dim=5, mean=-2.0, std=3.0, **options).eval()


def test_image_scaling_is_inside() -> None:
    """Bytes give what the layers give for the same pixels scaled by hand, channel by channel."""
    torch.manual_seed(0)
    mean, std = [0.2, 0.4, 0.6], [0.1, 0.2, 0.3]
    encoder = ConvEncoder(widths=(4, 8), dim=5, mean=mean, std=std).eval()
    image = torch.randint(0, 256, (2, 8, 12, 3), dtype=torch.uint8)
    planes = [(image[..., channel].float() / 255 - mean[channel]) / std[channel] for channel in range(3)]
    expected = encoder.project(encoder.features(torch.stack(planes, 1)).mean((2, 3)))
    torch.testing.assert_close(encoder(image), expected, rtol=1e-5, atol=1e-5)


def test_image_encoder_refuses_unequal_statistics() -> None:
    """A mean for each channel and a std for each channel, or an error that shows both."""
    with pytest.raises(InputError, match=r"\[0.1, 0.2\], \[0.3\]"):
        ConvEncoder(mean=[0.1, 0.2], std=[0.3])


def test_a_grid_says_where_a_thing_is() -> None:
    """With a grid the embedding is of the features' means in each part; without, of their one mean."""
    torch.manual_seed(0)
    encoder = ConvEncoder(widths=(4, 8), dim=5, grid=2).eval()
    image = torch.randint(0, 256, (2, 16, 16, 1), dtype=torch.uint8)
    features = encoder.features((image.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25)
    means = [features[:, :, y : y + 4, x : x + 4].mean((2, 3)) for y in (0, 4) for x in (0, 4)]
    expected = encoder.project(torch.stack(means, 2).flatten(1))
    torch.testing.assert_close(encoder(image), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="a grid of 1 or more"):
        ConvEncoder(grid=0)


def test_a_sensors_readings_are_scaled_inside() -> None:
    """Readings in their own units give what the layers give for readings scaled by hand."""
    torch.manual_seed(0)
    encoder = SensorEncoder(features=3, widths=(7, 6), dim=5, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
    reading = torch.randn(2, 3)
    scaled = (reading - torch.tensor([1.0, 2.0, 3.0])) / torch.tensor([4.0, 5.0, 6.0])
    torch.testing.assert_close(encoder(reading), encoder.layers(scaled), rtol=1e-5, atol=1e-6)
    assert encoder(reading).shape == (2, 5)


@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(1, 11), max_size=4), layers=st.integers(1, 2), stack=st.sampled_from((1, 2)))
def test_any_chunking_of_a_stream_gives_the_same(cuts: list[int], layers: int, stack: int) -> None:
    """Chunks with the state carried over end where one call on the whole ends."""
    encoder = gru(layers=layers, stack=stack)
    features = torch.randn(3, 24, 6, generator=torch.Generator().manual_seed(1))
    whole, last = encoder(features, encoder.initial_state(3))
    state = encoder.initial_state(3)
    bounds = sorted({0, 24, *(cut * 2 for cut in cuts)})
    for begin, end in itertools.pairwise(bounds):
        embedding, state = encoder(features[:, begin:end], state)
    torch.testing.assert_close(embedding, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


def test_every_step_is_what_each_prefix_gives() -> None:
    """Training sees at each step what a device would see had the stream ended there: there is no look-ahead."""
    encoder = gru(stack=2)
    features = torch.randn(2, 12, 6)
    steps, _ = encoder.every_step(features, encoder.initial_state(2))
    for step in range(6):
        embedding, _ = encoder(features[:, : 2 * step + 2], encoder.initial_state(2))
        torch.testing.assert_close(steps[:, step], embedding, rtol=1e-5, atol=1e-5)


def test_gru_agrees_with_its_equations() -> None:
    """One step equals the GRU's equations written out, on normalised features."""
    encoder = gru()
    features, state = torch.randn(1, 1, 6), torch.randn(1, 1, 8)
    x, h = (features[0, 0] + 2.0) / 3.0, state[0, 0]
    weights = dict(encoder.gru.named_parameters())
    inner = weights["weight_ih_l0"] @ x + weights["bias_ih_l0"]
    recurrent = weights["weight_hh_l0"] @ h + weights["bias_hh_l0"]
    reset, update = torch.sigmoid(inner[:8] + recurrent[:8]), torch.sigmoid(inner[8:16] + recurrent[8:16])
    new = torch.tanh(inner[16:] + reset * recurrent[16:])
    expected = (1 - update) * new + update * h
    embedding, next_state = encoder(features, state)
    torch.testing.assert_close(next_state[0, 0], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(embedding[0], encoder.project(expected), rtol=1e-5, atol=1e-5)


def test_a_chunk_of_another_length_is_refused() -> None:
    """Frames left over from a stack would be lost silently."""
    encoder = gru(stack=2)
    with pytest.raises(InputError, match="multiple of 2 frames long, got 3"):
        encoder(torch.zeros(1, 3, 6), encoder.initial_state(1))
