"""What differs between TensorRT's releases: the only module that knows.

=====================  ============  ==============  =====  ==============
..                     8.5           10.3 - 10.16    11.4   TensorRT-RTX
=====================  ============  ==============  =====  ==============
module                 tensorrt      tensorrt        same   tensorrt_rtx
typing                 weak          strong, a flag  same   strong, a flag
explicit batch         a flag        always          same   always
optimisation level     no            yes             yes    yes
progress monitor       no            yes             yes    yes
name of a bad node     its number    yes             yes    yes
DLA                    yes           to 10.7         11.4.1 no
GPUs that are absent   no            no              no     yes
=====================  ============  ==============  =====  ==============

The table in ``tests/export/trt_api.json`` is read from the bindings themselves. All of them have the names for the DLA;
where there is one, by the release and the device, the builder knows.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from edge_mbm.errors import EngineError, MissingDependencyError
from edge_mbm.runtime.trt.layers import DlaShare

__all__ = ["BuildSettings", "ParserProblem", "Release", "Said", "Stepped", "find_release"]

Kind: TypeAlias = Literal["tensorrt", "rtx"]
Said: TypeAlias = Callable[[str, str], None]
"""Gets what TensorRT logs: severity ("error", "warning") and message."""
Stepped: TypeAlias = Callable[[str, str, int, int], None]
"""Gets a phase that moves: its name, its parent's ("" if none), steps done and in all; -1 done where it is over."""

