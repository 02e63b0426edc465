"""What the pages name is there: links, anchors, files, commands, options, Python names, recipe keys."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import tomllib
import typer

import edge_mbm
import edge_mbm.runtime
import edge_mbm.spec
from edge_mbm.cli import app
from edge_mbm.cli.demo import DEMOS
from edge_mbm.export.recipe import (
    Budget,
    DecoderRecipe,
    DetectorRecipe,
    EncoderRecipe,
    HeadRecipe,
    Recipe,
    Require,
    Search,
)
from edge_mbm.runtime.gallery import Gallery

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^(?: {4}.*\n)+", flags=re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"(?<![\w./~-])[\w-][\w./-]*\.(?:py|toml|sh|md|svg|service|rules)\b(?!\w)")
# Files that commands of the page make, or that are somebody else's.
MADE = {"nightly/recipes.md", "recipe.toml"}
# Modules to run, and names, that are somebody else's.
OF_OTHERS = ("build", "CompressedVideo")
EXAMPLES = r"^ *from (zoo|digest|av_digits|moving_digits)\b"
# Names in a recording, which look like modules of ours.
IN_RECORDINGS = {"edge_mbm.Vector", "edge_mbm.recording"}
# What a parser says where a file is not here or --help ends it (code 0), and of a command without its arguments.
LEFT_TO_THE_READER = "does not exist|^0$"
LEFT_OUT = f"{LEFT_TO_THE_READER}|Missing|requires an argument"
ROOMS = (edge_mbm, edge_mbm.runtime, edge_mbm.spec)
Node = TypeVar("Node", bound=ast.AST)
# What the variables of the pages' snippets hold.
HELD = {
    "live": edge_mbm.Live,
    "session": edge_mbm.Session,
    "bundle": edge_mbm.Bundle,
    "result": edge_mbm.Result,
    "gallery": Gallery,
}


def git(*arguments: str) -> list[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


@cache
def tracked() -> tuple[str, ...]:
    return tuple(path for path in git("ls-files") if (ROOT / path).is_file())


PAGES = [path for path in git("ls-files", "*.md") if (ROOT / path).is_file()]


@cache
def text(page: str) -> str:
    return (ROOT / page).read_text()


@cache
def code() -> str:
    """Everything tracked that is no page: a name that does not occur in it means nothing."""
    endings = (".py", ".toml", ".sh", ".txt", ".env", ".service", ".rules", "Makefile", "Dockerfile")
    ours = str(Path(__file__).relative_to(ROOT))
    return "\n".join(text(path) for path in tracked() if path.endswith(endings) and path != ours)


@cache
def words() -> frozenset[str]:
    """Names and options in the code."""
    return frozenset(re.findall(r"\w+|(?<![\w-])--[a-z][\w-]*", code()))


def fenced(page: str, *languages: str) -> Iterator[str]:
    return (body for language, body in FENCE.findall(text(page)) if language in languages)


def prose(page: str) -> str:
    return FENCE.sub("", text(page))


def inline(page: str) -> list[str]:
    return INLINE.findall(prose(page))


def command_lines(page: str) -> Iterator[str]:
    """Shell lines of fenced and indented blocks, continued lines joined, comments cut off."""
    indented = (match.group() for match in INDENTED.finditer(prose(page)))
    for block in [*fenced(page, "bash"), *indented]:
        for line in block.replace("\\\n", " ").splitlines():
            yield re.sub(r"(^|\s)#.*", "", line).strip()


def test_the_pages_are_read() -> None:
    """The patterns find what the pages hold; with nothing found, every test below would pass."""
    commands = [line for page in PAGES for line in command_lines(page) if invoked(line)]
    assert len(PAGES) > 30
    assert len(commands) > 40
    assert len([span for page in PAGES for span in inline(page)]) > 500
    assert len([snippet for page in PAGES for snippet in fenced(page, "python")]) > 5
    assert len([call for page in PAGES for call in nodes(page, ast.Call)]) > 50


# Links


def slugs(page: str) -> set[str]:
    """Anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text(page)), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def leads_nowhere(page: str, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    if not target.exists():
        return True
    return bool(anchor) and anchor not in slugs(str(target.resolve().relative_to(ROOT)))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    """A relative link is of a file or folder that exists, and its anchor of a heading there."""
    links = [link for link in LINK.findall(prose(page)) if not re.match(r"\w+:", link)]
    assert [link for link in links if leads_nowhere(page, link)] == []


# Files


def is_tracked(name: str) -> bool:
    return any(path == name or path.endswith(f"/{name}") for path in tracked())


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page: str) -> None:
    """A file with an ending of ours is a tracked one, named with as much of its path as the page likes."""
    named = {name.removeprefix("./") for name in FILE.findall(LINK.sub("]", text(page)))} - MADE
    assert sorted(name for name in named if not is_tracked(name)) == []


