"""Strangers' ONNX files: what is read of them, and from where."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_mbm.errors import RecipeError
from edge_mbm.export.origins.onnx_file import LARGEST, read_onnx

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)


def entries(tensor: TensorProto, **values: object) -> None:
    """Say of a tensor that its data is elsewhere."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in values.items():
        tensor.external_data.add(key=key, value=str(value))


def model(weights: TensorProto, inner: TensorProto | None = None) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", weights.name], ["y"])]
    if inner is not None:
        nodes.append(helper.make_node("Constant", [], ["c"], value=inner))
    edges = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", s])] for n, s in (("x", 4), ("y", 3))]
    graph = helper.make_graph(nodes, "main", *edges, [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A model whose weights are where ``values`` say."""
    (tmp_path / "model").mkdir()

    def write(**values: object) -> Path:
        tensor = numpy_helper.from_array(WEIGHTS, "w")
        entries(tensor, **values)
        path = tmp_path / "model" / "x.onnx"
        path.write_bytes(model(tensor).SerializeToString())
        return path

    return write


def test_data_beside_the_model_is_embedded(tmp_path: Path) -> None:
    """As onnx itself wrote it, weights and attributes alike, at their offsets."""
    whole = model(numpy_helper.from_array(WEIGHTS, "w"), numpy_helper.from_array(WEIGHTS + 1, "inner"))
    onnx.save_model(
        whole, tmp_path / "x.onnx", save_as_external_data=True, size_threshold=0, convert_attribute=True, location="d"
    )
    read = read_onnx(tmp_path / "x.onnx", "model")
    assert (tmp_path / "d").stat().st_size >= 2 * WEIGHTS.nbytes
    assert np.array_equal(numpy_helper.to_array(read.graph.initializer[0]), WEIGHTS)
    assert np.array_equal(numpy_helper.to_array(read.graph.node[1].attribute[0].t), WEIGHTS + 1)
    assert b"external" not in read.SerializeToString()
    onnx.checker.check_model(read)


def test_data_inside_a_folder_beside_it_is_read_too(write: Callable[..., Path]) -> None:
    """Without a length it goes to the file's end."""
    path = write(location="data/w.bin", offset=4)
    (path.parent / "data").mkdir()
    (path.parent / "data" / "w.bin").write_bytes(b"skip" + WEIGHTS.tobytes())
    assert np.array_equal(numpy_helper.to_array(read_onnx(path, "model").graph.initializer[0]), WEIGHTS)


@pytest.mark.parametrize(
    "location", ["../outside.bin", "/etc/passwd", "sub/../../outside.bin", "", "link.bin", "dir/w"]
)
def test_data_elsewhere_is_refused(write: Callable[..., Path], tmp_path: Path, location: str) -> None:
    """By "..", from the root, or through a link to a file or a folder."""
    (tmp_path / "outside.bin").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "w").write_bytes(WEIGHTS.tobytes())
    path = write(location=location, length=WEIGHTS.nbytes)
    (path.parent / "link.bin").symlink_to(tmp_path / "outside.bin")
    (path.parent / "dir").symlink_to(tmp_path / "other")
    with pytest.raises(RecipeError, match=r"model\.path: .*x\.onnx: the data of 'w' .*leads out of the model's folder"):
        read_onnx(path, "model")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"location": "none.bin"}, "No such file"),
        ({"location": "fifo"}, "no regular file"),
        ({"location": "w.bin", "length": 49}, "outside the file's 48 bytes"),
        ({"location": "w.bin", "offset": -1}, "outside the file's 48 bytes"),
        ({"location": "w.bin", "offset": "0x1"}, "outside the file's 48 bytes"),
        ({"location": "w.bin", "offset": 40, "length": 9}, "outside the file's 48 bytes"),
        ({"location": "w.bin", "__class__": "os"}, r"with the keys \['__class__'\]"),
    ],
)
def test_data_that_is_not_as_said_is_refused(write: Callable[..., Path], values: dict[str, Any], said: str) -> None:
    """Pipes, cut files, figures that are none, and keys that no version has."""
    path = write(**values)
    (path.parent / "w.bin").write_bytes(WEIGHTS.tobytes())
    os.mkfifo(path.parent / "fifo")
    with pytest.raises(RecipeError, match=said):
        read_onnx(path, "model")


def test_data_above_2_gb_is_refused_before_it_is_read(write: Callable[..., Path]) -> None:
    """By what the files' sizes say: this one is a hole of 3 GB."""
    path = write(location="w.bin")
    with (path.parent / "w.bin").open("wb") as stream:
        stream.truncate(3 * 2**30)
    with pytest.raises(RecipeError, match=r"has 3\.0 GB with its data: an ONNX graph holds 2 GB"):
        read_onnx(path, "model")


def test_a_graph_above_2_gb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """protobuf itself would say no more than that it cannot be parsed."""
    with (tmp_path / "x.onnx").open("wb") as stream:
        stream.truncate(LARGEST + 1)
    with pytest.raises(RecipeError, match=r"has 2\.0 GB with its data"):
        read_onnx(tmp_path / "x.onnx", "model")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    """Or is not there."""
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(RecipeError, match=r"model\.path: .*x\.onnx is not an ONNX model"):
        read_onnx(tmp_path / "x.onnx", "model")
    with pytest.raises(RecipeError, match=r"y\.onnx: No such file"):
        read_onnx(tmp_path / "y.onnx", "model")
