"""Log-mel features in numpy: the same code in training, calibration and on the device."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_mbm.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LogMel", "as_array", "as_utterance", "as_waveform", "mel_filterbank"]


class LogMel:
    """Log of the mel-scaled power spectrum, frame by frame, without padding.

    Frame ``i`` covers samples ``[i * hop_length, i * hop_length + window_length)``, so a stream cut into
    overlapping windows gives exactly the frames of the whole: there is no centring and no per-clip
    normalisation that would need to see the future.

    Args:
        sample_rate: samples per second of the waveform.
        window_length: samples under one periodic Hann window.
        hop_length: samples between two frames.
        n_fft: FFT length, at least ``window_length``; the rest is zeros.
        n_mels: triangular filters on the HTK mel scale, peak 1 (O'Shaughnessy 1987; HTK book, 5.4).
        f_min: lowest filter edge, Hz.
        f_max: highest filter edge, Hz, at most half the sample rate.
        floor: added to the mel power before the natural logarithm, so silence is finite.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        window_length: int,
        hop_length: int,
        n_fft: int,
        n_mels: int,
        f_min: float = 0.0,
        f_max: float | None = None,
        floor: float = 1e-6,
    ) -> None:
        self.sample_rate = sample_rate
        self.window_length = window_length
        self.hop_length = hop_length
        self.n_fft = n_fft
        self.n_mels = n_mels
        self.floor = np.float32(floor)
        # Periodic Hann: the analysis window of torch.stft and scipy's "hann" with sym=False.
        self._window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_length) / window_length)).astype(np.float32)
        self._filters = mel_filterbank(sample_rate, n_fft, n_mels, f_min, f_max or sample_rate / 2)

    def frames(self, samples: int) -> int:
        """Number of whole frames in ``samples`` samples."""
        return max(0, 1 + (samples - self.window_length) // self.hop_length)

    def __call__(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features of a mono waveform.

        Args:
            waveform: float32[samples], full scale +-1.

        Returns:
            float32[frames, n_mels].

        Raises:
            InputError: not one-dimensional, or shorter than one window.
        """
        if waveform.ndim != 1 or waveform.shape[0] < self.window_length:
            raise InputError(
                f"log-mel needs a mono waveform of at least {self.window_length} samples, got shape {waveform.shape}"
            )
        views = np.lib.stride_tricks.sliding_window_view(waveform, self.window_length)[:: self.hop_length]
        spectrum = np.fft.rfft(views * self._window, self.n_fft, axis=1)
        power = spectrum.real**2 + spectrum.imag**2
        mel: NDArray[np.float32] = power.astype(np.float32, copy=False) @ self._filters
        mel += self.floor
        return np.log(mel, out=mel)


def as_waveform(data: object) -> NDArray[np.float32]:
    """Check audio samples and bring them to mono float32 at full scale +-1.

    Args:
        data: int16 or float, [samples] or [samples, channels]; channels are averaged.

    Returns:
        float32[samples]; the same memory when it already is that.

    Raises:
        InputError: another dtype or shape, or NaN or infinite samples.
    """
    samples = as_array(data)
    if samples.ndim not in (1, 2) or 0 in samples.shape[1:] or samples.dtype.kind not in "fi":
        raise _not_audio(samples)
    if samples.dtype.kind == "i":
        if samples.dtype != np.int16:
            raise _not_audio(samples)
        samples = samples.astype(np.float32) * np.float32(1 / 32768)
    with np.errstate(over="ignore"):  # a float64 too large becomes infinite, which is refused below
        waveform: NDArray[np.float32] = samples.astype(np.float32, copy=False)
    if waveform.ndim == 2:
        waveform = waveform.mean(axis=1, dtype=np.float32)
    if not np.isfinite(waveform).all():
        raise InputError("the audio has NaN or infinite samples: repair them (zeros are silence) before pushing them")
    return waveform


def as_utterance(samples: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """What was said, with silence after it: float32[length].

    Raises:
        InputError: it is longer.
    """
    if len(samples) > length:
        raise InputError(f"an utterance of {len(samples)} samples: at most {length} are taken, cut it")
    return np.pad(samples, (0, length - len(samples)))


def as_array(data: object) -> NDArray[Any]:
    """``np.asarray``, with an InputError for what is no array at all (ragged lists)."""
    try:
        return np.asarray(data)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"the data is not an array: {error}") from error


def _not_audio(samples: NDArray[Any]) -> InputError:
    return InputError(
        f"audio is float or int16, [samples] or [samples, channels], got {samples.dtype}{list(samples.shape)}"
    )


@lru_cache(maxsize=8)
def mel_filterbank(sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float) -> NDArray[np.float32]:
    """Triangular filters with peak 1, evenly spaced on the HTK mel scale.

    Returns:
        float32[n_fft // 2 + 1, n_mels].
    """
    edges = _mel_to_hz(np.linspace(_hz_to_mel(f_min), _hz_to_mel(f_max), n_mels + 2))
    frequencies = np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def _hz_to_mel(hz: float) -> float:
    return float(2595.0 * np.log10(1.0 + hz / 700.0))


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
