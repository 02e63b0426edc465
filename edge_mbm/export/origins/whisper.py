"""Whisper's encoder behind its own log-mel, so that it takes a window of sound."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WhisperEncoder"]

_RATE, _WINDOW, _HOP = 16_000, 400, 160


class WhisperEncoder(nn.Module):
    """float32[batch, samples] at 16 kHz, or log-mel features, to hidden states.

    The features are those of Radford et al. 2022 ("Robust Speech Recognition via Large-Scale Weak Supervision", 2.2) as
    OpenAI's code computes them: a Hann window of 400 samples every 160, powers, mels on Slaney's scale and area, log10
    of at least 1e-10, at most 8 below the clip's greatest, (x + 4) / 4. The transform is two convolutions, which every
    engine has. A window shorter than the encoder's 30 s is followed by silence.

    Shape:
        float32[batch, samples] or float32[batch, mels, frames] -> float32[batch, frames / 2, width].
    """

    cosine: Tensor
    sine: Tensor
    mels: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.get_encoder()
        self.samples = 2 * model.config.max_source_positions * _HOP
        window = torch.hann_window(_WINDOW, dtype=torch.float64)
        turns = 2 * math.pi / _WINDOW * torch.outer(torch.arange(_WINDOW // 2 + 1), torch.arange(_WINDOW))
        self.register_buffer("cosine", (turns.cos() * window).float()[:, None])
        self.register_buffer("sine", (turns.sin() * window).float()[:, None])
        self.register_buffer("mels", _slaney(model.config.num_mel_bins))

    def forward(self, sound: Tensor) -> Tensor:
        """Hidden states."""
        features = self._log_mel(sound) if sound.ndim == 2 else sound
        hidden: Tensor = self.encoder(features).last_hidden_state
        return hidden

    def _log_mel(self, sound: Tensor) -> Tensor:
        padded = nn.functional.pad(sound, (0, self.samples - sound.shape[1]))[:, None]
        framed = nn.functional.pad(padded, (_WINDOW // 2, _WINDOW // 2), mode="reflect")
        real, imaginary = (nn.functional.conv1d(framed, basis, stride=_HOP) for basis in (self.cosine, self.sine))
        power = (real**2 + imaginary**2)[..., :-1]  # its last frame is past the end
        logs = (self.mels @ power).clamp(min=1e-10).log10()
        return (torch.maximum(logs, logs.amax((1, 2), keepdim=True) - 8) + 4) / 4


def _slaney(count: int) -> Tensor:
    """Triangles on Slaney's mel scale (linear to 1 kHz, then logarithmic; Auditory Toolbox, 1998), of equal area.

    Returns:
        float32[count, 201].
    """
    step, knee, ratio = 200 / 3, 1000.0, math.log(6.4) / 27
    top = knee / step + math.log(_RATE / 2 / knee) / ratio
    mels = torch.linspace(0, top, count + 2, dtype=torch.float64)
    edges = torch.where(mels < knee / step, mels * step, knee * torch.exp(ratio * (mels - knee / step)))
    bins = torch.linspace(0, _RATE / 2, _WINDOW // 2 + 1, dtype=torch.float64)
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = torch.minimum((bins - low) / (peak - low), (high - bins) / (high - peak)).clamp(min=0)
    return (triangles * 2 / (high - low)).float()
