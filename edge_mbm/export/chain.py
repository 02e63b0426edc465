"""A recording through all components, as the device's one-shot inference does it, whatever computes each of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from edge_mbm.errors import CalibrationError, EdgeMbmError, ExportError, InputError
from edge_mbm.export.graph import first_line
from edge_mbm.export.recordings import Recording
from edge_mbm.export.skeleton import Skeleton
from edge_mbm.preprocess import (
    Decoding,
    Detokenizer,
    RegionRules,
    as_frame,
    as_lines,
    as_utterance,
    as_video,
    as_waveform,
    build_preprocessor,
    crops_of,
    find_regions,
    frame_windows,
    in_turn,
)
from edge_mbm.spec import (
    Classification,
    CropSteps,
    Decoder,
    Detector,
    Encoder,
    Head,
    ImageSteps,
    Input,
    Output,
    TokenSteps,
    Window,
    tensor_given,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Arrays", "Call", "Chain", "GraphRunner", "Runner", "downstream"]

Arrays: TypeAlias = dict[str, "NDArray[Any]"]
Call: TypeAlias = Callable[[str, Arrays], None]


class Runner(Protocol):
    """Computes one component: all of its graph's inputs in, its outputs and next states out.

    A protocol because torch, an ONNX graph and the calibration's observer take turns in the same chain.
    """

    def __call__(self, inputs: Arrays) -> Mapping[str, NDArray[Any]]:
        """One call at batch 1; the caller may keep what it gets."""
        ...


class Chain:
    """The components in running order with their preprocessing.

    Args:
        components: in running order.
        assets: name -> bytes of the files that preprocessing needs, see ``tokenizer_files``.
    """

    def __init__(self, components: Mapping[str, Skeleton], assets: Mapping[str, bytes] | None = None) -> None:
        self._components = components
        self._prepare = {
            (name, key): build_preprocessor(value.preprocess, value.tensor, assets)
            for name, component in components.items()
            for key, value in component.inputs.items()
            if _is_prepared(value)
        }
        self._words = {
            name: Detokenizer((assets or {})[component.tokenizer])
            for name, component in components.items()
            if isinstance(component, Decoder)
        }
        self._lines = {
            value.source: value.preprocess.lines
            for component in components.values()
            for value in component.inputs.values()
            if isinstance(value.preprocess, TokenSteps)
        }

    def run(
        self,
        recording: Recording,
        runners: Mapping[str, Runner],
        known: Mapping[str, NDArray[Any]] | None = None,
        on_call: Call | None = None,
    ) -> Arrays:
        """Every component's outputs for one recording, apart from any stream.

        A windowed encoder takes the recording's whole windows in turn, from a zero state; its last outputs count. So
        does an encoder of frames or vectors, where the recording has a series of them.

        Args:
            recording: modalities that it lacks are missing to the heads.
            runners: per component.
            known: "component.output" -> array, computed before: their components are not run again.
            on_call: told each component's name and inputs before it runs.

        Returns:
            "component.output" -> array with a batch axis of 1; of a decoder the text, str[1].

        Raises:
            CalibrationError: the recording does not fit, or is too short for a window.
        """
        outputs: Arrays = dict(known or {})
        for name, component in self._components.items():
            if all(f"{name}.{key}" in outputs for key in component.outputs):
                continue
            ask = _observed(name, runners, on_call)
            if isinstance(component, Decoder):
                outputs |= self._decoded(name, component, outputs, ask)
                continue
            if isinstance(component, Encoder) and component.reads_crops:
                outputs |= self._of_regions(name, component, recording, outputs, ask)
                continue
            last: Mapping[str, NDArray[Any]] | None = None
            states = {s.input: np.zeros(s.tensor.resolve(), s.tensor.dtype) for s in component.states}
            for prepared in self._calls(name, component, recording, outputs):
                inputs = {key: ({**prepared, **states})[key] for key in component.graph_inputs()}
                last = ask(inputs)
                states = {state.input: np.asarray(last[state.output]) for state in component.states}
            if last is not None and isinstance(component, Detector):
                outputs |= self._found(name, component, last, recording)
            elif last is not None:
                outputs |= {
                    f"{name}.{key}": np.asarray(last[key])[:, : self._scores(value, recording)]
                    for key, value in component.outputs.items()
                }
        return outputs

    def _decoded(self, name: str, decoder: Decoder, outputs: Arrays, ask: Runner) -> Arrays:
        """The text that a decoder makes of what came before, if that is there."""
        if any(value.source not in outputs for value in decoder.inputs.values()):
            return {}
        given = {key: outputs[value.source] for key, value in decoder.inputs.items()}
        stepper = _RunnerStepper(decoder, given, ask)
        decoding = Decoding(decoder, name)
        tokens = [scored.token for scored in decoding.greedy(stepper)]
        [output] = decoder.outputs
        return {f"{name}.{output}": np.array([self._words[name](decoding.written(tokens))])}

    def _found(self, name: str, detector: Detector, given: Mapping[str, NDArray[Any]], recording: Recording) -> Arrays:
        """The regions among a detector's candidates, as on the device."""
        [output] = detector.outputs
        modality, steps = self._picture(name)
        with _fits(name, recording):
            rows, columns = as_frame(recording.inputs[modality]).shape[:2]
            found = find_regions(np.asarray(given[output])[0], RegionRules.of(detector), steps, (rows, columns))
        return {f"{name}.{output}": found.regions[None]}

    def _of_regions(self, name: str, encoder: Encoder, recording: Recording, outputs: Arrays, ask: Runner) -> Arrays:
        """What an encoder says of each region that a detector found, with zeros after the last, as on the device."""
        source = next(iter(encoder.inputs.values())).source  # all are of one
        if source not in outputs:
            return {}
        given = {key: tensor_given(self._components, f"{name}.{key}") for key in encoder.outputs}
        found = {key: np.zeros(tensor.resolve(), tensor.dtype) for key, tensor in given.items()}
        [modality] = self._modalities(name)
        with _fits(name, recording):
            crops = list(crops_of(recording.inputs[modality], outputs[source]))
            calls = [{key: self._prepare[name, key](crop) for key in encoder.inputs} for crop in crops]
        for index, inputs in enumerate(calls):
            answer = ask(inputs)
            for key, array in found.items():
                array[0, index] = np.asarray(answer[key])[0]
        return {f"{name}.{key}": array for key, array in found.items()}

    def _picture(self, name: str) -> tuple[str, ImageSteps]:
        """The image that a detector's candidates are in; the manifest's rules have seen to it that there is one."""
        for value in self._components[name].inputs.values():
            if isinstance(value.preprocess, ImageSteps):
                return value.source, value.preprocess
        return self._picture(next(iter(self._components[name].inputs.values())).source.partition(".")[0])

    def _scores(self, output: Output, recording: Recording) -> int | None:
        """How many there are in a classification by the lines of a text, as on the device; None for all of them."""
        task = output.task
        if not isinstance(task, Classification) or task.labels not in self._lines:
            return None
        return len(as_lines(recording.inputs[task.labels], self._lines[task.labels]))

    def _calls(
        self, name: str, component: Encoder | Detector | Head, recording: Recording, outputs: Arrays
    ) -> Iterator[Arrays]:
        if isinstance(component, Head):
            yield from self._head_call(name, component, recording, outputs)
            return
        for items in self._items(name, component, recording, outputs):
            with _fits(name, recording):
                prepared = {
                    key: self._prepare[name, key](_plain(items[value.source]))
                    if (name, key) in self._prepare
                    else items[value.source]
                    for key, value in component.inputs.items()
                }
            yield prepared

    def _items(
        self, name: str, component: Encoder | Detector, recording: Recording, outputs: Arrays
    ) -> Iterator[Mapping[str, Any]]:
        """What a component reads, or nothing if the recording lacks it; once for every window, or item of a series."""
        known: dict[str, Any] = {**recording.inputs, **outputs}
        if any(value.source not in known for value in component.inputs.values()):
            return
        value = next(iter(component.inputs.values()))  # all are of one source
        with _fits(name, recording):
            if isinstance(component, Detector) or component.window is None:
                items: Iterable[Any] = in_turn(known[value.source], value)
            elif len(value.tensor.shape) == 5:
                items = _clips(as_video(known[value.source]), component.window)
            elif component.utterances is not None:
                items = [as_utterance(as_waveform(known[value.source]), component.window.length)]
            else:
                items = _windows(as_waveform(known[value.source]), component.window)
        yield from ({**known, value.source: item} for item in items)

    def _head_call(self, name: str, head: Head, recording: Recording, outputs: Arrays) -> Iterator[Arrays]:
        absent = [m for m in self._modalities(name) if m not in recording.inputs]
        if head.timing().needs(absent) or len(absent) == len(self._modalities(name)):
            return
        given = {
            key: outputs.get(value.source, np.zeros(value.tensor.resolve(), value.tensor.dtype))
            for key, value in head.inputs.items()
        }
        if head.present is not None:
            mask = [[modality in recording.inputs for modality in head.present.order]]
            given[head.present.input] = np.array(mask, np.float32)
        yield given

    def _modalities(self, name: str) -> list[str]:
        found: list[str] = []
        for value in self._components[name].inputs.values():
            upstream, dot, _ = value.source.partition(".")
            found += self._modalities(upstream) if dot else [value.source]
        return list(dict.fromkeys(found))


