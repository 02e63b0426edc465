"""From the manifest's steps to a graph's input."""

from __future__ import annotations

import numpy as np
import pytest

from edge_mbm.errors import InputError, ManifestError
from edge_mbm.preprocess import LogMel, build_preprocessor
from edge_mbm.spec import ImageSteps, LogMelSteps, RawSteps, TensorSpec, TokenSteps

MEL = {"sample_rate": 1000, "window_length": 50, "hop_length": 25, "n_fft": 64, "n_mels": 8}


def tensor(*shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(dtype=dtype, shape=shape)  # type: ignore[arg-type]


def test_log_mel_steps_do_what_log_mel_does() -> None:
    """The manifest's numbers reach the features, with a batch axis in front."""
    samples = np.random.default_rng(0).uniform(-1, 1, 200).astype(np.float32)
    prepare = build_preprocessor(LogMelSteps(**MEL), tensor("batch", 7, 8))
    np.testing.assert_array_equal(prepare(samples)[0], LogMel(**MEL)(samples))
    out = np.zeros((1, 7, 8), np.float32)
    assert prepare(samples, out) is out
    with pytest.raises(InputError, match="6 log-mel frames"):
        prepare(samples[:180], out)


def test_raw_data_gets_a_batch_axis() -> None:
    """Values are kept; a safe cast is made; another shape, a lossy cast or NaN is refused."""
    prepare = build_preprocessor(RawSteps(), tensor("batch", 3))
    np.testing.assert_array_equal(prepare([1.0, 2.0, 3.0]), np.array([[1, 2, 3]], np.float32))
    for bad in ([1.0, 2.0], [1.0, np.nan, 2.0], [1j, 2, 3], "abc", [[1], [1, 2]]):
        with pytest.raises(InputError):
            prepare(bad)


@pytest.mark.parametrize(
    ("steps", "shape"),
    [
        (ImageSteps(height=8, width=8), tensor("batch", 8, 9, 3, dtype="uint8")),
        (ImageSteps(height=8, width=8, color="gray"), tensor("batch", 8, 8, 3, dtype="uint8")),
        (ImageSteps(height=8, width=8), tensor("batch", 8, 8, 3)),
        (LogMelSteps(**MEL), tensor("batch", 7, 9)),
        (LogMelSteps(**MEL), tensor("batch", 8)),
        (LogMelSteps(**MEL), tensor("batch", 7, 8, dtype="float16")),
        (TokenSteps(asset="words", max_length=8), tensor("batch", 8, dtype="int64")),
    ],
)
def test_steps_that_do_not_give_the_input_are_refused(steps: object, shape: TensorSpec) -> None:
    """A wrong size, rank or dtype, or steps that cannot run yet, show when the bundle is loaded."""
    with pytest.raises(ManifestError):
        build_preprocessor(steps, shape)  # type: ignore[arg-type]
