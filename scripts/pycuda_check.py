"""The TensorRT engine through the real pycuda, on a machine without a GPU: libcuda is ours (libcuda.c).

    python scripts/pycuda_check.py

The tests' fake driver is written after pycuda; this is pycuda itself, so that a call that it does not have, an argument
that it does not take, a context that it wants or memory that it frees late shows before a GPU is there. Needs a C
compiler and an installed pycuda, which is compiled where it is installed (CURAND is not needed).
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
KERNEL = ctypes.CFUNCTYPE(None)


def main() -> int:
    """Build the library, start again with it, and check; returns the exit code."""
    if "EDGE_MBM_LIBCUDA" in os.environ:
        return check(ctypes.CDLL("libcuda.so.1"))
    spec = importlib.util.find_spec("pycuda")
    if spec is None or spec.origin is None:
        sys.stderr.write("pycuda is not installed\n")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        build(next(Path(spec.origin).parent.glob("_driver*.so")), Path(folder))
        environment = os.environ | {"LD_LIBRARY_PATH": folder, "EDGE_MBM_LIBCUDA": "1"}
        return subprocess.run([sys.executable, __file__], env=environment, check=False).returncode


def build(extension: Path, folder: Path) -> None:
    """Compile libcuda.c, and with it every function that pycuda wants and nobody calls."""
    library = folder / "libcuda.so.1"
    source = (HERE / "libcuda.c").read_text()
    wanted = subprocess.run(["nm", "-D", "--undefined-only", extension], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in wanted.stdout.splitlines() if line.split()[-1].startswith("cu")}
    rest = "".join(
        f"int {name}(void) {{ return NOT_SUPPORTED; }}\n" for name in sorted(names) if f" {name}(" not in source
    )
    (folder / "all.c").write_text(source + rest)
    subprocess.run(["cc", "-w", "-shared", "-fPIC", "-o", library, folder / "all.c"], check=True)


def check(library: Any) -> int:
    """Engines of the tiny bundle, in every way of running, against ONNX Runtime; then what is left of them."""
    from edge_mbm.runtime.trt.cuda import open_cuda  # noqa: PLC0415 - only here is there a libcuda
    from edge_mbm.runtime.trt.device import look_at_gpu  # noqa: PLC0415
    from edge_mbm.runtime.trt.place import Place  # noqa: PLC0415
    from edge_mbm.runtime.trt.release import Release  # noqa: PLC0415
    from edge_mbm.testing.tensorrt import fake_tensorrt  # noqa: PLC0415

    cuda = open_cuda()
    with cuda.current():
        gpu = look_at_gpu(cuda.driver)
    place = Place(Release(fake_tensorrt("10.3.0", Memory(library))), gpu, cuda)  # type: ignore[arg-type]
    engines = [engine for name in ("event", "audio_encoder", "image_encoder") for engine in compared(name, place)]
    assert library.fake_copies() > 0
    assert library.fake_kernels() >= 3 * len(engines)
    free_elsewhere(engines)
    report = {name: getattr(library, f"fake_{name}")() for name in ("live", "bad", "depth")}
    assert report == {"live": 0, "bad": 0, "depth": 0}, report
    sys.stdout.write(f"{gpu}: as ONNX Runtime computes it, and nothing is left\n")
    return 0


def compared(name: str, place: Any) -> Any:
    """Engines of a component, each of which gave what ONNX Runtime gives."""
    import edge_mbm  # noqa: PLC0415 - as above
    from edge_mbm.runtime.engine import OnnxRuntimeEngine  # noqa: PLC0415
    from edge_mbm.runtime.trt.engine import EngineOptions, TensorRTEngine  # noqa: PLC0415
    from edge_mbm.testing import tiny_bundle  # noqa: PLC0415

    with edge_mbm.load(tiny_bundle()) as bundle:
        component = bundle.manifest.components[name]
        graph = bundle.read(component.variants["fp32"].graph or "")
    reference = OnnxRuntimeEngine(name, component, graph)
    rng = np.random.default_rng(0)
    for use_graph in (True, False):
        for mapped in (True, False):
            options = EngineOptions(use_graph=use_graph, mapped=mapped)
            engine = TensorRTEngine(name, component, b"FAKE 10.3.0\n" + graph, place, options)
            assert engine.replays == use_graph
            for _ in range(3):
                given = {
                    k: rng.uniform(0, 200, s.resolve()).astype(s.dtype) for k, s in component.graph_inputs().items()
                }
                states = {state.input: given.pop(state.input) for state in component.states}
                answers = [one_step(one, component, given, states) for one in (reference, engine)]
                assert all(np.array_equal(answers[0][key], value) for key, value in answers[1].items())
            assert engine.device_us == 1500.0
            yield engine


def one_step(engine: Any, component: Any, given: Any, states: Any) -> dict[str, Any]:
    """Outputs, and the states afterwards, from these states; what does not change within a text is held."""
    from edge_mbm.runtime.states import states_of  # noqa: PLC0415 - as above

    carried = states_of(engine, component.states)
    carried.reset()
    carried.restore(states)
    held = dict(list(given.items())[:1])
    carried.hold(held)
    outputs = engine.run({key: value for key, value in given.items() if key not in held})
    found = {key: outputs[key].copy() for key in component.outputs}
    carried.carry(outputs)
    return found | {f"state {key}": value for key, value in carried.save().items()}


def free_elsewhere(engines: list[Any]) -> None:
    """Half by closing them, half by their last reference, in another thread than they were made in."""

    def free() -> None:
        for engine in engines[::2]:
            engine.close()
        engines.clear()
        gc.collect()

    thread = threading.Thread(target=free)
    thread.start()
    thread.join()


class Memory:
    """What ``fake_tensorrt`` wants of a driver, on the memory and the streams of libcuda.c."""

    def __init__(self, library: Any) -> None:
        library.fake_launch.argtypes = (ctypes.c_void_p, KERNEL)
        self.calls: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.streams, self.bytes = Streams(library), Anywhere()

    def tensor(self, address: int, shape: tuple[int, ...], dtype: Any) -> Any:
        """What is at an address."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


class Streams:
    """Handle -> a stream on which Python functions can be queued."""

    def __init__(self, library: Any) -> None:
        self._library, self._kept = library, []  # type: ignore[var-annotated]

    def __getitem__(self, handle: int) -> Streams:
        self._handle = handle
        return self

    def queue(self, kernel: Any) -> None:
        """As ``FakeDriver``'s streams do."""
        self._kept.append(KERNEL(kernel))
        self._library.fake_launch(self._handle, self._kept[-1])


class Anywhere:
    """Every address is one of this GPU's."""

    def __contains__(self, address: int) -> bool:
        return True


if __name__ == "__main__":
    sys.exit(main())
