"""A detector at work, and those who read its regions one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_mbm.preprocess import RegionRules, as_frame, crops_of, find_regions
from edge_mbm.runtime.component import ComponentRunner
from edge_mbm.runtime.engine import Engine
from edge_mbm.runtime.result import RegionsOutput
from edge_mbm.spec import Detector, Encoder, ImageSteps, TensorSpec

__all__ = ["CropsRunner", "DetectorRunner"]


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
        return {self._output: RegionsOutput.of(found.regions[None], found.left_out)}


class CropsRunner(ComponentRunner):
    """Feeds an encoder region by region.

    Args:
        name: the component's.
        component: an encoder that reads crops.
        engine: loaded with one of its variants.
        assets: name -> bytes of the files that its preprocessing needs.
        modality: of the frame that the regions are in.
        given: per output, what those get who read it, see ``tensor_given``.
    """

    def __init__(
        self,
        name: str,
        component: Encoder,
        engine: Engine,
        assets: Mapping[str, bytes],
        *,
        modality: str,
        given: Mapping[str, TensorSpec],
    ) -> None:
        super().__init__(name, component, engine, assets)
        self._modality, self._given = modality, given
        [self._regions] = self.sources

    def compute(self, sources: Mapping[str, Any], stages: dict[str, int]) -> dict[str, Any]:
        """One call for each region: the outputs of all, with zeros after the last; times are of all together.

        Raises:
            EngineError: the engine failed, or a region has no size.
        """
        outputs = {key: np.zeros(tensor.resolve(), tensor.dtype) for key, tensor in self._given.items()}
        for index, crop in enumerate(crops_of(sources[self._modality], sources[self._regions].padded)):
            took: dict[str, int] = {}
            of_one = self.run({self._regions: crop}, took)
            for key, array in outputs.items():
                array[0, index] = of_one[key][0]
            stages.update({stage: stages.get(stage, 0) + ns for stage, ns in took.items()})
        return outputs
