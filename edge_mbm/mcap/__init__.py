"""Recordings as MCAP files: what was captured, written so that a kill loses a second, read without trust."""

from edge_mbm.mcap.payloads import FrameFormat, SampleEncoder, check_data
from edge_mbm.mcap.reader import McapReader, Message, ReadLimits
from edge_mbm.mcap.recording import FORMAT, LOSSES, RECORDING, RESULTS, RecordedItem, RecordingReader, describe
from edge_mbm.mcap.records import Channel, Schema
from edge_mbm.mcap.schemas import Kind
from edge_mbm.mcap.writer import Compression, McapWriter

__all__ = [
    "FORMAT",
    "LOSSES",
    "RECORDING",
    "RESULTS",
    "Channel",
    "Compression",
    "FrameFormat",
    "Kind",
    "McapReader",
    "McapWriter",
    "Message",
    "ReadLimits",
    "RecordedItem",
    "RecordingReader",
    "SampleEncoder",
    "Schema",
    "check_data",
    "describe",
]
