"""Sensors of machines that a test makes up."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_mbm.runtime.heat import Heat, HeatReader, Rail, Zone

JETSON = {
    "thermal/thermal_zone0/type": "cpu-thermal\n",
    "thermal/thermal_zone0/temp": "61500\n",
    "thermal/thermal_zone0/trip_point_0_type": "critical\n",
    "thermal/thermal_zone0/trip_point_0_temp": "104500\n",
    "thermal/thermal_zone0/trip_point_1_type": "passive\n",
    "thermal/thermal_zone0/trip_point_1_temp": "99000\n",
    "thermal/thermal_zone0/trip_point_2_type": "active\n",
    "thermal/thermal_zone0/trip_point_2_temp": "46000\n",
    "thermal/thermal_zone1/type": "tj-thermal\n",
    "thermal/thermal_zone1/temp": "63250\n",
    "hwmon/hwmon1/name": "ina3221\n",
    "hwmon/hwmon1/in1_label": "VDD_IN\n",
    "hwmon/hwmon1/in1_input": "5000\n",
    "hwmon/hwmon1/curr1_input": "2400\n",
    "hwmon/hwmon1/curr1_crit_alarm": "0\n",
    "hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    "hwmon/hwmon1/in2_input": "5000\n",
    "hwmon/hwmon1/curr2_input": "1000\n",
    "hwmon/hwmon1/curr2_crit_alarm": "1\n",
    "hwmon/hwmon1/in4_label": "sum of shunt voltages\n",
    "hwmon/hwmon1/in4_input": "1\n",
    "hwmon/hwmon1/curr4_input": "3400\n",
    "hwmon/hwmon2/name": "soctherm_oc\n",
    "hwmon/hwmon2/oc1_event_cnt": "2\n",
    "hwmon/hwmon2/oc3_event_cnt": "5\n",
}


def machine(root: Path, files: dict[str, str | bytes]) -> HeatReader:
    for path, content in files.items():
        place = root / "sys/class" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
    return HeatReader(root)


def test_a_jetson_is_read(tmp_path: Path) -> None:
    """Zones with the lowest trip point that slows the machine down, rails in watts, over-current events added up."""
    assert machine(tmp_path, JETSON).read() == Heat(
        zones=(
            Zone(name="cpu-thermal", temperature_c=61.5, limit_c=99.0),
            Zone(name="tj-thermal", temperature_c=63.25, limit_c=None),
        ),
        rails=(
            Rail(name="VDD_IN", watts=12.0, alarm=False),
            Rail(name="VDD_CPU_GPU_CV", watts=5.0, alarm=True),
        ),
        throttles=7,
    )


def test_the_closest_zone_is_the_one_with_the_fewest_degrees_left(tmp_path: Path) -> None:
    """Not the hottest, unless no zone says where its limit is."""
    heat = machine(tmp_path, JETSON).read()
    assert heat.closest is heat.zones[0]
    assert heat.closest.headroom_c == 37.5
    assert Heat(zones=heat.zones[1:]).closest is heat.zones[1]
    assert heat.watts == 12.0


def test_a_power_sensor_of_its_own_is_read(tmp_path: Path) -> None:
    """Microwatts, and without a label the chip's name."""
    files = {"hwmon/hwmon0/name": "rpi_pmic", "hwmon/hwmon0/power1_input": "3500000"}
    assert machine(tmp_path, files).read().rails == (Rail(name="rpi_pmic", watts=3.5, alarm=False),)


def test_a_machine_without_sensors_is_no_heat(tmp_path: Path) -> None:
    """As in a container."""
    heat = HeatReader(tmp_path).read()
    assert (heat, heat.closest, heat.watts) == (Heat(), None, None)


def test_a_sensor_that_goes_away_is_left_out(tmp_path: Path) -> None:
    """A driver that was unloaded costs its zone, not the loop."""
    reader = machine(tmp_path, JETSON)
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").unlink()
    (tmp_path / "sys/class/hwmon/hwmon1/curr1_input").unlink()
    heat = reader.read()
    assert [zone.name for zone in heat.zones] == ["tj-thermal"]
    assert [rail.name for rail in heat.rails] == ["VDD_CPU_GPU_CV"]


@pytest.mark.parametrize("reading", ["-127000", "255000", "-274000", "hot", "", "1e3", "\x00", "9" * 500])
def test_implausible_temperatures_are_left_out(tmp_path: Path, reading: str) -> None:
    """Sensors that are off say such things."""
    files = JETSON | {"thermal/thermal_zone0/temp": reading}
    assert [zone.name for zone in machine(tmp_path, files).read().zones] == ["tj-thermal"]


def test_a_trip_point_that_is_not_in_use_is_no_limit(tmp_path: Path) -> None:
    """Some boards leave it at 0."""
    files = JETSON | {"thermal/thermal_zone0/trip_point_1_temp": "0"}
    assert machine(tmp_path, files).read().zones[0].limit_c == 104.5


def test_a_folder_where_a_file_should_be_is_left_out(tmp_path: Path) -> None:
    """Reading it is an error that nobody sees."""
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").mkdir(parents=True)
    assert HeatReader(tmp_path).read() == Heat()


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(contents=st.lists(st.binary(max_size=200), min_size=len(JETSON), max_size=len(JETSON)))
def test_no_content_of_any_file_raises(tmp_path: Path, contents: list[bytes]) -> None:
    """Whatever bytes stand in them."""
    heat = machine(tmp_path, dict(zip(JETSON, contents, strict=True))).read()
    assert heat.closest is None or heat.closest.name.isprintable()
