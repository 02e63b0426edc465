"""The model as its framework runs it: what every graph is held against."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from edge_mbm.errors import EdgeMbmError, RecipeError
from edge_mbm.export.place import place
from edge_mbm.export.recipe import LoadedRecipe
from edge_mbm.export.recordings import import_function
from edge_mbm.spec import DType

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Origin", "load_model"]


class Origin:
    """The recipe's torch model, component by component.

    Args:
        loaded: the recipe.

    Raises:
        RecipeError: the factory or a submodule is not there, or the factory gives no ``nn.Module``.
    """

    def __init__(self, loaded: LoadedRecipe) -> None:
        self._recipe = loaded.recipe
        self.model = load_model(loaded)
        self._modules = {
            name: submodule(self.model, component.module, name) for name, component in loaded.recipe.components.items()
        }

    def module(self, name: str) -> nn.Module:
        """A component's module, in evaluation mode."""
        return self._modules[name]

    def run(self, name: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One call.

        Args:
            name: the component's.
            inputs: all of its graph's inputs, in the order of ``forward``'s arguments.

        Returns:
            Its outputs, then its next states, by name.

        Raises:
            RecipeError: ``forward`` raised, or returns another number of tensors than the recipe names.
        """
        component = self._recipe.components[name]
        wanted = [*component.outputs, *(state.output for state in component.states)]
        try:
            with torch.inference_mode():
                # Copies, both ways: a forward that works in place, or gives its own buffer, must not reach our arrays.
                given = self._modules[name](*(torch.tensor(value) for value in inputs.values()))
        except EdgeMbmError:
            raise
        except Exception as error:  # a user's forward may raise anything
            shapes = {key: f"{value.dtype}{list(value.shape)}" for key, value in inputs.items()}
            raise RecipeError(f"'{name}' raised {type(error).__name__} on {shapes}: {error}{place(error)}") from error
        tensors = _tensors(given, name)
        if len(tensors) != len(wanted):
            raise RecipeError(f"forward of '{name}' returns {len(tensors)} tensors; the recipe names {wanted}")
        return {key: _array(tensor, f"{name}.{key}") for key, tensor in zip(wanted, tensors, strict=True)}

    def sha256(self) -> str:
        """Over the names, dtypes, shapes and values of all parameters and buffers."""
        digest = hashlib.sha256()
        # Not state_dict(): it may hold what is no tensor, and lacks the buffers that are not to be saved.
        parameters = self.model.named_parameters(remove_duplicate=False)
        buffers = self.model.named_buffers(remove_duplicate=False)
        for name, tensor in sorted({**dict(parameters), **dict(buffers)}.items()):
            array = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {array.dtype} {list(array.shape)}\n".encode())
            digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def load_model(loaded: LoadedRecipe) -> nn.Module:
    """Call the recipe's factory.

    Raises:
        RecipeError: it is not there, raised, or gave something else.
    """
    factory = import_function(loaded.recipe.model, "model")
    try:
        model = factory()
    except EdgeMbmError:
        raise
    except Exception as error:  # a user's factory may raise anything
        where = f"model = '{loaded.recipe.model}'"
        raise RecipeError(f"{where} raised {type(error).__name__}: {error}{place(error)}") from error
    if not isinstance(model, nn.Module):
        raise RecipeError(f"model = '{loaded.recipe.model}' gave {type(model).__name__}, not a torch.nn.Module")
    return model.cpu().eval().requires_grad_(requires_grad=False)


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
