"""``edge-mbm inspect``: what is in a bundle, and the evidence for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import msgspec
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edge_mbm.bundle import BundleFiles
from edge_mbm.cli.options import BundlePath, Json
from edge_mbm.cli.terminal import clean, figure, human, make_table, size, write_json
from edge_mbm.errors import ManifestError
from edge_mbm.runtime.plan import choose_variant
from edge_mbm.spec import (
    Classification,
    Component,
    Decoder,
    Encoder,
    Head,
    Input,
    Manifest,
    Output,
    Provenance,
    Record,
    TensorSpec,
    Variant,
)

__all__ = ["inspect"]

_LABELS_SHOWN = 12


def inspect(bundle: BundlePath, *, as_json: Json = False) -> None:
    """Show what is in a bundle: components, variants with their figures, and where they come from.

    Every byte is hashed first. The variants that this machine would run are marked.

    Example: edge-mbm inspect model.mbm
    """
    with BundleFiles(bundle) as files:
        if as_json:
            write_json(_as_json(files))
        else:
            _print(files, human())


def _as_json(files: BundleFiles) -> dict[str, Any]:
    manifest = files.manifest
    return {
        "path": str(files.path),
        "sizes": {
            "manifest": len(files.manifest_bytes),
            "files": _total(manifest),
            "graphs": {
                name: {key: manifest.files[v.graph].size for key, v in component.variants.items() if v.graph}
                for name, component in manifest.components.items()
            },
        },
        "chosen": {name: _chosen(name, component) for name, component in manifest.components.items()},
        # As it stands in the file: fields of a newer version are kept.
        "manifest": msgspec.json.decode(files.manifest_bytes),
    }


def _print(files: BundleFiles, console: Console) -> None:
    manifest = files.manifest
    _heading(console, clean(manifest.name))
    if manifest.description:
        console.print(clean(" ".join(manifest.description.split())))
    total = size(_total(manifest) + len(files.manifest_bytes))
    console.print(f"{clean(files.path)}: format {manifest.format_version}, {len(manifest.files) + 1} files, {total}")
    for section in (_modalities, _components, _assets, _golden, _provenance):
        section(files, console)


def _total(manifest: Manifest) -> int:
    return sum(entry.size for entry in manifest.files.values())


def _chosen(name: str, component: Component) -> str | None:
    """The variant that this machine would run."""
    with suppress(ManifestError):
        return choose_variant(name, component)
    return None


def _heading(console: Console, text: str) -> None:
    console.print(Text(text, style="bold"))


def _indented(console: Console, lines: Iterable[str | Table]) -> None:
    for line in lines:
        console.print(Padding(line if isinstance(line, Table) else Text(line), (0, 0, 0, 2)))


# --- modalities and components ---------------------------------------------------------------------------------------


def _modalities(files: BundleFiles, console: Console) -> None:
    console.print()
    _heading(console, "Modalities")
    _indented(console, (f"{name}: {_fields(modality)}" for name, modality in files.manifest.modalities.items()))


def _components(files: BundleFiles, console: Console) -> None:
    defaults = files.manifest.default_results()
    for name in files.manifest.order():
        component = files.manifest.components[name]
        console.print()
        default = ", runs by default" if name in defaults else ""
        console.print(Text.assemble((name, "bold"), f"  {type(component).__name__.lower()}{default}"))
        _indented(console, _describe(files, component))
        _indented(console, _variants(files.manifest, name, component))


def _describe(files: BundleFiles, component: Component) -> Iterator[str]:
    for key, value in component.inputs.items():
        yield _input(key, value)
    for key, output in component.outputs.items():
        yield _output(files, key, output)
    for state in component.states:
        yield f"state {state.output} -> {state.input}: {_tensor(state.tensor)}"
    if isinstance(component, Encoder) and component.window:
        yield _window(files.manifest, component)
    if isinstance(component, Encoder) and component.utterances:
        cut = component.utterances
        yield f"utterances, where {cut.source} is {cut.threshold:g} or more, to {cut.silence_ns / 1e6:g} ms of silence"
    if isinstance(component, Decoder):
        yield (
            f"{component.algorithm}, at most {component.max_tokens} tokens of {component.tokenizer}, "
            f"{len(component.suppress)} of which never come"
        )
    if isinstance(component, Head):
        yield from _timing(component)


def _input(key: str, value: Input) -> str:
    steps = "" if "." in value.source else f", steps: {_fields(value.preprocess)}"
    return clean(f"in  {key} <- {value.source}: {_tensor(value.tensor)}{steps}")


def _output(files: BundleFiles, key: str, output: Output) -> str:
    return clean(f"out {key}: {_tensor(output.tensor)}, {_task(files, output)}")


def _task(files: BundleFiles, output: Output) -> str:
    if not isinstance(output.task, Classification):
        return _fields(output.task)
    if files.manifest.is_prompted(output.task):
        lines = files.manifest.lines(output.task.labels)
        return f"classification by the lines of {output.task.labels}, up to {lines} at a time"
    labels = files.read_labels(output.task.labels)
    shown = ", ".join(labels[:_LABELS_SHOWN]) + (", ..." if len(labels) > _LABELS_SHOWN else "")
    return f"classification of {len(labels)}: {shown}"


def _tensor(tensor: TensorSpec) -> str:
    meaning = ", ".join(filter(None, (tensor.layout, tensor.unit)))
    shape = ", ".join(map(str, tensor.shape))
    return f"{tensor.dtype}[{shape}]" + (f" ({meaning})" if meaning else "")


def _window(manifest: Manifest, encoder: Encoder) -> str:
    assert encoder.window is not None
    length, hop = encoder.window.length, encoder.window.hop
    modality = next((manifest.modalities.get(value.source) for value in encoder.inputs.values()), None)
    rate = getattr(modality, "sample_rate", None) or getattr(modality, "rate", None)
    if rate is None:
        return f"window {length} items, hop {hop}"
    return f"window {length / rate * 1e3:g} ms, hop {hop / rate * 1e3:g} ms"


def _timing(head: Head) -> Iterator[str]:
    yield f"pivot {head.pivot}, deadline {head.deadline_ns / 1e6:g} ms"
    for modality, tolerance in head.tolerance_ns.items():
        yield f"tolerance {modality}: at most {tolerance / 1e6:g} ms older than the pivot"
    if head.present:
        yield f"may do without some of {', '.join(head.present.order)} (mask input {head.present.input})"
    else:
        yield "no modality may be missing"


def _fields(record: Record) -> str:
    """A tagged record as "tag key=value", defaults left out."""
    tag, *rest = msgspec.to_builtins(record).items()
    return clean(" ".join([str(tag[1]), *(f"{key}={value}" for key, value in rest)]))


# --- variants --------------------------------------------------------------------------------------------------------

_Cell = Callable[[Variant], str]
_NUMBERS: dict[str, _Cell] = {
    "cosine": lambda v: figure(v.error.cosine if v.error else None, 4),
    "SQNR": lambda v: figure(v.error.sqnr_db if v.error else None, 1),
    "agree": lambda v: figure(v.error.agreement if v.error else None, 3),
    "acc.": lambda v: figure(v.error.accuracy if v.error else None, 3),
    "us": lambda v: figure(v.speed.median_us if v.speed else None, 0),
    "faster": lambda v: figure(v.speed.speedup if v.speed else None, 2, "x"),
}
"""Columns that are left out where no variant has a figure for them."""


def _variants(manifest: Manifest, name: str, component: Component) -> Iterator[str | Table]:
    chosen, variants = _chosen(name, component), component.variants
    measured = {key: cell for key, cell in _NUMBERS.items() if any(cell(v) != "-" for v in variants.values())}
    table = make_table("  variant", "KiB", *measured, right=("KiB", *measured))
    for key, variant in variants.items():
        graph = figure(manifest.files[variant.graph].size / 1024, 0) if variant.graph else "-"
        cells = [cell(variant) for cell in measured.values()]
        marked = f"{'>' if key == chosen else ' '} {key}"
        style = "" if variant.decision.kept else "dim"
        table.add_row(marked, graph, *cells, style=style)
    yield table
    for key, variant in variants.items():
        kept = "kept" if variant.decision.kept else "not kept"
        yield clean(f"{key} ({variant.precision}, target {variant.target}) {kept}: {variant.decision.reason}")
    for host in dict.fromkeys(v.speed.host for v in variants.values() if v.speed):
        yield clean(f"times on {host}")
    yield f"> runs on this machine: {chosen or 'none does'}"


# --- the rest --------------------------------------------------------------------------------------------------------


def _assets(files: BundleFiles, console: Console) -> None:
    manifest = files.manifest
    if manifest.assets:
        console.print()
        _heading(console, "Assets")
        _indented(
            console,
            (f"{name}: {a.kind}, {a.path}, {size(manifest.files[a.path].size)}" for name, a in manifest.assets.items()),
        )


def _golden(files: BundleFiles, console: Console) -> None:
    console.print()
    _heading(console, "Golden samples")
    samples = files.manifest.golden
    _indented(console, map(clean, _golden_lines(files.manifest)) if samples else ["none: verify has only the bytes"])


def _golden_lines(manifest: Manifest) -> Iterator[str]:
    groups: dict[tuple[str, str], int] = {}
    for sample in manifest.golden:
        key = (", ".join(sample.inputs), ", ".join(sample.outputs))
        groups[key] = groups.get(key, 0) + 1
    for (inputs, outputs), count in groups.items():
        yield f"{count} of {inputs} with the reference for {outputs}"


def _provenance(files: BundleFiles, console: Console) -> None:
    console.print()
    _heading(console, "Provenance")
    provenance = files.manifest.provenance
    _indented(console, map(clean, _provenance_lines(provenance)) if provenance else ["not recorded"])


def _provenance_lines(provenance: Provenance) -> Iterator[str]:
    yield f"recipe sha256 {provenance.recipe_sha256}"
    yield f"model sha256 {provenance.model_sha256}"
    yield "made with " + ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    if record := provenance.calibration:
        note = f", {record.description}" if record.description else ""
        yield f"calibrated on {record.samples} samples, {record.method}{note}"
        yield f"calibration data sha256 {record.data_sha256}"
    else:
        yield "not calibrated"
