"""A detector at work: what its graph gives, to regions of the frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge_mbm.preprocess import RegionRules, as_frame, find_regions
from edge_mbm.runtime.component import ComponentRunner
from edge_mbm.runtime.engine import Engine
from edge_mbm.runtime.result import RegionsOutput
from edge_mbm.spec import Detector, ImageSteps

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DetectorRunner"]


class DetectorRunner(ComponentRunner):
    """Feeds a detector's engine, and chooses among its candidates.

    Args:
        name: the component's.
        component: a detector.
        engine: loaded with one of its variants.
        assets: name -> bytes of the files that its preprocessing needs.
        picture: modality of the frame that the regions are in, and how it became what the candidates' pixels are of.
    """

    def __init__(
        self,
        name: str,
        component: Detector,
        engine: Engine,
        assets: Mapping[str, bytes],
        picture: tuple[str, ImageSteps],
    ) -> None:
        super().__init__(name, component, engine, assets)
        self._modality, self._steps = picture
        self._rules = RegionRules.of(component)
        [self._output] = component.outputs

    def compute(self, sources: Mapping[str, Any], stages: dict[str, int]) -> dict[str, Any]:
        """The regions, as ``{output: RegionsOutput}``.

        Raises:
            EngineError: the engine failed, or a candidate is not finite.
        """
        raw = self.run(sources, stages)[self._output][0]
        rows, columns = as_frame(sources[self._modality]).shape[:2]
        found = find_regions(raw, self._rules, self._steps, (rows, columns))
        known: NDArray[Any] = found.regions[: found.count]
        regions = RegionsOutput(
            boxes=known[:, :4],
            scores=known[:, 4],
            landmarks=known[:, 5:].reshape(len(known), (known.shape[1] - 5) // 2, 2),
            left_out=found.left_out,
            padded=found.regions[None],
        )
        return {self._output: regions}
