"""What a detector's graph gives, to regions of the camera's frame: sure ones, each once, the best first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_mbm.errors import EngineError, InputError
from edge_mbm.preprocess.image import fit_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    from edge_mbm.spec import Detector, ImageSteps

__all__ = ["Found", "RegionRules", "find_regions"]


@dataclass(frozen=True, kw_only=True)
class RegionRules:
    """Which regions count.

    Args:
        max_regions: at most so many of one frame.
        score_threshold: less sure ones do not count; above 0, the score of rows without a region.
        iou_threshold: of two that overlap by at least this share of what they cover together, the surer one counts.
    """

    max_regions: int
    score_threshold: float = 0.5
    iou_threshold: float = 0.3

    @classmethod
    def of(cls, detector: Detector) -> Self:
        """As a manifest's detector says."""
        return cls(
            max_regions=detector.max_regions,
            score_threshold=detector.score_threshold,
            iou_threshold=detector.iou_threshold,
        )

    def __post_init__(self) -> None:
        """Raise InputError for a number out of range."""
        if self.max_regions < 1 or not 0 < self.iou_threshold <= 1 or not self.score_threshold > 0:
            raise InputError(
                "max_regions is at least 1, score_threshold above 0, and iou_threshold above 0 and at most 1"
            )


@dataclass(frozen=True, eq=False)
class Found:
    """The regions of one frame.

    Args:
        regions: float32[max_regions, 5 + 2 * landmarks]: x0, y0, x1, y1 in the frame's pixels, score, then x, y of each
            landmark; the surest first, zeros after the last.
        count: how many there are.
        left_out: how many more counted, but were beyond ``max_regions``.
    """

    regions: NDArray[np.float32]
    count: int
    left_out: int


def find_regions(raw: NDArray[Any], rules: RegionRules, steps: ImageSteps, frame_shape: tuple[int, int]) -> Found:
    """Choose among a graph's candidates, and map them from its input image to the frame.

    Boxes are cut off at the frame's edge, and do not count if nothing is left; landmarks may lie outside.

    Args:
        raw: float[candidates, 5 + 2 * landmarks], in pixels of the image that ``steps`` give; any order.
        rules: which count.
        steps: how the frame became the graph's input.
        frame_shape: rows and columns of the frame.

    Raises:
        EngineError: another shape, or a candidate is not finite.
    """
    if raw.ndim != 2 or raw.shape[1] < 5 or raw.shape[1] % 2 == 0:
        raise EngineError(f"a detector gives [candidates, 5 + 2 * landmarks], this one gave {list(raw.shape)}")
    # A score that is no number hides a face without a word; the rest of an unlikely candidate may be anything.
    counting = raw[~(raw[:, 4] < rules.score_threshold)].astype(np.float64)
    if not np.isfinite(counting).all():
        raise EngineError("the detector gave a region that is not finite: verify the bundle on this machine")
    mapped = _mapped(counting, steps, frame_shape)
    chosen = _each_once(mapped[np.argsort(-mapped[:, 4], kind="stable")], rules.iou_threshold)
    regions = np.zeros((rules.max_regions, raw.shape[1]), np.float32)
    count = min(len(chosen), rules.max_regions)
    regions[:count] = chosen[:count]
    return Found(regions, count, len(chosen) - count)


def _mapped(regions: NDArray[np.float64], steps: ImageSteps, shape: tuple[int, int]) -> NDArray[np.float64]:
    """In the frame's pixels, without what lies outside it."""
    along_x, along_y = fit_of(steps, *shape)
    mapped = regions.copy()
    for columns, (scale, shift), size in (((0, 2), along_x, shape[1]), ((1, 3), along_y, shape[0])):
        mapped[:, columns] = (regions[:, columns] * scale + shift).clip(0, size)
    mapped[:, 5::2] = regions[:, 5::2] * along_x[0] + along_x[1]
    mapped[:, 6::2] = regions[:, 6::2] * along_y[0] + along_y[1]
    return mapped[(mapped[:, 0] < mapped[:, 2]) & (mapped[:, 1] < mapped[:, 3])]


def _each_once(regions: NDArray[np.float64], iou_threshold: float) -> NDArray[np.float64]:
    """Greedy non-maximum suppression of what is sorted by score."""
    kept = []
    while len(regions):
        kept.append(regions[0])
        regions = regions[1:][_overlap(regions[0], regions[1:]) < iou_threshold]
    return np.array(kept).reshape(-1, regions.shape[1])


def _overlap(one: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union with each of the others."""
    sides = np.minimum(one[2:4], others[:, 2:4]) - np.maximum(one[:2], others[:, :2])
    both = sides.clip(0).prod(1)
    areas = (others[:, 2:4] - others[:, :2]).prod(1) + (one[2:4] - one[:2]).prod()
    overlap: NDArray[np.float64] = both / (areas - both)
    return overlap
