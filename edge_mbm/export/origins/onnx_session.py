"""Foreign graphs on ONNX Runtime, with errors that name the component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edge_mbm.errors import TraceError
from edge_mbm.export.graph import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["open_session", "run_session"]


def open_session(graph: bytes, name: str) -> Any:
    """A session on one thread.

    Raises:
        TraceError: ONNX Runtime cannot load it.
    """
    import onnxruntime as ort  # noqa: PLC0415 - heavy, and torch models do without

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # strangers' graphs have much that is warned of
    # Beyond these, fp16 graphs have crashed it.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no base
        raise TraceError(f"ONNX Runtime cannot load the graph of '{name}': {first_line(error)}") from error


def run_session(session: Any, feeds: Mapping[str, NDArray[Any]], name: str) -> Sequence[NDArray[Any]]:
    """All outputs, in order.

    Raises:
        TraceError: it failed.
    """
    try:
        outputs: Sequence[NDArray[Any]] = session.run(None, dict(feeds))
    except Exception as error:  # as above
        shapes = {key: f"{value.dtype}{list(value.shape)}" for key, value in feeds.items()}
        raise TraceError(f"ONNX Runtime cannot run the graph of '{name}' on {shapes}: {first_line(error)}") from error
    return outputs
