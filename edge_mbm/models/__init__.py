"""torch modules to build multimodal models from: encoders, fusion heads, and the composed model."""

from edge_mbm.models.composed import MultimodalModel
from edge_mbm.models.encoders import ConvEncoder, GRUEncoder, SensorEncoder
from edge_mbm.models.fusion import (
    AttentionFusion,
    BottleneckFusion,
    ConcatFusion,
    GatedFusion,
    SingleModality,
    SumFusion,
)
from edge_mbm.models.similarity import EachLine, Similarity
from edge_mbm.models.temporal import AttentionMemory, ClipEncoder, GRUMemory

__all__ = [
    "AttentionFusion",
    "AttentionMemory",
    "BottleneckFusion",
    "ClipEncoder",
    "ConcatFusion",
    "ConvEncoder",
    "EachLine",
    "GRUEncoder",
    "GRUMemory",
    "GatedFusion",
    "MultimodalModel",
    "SensorEncoder",
    "Similarity",
    "SingleModality",
    "SumFusion",
]
