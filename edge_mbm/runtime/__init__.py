"""The device side: numpy and one engine library, no torch, no onnx.

What a robot that pushes its own samples does not need is not imported here: ``edge_mbm.runtime.sources`` (cameras,
microphones, files), ``recording`` (MCAP), ``verify``, ``governor``, ``metrics``, ``tracing``.
"""

from edge_mbm.runtime.bundle import Bundle, load
from edge_mbm.runtime.clock import Clock, MonotonicClock
from edge_mbm.runtime.decode import DecodeOptions, Piece
from edge_mbm.runtime.engine import Engine, EngineLoader, OnnxRuntimeEngine
from edge_mbm.runtime.live import Live, open_live
from edge_mbm.runtime.result import (
    ClassificationOutput,
    EmbeddingOutput,
    RegionsOutput,
    RegressionOutput,
    Result,
    Segment,
    SequenceOutput,
    TaskOutput,
    TextOutput,
)
from edge_mbm.runtime.session import Session, SessionOptions
from edge_mbm.runtime.sinks import JsonLines
from edge_mbm.runtime.source import Sample, Source

__all__ = [
    "Bundle",
    "ClassificationOutput",
    "Clock",
    "DecodeOptions",
    "EmbeddingOutput",
    "Engine",
    "EngineLoader",
    "JsonLines",
    "Live",
    "MonotonicClock",
    "OnnxRuntimeEngine",
    "Piece",
    "RegionsOutput",
    "RegressionOutput",
    "Result",
    "Sample",
    "Segment",
    "SequenceOutput",
    "Session",
    "SessionOptions",
    "Source",
    "TaskOutput",
    "TextOutput",
    "load",
    "open_live",
]
