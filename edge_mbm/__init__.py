"""edge-mbm: a trained multimodal model as one proven bundle, streamed on the device."""

__version__ = "0.1.0"