_MODULES: dict[Kind, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
_INSTALL: dict[Kind, str] = {
    "tensorrt": "on a Jetson it is JetPack's (apt-get install tensorrt python3-libnvinfer; the virtual environment "
    "needs --system-site-packages); elsewhere pip install 'edge-mbm[tensorrt]'",
    "rtx": "pip install 'edge-mbm[trt-check]'",
}
_DLA = (
    "Jetson AGX Orin, Orin NX and Xavier have one, and TensorRT uses it up to 10.7 (JetPack 6), and since 11.4.1 on "
    "AGX Orin with JetPack 7.2.2"
)
_NAMED = 3


@dataclass(frozen=True)
class BuildSettings:
    """How one engine is built.

    Args:
        workspace: bytes that the builder may take for scratch memory; None leaves it to TensorRT.
        level: how long it searches, 0 to 5; None for TensorRT's own, and in releases that have no levels.
        capability: "SM86": for GPUs of that kind, none of which need be here; None for the one that is. RTX only.
        timing: the timing cache's bytes as they were kept; b"" for none.
        dla_share: build for the Deep Learning Accelerator, if at least this share of the layers, 0..1, can run there;
            None builds for the GPU alone.
    """

    workspace: int | None = None
    level: int | None = None
    capability: str | None = None
    timing: bytes = b""
    dla_share: float | None = None


@dataclass(frozen=True)
class ParserProblem:
    """What the parser cannot read; ``node`` is "" where it names none."""

    node: str
    operator: str
    message: str


def find_release(kind: Kind = "tensorrt") -> Release:
    """TensorRT, or TensorRT-RTX, as it is installed.

    Raises:
        MissingDependencyError: it is not, or its libraries do not load.
    """
    reason = ""
    for name in _MODULES[kind]:
        try:
            return Release(importlib.import_module(name), kind)
        except ImportError as error:
            reason = reason or _unless_absent(error, name)
        except OSError as error:  # its libraries
            reason = str(error)
    raise MissingDependencyError(
        _MODULES[kind][0], f"running TensorRT engines{reason and f' ({reason})'}", _INSTALL[kind]
    )


def _unless_absent(error: ImportError, name: str) -> str:
    """What is wrong with a module that is there."""
    absent = isinstance(error, ModuleNotFoundError) and error.name == name
    return "" if absent else str(error).strip()


@dataclass(frozen=True)
class Release:
    """One installed TensorRT.

    Args:
        trt: its Python module.
        kind: whether it is TensorRT-RTX.
    """

    trt: Any
    kind: Kind = "tensorrt"

    def __str__(self) -> str:
        return f"{'TensorRT-RTX' if self.kind == 'rtx' else 'TensorRT'} {self.version}"

    @property
    def version(self) -> str:
        """As the module gives it: "10.3.0"."""
        return str(self.trt.__version__)

    def is_strongly_typed(self, *, dla: bool = False) -> bool:
        """Whether a network's types are the graph's; otherwise flags allow what may be used.

        For the DLA NVIDIA's own tools use weak typing, as long as there is such a thing; 11 has none.
        """
        if dla and hasattr(self.trt.BuilderFlag, "FP16"):
            return False
        return hasattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def has_levels(self) -> bool:
        """Whether the builder can be told to search less."""
        return hasattr(self.trt.IBuilderConfig, "builder_optimization_level")

    @property
    def has_progress(self) -> bool:
        """Whether the builder tells how far it is."""
        return hasattr(self.trt, "IProgressMonitor")

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Kinds of GPUs for which it builds though none is here: "SM86"; only TensorRT-RTX knows any."""
        known = getattr(self.trt, "ComputeCapability", None)
        return tuple(sorted(name for name in dir(known) if name.startswith("SM")))

    # --- building ----------------------------------------------------------------------------------------------------

    def logger(self, said: Said) -> Any:
        """A logger that passes warnings and errors on."""
        return _logger(self.trt, said)

    def create_network(self, builder: Any, *, dla: bool = False) -> Any:
        """An empty network, strongly typed where there is such a thing.

        Raises:
            EngineError: it is for the DLA, and this release or this device has none.
        """
        if dla and not builder.num_DLA_cores:
            raise EngineError(f"{self} finds no DLA here: {_DLA}. Leave out --dla")
        flags = self.trt.NetworkDefinitionCreationFlag
        flag = flags.STRONGLY_TYPED if self.is_strongly_typed(dla=dla) else flags.EXPLICIT_BATCH
        return builder.create_network(1 << int(flag))

    def parse(self, network: Any, logger: Any, graph: bytes) -> tuple[ParserProblem, ...]:
        """Read an ONNX graph into a network; what stood against it."""
        parser = self.trt.OnnxParser(network, logger)
        if parser.parse(graph):
            return ()
        return tuple(self._problem(parser.get_error(index)) for index in range(parser.num_errors))

    def configure(self, builder: Any, network: Any, settings: BuildSettings) -> Any:
        """A builder's configuration for a network that was parsed."""
        config = builder.create_builder_config()
        if settings.workspace is not None:
            config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, settings.workspace)
        if settings.level is not None and self.has_levels:
            config.builder_optimization_level = settings.level
        config.profiling_verbosity = self.trt.ProfilingVerbosity.DETAILED  # so that precisions can be read back
        dla = settings.dla_share is not None
        if dla:
            self._prefer_dla(config, network)
        if not self.is_strongly_typed(dla=dla):
            self._allow_types(config, network)
        self._set_capability(config, settings.capability)
        self._add_profile(builder, network, config)
        config.set_timing_cache(config.create_timing_cache(settings.timing), False)
        return config

    def place_on_dla(self, network: Any, config: Any, least: float) -> DlaShare:
        """How much of a network that was configured for the DLA can run there.

        Args:
            network: parsed.
            config: from ``configure``.
            least: the share of layers, 0..1, that must.

        Raises:
            EngineError: it is less, with the layers that cannot.
        """
        layers = [layer for layer in _layers(network) if layer.type != self.trt.LayerType.CONSTANT]
        unable = [layer for layer in layers if not config.can_run_on_DLA(layer)]
        share = DlaShare(able=len(layers) - len(unable), total=len(layers))
        if share.able < least * share.total or not share.able:
            named = ", ".join(f"'{layer.name}' ({layer.type.name})" for layer in unable[:_NAMED])
            raise EngineError(
                f"{share} can run on the DLA, {least:.0%} are wanted, since each change between DLA and GPU costs. "
                f"Not {named}{', ...' if len(unable) > _NAMED else ''}. Leave it on the GPU, or lower --dla-share"
            )
        return share

    def watch(self, config: Any, stepped: Stepped) -> None:
        """Have the builder tell how far it is, where it can; ``stepped`` may raise nothing."""
        if self.has_progress:
            config.progress_monitor = _monitor(self.trt, stepped)

    def serialize(self, builder: Any, network: Any, config: Any) -> bytes | None:
        """Build: the engine, or None where the builder could not; why, it logged."""
        plan = builder.build_serialized_network(network, config)
        return None if plan is None else bytes(plan)

    def timing_of(self, config: Any) -> bytes:
        """The timing cache after a build, to be kept."""
        cache = config.get_timing_cache()
        return b"" if cache is None else bytes(cache.serialize())

    def _problem(self, error: Any) -> ParserProblem:
        if hasattr(error, "node_name"):
            return ParserProblem(error.node_name(), error.node_operator(), error.desc())
        return ParserProblem(f"node {error.node()}", "", error.desc())

    def _set_capability(self, config: Any, capability: str | None) -> None:
        if capability is None:
            return
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(self.trt.ComputeCapability, capability), 0)

    def _prefer_dla(self, config: Any, network: Any) -> None:
        """With the GPU for what cannot run there. No size may be free; not every release takes a profile's word."""
        for value, shape in _free_inputs(network):
            value.shape = shape
        config.default_device_type = self.trt.DeviceType.DLA
        config.set_flag(self.trt.BuilderFlag.GPU_FALLBACK)

    def _add_profile(self, builder: Any, network: Any, config: Any) -> None:
        """Every free size is 1: a stream's calls are of batch 1."""
        profile = builder.create_optimization_profile()
        free = list(_free_inputs(network))
        for value, shape in free:
            profile.set_shape(value.name, shape, shape, shape)
        if free:
            config.add_optimization_profile(profile)

    def _allow_types(self, config: Any, network: Any) -> None:
        """Weak typing: allow what the graph contains, and hold to fp32 what is fp32 in it."""
        trt = self.trt
        layers = list(_layers(network))
        types = {kind for layer in layers for kind in _types(layer)}
        if trt.DataType.HALF in types:
            config.set_flag(trt.BuilderFlag.FP16)
            config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
            for layer in layers:
                if set(_types(layer)) == {trt.DataType.FLOAT} and layer.type != trt.LayerType.CONSTANT:
                    layer.precision = trt.DataType.FLOAT
        if any(layer.type == trt.LayerType.QUANTIZE for layer in layers):
            config.set_flag(trt.BuilderFlag.INT8)

    # --- running -----------------------------------------------------------------------------------------------------

    def deserialize(self, runtime: Any, plan: bytes, dla_core: int | None = None) -> Any | None:
        """The engine; None where this TensorRT or this GPU refuses it.

        Args:
            runtime: TensorRT's.
            plan: the engine's bytes.
            dla_core: for an engine on the DLA, on which of its cores: counted round.

        Raises:
            EngineError: there is no DLA.
        """
        if dla_core is not None:
            if not runtime.num_DLA_cores:
                raise EngineError(f"{self} finds no DLA here: {_DLA}")
            runtime.DLA_core = dla_core % runtime.num_DLA_cores
        return runtime.deserialize_cuda_engine(plan)

    def layers_json(self, engine: Any) -> str:
        """What the engine's inspector says of its layers, as JSON."""
        inspector = engine.create_engine_inspector()
        return str(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))