def _observed(name: str, runners: Mapping[str, Runner], on_call: Call | None) -> Runner:
    """A component's runner, after somebody has been told what it gets; looked up then, since not all need be there."""

    def ask(inputs: Arrays) -> Mapping[str, NDArray[Any]]:
        if on_call is not None:
            on_call(name, inputs)
        return runners[name](inputs)

    return ask


def _clips(frames: NDArray[np.uint8], window: Window) -> Iterator[list[NDArray[np.uint8]]]:
    """Windows of a video's frames.

    Raises:
        InputError: there are too few for one.
    """
    windows = list(frame_windows(len(frames), window))  # now, so that it is said of which recording
    return ([frames[index] for index in found.indices] for found in windows)


def _windows(samples: NDArray[np.float32], window: Window) -> Iterator[NDArray[np.float32]]:
    """Whole windows of a sound.

    Raises:
        InputError: it is shorter than one.
    """
    if len(samples) < window.length:
        raise InputError(f"it has {len(samples)} samples, a window takes {window.length}")
    starts = range(0, len(samples) - window.length + 1, window.hop)
    return (samples[start : start + window.length] for start in starts)


def _is_prepared(value: Input) -> bool:
    return "." not in value.source or isinstance(value.preprocess, TokenSteps | CropSteps)


