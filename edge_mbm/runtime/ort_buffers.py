"""What an ONNX Runtime session reads and writes, bound once: on the host, or on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edge_mbm.runtime.states import States
from edge_mbm.spec import Component

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Buffers", "CudaBuffers", "HostBuffers"]

Arrays = Mapping[str, "NDArray[Any]"]


class Buffers(Protocol):
    """Bound memory.

    A protocol because of where it is: the host's is read and written in place, a GPU's is copied to and from.
    """

    inputs: dict[str, NDArray[Any]]
    """By tensor name, on the host."""
    outputs: dict[str, NDArray[Any]]

    @property
    def states(self) -> States | None:
        """How states are carried, unless they are inputs like others in ``inputs``."""
        ...

    def run(self) -> None:
        """From the inputs to the outputs."""
        ...

    def write(self, key: str, value: NDArray[Any]) -> None:
        """Take an input, or a state, for the next run."""
        ...

    def close(self) -> None:
        """Let go of what is bound."""
        ...


class HostBuffers:
    """Arrays that the session reads and writes where they are. ``Buffers`` of the CPU.

    Args:
        session: an ``onnxruntime.InferenceSession``.
        component: of which its graph is.
    """

    states: States | None = None

    def __init__(self, session: Any, component: Component) -> None:
        self._session = session
        self.inputs = {key: np.zeros(spec.resolve(), spec.dtype) for key, spec in component.graph_inputs().items()}
        self.outputs = {key: np.zeros(spec.resolve(), spec.dtype) for key, spec in component.graph_outputs().items()}
        self._binding = session.io_binding()
        for key, array in self.inputs.items():
            self._binding.bind_input(key, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        _bind_to_host(self._binding, self.outputs)

    def run(self) -> None:
        """See ``Buffers.run``."""
        self._session.run_with_iobinding(self._binding)

    def write(self, key: str, value: NDArray[Any]) -> None:
        """See ``Buffers.write``."""
        np.copyto(self.inputs[key], value)

    def close(self) -> None:
        """See ``Buffers.close``."""
        self._binding = self._session = None


class CudaBuffers:
    """Tensors on the GPU, allocated once. ``Buffers`` and ``States`` of ONNX Runtime's CUDA provider.

    - Inputs have one each, which every run copies the host's array to, unless they are held. To bind the array itself
      would be wrong: the CUDA provider copies at the time of binding, and would compute the first frame for ever.
    - Carried states have two, read from and written to in turns, and never leave the GPU; only one that is an output
      as well is copied.
    - Outputs are written to the host by the run: sessions keep them for seconds, look for what is not finite, and
      align them in time, all of which is done there.

    Args:
        ort: the module.
        session: an ``onnxruntime.InferenceSession`` on the CUDA provider.
        component: of which its graph is.
        device: which GPU.
    """

    def __init__(self, ort: Any, session: Any, component: Component, device: int = 0) -> None:
        self._session = session
        kept = [state for state in component.states if state.output not in component.outputs]
        self._kept = {state.input: state for state in kept}
        self._shown = [state for state in component.states if state.output in component.outputs]
        hidden = {state.output for state in kept}
        given, made = component.graph_inputs(), component.graph_outputs()
        self.inputs = {k: np.zeros(s.resolve(), s.dtype) for k, s in given.items() if k not in self._kept}
        self.outputs = {k: np.zeros(s.resolve(), s.dtype) for k, s in made.items() if k not in hidden}

        def allocate(shape: tuple[int, ...], dtype: str) -> Any:
            return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(dtype).type, "cuda", device)

        self._given = {key: allocate(array.shape, array.dtype.name) for key, array in self.inputs.items()}
        self._pairs = {
            k: [allocate(s.tensor.resolve(), s.tensor.dtype) for _ in range(2)] for k, s in self._kept.items()
        }
        self._held: set[str] = set()
        self._turn = 0
        self._bindings = [self._bind(turn) for turn in range(2)]
        self.reset()

    @property
    def states(self) -> States:
        """Itself."""
        return self

    def run(self) -> None:
        """See ``Buffers.run``."""
        for key, array in self.inputs.items():
            if key not in self._held:
                self._given[key].update_inplace(array)
        binding = self._bindings[self._turn]
        # The run is on a stream of its own, which does not wait for copies on another.
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding)

    def write(self, key: str, value: NDArray[Any]) -> None:
        """See ``Buffers.write``."""
        if key in self._kept:
            self._read_next(key).update_inplace(np.ascontiguousarray(value))
            return
        np.copyto(self.inputs[key], value)
        if key in self._held:
            self._given[key].update_inplace(self.inputs[key])

    def hold(self, inputs: Arrays) -> None:
        """See ``States.hold``: copied now, and not at every run."""
        self._held.update(inputs)
        for key, value in inputs.items():
            self.write(key, value)

    def close(self) -> None:
        """See ``Buffers.close``: frees the GPU's memory, whoever still holds this."""
        self._session = None
        self._bindings.clear()
        self._given.clear()
        self._pairs.clear()

    def carry(self, outputs: Arrays) -> None:
        """See ``States.carry``: what was written is read next, where it is."""
        self._turn = 1 - self._turn
        for state in self._shown:
            np.copyto(self.inputs[state.input], outputs[state.output])

    def reset(self) -> None:
        """See ``States.reset``."""
        for key, state in self._kept.items():
            self._read_next(key).update_inplace(np.zeros(state.tensor.resolve(), state.tensor.dtype))
        for state in self._shown:
            self.inputs[state.input][...] = 0

    def save(self) -> dict[str, NDArray[Any]]:
        """See ``States.save``."""
        shown = {state.input: self.inputs[state.input].copy() for state in self._shown}
        return {key: self._read_next(key).numpy() for key in self._kept} | shown

    def restore(self, saved: Arrays) -> None:
        """See ``States.restore``."""
        for key, value in saved.items():
            self.write(key, value)

    def _read_next(self, key: str) -> Any:
        return self._pairs[key][self._turn]

    def _bind(self, turn: int) -> Any:
        """The binding of every other run."""
        binding = self._session.io_binding()
        for key, value in self._given.items():
            binding.bind_ortvalue_input(key, value)
        for key, state in self._kept.items():
            binding.bind_ortvalue_input(key, self._pairs[key][turn])
            binding.bind_ortvalue_output(state.output, self._pairs[key][1 - turn])
        _bind_to_host(binding, self.outputs)
        return binding


def _bind_to_host(binding: Any, outputs: Arrays) -> None:
    """Let runs write into these arrays; from a GPU they are copied to."""
    for key, array in outputs.items():
        binding.bind_output(key, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