@pytest.mark.parametrize("folder", ["export", "calibration", "runtime", "benchmarks", "examples"])
def test_a_folders_page_names_what_is_in_it(folder: str) -> None:
    """Whoever looks for a recipe, a set, a benchmark or an example finds it on its folder's page."""
    held = {path.split("/")[1] for path in tracked() if path.startswith(f"{folder}/")} - {"README.md"}
    named = text(f"{folder}/README.md")
    assert [name for name in sorted(held) if name not in named] == []


def test_the_first_page_names_every_page_of_docs() -> None:
    """Each page of docs/ can be found from the README."""
    pages = [path for path in PAGES if re.fullmatch(r"docs/[\w-]+\.md", path)]
    assert [page for page in pages if page.removeprefix("docs/") not in text("README.md")] == []


# The command line


@cache
def command_tree() -> Any:
    return typer.main.get_command(app)


def trouble(arguments: list[str], *, whole: bool) -> str | None:
    """What edge-mbm's own parser has against a command line; nothing is run.

    Args:
        arguments: after ``edge-mbm``.
        whole: whether arguments that it needs must be there: in prose a command is only named.
    """
    command, context = command_tree(), None
    while True:
        try:
            context = command.make_context(command.name, list(arguments), parent=context)
        except Exception as error:  # noqa: BLE001 - typer brings its own click, whose errors are not click's
            return None if re.search(LEFT_TO_THE_READER if whole else LEFT_OUT, str(error)) else str(error)
        if not hasattr(command, "resolve_command"):
            return None
        rest = [*context._protected_args, *context.args]
        if not rest:
            return None
        if command.get_command(context, rest[0]) is None:
            return f"no command {rest[0]}"
        _, command, arguments = command.resolve_command(context, rest)


def invoked(line: str) -> list[str] | None:
    """What a shell line gives to edge-mbm, where it calls it."""
    call = re.search(r"(?:^|\s/\S*/)edge-mbm (.*)", line)
    words = shlex.split(call.group(1)) if call else None
    return words and list(itertools.takewhile(lambda word: word not in ("|", ">", "&&", ";"), words))


def alternatives(mention: str) -> Iterator[list[str]]:
    """``edge-mbm cache ls | rm`` names two commands."""
    first, *others = [shlex.split(part) for part in mention.removeprefix("edge-mbm").split(" | ")]
    yield first
    for other in others:
        yield [*first[: max(len(first) - 1, 0)], *other]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_edge_mbm_takes(page: str) -> None:
    """Each line of a block that calls edge-mbm is whole, with options and values that its parser takes."""
    calls = [words for line in command_lines(page) if (words := invoked(line)) is not None]
    assert [(words, wrong) for words in calls if (wrong := trouble(words, whole=True))] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_the_prose_names_exists(page: str) -> None:
    """The same of what is said in a sentence, where arguments may be left out."""
    mentions = [mention for mention in inline(page) if mention.startswith("edge-mbm ")]
    named = [words for mention in mentions for words in alternatives(mention.replace("...", "X"))]
    assert [(words, wrong) for words in named if (wrong := trouble(words, whole=False))] == []


