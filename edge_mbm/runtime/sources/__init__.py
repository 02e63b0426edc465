"""Where samples come from: cameras, microphones, network streams, recordings, and what the program itself has."""

from edge_mbm.runtime.sources.camera import CameraOptions, CameraSource
from edge_mbm.runtime.sources.file import FileSource
from edge_mbm.runtime.sources.isolate import IsolatedSource, isolated
from edge_mbm.runtime.sources.microphone import MicrophoneOptions, MicrophoneSource
from edge_mbm.runtime.sources.push import ArraySource, CallableSource, FixedTextSource, SensorSource, TextSource
from edge_mbm.runtime.sources.shared import SharedSource
from edge_mbm.runtime.sources.stream import StreamOptions, StreamSource
from edge_mbm.runtime.sources.supervise import Supervised, Supervision
from edge_mbm.runtime.sources.uri import open_source

__all__ = [
    "ArraySource",
    "CallableSource",
    "CameraOptions",
    "CameraSource",
    "FileSource",
    "FixedTextSource",
    "IsolatedSource",
    "MicrophoneOptions",
    "MicrophoneSource",
    "SensorSource",
    "SharedSource",
    "StreamOptions",
    "StreamSource",
    "Supervised",
    "Supervision",
    "TextSource",
    "isolated",
    "open_source",
]
