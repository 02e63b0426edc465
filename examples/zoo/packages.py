"""Where packages keep the weights that they ship; none of their code is run."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from edge_mbm.errors import MissingDependencyError

__all__ = ["package_folder"]


def package_folder(module: str, purpose: str, package: str) -> Path:
    """The folder of an installed package.

    Args:
        module: its import name.
        purpose: what it is needed for, for messages.
        package: its name in the registry.

    Raises:
        MissingDependencyError: it is not installed.
    """
    found = find_spec(module)
    if found is None or found.origin is None:
        raise MissingDependencyError(module, purpose, f"pip install --no-deps {package}")
    return Path(found.origin).parent
