"""torch: fitting a multimodal model so that it survives missing modalities."""

from edge_mbm.training.dropout import modality_dropout
from edge_mbm.training.fit import FitOptions, fit

__all__ = ["FitOptions", "fit", "modality_dropout"]
