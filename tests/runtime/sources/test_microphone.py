"""Microphones, with a PortAudio that a test plays; a real one is in test_real_microphone."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from edge_mbm.errors import InputError, MissingDependencyError, SourceError
from edge_mbm.runtime.sources.microphone import MicrophoneOptions, MicrophoneSource
from edge_mbm.testing import FakeClock

MS, SECOND = 1_000_000, 1_000_000_000


class PortAudioError(Exception):
    """As sounddevice's."""


class Flags:
    """As sounddevice's ``CallbackFlags``."""

    def __init__(self, *, input_overflow: bool = False) -> None:
        self.input_overflow = input_overflow


class Stream:
    """As sounddevice's ``InputStream``."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.calls: list[str] = []
        self.error: PortAudioError | None = None

    def start(self) -> None:
        self.calls.append("start")
        if self.error is not None:
            raise self.error

    def stop(self, ignore_errors: bool) -> None:
        self.calls.append("stop")

    def close(self, ignore_errors: bool) -> None:
        self.calls.append("close")


class PortAudio:
    """As the module sounddevice, with one microphone that gives what the test says."""

    PortAudioError = PortAudioError

    def __init__(self, clock: FakeClock, *, refuse: Exception | None = None) -> None:
        self.clock = clock
        self.refuse = refuse
        self.streams: list[Stream] = []
        self.unplugged = False
        self.buffer = np.zeros((320, 1), np.float32)

    def _terminate(self) -> None:
        self.unplugged = False

    def _initialize(self) -> None:
        pass

    def query_devices(self) -> list[dict[str, Any]]:
        return [
            {"name": "USB Audio: hw:1,0", "max_input_channels": 1},
            {"name": "HDMI", "max_input_channels": 0},
        ]

    def InputStream(self, **options: Any) -> Stream:  # noqa: N802
        if self.refuse is not None:
            raise self.refuse
        if self.unplugged:
            raise ValueError("it is not in the list")
        self.streams.append(Stream(**options))
        return self.streams[-1]

    def hear(self, value: float, *, after_ms: float = 20, overflow: bool = False) -> None:
        """A block of 20 ms comes, in the one buffer that PortAudio uses again and again."""
        self.clock.advance(int(after_ms * MS))
        self.buffer[:] = value
        self.streams[-1].options["callback"](self.buffer, 320, None, Flags(input_overflow=overflow))


def microphone(**options: Any) -> tuple[MicrophoneSource, PortAudio]:
    portaudio = PortAudio(FakeClock(SECOND))
    source = MicrophoneSource(options=MicrophoneOptions(**options), clock=portaudio.clock, portaudio=portaudio)
    return source, portaudio


def test_blocks_are_copies_with_counted_times() -> None:
    """The driver's buffer is used again; times count samples from the first arrival on, whatever the later do."""
    source, portaudio = microphone()
    portaudio.hear(0.25)
    portaudio.hear(0.5, after_ms=31)  # late
    portaudio.hear(0.75, after_ms=9)
    samples = iter(source.samples())
    taken = [next(samples) for _ in range(3)]
    assert [float(s.data[0, 0]) for s in taken] == [0.25, 0.5, 0.75]
    assert {(s.data.shape, s.data.dtype.name, s.rate, s.duration) for s in taken} == {
        ((320, 1), "float32", 16_000, 20 * MS)
    }
    assert [s.t for s in taken] == [SECOND, SECOND + 20 * MS, SECOND + 40 * MS]
    assert (source.timing.clock, source.losses()) == ("monotonic", {})
    source.close()


def test_the_stream_is_asked_for_what_was_said() -> None:
    """Rate, channels, blocks of the length asked for, as float32, by callback."""
    source, portaudio = microphone(rate=48_000, channels=2, block_ms=10)
    options = portaudio.streams[0].options
    expected = {"device": None, "samplerate": 48_000, "channels": 2, "blocksize": 480, "dtype": "float32"}
    assert {key: options[key] for key in expected} == expected
    source.close()


