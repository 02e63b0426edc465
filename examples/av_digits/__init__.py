"""Audio-visual digits: handwritten and spoken, each too degraded to be read alone."""
