"""edge-mbm: a trained multimodal model as one proven bundle, streamed on the device.

::

    bundle = edge_mbm.load("model.mbm")
    with bundle.session() as session:
        [result] = session.infer(image=frame, audio=samples)

    with edge_mbm.open("model.mbm", "clip.mp4") as live:
        for result in live:
            print(result.output.label, result.age)
"""

from edge_mbm.errors import EdgeMbmError
from edge_mbm.runtime import Bundle, DecodeOptions, Live, Result, Sample, Session, SessionOptions, Source, load
from edge_mbm.runtime import open_live as open  # noqa: A004 - reads as edge_mbm.open, like gzip.open

__all__ = [
    "Bundle",
    "DecodeOptions",
    "EdgeMbmError",
    "Live",
    "Result",
    "Sample",
    "Session",
    "SessionOptions",
    "Source",
    "__version__",
    "load",
    "open",
]

__version__ = "0.1.0"
