"""Addresses of cameras, microphones and recordings, and what they open."""

from __future__ import annotations

import difflib
import importlib
import math
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from edge_mbm.errors import InputError, SourceError
from edge_mbm.runtime.clock import Clock
from edge_mbm.runtime.source import Source
from edge_mbm.runtime.sources.camera import CameraOptions, CameraSource, open_csi, open_v4l2
from edge_mbm.runtime.sources.file import FileSource
from edge_mbm.runtime.sources.isolate import isolated
from edge_mbm.runtime.sources.mask import mask
from edge_mbm.runtime.sources.microphone import MicrophoneOptions, MicrophoneSource
from edge_mbm.runtime.sources.stream import StreamOptions, StreamSource
from edge_mbm.runtime.sources.supervise import Supervised, Supervision

__all__ = ["SCHEMES", "Isolation", "open_source"]

AUDIO_BLOCKS = 500
"""Blocks of sound that wait in front of a busy program: 10 s of 20 ms."""

SLOT_BYTES = 1920 * 1080 * 3
"""The largest frame from a process of its own."""
Isolation: TypeAlias = Literal["thread", "process"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class _Names(NamedTuple):
    """What the bundle calls its picture and its sound; None for not wanted."""

    image: str | None
    audio: str | None


class _Live(NamedTuple):
    """How to open a device, and what it is expected to give."""

    open: Callable[[], Source]
    modalities: tuple[str, ...]


def open_source(
    source: str | os.PathLike[str] | Source,
    *,
    image: str | None = "image",
    audio: str | None = "audio",
    clock: Clock | None = None,
    supervision: Supervision | None = None,
    isolation: Isolation = "thread",
) -> Source:
    """Open what an address names.

    ::

        v4l2:///dev/video0?width=1280&height=720&fps=30    a USB camera
        csi://0?width=1280&height=720&fps=30               a Jetson's CSI camera
        mic://default?rate=16000&channels=1&block=20ms     a microphone, by name or number
        rtsp://user:password@host/path#transport=udp       a network camera; also http, https, udp
        clip.mp4, file:///data/clip.mp4                    a recording
        drive.mcap, mcap:///data/drive.mcap                a recording of samples

    Options stand in the query; for network cameras, whose query belongs to the camera, after the #. Devices are opened
    now and supervised: one that is not there yet, or goes away, is tried again.

    Args:
        source: an address, a path, or a source, which is returned as it is.
        image: modality that pictures are; None to leave them out.
        audio: modality that sound is; None to leave it out.
        clock: monotonic time.
        supervision: how patient to be with a device.
        isolation: "process" opens a device in a process of its own, for a driver that may hang or crash; frames up to
            1920x1080 come through shared memory, without a copy more. The program's own start must then be behind
            ``if __name__ == "__main__"``.

    Raises:
        InputError: an option that is unknown or has a wrong value.
        MissingDependencyError: an optional package is not installed.
        SourceError: an unknown kind of address, or a recording that cannot be opened.
    """
    if not isinstance(source, str | os.PathLike):
        return source
    text, names = os.fspath(source), _Names(image, audio)
    scheme = _SCHEME.match(text)
    if scheme is None or scheme[1].lower() == "file":
        return _open_file(text if scheme is None else unquote(_split(text).path), names)
    kind = scheme[1].lower()
    if kind == "mcap":
        return _open_mcap(unquote(text[len("mcap://") :]))
    if kind not in _LIVE:
        raise SourceError(f"{mask(text)} is of no known kind. {_did_you_mean(kind, SCHEMES)}")
    live = _LIVE[kind](text, names, clock)
    opener = live.open if isolation == "thread" else isolated(partial(_open_device, text, names), slot_bytes=SLOT_BYTES)
    supervised = Supervised(text, opener, live.modalities, audio_blocks=AUDIO_BLOCKS, options=supervision, clock=clock)
    supervised.prepare()
    return supervised


def _open_device(text: str, names: _Names) -> Source:
    """Open a device by its address, in whatever process this is."""
    scheme = _SCHEME.match(text)
    assert scheme is not None
    return _LIVE[scheme[1].lower()](text, names, None).open()


def _open_file(path: str, names: _Names) -> Source:
    return _open_mcap(path) if path.endswith(".mcap") else FileSource(path, image=names.image, audio=names.audio)


def _open_mcap(path: str) -> Source:
    try:
        recording = importlib.import_module("edge_mbm.runtime.recording")
    except ModuleNotFoundError:
        raise SourceError(f"{path}: this edge-mbm cannot replay MCAP recordings yet; give it a video file") from None
    source: Source = recording.ReplaySource(path)
    return source


def _v4l2(text: str, names: _Names, clock: Clock | None) -> _Live:
    url = _split(text)
    device = unquote(url.path) if not url.netloc else f"/dev/{url.netloc}"
    if device in ("", "/"):
        raise InputError(f"{text} names no camera: write v4l2:///dev/video0")
    options = CameraOptions(**_read(url.query, _CAMERA, text))
    modality = _wanted(text, "picture", names.image)
    return _Live(
        lambda: CameraSource(
            text, lambda asked: open_v4l2(device, asked), modality=modality, options=options, clock=clock
        ),
        (modality,),
    )


def _csi(text: str, names: _Names, clock: Clock | None) -> _Live:
    url = _split(text)
    if not (url.netloc + url.path.strip("/")).isdecimal():
        raise InputError(f"{text} names no sensor: write csi://0")
    sensor = int(url.netloc + url.path.strip("/"))
    options = CameraOptions(**_read(url.query, _CAMERA, text))
    modality = _wanted(text, "picture", names.image)
    return _Live(
        lambda: CameraSource(
            text, lambda asked: open_csi(sensor, asked), modality=modality, options=options, clock=clock
        ),
        (modality,),
    )


def _microphone(text: str, names: _Names, clock: Clock | None) -> _Live:
    url = _split(text)
    named = unquote(url.netloc + url.path)
    if not named:
        raise InputError(f"{text} names no microphone: write mic://default, or mic:// and part of its name")
    device = None if named == "default" else int(named) if named.isdecimal() else named
    options = MicrophoneOptions(**_read(url.query, _MICROPHONE, text))
    modality = _wanted(text, "sound", names.audio)
    return _Live(lambda: MicrophoneSource(device, modality=modality, options=options, clock=clock), (modality,))


def _stream(text: str, names: _Names, clock: Clock | None) -> _Live:
    url, _, fragment = text.partition("#")
    _check_host(text, _split(url))
    options = StreamOptions(**_read(fragment, _STREAM, text))
    expected = tuple(name for name in names if name is not None)
    if not expected:
        raise SourceError(f"{mask(text)} has picture and sound, and the bundle wants neither")
    return _Live(
        lambda: StreamSource(url, image=names.image, audio=names.audio, options=options, clock=clock), expected
    )


def _split(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError:
        # The reason would quote a part of it, which may be a password's.
        raise InputError(
            f"{mask(text)} is no address: [ and ] are for IPv6 addresses, as in rtsp://[::1]/path"
        ) from None


def _check_host(text: str, url: SplitResult) -> None:
    try:
        _ = url.port
    except ValueError:
        raise InputError(f"{mask(text)} has a port that cannot be: it is a number up to 65535") from None
    if url.scheme != "udp" and not url.hostname:
        raise InputError(f"{mask(text)} names no host: write {url.scheme}://host/path")


def _wanted(text: str, what: str, modality: str | None) -> str:
    if modality is None:
        raise SourceError(f"{text} gives a {what}, and the bundle has no use for one")
    return modality


class _Option(NamedTuple):
    """An option of an address: the field it fills, and how its text is read."""

    field: str
    read: Callable[[str], Any]


def _read(query: str, known: Mapping[str, _Option], text: str) -> dict[str, Any]:
    """The options in a query, by field."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise InputError(f"the options of {mask(text)} are not key=value&key=value") from None
    given: dict[str, Any] = {}
    for key, value in pairs:
        if key not in known:
            raise InputError(f"{mask(text)} has no option '{key}'. {_did_you_mean(key, known)}")
        option = known[key]
        if option.field in given:
            raise InputError(f"{mask(text)} has '{key}' twice")
        given[option.field] = _value(key, value, option, text)
    return given


def _value(key: str, value: str, option: _Option, text: str) -> Any:
    try:
        return option.read(value)
    except ValueError as error:
        raise InputError(f"'{key}={value}' of {mask(text)}: {error}") from None


def _did_you_mean(word: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(known)}"


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("it is a whole number")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("it is a number")
    return value


def _seconds(text: str) -> float:
    """A duration with its unit: "20ms", "1.5s"."""
    for unit, factor in (("ms", 1e-3), ("us", 1e-6), ("s", 1.0)):
        if text.endswith(unit):
            return _number(text.removesuffix(unit)) * factor
    raise ValueError("it is a time with its unit, like 20ms or 1.5s")


def _milliseconds(text: str) -> float:
    return round(_seconds(text) * 1e3, 6)


def _nanoseconds(text: str) -> int:
    return round(_seconds(text) * 1e9)


_LATENCY = _Option("latency_ns", _nanoseconds)
_CAMERA = {
    "width": _Option("width", _whole),
    "height": _Option("height", _whole),
    "fps": _Option("fps", _number),
    "latency": _LATENCY,
}
_MICROPHONE = {
    "rate": _Option("rate", _whole),
    "channels": _Option("channels", _whole),
    "block": _Option("block_ms", _milliseconds),
    "buffer": _Option("buffer_s", _seconds),
    "latency": _LATENCY,
}
_STREAM = {
    "transport": _Option("transport", str),
    "open_timeout": _Option("open_timeout_s", _seconds),
    "read_timeout": _Option("read_timeout_s", _seconds),
    "latency": _LATENCY,
}
_LIVE: dict[str, Callable[[str, _Names, Clock | None], _Live]] = {
    "v4l2": _v4l2,
    "csi": _csi,
    "mic": _microphone,
    "rtsp": _stream,
    "rtsps": _stream,
    "http": _stream,
    "https": _stream,
    "udp": _stream,
}
SCHEMES = (*_LIVE, "file", "mcap")
"""Kinds of address."""
