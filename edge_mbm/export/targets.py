"""What the machines that a bundle is for can take, read from ``targets.toml``."""

from __future__ import annotations

import difflib
import importlib.resources
import platform
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import tomllib
from msgspec import Meta, Struct

from edge_mbm.errors import RecipeError

__all__ = ["TARGETS", "Engine", "Form", "Kind", "Precision", "Release", "Target", "target", "variants_for"]

Kind: TypeAlias = Literal["encoder", "head", "detector", "decoder"]
"""A component's, as in the manifest."""
Precision: TypeAlias = Literal["fp32", "fp16", "int8"]
Remedies: TypeAlias = dict[str, str]
"""What is not taken -> what to do instead."""


class Form(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What quantization and dequantization operators may hold. Dtypes are named as numpy and ml_dtypes name them."""

    activations: tuple[str, ...]
    weights: tuple[str, ...]
    zero_point: bool
    """Whether zero-points other than zero are taken."""
    int32_bias: bool
    """Whether a bias may be quantized, to int32."""


class Engine(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which graphs an inference engine loads."""

    opset: Annotated[int, Meta(ge=1)]
    """The highest version of the standard operators."""
    dtypes: tuple[str, ...]
    ops: tuple[str, ...] = ()
    """Standard operators that it knows; empty: all."""
    denied: Remedies = {}
    """Operators that are refused, or taken and computed wrongly."""


class Release(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What comes installed together on a device."""

    title: str
    tensorrt: str
    cuda: str
    python: str


class Target(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of machine."""

    name: str
    title: str
    boards: tuple[str, ...]
    family: Literal["x86-cpu", "arm-cpu", "tensorrt"]
    """What a variant's ``target`` says in the manifest."""
    engine: Engine
    form: Form
    machines: tuple[str, ...] = ()
    """Values of ``platform.machine()`` on which its speed can be measured; none for a GPU."""
    denied_dtypes: Remedies = {}
    """Of the engine's dtypes, those that this hardware has no kernels for."""
    discouraged: Remedies = {}
    """Dtypes that it takes, and computes slowly or otherwise than they say."""
    stand_in: str = ""
    """The compute capability of TensorRT-RTX's builder that stands in for it where there is no such GPU."""
    stand_in_fp8: str = ""
    """The same for graphs with fp8."""
    variants: dict[Kind, tuple[str, ...]]
    """Component kind -> variants to make besides fp32, in order of preference; a kind that is missing stays float."""
    default: dict[Kind, Precision]
    """Component kind -> precision to take where nothing was measured; fp32 for a kind that is missing."""
    releases: tuple[Release, ...] = ()
    """What its devices have installed, oldest first; a graph is for all of them."""

    @property
    def measurable(self) -> bool:
        """Whether this host is such a machine, so that speed can be measured here."""
        return platform.machine().lower() in self.machines

    def dtypes(self) -> tuple[str, ...]:
        """What a graph's tensors may be made of."""
        return tuple(dtype for dtype in self.engine.dtypes if dtype not in self.denied_dtypes)

    def default_precision(self, kind: Kind) -> Precision:
        """What a component of a kind runs at where nothing was measured."""
        return self.default.get(kind, "fp32")


def target(name: str) -> Target:
    """The target of a name.

    Raises:
        RecipeError: there is none; the message has the nearest.
    """
    if name in TARGETS:
        return TARGETS[name]
    near = difflib.get_close_matches(name, TARGETS, n=1)
    hint = f", did you mean '{near[0]}'?" if near else "."
    raise RecipeError(f"unknown target '{name}'{hint} There are {', '.join(TARGETS)}")


def variants_for(targets: Iterable[str], kind: Kind) -> tuple[str, ...]:
    """The variants to make of a component of a kind for some targets, each once, fp32 left out.

    Args:
        targets: their names, the most important first.
        kind: the component's.

    Raises:
        RecipeError: a target is unknown.
    """
    wanted = (variant for name in targets for variant in target(name).variants.get(kind, ()))
    return tuple(dict.fromkeys(wanted))


# --- inside ----------------------------------------------------------------------------------------------------------


def _read() -> Mapping[str, Target]:
    text = importlib.resources.files("edge_mbm.export").joinpath("targets.toml").read_text("utf-8")
    data = tomllib.loads(text)
    return MappingProxyType({name: _target(name, table, data) for name, table in data["targets"].items()})


def _target(name: str, table: Mapping[str, Any], data: Mapping[str, Any]) -> Target:
    """The names of its engine and form stand for the tables of these names."""
    shared = {"engine": data["engines"][table["engine"]], "form": data["forms"][table["form"]]}
    return msgspec.convert({**table, **shared, "name": name}, Target)


TARGETS: Mapping[str, Target] = _read()
"""Name -> target, in the order of the file."""
