"""A recipe with models from elsewhere, as far as the graphs of its components."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mbm.errors import TraceError
from edge_mbm.export.chain import GraphRunner
from edge_mbm.export.graph import check_graph, normalize
from edge_mbm.export.origin import Origin
from edge_mbm.export.recipe import LoadedRecipe, load_recipe
from edge_mbm.export.recordings import importable
from edge_mbm.export.skeleton import Skeleton, make_skeleton
from edge_mbm.export.trace import trace

BATCHES = (1, 2, 5)

# The head is the user's own: no bundle is without one. It takes an embedding of any width.
HEAD = """
import torch
from torch import nn


class Head(nn.Module):
    def forward(self, embedding):
        return torch.stack([embedding.mean(1), -embedding.mean(1)], 1)


def load():
    return nn.ModuleDict({"head": Head()})
"""
HEAD_RECIPE = """
[components.head]
kind = "head"
model = "MODULE:load"
module = "head"
inputs = { embedding = "SOURCE" }
outputs = { logits = { task = "regression" } }
pivot = "PIVOT"
deadline_ns = 0
"""
DATA = """
recordings = "nowhere:recordings"
calibration = { split = "calibration", samples = 4 }
heldout = { split = "heldout", samples = 5 }
golden = { split = "golden", samples = 1 }
"""


class Strangers:
    """A recipe's components, as their frameworks run them and as graphs."""

    def __init__(self, recipe: LoadedRecipe) -> None:
        self.recipe = recipe
        self.origin = Origin(recipe)
        self.components = make_skeleton(recipe.recipe, self.origin)

    def traced(self, exporter: Any = "torch.export") -> dict[str, bytes]:
        """Every torch component's graph, checked."""
        torch_ones = {name: c for name, c in self.components.items() if self.origin.graph(name) is None}
        graphs = {}
        for name, outcome in trace(self.recipe, torch_ones, exporter):
            if isinstance(outcome, TraceError):
                raise outcome
            graphs[name] = checked(outcome, self.components[name], name)
        return graphs

    def imported(self, name: str) -> bytes:
        """A foreign graph as it goes into a bundle."""
        graph = self.origin.graph(name)
        assert graph is not None
        return checked(graph.repaired.graph, self.components[name], name)


def checked(graph: bytes, component: Skeleton, name: str) -> bytes:
    graph = normalize(graph, component, name)
    check_graph(graph, component, name)
    return graph


@pytest.fixture(scope="session")
def agrees() -> Callable[..., None]:
    """Whether a graph gives what an oracle does, at several batches."""

    def agrees(
        graph: bytes, wanted: Callable[[Mapping[str, Any]], Any], make: Callable[[int], Mapping[str, Any]]
    ) -> None:
        run = GraphRunner(graph, "component")
        for batch in BATCHES:
            inputs = make(batch)
            [got] = run(inputs).values()
            want = np.asarray(wanted(inputs))
            assert got.shape == want.shape
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * max(1.0, float(np.abs(want).max())))

    return agrees


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    """A recipe of these tables in a folder, with a calibration set, and a head of its own on one embedding."""

    def write(folder: Path, tables: str, source: str = "", pivot: str = "image") -> Path:
        module = f"head_{hashlib.sha256(bytes(folder)).hexdigest()[:12]}"
        head = HEAD_RECIPE.replace("MODULE", module).replace("SOURCE", source).replace("PIVOT", pivot)
        text = 'name = "strangers"\ncalibration_set = "data.toml"\npython_path = ["."]\n' + tables
        (folder / "recipe.toml").write_text(text + (head if source else ""))
        (folder / "data.toml").write_text(DATA)
        (folder / f"{module}.py").write_text(HEAD)
        return folder / "recipe.toml"

    return write


@pytest.fixture(scope="module")
def strangers(write: Callable[..., Path]) -> Iterator[Callable[..., Strangers]]:
    """``write``, and the components as their frameworks run them."""
    with ExitStack() as entered:

        def load(*arguments: Any, **named: Any) -> Strangers:
            recipe = load_recipe(write(*arguments, **named))
            entered.enter_context(importable(recipe.python_path()))
            return Strangers(recipe)

        yield load
