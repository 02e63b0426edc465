"""One camera for an image and a video modality of one bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import edge_mbm
from edge_mbm.bundle import BundleFiles, write_bundle
from edge_mbm.runtime.source import Sample
from edge_mbm.runtime.sources import SharedSource
from edge_mbm.spec import Encoder, Head, ImageSteps, Input, Output, Saliency, TensorSpec, VideoModality, Window
from edge_mbm.testing import NullEngine, ScriptedSource

PERIOD = 40_000_000
pytestmark = pytest.mark.needs("av", "cv2")


def frames(count: int) -> list[Sample]:
    return [Sample("image", np.full((8, 8, 3), n, np.uint8), n * PERIOD) for n in range(count)]


def test_each_picture_comes_under_both_names_and_is_no_copy() -> None:
    """Sound passes once; what only some sources have is still there."""
    sound = Sample("audio", np.zeros(4, np.float32), 0)
    source = ScriptedSource([*frames(2), sound])
    shared = SharedSource(source, "image", ("video",))
    assert shared.modalities == ("image", "audio", "video")
    given = list(shared.samples())
    assert [sample.modality for sample in given] == ["image", "video", "image", "video", "audio"]
    assert given[0].data is given[1].data
    shared.close()
    assert source.closed
    assert shared.closed is True
    assert not hasattr(shared, "duration")


def watching(tiny: Path, folder: Path, *, with_images: bool) -> Path:
    """The tiny bundle with a second head, of windows of four frames; or that head alone."""
    tensor = TensorSpec(dtype="uint8", shape=("batch", 4, 8, 8, 3))
    values = Output(tensor=TensorSpec(dtype="float32", shape=("batch", 4)), task=Saliency())
    with BundleFiles(tiny) as files:
        manifest, contents = files.manifest, {path: files.read(path) for path in files.manifest.files}
    variants = manifest.components["color"].variants
    window = Window(length=4, hop=4)
    steps = ImageSteps(height=8, width=8)
    watched = {
        "clip": Encoder(
            inputs={"frames": Input(source="video", tensor=tensor, preprocess=steps)},
            outputs={"values": values},
            variants=variants,
            window=window,
        ),
        "moves": Head(
            inputs={"values": Input(source="clip.values", tensor=values.tensor)},
            outputs={"score": values},
            variants=variants,
            pivot="video",
            deadline_ns=0,
        ),
    }
    video = {"video": VideoModality(rate=25.0)}
    changed = replace(
        manifest,
        modalities=(manifest.modalities | video) if with_images else video,
        components=(manifest.components | watched) if with_images else watched,
        default_heads=("color", "moves") if with_images else ("moves",),
        golden=(),
    )
    write_bundle(folder / "b.mbm", changed, contents)
    return folder / "b.mbm"


def film(folder: Path, count: int) -> Path:
    import av

    path = folder / "f.mkv"
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for _ in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_file_feeds_images_and_video_alike(tiny: Path, tmp_path: Path) -> None:
    """Of twelve frames, an answer for each, and three windows."""
    bundle = watching(tiny, tmp_path, with_images=True)
    with edge_mbm.open(bundle, film(tmp_path, 12), realtime=False, load_engine=NullEngine) as live:
        heads = [result.head for result in live]
    assert heads.count("color") == 12
    assert heads.count("moves") == 3


def test_a_bundle_of_video_alone_is_fed_by_any_camera(tiny: Path, tmp_path: Path) -> None:
    """The first pictures of an address are its video; at its own pace, too, each window is answered."""
    bundle = watching(tiny, tmp_path, with_images=False)
    for realtime in (False, True):
        with edge_mbm.open(bundle, film(tmp_path, 12), realtime=realtime, load_engine=NullEngine) as live:
            results = list(live)
        assert [result.segment.end - result.segment.start for result in results if result.segment] == [4 * PERIOD] * 3
        assert [result.dropped for result in results] == [0] * 3
