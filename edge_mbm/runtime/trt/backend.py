"""The engines of a session on TensorRT: which variant of each component, from the cache, or what else."""

from __future__ import annotations

from collections.abc import Callable

from edge_mbm.errors import EdgeMbmError, EngineError, InputError
from edge_mbm.runtime.backend import Backend
from edge_mbm.runtime.engine import Engine
from edge_mbm.runtime.log import warn
from edge_mbm.runtime.trt.cache import EngineCache, EngineKey, EngineRecord
from edge_mbm.runtime.trt.choosing import choose_engine, variants_for
from edge_mbm.runtime.trt.engine import EngineOptions, TensorRTEngine
from edge_mbm.runtime.trt.place import Place
from edge_mbm.spec import Component, Manifest

__all__ = ["TensorRTBackend"]


class TensorRTBackend:
    """Engines that ``edge-mbm compile`` built on this device. A ``Backend``.

    Args:
        place: TensorRT and the GPU; called once.
        cache: where the engines are.
        instead: runs components that have no engine here; None makes that an error.
        dla: components that run on the Deep Learning Accelerator, taking its cores in turn.

    Raises:
        MissingDependencyError, EngineError: TensorRT or a GPU is not here, and nothing runs instead.
    """

    def __init__(
        self,
        place: Callable[[], Place],
        cache: EngineCache,
        instead: Backend | None = None,
        dla: tuple[str, ...] = (),
    ) -> None:
        self._cache = cache
        self._instead = instead
        self._dla_cores = {name: core for core, name in enumerate(dla)}
        self._place = self._find(place)
        self._keys: dict[str, EngineKey] = {}

    def choose(self, manifest: Manifest, name: str, wanted: str = "auto") -> str:
        """See ``Backend.choose``; by what was measured here.

        Raises:
            InputError: what is to run on the DLA is no component.
            EngineError: no engine of it is in the cache, and nothing runs instead.
        """
        self._check_dla(manifest)
        found = {} if self._place is None else self._built(self._place, manifest, name)
        chosen = choose_engine({key: record for key, record in found.items() if wanted in ("auto", key)} or found)
        if chosen is not None:
            self._keys[name] = found[chosen.variant].key
            return chosen.variant
        place = f"the DLA by {self._place}" if name in self._dla_cores else self._place
        return self._else(name, f"has no engine for {place} in the cache").choose(manifest, name, wanted)

    def load(self, name: str, component: Component, graph: bytes) -> Engine:
        """See ``Backend.load``; the graph is only run where there is no engine."""
        if self._place is None or name not in self._keys:
            assert self._instead is not None  # or else choosing it was an error
            return self._instead.load(name, component, graph)
        found = self._cache.find(self._keys[name])
        if found is None:
            raise EngineError(f"the engine of '{name}' in the cache cannot be used. {self._remedy(name)}")
        options = EngineOptions(dla_core=self._dla_cores.get(name))
        return TensorRTEngine(name, component, found.plan, self._place, options)

    def _check_dla(self, manifest: Manifest) -> None:
        for name in self._dla_cores:
            if name not in manifest.components:
                raise InputError(f"there is no '{name}' to run on the DLA; there are {', '.join(manifest.components)}")

    def _find(self, place: Callable[[], Place]) -> Place | None:
        try:
            return place()
        except EdgeMbmError as error:
            if self._instead is None:
                raise
            warn(__name__, "TensorRT cannot be used (%s): everything runs on ONNX Runtime instead, as allowed", error)
            return None

    def _built(self, place: Place, manifest: Manifest, name: str) -> dict[str, EngineRecord]:
        """Variant -> what is known of its engine, of those that are built."""
        found, dla = {}, name in self._dla_cores
        for key, variant in variants_for(manifest.components[name], dla=dla).items():
            graph = manifest.files[variant.graph or ""].sha256
            records = (self._cache.look(where) for where in place.keys(graph, dla=dla))
            record = next((record for record in records if record is not None), None)
            if record is not None:
                found[key] = record
        return found

    def _else(self, name: str, why: str) -> Backend:
        if self._instead is None:
            raise EngineError(f"'{name}' {why}. {self._remedy(name)}")
        if self._place is not None:
            warn(__name__, "'%s' %s: it runs on ONNX Runtime instead, as allowed", name, why)
        return self._instead

    def _remedy(self, name: str) -> str:
        dla = f" --dla {name}" if name in self._dla_cores else ""
        return (
            f"Build it with edge-mbm compile BUNDLE{dla} (minutes, once), or allow ONNX Runtime in its place until "
            "then: --allow-fallback, SessionOptions(allow_fallback=True)"
        )
