"""The figures of exported bundles as a table in Markdown, from what ``edge-mbm export --json`` printed of each.

    python scripts/nightly_table.py nightly/*.json

One row for each quantized variant, kept or not, and for a component without any, one for fp32.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

_HEADER = "| recipe | component | variant | cosine | SQNR dB | same label | right | speed | |\n" + "|---" * 9 + "|"


def main(paths: list[str]) -> int:
    """Print the table; files that are no such output are left out, and said to be so."""
    lines = [_HEADER]
    for path in map(Path, paths):
        try:
            manifest = msgspec.json.decode(path.read_bytes())["manifest"]
        except (OSError, msgspec.DecodeError, KeyError, TypeError) as error:
            sys.stderr.write(f"{path}: {error}\n")
            continue
        lines += ["| " + " | ".join(row) + " |" for row in _rows(path.stem, manifest["components"])]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _rows(recipe: str, components: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, component in components.items():
        variants = component["variants"]
        quantized = {key: variant for key, variant in variants.items() if variant["precision"] == "int8"}
        for key, variant in (quantized or {"fp32": variants["fp32"]}).items():
            yield [recipe, name, key, *_figures(variant), "kept" if variant["decision"]["kept"] else "float kept"]


def _figures(variant: Mapping[str, Any]) -> Iterator[str]:
    error, speed = variant.get("error") or {}, variant.get("speed") or {}
    for key, form in (("cosine", ".4f"), ("sqnr_db", ".1f"), ("agreement", ".3f"), ("accuracy", ".3f")):
        value = error.get(key)
        yield "" if value is None else format(value, form)
    yield f"{speed['speedup']:.2f}x" if speed else "unmeasured"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
