"""How hot the machine is and what it draws, from Linux's sysfs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

__all__ = ["Heat", "HeatReader", "Rail", "Zone"]

_ROOT = Path("/")
# Boards list dozens of zones and rails; what an odd driver lists beyond that is not looked at.
_MOST = 64
_PLAUSIBLE_C = (-40.0, 150.0)
"""Sensors that are off say 0 K, -127 or 255 degrees."""
_THROTTLING = ("passive", "hot", "critical")
"""Kinds of trip points at which a machine gets slower or stops; at "active" ones only a fan starts."""


class Zone(Struct, frozen=True, kw_only=True):
    """One thermal zone."""

    name: str
    temperature_c: float
    limit_c: float | None
    """Where the kernel begins to slow the machine down, or stops it."""

    @property
    def headroom_c(self) -> float | None:
        """Degrees left until then."""
        return None if self.limit_c is None else self.limit_c - self.temperature_c


class Rail(Struct, frozen=True, kw_only=True):
    """One power sensor."""

    name: str
    watts: float
    alarm: bool
    """Whether the sensor says that it is above its limit."""


class Heat(Struct, frozen=True, kw_only=True):
    """One look at the machine's sensors; empty where it has none."""

    zones: tuple[Zone, ...] = ()
    rails: tuple[Rail, ...] = ()
    throttles: int = 0
    """How often the board has cut its clocks for too high a current, since it started (Jetson)."""

    @property
    def closest(self) -> Zone | None:
        """The zone with the fewest degrees left; without limits the hottest; None if there is none."""
        limited = [zone for zone in self.zones if zone.headroom_c is not None]
        if limited:
            return min(limited, key=lambda zone: zone.headroom_c or 0.0)
        return max(self.zones, key=lambda zone: zone.temperature_c, default=None)

    @property
    def watts(self) -> float | None:
        """What the machine draws: the rail that all others hang on, which draws the most; None without sensors."""
        return max((rail.watts for rail in self.rails), default=None)


class _Sensor(NamedTuple):
    """Where a zone is, and what does not change about it."""

    name: str
    path: Path
    limit_c: float | None


class _Meter(NamedTuple):
    """Files of one power sensor, in one of sysfs's two ways."""

    name: str
    microwatts: Path | None
    millivolts: Path
    milliamperes: Path
    alarms: tuple[Path, ...]


class HeatReader:
    """Looks for sensors once, and reads them as often as it is asked.

    Thermal zones with their trip points; hwmon's power sensors, INA3221 among them; and the over-current counters of
    Jetsons. A file that cannot be read, or says nothing sensible, is as if it were not there: nothing is ever raised.

    Args:
        root: where ``sys`` is, for tests.
    """

    def __init__(self, root: Path = _ROOT) -> None:
        self._sensors = tuple(_sensors(root / "sys/class/thermal"))
        chips = _listed(root / "sys/class/hwmon", "hwmon*")
        self._meters = tuple(meter for chip in chips for meter in _meters(chip))
        self._counters = tuple(path for chip in chips for path in _listed(chip, "oc*_event_cnt"))

    def read(self) -> Heat:
        """The sensors now; takes about as long as a file each, and up to some ms for a sensor on an I2C bus."""
        return Heat(
            zones=tuple(zone for sensor in self._sensors if (zone := _zone(sensor)) is not None),
            rails=tuple(rail for meter in self._meters if (rail := _rail(meter)) is not None),
            throttles=sum(_number(path) or 0 for path in self._counters),
        )


def _sensors(thermal: Path) -> Iterator[_Sensor]:
    for path in _listed(thermal, "thermal_zone*"):
        limits = [limit for trip in _listed(path, "trip_point_*_type") if (limit := _limit(trip)) is not None]
        yield _Sensor(_text(path / "type") or path.name, path / "temp", min(limits, default=None))


def _limit(kind: Path) -> float | None:
    """A trip point's temperature, if the machine gets slower at it."""
    if _text(kind) not in _THROTTLING:
        return None
    limit = _degrees(kind.with_name(kind.name.removesuffix("type") + "temp"))
    # A trip point that is not in use is at 0 or below.
    return limit if limit is not None and limit > 0 else None


def _zone(sensor: _Sensor) -> Zone | None:
    degrees = _degrees(sensor.path)
    return None if degrees is None else Zone(name=sensor.name, temperature_c=degrees, limit_c=sensor.limit_c)


def _meters(chip: Path) -> Iterator[_Meter]:
    name = _text(chip / "name") or chip.name
    for path in _listed(chip, "power*_input"):
        channel = path.name.removesuffix("_input")
        label = _text(chip / f"{channel}_label") or name
        yield _Meter(label, path, path, path, _alarms(chip, channel))
    for path in _listed(chip, "curr*_input"):
        channel = path.name.removesuffix("_input")
        volts = chip / f"in{channel.removeprefix('curr')}_input"
        label = _text(volts.with_name(volts.name.removesuffix("input") + "label")) or name
        # INA3221's fourth channel sums currents of different voltages.
        if not label.startswith("sum of"):
            yield _Meter(label, None, volts, path, _alarms(chip, channel))


def _alarms(chip: Path, channel: str) -> tuple[Path, ...]:
    return tuple(chip / f"{channel}_{kind}" for kind in ("alarm", "crit_alarm", "max_alarm"))


def _rail(meter: _Meter) -> Rail | None:
    watts = _watts(meter)
    if watts is None or watts < 0:
        return None
    return Rail(name=meter.name, watts=watts, alarm=any(_number(path) == 1 for path in meter.alarms))


def _watts(meter: _Meter) -> float | None:
    if meter.microwatts is not None:
        microwatts = _number(meter.microwatts)
        return None if microwatts is None else microwatts / 1e6
    millivolts, milliamperes = _number(meter.millivolts), _number(meter.milliamperes)
    return None if millivolts is None or milliamperes is None else millivolts * milliamperes / 1e6


def _degrees(path: Path) -> float | None:
    millidegrees = _number(path)
    least, most = _PLAUSIBLE_C
    return millidegrees / 1e3 if millidegrees is not None and least < millidegrees / 1e3 < most else None


def _listed(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))[:_MOST]
    except OSError:
        return []


def _number(path: Path) -> int | None:
    text = _text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    """A file's first characters, in one line."""
    try:
        with path.open("rb") as file:
            data = file.read(128)
    except (OSError, ValueError):
        return None
    text = "".join(c for c in data.decode("utf-8", errors="replace").strip() if c.isprintable())
    return text or None
