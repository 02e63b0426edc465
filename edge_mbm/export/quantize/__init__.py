"""Our presets over well-kept quantizers: one float graph, one calibration, a quantized graph per dialect."""

from edge_mbm.export.quantize.preset import Material, Preset

__all__ = ["Material", "Preset"]
