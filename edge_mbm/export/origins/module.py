"""Models that are torch modules: run as they are, traced to become graphs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from edge_mbm.errors import EdgeMbmError, RecipeError
from edge_mbm.export.origins.component import output_names
from edge_mbm.export.place import place
from edge_mbm.export.recipe import ComponentRecipe
from edge_mbm.spec import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ModuleOrigin", "TorchModel", "submodule", "weights_sha256"]


def _as_is(module: nn.Module) -> nn.Module:
    return module


@dataclass(frozen=True)
class TorchModel:
    """A torch model; a component's ``module`` is the path of a submodule.

    Args:
        module: in evaluation mode, on the CPU.
        adapt: puts before a submodule what makes the recipe's inputs its own.
    """

    module: nn.Module
    adapt: Callable[[nn.Module], nn.Module] = _as_is

    def component(self, name: str, recipe: ComponentRecipe) -> ModuleOrigin:
        """See ``Model``."""
        module = self.adapt(submodule(self.module, recipe.module, name)).eval()
        return ModuleOrigin(module, name, output_names(recipe))

    def sha256(self) -> str:
        """See ``Model``."""
        return weights_sha256(self.module)


@dataclass(frozen=True)
class ModuleOrigin:
    """A component that is a torch module.

    Args:
        module: takes the graph's inputs and returns its outputs, in order.
        name: the component's, for messages.
        outputs: names of what it returns.
        channels_last: see ``ComponentOrigin``.
    """

    module: nn.Module
    name: str
    outputs: Sequence[str]
    channels_last: bool = False

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See ``ComponentOrigin``.

        Raises:
            RecipeError: ``forward`` raised, or returns another number of tensors than the recipe names.
        """
        tensors = _tensors(self._call(inputs), self.name)
        if len(tensors) != len(self.outputs):
            wanted = list(self.outputs)
            raise RecipeError(f"forward of '{self.name}' returns {len(tensors)} tensors; the recipe names {wanted}")
        return {key: _array(tensor, f"{self.name}.{key}") for key, tensor in zip(self.outputs, tensors, strict=True)}

    def _call(self, inputs: Mapping[str, NDArray[Any]]) -> Any:
        try:
            with torch.inference_mode():
                # Copies, both ways: a forward that works in place, or gives its own buffer, must not reach our arrays.
                return self.module(*(torch.tensor(value) for value in inputs.values()))
        except EdgeMbmError:
            raise
        except Exception as error:  # a user's forward may raise anything
            shapes = {key: f"{value.dtype}{list(value.shape)}" for key, value in inputs.items()}
            raise RecipeError(
                f"'{self.name}' raised {type(error).__name__} on {shapes}: {error}{place(error)}"
            ) from error


def submodule(model: nn.Module, path: str, name: str) -> nn.Module:
    """``model.get_submodule``, with an error that lists what there is.

    Raises:
        RecipeError: no such submodule.
    """
    try:
        return model.get_submodule(path)
    except AttributeError:
        known = [key for key, _ in model.named_modules() if key.count(".") <= 1 and key]
        raise RecipeError(f"components.{name}.module is '{path}'; the model has {known}") from None


def weights_sha256(model: nn.Module) -> str:
    """Over the names, dtypes, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    # Not state_dict(): it may hold what is no tensor, and lacks the buffers that are not to be saved.
    parameters = model.named_parameters(remove_duplicate=False)
    buffers = model.named_buffers(remove_duplicate=False)
    for name, tensor in sorted({**dict(parameters), **dict(buffers)}.items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {list(array.shape)}\n".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(given: Any, name: str) -> list[Tensor]:
    values = list(given.values()) if isinstance(given, dict) else given
    values = list(values) if isinstance(values, list | tuple) else [values]
    if not all(isinstance(value, Tensor) for value in values):
        kinds = [type(value).__name__ for value in values]
        raise RecipeError(f"forward of '{name}' returns {kinds}: it must return tensors")
    return values


def _array(tensor: Tensor, where: str) -> NDArray[Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in get_args(DType):
        raise RecipeError(f"'{where}' is {dtype}, a bundle's tensors are {', '.join(get_args(DType))}: cast it")
    return tensor.detach().cpu().numpy().copy()
