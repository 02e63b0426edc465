"""A user's own Python factory, which returns the trained ``torch.nn.Module``."""

from __future__ import annotations

from torch import nn

from edge_mbm.errors import EdgeMbmError, RecipeError
from edge_mbm.export.origins.module import TorchModel
from edge_mbm.export.place import place
from edge_mbm.export.recordings import import_function

__all__ = ["load_factory"]


def load_factory(factory: str, where: str) -> TorchModel:
    """Call it.

    Args:
        factory: "package.module:function".
        where: the recipe's key, for messages.

    Raises:
        RecipeError: it is not there, raised, or gave something else.
    """
    function = import_function(factory, where)
    try:
        model = function()
    except EdgeMbmError:
        raise
    except Exception as error:  # a user's factory may raise anything
        raise RecipeError(f"{where} = '{factory}' raised {type(error).__name__}: {error}{place(error)}") from error
    if not isinstance(model, nn.Module):
        raise RecipeError(f"{where} = '{factory}' gave {type(model).__name__}, not a torch.nn.Module")
    return TorchModel(model.cpu().eval().requires_grad_(requires_grad=False))
