"""What every test may use: ``needs`` for optional parts, and ``--require`` for places where they must be there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from edge_mbm.testing import tiny_bundle


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        action="append",
        default=[],
        metavar="NAME",
        help="fail instead of skipping where the module NAME is not installed; 'all' for every one",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(module, ...): skip where a module is not installed; see --require")


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = item.config.getoption("--require")
    for mark in item.iter_markers("needs"):
        for module in mark.args:
            if importlib.util.find_spec(module) is None:
                if module in required or "all" in required:
                    pytest.fail(f"'{module}' is required here (--require) and not installed", pytrace=False)
                pytest.skip(f"'{module}' is not installed")


@pytest.fixture
def tiny() -> Path:
    return tiny_bundle()
