"""From the manifest's steps to the code that does them: the one place calibration, parity and the device go through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edge_mbm.errors import InputError, ManifestError
from edge_mbm.preprocess.audio import LogMel, as_array, as_waveform
from edge_mbm.preprocess.crop import CropPreprocessor
from edge_mbm.preprocess.frames import FramesPreprocessor
from edge_mbm.preprocess.image import ImagePreprocessor
from edge_mbm.preprocess.text import TextPreprocessor
from edge_mbm.spec import CropSteps, ImageSteps, LogMelSteps, Preprocess, RawSteps, TensorSpec, TokenSteps

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Preprocessor", "build_preprocessor"]


class Preprocessor(Protocol):
    """One raw item (a frame, a region of one, a sound, a text, a vector) to a graph input with a batch axis of 1."""

    shape: tuple[int, ...]

    def __call__(self, data: object, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Write into ``out`` if given, else into a new array; raise InputError for data of the wrong form."""
        ...


def build_preprocessor(
    steps: Preprocess, tensor: TensorSpec, assets: Mapping[str, bytes] | None = None
) -> Preprocessor:
    """The preprocessor for one graph input.

    Args:
        steps: what the manifest says to do.
        tensor: the graph input that the result must fit, its named dimensions taken as 1.
        assets: name -> bytes of the files that the steps name.

    Raises:
        ManifestError: the steps do not give that tensor, this version cannot do them, or an asset is missing or wrong.
        MissingDependencyError: see ``TextPreprocessor``.
    """
    preprocessor = _build(steps, tensor, assets or {})
    dtype = _GIVES.get(type(steps), tensor.dtype)
    if preprocessor.shape != tensor.resolve() or dtype != tensor.dtype:
        raise ManifestError(
            f"the steps {type(steps).__name__} give {dtype}{list(preprocessor.shape)}, "
            f"the input is {tensor.dtype}{list(tensor.shape)}"
        )
    return preprocessor


_GIVES: dict[type, str] = {ImageSteps: "uint8", CropSteps: "uint8", LogMelSteps: "float32", TokenSteps: "int64"}
"""The one dtype of each step; raw data is cast to whatever the graph takes."""


def _build(steps: Preprocess, tensor: TensorSpec, assets: Mapping[str, bytes]) -> Preprocessor:
    if isinstance(steps, ImageSteps):
        return FramesPreprocessor(steps, tensor.resolve()[1]) if len(tensor.shape) == 5 else ImagePreprocessor(steps)
    if isinstance(steps, CropSteps):
        return CropPreprocessor(steps)
    if isinstance(steps, LogMelSteps):
        return _LogMelPreprocessor(steps, tensor)
    if isinstance(steps, RawSteps):
        return _RawPreprocessor(tensor)
    if isinstance(steps, TokenSteps) and steps.asset in assets:
        return TextPreprocessor(steps, assets[steps.asset])
    if isinstance(steps, TokenSteps):
        raise ManifestError(f"the steps TokenSteps need the asset '{steps.asset}'; there is {sorted(assets)}")
    raise ManifestError(f"the manifest asks for the steps {type(steps).__name__}, which this edge-mbm cannot do yet")


class _LogMelPreprocessor:
    def __init__(self, steps: LogMelSteps, tensor: TensorSpec) -> None:
        self._log_mel = LogMel(
            sample_rate=steps.sample_rate,
            window_length=steps.window_length,
            hop_length=steps.hop_length,
            n_fft=steps.n_fft,
            n_mels=steps.n_mels,
            f_min=steps.f_min,
            f_max=steps.f_max,
            floor=steps.floor,
        )
        # How many frames there are is the window's to say; a tensor of another rank fits no number of them.
        self.shape = (1, *tensor.resolve()[1:2], steps.n_mels)

    def __call__(self, data: object, out: NDArray[Any] | None = None) -> NDArray[Any]:
        features = self._log_mel(as_waveform(data))[None]
        if out is None:
            return features
        if out.shape != features.shape:
            raise InputError(f"the window gives {features.shape[1]} log-mel frames, the graph takes {out.shape[1]}")
        out[...] = features
        return out


class _RawPreprocessor:
    def __init__(self, tensor: TensorSpec) -> None:
        self._dtype = np.dtype(tensor.dtype)
        self.shape = tensor.resolve()

    def __call__(self, data: object, out: NDArray[Any] | None = None) -> NDArray[Any]:
        item = as_array(data)
        if item.shape != self.shape[1:] or not np.can_cast(item.dtype, self._dtype, casting="same_kind"):
            raise InputError(f"expected {self._dtype}{list(self.shape[1:])}, got {item.dtype}{list(item.shape)}")
        if item.dtype.kind == "f" and not np.isfinite(item).all():
            raise InputError("the data has NaN or infinite values: drop or repair such samples before pushing them")
        result = np.empty(self.shape, self._dtype) if out is None else out
        result[0] = item
        return result
