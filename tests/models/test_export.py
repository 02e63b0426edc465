"""Every module becomes an ONNX graph with a free batch that computes the same."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from edge_mbm.export.lint import lint
from edge_mbm.export.targets import target
from edge_mbm.export.trt_check import check_trt
from edge_mbm.models import (
    AttentionFusion,
    AttentionMemory,
    BottleneckFusion,
    ClipEncoder,
    ConcatFusion,
    ConvEncoder,
    GatedFusion,
    GRUEncoder,
    GRUMemory,
    SensorEncoder,
    SumFusion,
)

BATCH = torch.export.Dim("batch", min=1, max=64)


def image(batch: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 256, (batch, 28, 28, 1), dtype=torch.uint8),)


def stream(batch: int) -> tuple[Tensor, ...]:
    return torch.randn(batch, 10, 6), torch.randn(1, batch, 8)


def joined(batch: int) -> tuple[Tensor, ...]:
    return torch.randn(batch, 6), torch.randn(batch, 6), torch.randint(0, 2, (batch, 2)).float()


def sequences(batch: int) -> tuple[Tensor, ...]:
    return torch.randn(batch, 4, 6), torch.randn(batch, 6), torch.randint(0, 2, (batch, 2)).float()


def reading(batch: int) -> tuple[Tensor, ...]:
    return (torch.randn(batch, 6),)


def seen_with_gru(batch: int) -> tuple[Tensor, ...]:
    return torch.randint(0, 256, (batch, 16, 16, 1), dtype=torch.uint8), torch.randn(batch, 13)


def seen_with_window(batch: int) -> tuple[Tensor, ...]:
    filled = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(batch, 4).unsqueeze(2)
    memory = torch.cat([filled * torch.randn(batch, 4, 8), filled], dim=2)
    return torch.randint(0, 256, (batch, 16, 16, 1), dtype=torch.uint8), memory


def clip_encoder(memory: Any) -> ClipEncoder:
    return ClipEncoder(ConvEncoder(widths=(4, 8), dim=8, grid=2), memory)


FUSION = {"modalities": 2, "dim": 6, "classes": 3}
CASES: list[Any] = [
    pytest.param(lambda: ConvEncoder(widths=(4, 8), dim=6), image, ({0: BATCH},), id="conv"),
    pytest.param(lambda: GRUEncoder(features=6, hidden=8, dim=6, stack=5), stream, ({0: BATCH}, {1: BATCH}), id="gru"),
    pytest.param(lambda: SensorEncoder(features=6, std=2.0), reading, ({0: BATCH},), id="sensor"),
    pytest.param(
        lambda: clip_encoder(GRUMemory(dim=8, hidden=5)), seen_with_gru, ({0: BATCH}, {0: BATCH}), id="clip-gru"
    ),
    pytest.param(
        lambda: clip_encoder(AttentionMemory(dim=8, frames=4)),
        seen_with_window,
        ({0: BATCH}, {0: BATCH}),
        id="clip-attention",
    ),
    *(
        pytest.param(lambda kind=kind: kind(**FUSION), joined, (({0: BATCH},) * 3,), id=kind.__name__)
        for kind in (ConcatFusion, SumFusion, AttentionFusion, GatedFusion, BottleneckFusion)
    ),
    pytest.param(
        lambda: BottleneckFusion(**FUSION, tokens=(4, 1)), sequences, (({0: BATCH},) * 3,), id="bottleneck-of-sequences"
    ),
]


def exported(module: nn.Module, example: tuple[Tensor, ...], shapes: Any) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, example, dynamo=True, opset_version=20, external_data=False, dynamic_shapes=shapes, verbose=False
        )
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


@pytest.mark.parametrize(("build", "inputs", "shapes"), CASES)
def test_onnx_agrees_with_torch(
    build: Callable[[], nn.Module], inputs: Callable[[int], tuple[Tensor, ...]], shapes: Any
) -> None:
    """Traced at a batch of 2, the graph gives torch's results at 1, 2, 3 and 5, carried states included."""
    torch.manual_seed(0)
    module = build().eval()
    session = ort.InferenceSession(exported(module, inputs(2), shapes), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 3, 5):
        tensors = inputs(batch)
        outputs = session.run(None, {i.name: t.numpy() for i, t in zip(session.get_inputs(), tensors, strict=True)})
        with torch.inference_mode():
            expected = module(*tensors)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for got, want in zip(outputs, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-4, atol=1e-4)


@pytest.mark.needs("tensorrt_rtx_bindings")
@pytest.mark.parametrize(("build", "inputs", "shapes"), CASES)
def test_nvidias_parser_and_builder_take_it(
    build: Callable[[], nn.Module], inputs: Callable[[int], tuple[Tensor, ...]], shapes: Any
) -> None:
    """Our linter has nothing against the graph for a Jetson, and TensorRT-RTX builds an engine of it."""
    machine = target("jetson-orin")
    graph = exported(build().eval(), inputs(2), shapes)
    assert not [found for found in lint(graph, machine, kind="head", name="part") if found.severity == "error"]
    check = check_trt(graph, machine, kind="head", name="part")
    assert check.accepted, str(check)
