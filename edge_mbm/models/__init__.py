"""torch modules to build multimodal models from: encoders, fusion heads, and the composed model."""

from edge_mbm.models.composed import MultimodalModel
from edge_mbm.models.encoders import ConvEncoder, GRUEncoder
from edge_mbm.models.fusion import AttentionFusion, ConcatFusion, SingleModality, SumFusion
from edge_mbm.models.similarity import EachLine, Similarity

__all__ = [
    "AttentionFusion",
    "ConcatFusion",
    "ConvEncoder",
    "EachLine",
    "GRUEncoder",
    "MultimodalModel",
    "Similarity",
    "SingleModality",
    "SumFusion",
]
