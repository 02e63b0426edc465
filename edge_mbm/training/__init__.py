"""torch: fitting a multimodal model so that it survives missing modalities."""

from edge_mbm.training.contrastive import contrastive_loss
from edge_mbm.training.dropout import modality_dropout
from edge_mbm.training.fit import FitOptions, fit

__all__ = ["FitOptions", "contrastive_loss", "fit", "modality_dropout"]
