"""The report that travels in the bundle: what was measured, and what was decided on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from edge_mbm.export.draft import Draft, Fused, given
from edge_mbm.spec import Manifest, Variant

__all__ = ["report"]

_HEAD_COLUMNS = ("head", "accuracy fp32", "accuracy", "agreement with the model", "cosine")
_VARIANT_COLUMNS = ("variant", "KiB", "cosine", "SQNR dB", "agreement", "accuracy", "us", "speedup", "kept", "why")


def report(manifest: Manifest, draft: Draft, sizes: Mapping[str, int]) -> str:
    """Markdown.

    Args:
        manifest: of the bundle to be written.
        draft: with the figures of all chosen variants together.
        sizes: bytes of the files so far, by path.
    """
    return "\n".join(_lines(manifest, draft, sizes)) + "\n"


def _lines(manifest: Manifest, draft: Draft, sizes: Mapping[str, int]) -> Iterator[str]:
    data, calibrated = draft.loaded.data, given(draft.calibrated)
    yield f"# {manifest.name}"
    yield ""
    yield manifest.description or "No description."
    yield ""
    yield f"Measured on the split '{data.heldout.split}', which calibration never saw; reference: the model in PyTorch."
    yield ""
    yield "## Heads, with what this kind of machine runs"
    yield ""
    yield from _table(_HEAD_COLUMNS, [_head_row(fused) for fused in given(draft.fused)])
    yield ""
    for name, component in manifest.components.items():
        yield f"## {name}"
        yield ""
        yield from _table(_VARIANT_COLUMNS, [_variant_row(key, v, sizes) for key, v in component.variants.items()])
        yield ""
    yield "## Calibration"
    yield ""
    record = calibrated.record
    yield f"{record.samples} recordings, method `{record.method}`, data sha256 `{record.data_sha256}`."
    yield record.description
    unexercised = sorted(
        f"{name}: {tensor}" for name, ranges in calibrated.ranges.items() for tensor in ranges.all_zero
    )
    if unexercised:
        yield ""
        yield f"Tensors that were zero in every recording, so that their range means nothing: {', '.join(unexercised)}."
    yield ""
    yield "## Versions"
    yield ""
    if manifest.provenance is not None:
        yield from _table(("package", "version"), [(k, v) for k, v in sorted(manifest.provenance.versions.items())])
    hosts = {v.speed.host for c in manifest.components.values() for v in c.variants.values() if v.speed is not None}
    yield ""
    yield f"Speeds: one call at batch 1, median, side by side with fp32, on {', '.join(sorted(hosts))}."


def _head_row(fused: Fused) -> tuple[str, ...]:
    return (
        fused.head,
        _number(fused.original.accuracy, 3),
        _number(fused.error.accuracy, 3),
        _number(fused.error.agreement, 3),
        _number(fused.error.cosine, 5),
    )


def _variant_row(name: str, variant: Variant, sizes: Mapping[str, int]) -> tuple[str, ...]:
    error, speed = variant.error, variant.speed
    return (
        name,
        f"{sizes[variant.graph] / 1024:.0f}" if variant.graph else "-",
        _number(error.cosine if error else None, 5),
        _number(error.sqnr_db if error else None, 1),
        _number(error.agreement if error else None, 3),
        _number(error.accuracy if error else None, 3),
        _number(speed.median_us if speed else None, 1),
        f"{speed.speedup:.2f}x" if speed else "-",
        "yes" if variant.decision.kept else "no",
        variant.decision.reason,
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in row)} |"
