"""The exception tree."""

from __future__ import annotations

import re

import pytest

from edge_mbm import errors

CLASSES = [getattr(errors, name) for name in errors.__all__]


def drawn() -> dict[str, str | None]:
    """The tree in the module's docstring: class -> parent, by indentation."""
    tree: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"([\s│├└─]*)(\w+Error)\b", line):
            depth, name = len(found[1]), found[2]
            above = [(d, n) for d, n in above if d < depth]
            tree[name] = above[-1][1] if above else None
            above.append((depth, name))
    return tree


def test_the_drawn_tree_is_the_real_one() -> None:
    """The docstring's tree names every class, each under its first base."""
    real = {c.__name__: c.__mro__[1].__name__ for c in CLASSES}
    real["EdgeMbmError"] = None  # type: ignore[assignment]
    assert drawn() == real


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_caught_by_the_base(cls: type[Exception]) -> None:
    """One except clause catches everything, and the command line knows a failing exit code for it."""
    assert issubclass(cls, errors.EdgeMbmError)
    assert 0 < cls.exit_code < 64  # type: ignore[attr-defined]


def test_errors_fit_the_standard_ones() -> None:
    """Code that knows only Python's own exceptions still catches wrong input and missing modules."""
    assert issubclass(errors.InputError, ValueError)
    assert issubclass(errors.MissingDependencyError, ImportError)


def test_a_missing_dependency_says_what_to_type() -> None:
    """The message holds the module, the purpose and the line that mends it."""
    error = errors.MissingDependencyError("cv2", "resizing a frame", "pip install opencv")
    assert error.module == "cv2"
    assert error.remedy == "pip install opencv"
    assert all(part in str(error) for part in ("'cv2'", "resizing a frame", "pip install opencv"))
