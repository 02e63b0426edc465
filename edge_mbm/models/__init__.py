"""torch modules to build multimodal models from: encoders, fusion heads, and the composed model."""

from edge_mbm.models.composed import MultimodalModel
from edge_mbm.models.encoders import ConvEncoder, GRUEncoder
from edge_mbm.models.fusion import (
    AttentionFusion,
    BottleneckFusion,
    ConcatFusion,
    GatedFusion,
    SingleModality,
    SumFusion,
)

__all__ = [
    "AttentionFusion",
    "BottleneckFusion",
    "ConcatFusion",
    "ConvEncoder",
    "GRUEncoder",
    "GatedFusion",
    "MultimodalModel",
    "SingleModality",
    "SumFusion",
]
