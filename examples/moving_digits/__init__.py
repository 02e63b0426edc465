"""Handwritten digits that drift before a camera that may turn: what `clip_motion.py` learns from."""
