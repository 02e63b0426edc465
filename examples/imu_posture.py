"""A modality that edge-mbm knows nothing about: a robot's inertial sensor, from training to a live answer.

An inertial sensor is six numbers: acceleration (m/s2) and turn rate (rad/s) of each axis. Nothing in the package has
its name: the recipe declares a sensor of shape [6], and whatever gives such vectors can feed it.

    PYTHONPATH=examples python examples/imu_posture.py    # or: edge-mbm demo posture
    PYTHONPATH=examples python examples/imu_posture.py imu_posture.mbm    # on a device, with a bundle that is there
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import edge_mbm
from edge_mbm.runtime.sources import SensorSource

ROOT = Path(__file__).parents[1]
POSTURES = ("upright", "leaning", "fallen", "shaken")
GRAVITY = 9.81
RATE = 50.0  # Hz


@dataclass(frozen=True)
class Recording:
    """One reading and the truth about it."""

    id: str
    inputs: dict[str, NDArray[np.float32]]
    label: int


def reading(posture: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """What the sensor of a robot in a posture gives, float32[6]: gravity as the tilt turns it, motion, noise."""
    low, high = ((0.0, 0.2), (0.35, 0.9), (1.2, 1.6), (0.0, 0.5))[posture]
    tilt, heading = rng.uniform(low, high), rng.uniform(-np.pi, np.pi)
    down = np.array([np.sin(tilt) * np.cos(heading), np.sin(tilt) * np.sin(heading), np.cos(tilt)])
    shaking = 4.0 if posture == POSTURES.index("shaken") else 0.15
    acceleration = GRAVITY * down + shaking * rng.standard_normal(3)
    return np.concatenate([acceleration, 0.4 * shaking * rng.standard_normal(3)]).astype(np.float32)


def recordings(split: str) -> Iterator[Recording]:
    """Readings without end, other ones for each split."""
    rng = np.random.default_rng({"calibration": 1, "heldout": 2, "golden": 3}[split])
    for number in range(10_000):
        posture = number % len(POSTURES)
        yield Recording(f"{split}-{number:05d}", {"imu": reading(posture, rng)}, posture)


@functools.cache
def load():  # type: ignore[no-untyped-def] # noqa: ANN201 - torch is imported on the workstation only
    """An encoder and a head, trained for a few seconds on readings that no split has."""
    import torch  # noqa: PLC0415 - the live part below runs without
    from torch import nn  # noqa: PLC0415

    from edge_mbm.models import MultimodalModel, SensorEncoder, SingleModality  # noqa: PLC0415
    from edge_mbm.training import FitOptions, fit  # noqa: PLC0415

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = SensorEncoder(features=6, dim=32, std=(6.0, 6.0, 6.0, 1.0, 1.0, 1.0))
        model = MultimodalModel({"imu": encoder}, {"posture": SingleModality(dim=32, classes=len(POSTURES))})
    rng = np.random.default_rng(0)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            labels = rng.integers(len(POSTURES), size=128)
            yield torch.from_numpy(np.stack([reading(k, rng) for k in labels])), torch.from_numpy(labels)

    def loss(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model.heads["posture"](model.encoders["imu"](batch[0])), batch[1])

    fit(model, batches(), loss, FitOptions(steps=300))
    return model


def main(bundle: str) -> None:
    """Two seconds of a robot that stands, is shaken, and falls; its driver is a function that gives the newest."""
    rng = np.random.default_rng(4)
    story = iter([0] * 40 + [3] * 20 + [2] * 40)

    def driver() -> NDArray[np.float32] | None:
        posture = next(story, None)
        return None if posture is None else reading(posture, rng)

    last = None
    with edge_mbm.open(bundle, SensorSource("imu", driver, RATE)) as live:
        for count, result in enumerate(live, start=1):
            answer = result.output.as_json()
            if answer["label"] != last:
                last = answer["label"]
                print(f"{last:8} {answer['score']:.2f}  {result.age / 1e6:.1f} ms old")
            if count == 95:
                break


def exported() -> str:
    """The bundle, made now if it is not there yet."""
    from edge_mbm.cli.bars import ExportBars  # noqa: PLC0415 - for the workstation
    from edge_mbm.export import export_bundle  # noqa: PLC0415 - brings torch, which a device lacks

    bundle = ROOT / "build" / "imu_posture" / "imu_posture.mbm"
    if not bundle.exists():
        bundle.parent.mkdir(parents=True, exist_ok=True)
        with ExportBars() as bars:
            export_bundle(ROOT / "export" / "imu_posture.toml", bundle, bars)
    return str(bundle)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else exported())
