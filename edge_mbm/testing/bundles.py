"""A whole bundle in a few kilobytes."""

from __future__ import annotations

from pathlib import Path

__all__ = ["tiny_bundle"]


def tiny_bundle() -> Path:
    """A two-modality bundle whose right answers can be computed in the head.

    ``image`` (any frame, seen at 8x8 RGB) and ``audio`` (1000 Hz, windows of 100 samples, a carried level) feed the
    head "event" (red, green, blue, loud; pivot image; either may be missing); the head "color" (red, green, blue) sees
    the image alone. Needs onnxruntime, or ``NullEngine``.
    """
    return Path(__file__).with_name("tiny.mbm")
