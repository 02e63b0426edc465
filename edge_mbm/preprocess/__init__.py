"""Host-side steps, one implementation for training, calibration and the device."""

from edge_mbm.preprocess.audio import LogMel, as_array, as_utterance, as_waveform, mel_filterbank
from edge_mbm.preprocess.crop import Crop, CropPreprocessor, crops_of
from edge_mbm.preprocess.decoding import Decoding, Scored, Stepper
from edge_mbm.preprocess.frames import FrameFitter, FramesPreprocessor, WindowFrames, as_video, frame_windows
from edge_mbm.preprocess.image import ImagePreprocessor, as_frame, import_cv2
from edge_mbm.preprocess.regions import RegionRules, find_regions
from edge_mbm.preprocess.series import in_turn
from edge_mbm.preprocess.steps import Preprocessor, build_preprocessor
from edge_mbm.preprocess.text import Detokenizer, TextPreprocessor, as_lines, as_text

__all__ = [
    "Crop",
    "CropPreprocessor",
    "Decoding",
    "Detokenizer",
    "FrameFitter",
    "FramesPreprocessor",
    "ImagePreprocessor",
    "LogMel",
    "Preprocessor",
    "RegionRules",
    "Scored",
    "Stepper",
    "TextPreprocessor",
    "WindowFrames",
    "as_array",
    "as_frame",
    "as_lines",
    "as_text",
    "as_utterance",
    "as_video",
    "as_waveform",
    "build_preprocessor",
    "crops_of",
    "find_regions",
    "frame_windows",
    "import_cv2",
    "in_turn",
    "mel_filterbank",
]