def _plain(item: Any) -> Any:
    """What preprocessing takes: of a decoder's output, the text."""
    return str(item[0]) if isinstance(item, np.ndarray) and item.dtype.kind == "U" else item


class _RunnerStepper:
    """A decoder's steps by whatever computes them."""

    def __init__(self, decoder: Decoder, given: Arrays, runner: Runner) -> None:
        self._decoder, self._given, self._runner = decoder, given, runner
        [self._output] = decoder.outputs
        self._states = {s.input: np.zeros(s.tensor.resolve(), s.tensor.dtype) for s in decoder.states}

    def step(self, token: int, place: int) -> NDArray[np.float32]:
        step = {self._decoder.token: token, self._decoder.position: place}
        values = {**{key: np.array([[value]], np.int64) for key, value in step.items()}, **self._given, **self._states}
        inputs = {key: values[key] for key in self._decoder.graph_inputs()}
        outputs = self._runner(inputs)
        self._states = {s.input: np.asarray(outputs[s.output]) for s in self._decoder.states}
        scores: NDArray[np.float32] = np.asarray(outputs[self._output])[0].astype(np.float32)
        return scores

    def save(self) -> Arrays:
        return self._states

    def restore(self, saved: Arrays) -> None:
        self._states = saved


def downstream(components: Mapping[str, Skeleton], roots: Collection[str]) -> list[str]:
    """The roots and all that they feed, in running order."""
    found: list[str] = []
    for name, component in components.items():
        sources = {value.source.partition(".")[0] for value in component.inputs.values()}
        if name in roots or sources & set(found):
            found.append(name)
    return found


@contextmanager
def _fits(name: str, recording: Recording) -> Iterator[None]:
    try:
        yield
    except EdgeMbmError as error:
        raise CalibrationError(f"recording '{recording.id}' does not fit '{name}': {error}") from error


class GraphRunner:
    """A ``Runner`` of an ONNX graph on ONNX Runtime's CPU kernels, one thread.

    Args:
        graph: the model.
        name: the component's, for messages.
        extended: stop at extended optimisations: beyond them fp16 graphs have crashed ONNX Runtime.

    Raises:
        ExportError: it does not load.
    """

    def __init__(self, graph: bytes, name: str, *, extended: bool = False) -> None:
        import onnxruntime as ort  # noqa: PLC0415 - heavy; the chain does without

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if extended:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        self._name = name
        try:
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        except Exception as error:  # ONNX Runtime's exceptions share no base
            raise ExportError(f"ONNX Runtime cannot load the graph of '{name}': {first_line(error)}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Arrays) -> Arrays:
        """See ``Runner``; any batch.

        Raises:
            ExportError: it failed.
        """
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))
        except Exception as error:  # as above
            raise ExportError(f"ONNX Runtime cannot run the graph of '{self._name}': {first_line(error)}") from error
