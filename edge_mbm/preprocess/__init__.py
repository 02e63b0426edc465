"""Host-side steps, one implementation for training, calibration and the device."""

from edge_mbm.preprocess.audio import LogMel, mel_filterbank

__all__ = ["LogMel", "mel_filterbank"]