def helps(command: Any) -> Iterator[str]:
    """The help of a command and of those inside it."""
    yield command.help or ""
    for inner in getattr(command, "commands", {}).values():
        yield from helps(inner)


def test_every_example_in_the_help_is_taken() -> None:
    """What ``--help`` shows to type, the usual order of commands included, its own parser takes."""
    examples = [
        re.findall(r"^(?:Example:|  +)\s*edge-mbm (.*?)(?:   .*)?$", text, re.M) for text in helps(command_tree())
    ]
    calls = [shlex.split(line) for line in itertools.chain(*examples)]
    assert len(calls) > 25
    assert [(words, wrong) for words in calls if (wrong := trouble(words, whole=True))] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_demo_that_is_named_exists(page: str) -> None:
    """``edge-mbm demo NAME`` has an example of that name."""
    named = set(re.findall(r"edge-mbm demo ([a-z][\w-]*)", text(page)))
    assert named - {entry.name for entry in DEMOS} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_is_named_exists(page: str) -> None:
    """An option in a page stands in the code: in a command, a script, or what the project calls."""
    named = {option for span in inline(page) for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)}
    assert [option for option in sorted(named) if option not in words()] == []


def programs(line: str) -> Iterator[tuple[str, list[str]]]:
    """What a line calls by ``python FILE``, ``python -m MODULE`` or ``edge-mbm demo NAME``, with its options."""
    calls = re.findall(r"(?:python (?:-m ([\w.]+)|([\w/]+\.py))|edge-mbm demo ([\w-]+))([^|>&`]*)", line)
    for module, script, demo, rest in calls:
        if module in OF_OTHERS:
            continue
        name = next((entry.program for entry in DEMOS if entry.name == demo), module)
        inside = name if name.endswith(".py") else f"{name.replace('.', '/')}.py"
        yield script or f"examples/{inside}", re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest)


@pytest.mark.parametrize("page", PAGES)
def test_every_program_that_is_called_takes_its_options(page: str) -> None:
    """What a block or a sentence calls has each option that is given."""
    given = [call for line in [*command_lines(page), *inline(page)] for call in programs(line)]
    assert [
        (program, option) for program, options in given for option in options if f'"{option}"' not in text(program)
    ] == []


def needs_the_examples(line: str) -> bool:
    """Whether a line calls a program that imports what only ``PYTHONPATH=examples`` finds."""
    imports = [text(program) for program, _ in programs(line) if "python " in line]
    return any(re.search(EXAMPLES, source, re.MULTILINE) and "sys.path" not in source for source in imports)


@pytest.mark.parametrize("page", [*PAGES, *(path for path in tracked() if re.match(r"export/.*toml", path))])
def test_every_program_that_is_called_finds_what_it_imports(page: str) -> None:
    """Calls of programs that use the examples' packages say where these are, in recipes' comments too."""
    if "export PYTHONPATH=examples" in text(page):
        return
    calls = [line for line in text(page).splitlines() if needs_the_examples(line)]
    assert [line for line in calls if "PYTHONPATH=examples" not in line] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_that_is_named_exists(page: str) -> None:
    """``make NAME`` is in the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), flags=re.MULTILINE))
    lines = [*command_lines(page), *inline(page)]
    named = {name for line in lines for name in re.findall(r"(?:^|&& )make ([a-z-]+)", line)}
    assert named - targets == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_extra_that_is_named_exists(page: str) -> None:
    """``edge-mbm[cpu,video]`` asks for extras that the package has."""
    extras = tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"]
    named = {
        extra
        for group in re.findall(r"(?:edge[-_]mbm\S*|\.|whl)\[([a-z,-]+)\]", text(page))
        for extra in group.split(",")
    }
    assert named - set(extras) == set()


# Python


def expressions(page: str) -> Iterator[ast.AST]:
    """Python of blocks and, where it parses, of sentences."""
    yield from (ast.parse(body) for body in fenced(page, "python"))
    for span in inline(page):
        with suppress(SyntaxError):
            yield ast.parse("" if FILE.search(span) else span)


def nodes(page: str, kind: type[Node]) -> Iterator[Node]:
    return (node for tree in expressions(page) for node in ast.walk(tree) if isinstance(node, kind))


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module of ours, or a public thing in one."""
    module, _, attribute = dotted.rpartition(".")
    if find_spec(dotted.partition(".")[0]) is None:
        return False
    with suppress(ModuleNotFoundError):
        importlib.import_module(dotted)
        return True
    return bool(module) and resolves(module) and hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("page", PAGES)