def test_what_waits_is_bounded_and_what_falls_out_is_counted() -> None:
    """With room for 0.1 s, five blocks: of eight the oldest three are gone, and the times of the others are right."""
    source, portaudio = microphone(buffer_s=0.1)
    for k in range(8):
        portaudio.hear(k / 10)
    samples = iter(source.samples())
    assert [next(samples).t - SECOND for _ in range(5)] == [k * 20 * MS for k in range(3, 8)]
    assert source.losses() == {"audio.dropped_blocks": 3}
    source.close()


def test_a_gap_that_the_driver_tells_of_moves_the_times() -> None:
    """300 ms that PortAudio lost are missing in the count, and counted."""
    source, portaudio = microphone()
    portaudio.hear(0.1)
    portaudio.hear(0.2, after_ms=320, overflow=True)
    samples = iter(source.samples())
    assert [next(samples).t - SECOND for _ in range(2)] == [0, 320 * MS]
    losses = source.losses()
    assert losses["audio.driver_overflows"] == 1
    assert losses["audio.lost_samples"] == pytest.approx(4800, abs=2)
    source.close()


def test_an_unplugged_microphone_is_an_error_after_what_it_gave() -> None:
    """PortAudio says that the stream is finished."""
    source, portaudio = microphone()
    portaudio.hear(0.1)
    portaudio.streams[0].options["finished_callback"]()
    samples = iter(source.samples())
    next(samples)
    with pytest.raises(SourceError, match=r"microphone default stopped.*unplugged"):
        next(samples)
    source.close()


def test_closing_ends_the_samples_and_frees_the_stream_once() -> None:
    """Without cancelling PortAudio's thread, which may hold the sound server's lock."""
    source, portaudio = microphone()
    portaudio.hear(0.1)
    samples = iter(source.samples())
    next(samples)
    source.close()
    source.close()
    assert list(samples) == []
    assert portaudio.streams[0].calls == ["start", "stop", "close"]
    portaudio.hear(0.2)  # a last callback that was on its way
    assert list(source.samples()) == []


def test_a_microphone_that_was_plugged_in_again_is_found() -> None:
    """PortAudio's list is begun anew where a device is not in it, but never under another open stream."""
    source, portaudio = microphone()
    portaudio.unplugged = True
    with pytest.raises(SourceError, match="not in the list"):
        MicrophoneSource(clock=portaudio.clock, portaudio=portaudio)
    source.close()
    MicrophoneSource(clock=portaudio.clock, portaudio=portaudio).close()
    assert not portaudio.unplugged


@pytest.mark.parametrize(
    "refusal", [ValueError("No input device matching 'USB Audoi'"), PortAudioError("Invalid rate")]
)
def test_what_cannot_be_opened_is_said_with_what_there_is(refusal: Exception) -> None:
    """The reason, and the name that was probably meant, among those that can record."""
    portaudio = PortAudio(FakeClock(), refuse=refusal)
    with pytest.raises(SourceError, match=r"USB Audoi cannot be opened.*USB Audio: hw:1,0") as caught:
        MicrophoneSource("USB Audoi", clock=portaudio.clock, portaudio=portaudio)
    assert caught.value.__cause__ is refusal
    assert "HDMI" not in str(caught.value)


def test_one_that_does_not_start_is_an_error() -> None:
    """With PortAudio's reason."""
    source, portaudio = microphone()
    portaudio.streams[0].error = PortAudioError("device busy")
    with pytest.raises(SourceError, match="device busy"):
        next(iter(source.samples()))
    source.close()


def test_without_sounddevice_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module, and the library under it."""
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingDependencyError, match=r"'sounddevice'.*pip install.*libportaudio2"):
        MicrophoneSource()


def test_without_portaudio_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """sounddevice is there and raises OSError on import, because its library is not."""

    def fail(name: str) -> Any:
        raise OSError("PortAudio library not found")

    monkeypatch.setattr("edge_mbm.runtime.sources.microphone.importlib.import_module", fail)
    with pytest.raises(MissingDependencyError, match="apt-get install libportaudio2"):
        MicrophoneSource()


@pytest.mark.parametrize(
    "wrong", [{"rate": 12}, {"channels": 0}, {"block_ms": 0}, {"block_ms": 200, "buffer_s": 0.1}, {"buffer_s": -1}]
)
def test_impossible_options_are_refused(wrong: dict[str, Any]) -> None:
    """Before any device is touched."""
    with pytest.raises(InputError):
        MicrophoneOptions(**wrong)
