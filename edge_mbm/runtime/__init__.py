"""The device side: numpy and one engine library, no torch, no onnx."""

from edge_mbm.runtime.bundle import Bundle, load
from edge_mbm.runtime.clock import Clock, MonotonicClock
from edge_mbm.runtime.engine import Engine, EngineLoader, OnnxRuntimeEngine
from edge_mbm.runtime.file_source import FileSource
from edge_mbm.runtime.live import Live, open_live
from edge_mbm.runtime.result import ClassificationOutput, EmbeddingOutput, RegressionOutput, Result, TaskOutput
from edge_mbm.runtime.session import Session, SessionOptions
from edge_mbm.runtime.sinks import JsonLines
from edge_mbm.runtime.source import Sample, Source
from edge_mbm.runtime.verify import Verification, verify_bundle

__all__ = [
    "Bundle",
    "ClassificationOutput",
    "Clock",
    "EmbeddingOutput",
    "Engine",
    "EngineLoader",
    "FileSource",
    "JsonLines",
    "Live",
    "MonotonicClock",
    "OnnxRuntimeEngine",
    "RegressionOutput",
    "Result",
    "Sample",
    "Session",
    "SessionOptions",
    "Source",
    "TaskOutput",
    "Verification",
    "load",
    "open_live",
    "verify_bundle",
]