def _logger(trt: Any, said: Said) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc] # a class of a module that is found at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                said(severity.name.lower(), message)

    return Logger()


def _monitor(trt: Any, stepped: Stepped) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # as above
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.totals: dict[str, tuple[str, int]] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = parent_phase or "", num_steps
            stepped(phase_name, parent_phase or "", 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            parent, total = self.totals.get(phase_name, ("", 0))
            stepped(phase_name, parent, step + 1, total)
            return True

        def phase_finish(self, phase_name: str) -> None:
            parent, total = self.totals.pop(phase_name, ("", 0))
            stepped(phase_name, parent, -1, total)

    return Monitor()


def _free_inputs(network: Any) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """Inputs with a free size, and their shapes with 1 in its place."""
    for index in range(network.num_inputs):
        value = network.get_input(index)
        if -1 in tuple(value.shape):
            yield value, tuple(1 if size == -1 else size for size in value.shape)


def _layers(network: Any) -> Iterator[Any]:
    return (network.get_layer(index) for index in range(network.num_layers))


def _types(layer: Any) -> Iterator[Any]:
    """Of what goes in and comes out; shapes and indices have types of their own."""
    inputs = (layer.get_input(index) for index in range(layer.num_inputs))
    outputs = (layer.get_output(index) for index in range(layer.num_outputs))
    return (tensor.dtype for tensor in (*inputs, *outputs) if tensor is not None)
