"""The README's map of the package: one line a module, its docstring's first. Prints the README as it should be.

Use: ``python scripts/readme_map.py > README.new && mv README.new README.md``
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- map: made by scripts/readme_map.py -->\n", "<!-- end of map -->"


def summary(module: Path) -> str:
    """First line of a module's docstring, as plain text."""
    docstring = ast.get_docstring(ast.parse(module.read_text())) or "?"
    return docstring.splitlines()[0].replace("``", "").rstrip(".:")


def lines() -> list[str]:
    """The map: modules of the package, then its rooms with theirs; a room inside a room is a line."""
    package = ROOT / "edge_mbm"
    found = [f"    edge_mbm/{module.name:28} {summary(module)}" for module in sorted(package.glob("*.py"))]
    for room in sorted(path.parent for path in package.glob("*/__init__.py")):
        found += ["", f"    edge_mbm/{room.name + '/':28} {summary(room / '__init__.py')}"]
        modules = sorted(module for module in room.glob("*.py") if not module.name.startswith("__"))
        found += [f"      {module.name:35} {summary(module)}" for module in modules]
        inner = sorted(path.parent for path in room.glob("*/__init__.py"))
        found += [f"      {path.name + '/':35} {summary(path / '__init__.py')}" for path in inner]
    return found


def main() -> None:
    """Print the README with the map made anew."""
    readme = (ROOT / "README.md").read_text()
    before, _, rest = readme.partition(BEGIN)
    after = rest.partition(END)[2]
    sys.stdout.write(f"{before}{BEGIN}\n" + "\n".join(lines()) + f"\n\n{END}{after}")


if __name__ == "__main__":
    main()