def test_every_dotted_name_of_the_package_exists(page: str) -> None:
    """``edge_mbm.x.y`` can be imported, or is an attribute of what can."""
    spans = [*inline(page), *fenced(page, "python")]
    named = {name for span in spans for name in re.findall(r"\bedge_mbm(?:\.\w+)+(?![\w/.])", span)}
    assert [name for name in sorted(named - IN_RECORDINGS) if not resolves(name)] == []


def imported(tree: ast.AST) -> dict[str, str]:
    """Name in a snippet -> what it stands for, dotted."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            found |= {alias.asname or alias.name: prefix + alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("page", PAGES)
def test_snippets_bring_what_they_use(page: str) -> None:
    """A Python block imports the modules that it uses, and what it imports exists."""
    for tree in map(ast.parse, fenced(page, "python")):
        brought = imported(tree)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & {"edge_mbm", "np"}
        assert used - set(brought) == set()
        assert [name for name in brought.values() if not resolves(name)] == []


def has(owner: type, name: str) -> bool:
    fields = {field for base in owner.__mro__ for field in getattr(base, "__annotations__", {})}
    return hasattr(owner, name) or name in fields or f"self.{name} = " in inspect.getsource(owner)


@pytest.mark.parametrize("page", PAGES)
def test_every_attribute_that_is_named_exists(page: str) -> None:
    """What ``live``, ``session``, ``bundle``, ``result`` and ``gallery`` are asked for, they have."""
    asked = [(node.value.id, node.attr) for node in nodes(page, ast.Attribute) if isinstance(node.value, ast.Name)]
    assert [(name, attribute) for name, attribute in asked if name in HELD and not has(HELD[name], attribute)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_argument_that_is_named_exists(page: str) -> None:
    """Options of Python calls are parameters of what is called."""
    for call in nodes(page, ast.Call):
        called = called_object(call.func)
        if called is not None:
            inspect.signature(called).bind_partial(**{keyword.arg: None for keyword in call.keywords if keyword.arg})


def called_object(function: ast.expr) -> Any:
    """What of ours a call in a page is of; None for what is not ours."""
    name = ast.unparse(function).removeprefix("edge_mbm.")
    owner, _, method = name.rpartition(".")
    if owner in HELD:
        return getattr(HELD[owner], method)
    return None if owner else next((getattr(room, name) for room in ROOMS if name in room.__all__), None)


@pytest.mark.parametrize("page", PAGES)
def test_every_identifier_that_is_named_exists(page: str) -> None:
    """A name in backticks, in snake or camel case, occurs in the code."""
    named = {name for span in inline(page) for name in re.findall(r"^(?:\w+\.)*([A-Za-z_]\w*)(?:\(.*\))?$", span)}
    looks_like_ours = {name for name in named if "_" in name or re.fullmatch(r"(?:[A-Z][a-z]+){2,}", name)}
    assert [name for name in sorted(looks_like_ours) if name not in words().union(OF_OTHERS)] == []


# Recipes


def keys_of_recipes() -> set[str]:
    records = [Recipe, Search, Budget, Require, EncoderRecipe, DetectorRecipe, DecoderRecipe, HeadRecipe]
    return {field.encode_name for record in records for field in msgspec.structs.fields(record)}


def test_the_page_of_recipes_names_every_key() -> None:
    """Whoever copies a recipe finds each key that it may have in export/README.md."""
    written = set(re.findall(r"\w+", " ".join(inline("export/README.md"))))
    assert keys_of_recipes() - written == set()
