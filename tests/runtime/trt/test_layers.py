"""Precisions as TensorRT's inspector reports them."""

from __future__ import annotations

import json

import pytest

from edge_mbm.runtime.trt.layers import describe_layers, read_layers


def layer(kind: str, *types: str) -> dict[str, object]:
    return {"Name": kind, "LayerType": kind, "Inputs": [{"Name": "x", "Format/Datatype": said} for said in types]}


def test_layers_count_by_the_narrowest_type_that_they_read() -> None:
    """Int8 with fp32 scales is int8; the words are those of TensorRT 8.5 to 11."""
    report = [
        layer("CaskConvolution", "Thirty-two wide channel vectorized row major Int8 format", "Row major linear FP32"),
        layer("gemm", "Channel major FP16 format where channel % 8 == 0"),
        layer("Myelin", "Half", "Float"),
        layer("PointWise", "Row major linear FP32"),
        layer("conv", "BFloat16"),
        layer("conv", "FP8"),
    ]
    found = read_layers(json.dumps({"Layers": report, "Bindings": ["x", "y"]}))
    assert found == {"bf16": 1, "fp16": 2, "fp32": 1, "fp8": 1, "int8": 1}


def test_layers_that_only_move_data_do_not_count() -> None:
    """A reformat at the edge of the network is in fp32 wherever the network's input is."""
    moves = [layer(kind, "Row major linear FP32") for kind in ("Reformat", "NoOp", "Constant", "shape_call", "Signal")]
    assert read_layers(json.dumps({"Layers": [*moves, layer("gemm", "Half")]})) == {"fp16": 1}


@pytest.mark.parametrize("report", ["", "[]", "{}", '{"Layers": ["conv1", "conv2"]}', '{"Layers": [{}]}', "nonsense"])
def test_a_report_that_says_nothing_is_not_an_error(report: str) -> None:
    """Without detailed verbosity, layers are only names."""
    assert read_layers(report) == {}


def test_it_is_said_what_became_of_the_precision() -> None:
    """Which is not always what was asked for."""
    assert describe_layers("int8", {"int8": 37, "fp32": 3}) == "asked int8, got fp32 in 3 of 40 layers"
    assert describe_layers("fp16", {"fp16": 4}) == "asked fp16, got it in all 4 layers"
    assert describe_layers("fp16", {}) == "asked fp16; the engine does not say what it got"
