"""The report's plots: SVG that takes its colours and fonts from the page around it.

Drawn with placeholder colours that become the page's CSS variables, so that one drawing serves light and dark. Text
stays text. The same evidence gives the same bytes.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edge_mbm.errors import MissingDependencyError
from edge_mbm.export.evidence import (
    CandidateEvidence,
    HeadEvidence,
    HistogramEvidence,
    SearchEvidence,
    TensorEvidence,
    VariantEvidence,
)
from edge_mbm.spec import ErrorFigures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BAD_LAYER_DB",
    "plot_fused",
    "plot_histogram",
    "plot_layers",
    "plot_ranges",
    "plot_search",
    "plot_variants",
    "short",
]

BAD_LAYER_DB = 20.0
"""Below it a layer's error is above a hundredth of its signal's power."""

_INK, _MUTED, _GRID, _ACCENT, _OTHER, _BAD, _SOFT = (f"#0{digit}0{digit}0{digit}" for digit in "1234567")
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--grid)",
    _ACCENT: "var(--accent)",
    _OTHER: "var(--other)",
    _BAD: "var(--bad)",
    _SOFT: "var(--soft)",
}
_STYLE: Mapping[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are text, whatever dollars they hold
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _MUTED,
    "axes.labelsize": 10,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.handlelength": 1.2,
    "legend.fontsize": 9.5,
}
_WIDTH = 4.7
"""Inches of 72 units: a plot fills a column of the page, and its text comes out about as large as the page's."""
_SEPARATE = 48
"""Columns that are told from each other; of more only the outline is seen, and it takes a third of the text."""


def plot_fused(heads: Sequence[HeadEvidence]) -> str:
    """Each head's figures with fp32 and with all that the exporting machine runs: accuracy and agreement if known."""
    known = {title: read for title, read in _HEAD_FIGURES.items() if all(read(h.error) is not None for h in heads)}
    panels = list(known.items())[:2]
    with _drawing("heads before and after", 0.8 + 0.3 * len(heads), len(panels)) as (figure, axes, finish):
        for axis, (title, read) in zip(axes, panels, strict=True):
            _dumbbells(axis, [(read(head.original) or 0.0, read(head.error) or 0.0) for head in heads])
            axis.set(xlabel=title, ylim=(-0.6, len(heads) - 0.4))
        axes[0].set_yticks(range(len(heads)), [short(head.head) for head in heads])
        axes[0].invert_yaxis()
        _legend(figure, axes[0])
        return finish()


def plot_variants(name: str, variants: Mapping[str, VariantEvidence]) -> str:
    """Size and time of each variant; one that was not kept is hollow."""
    columns = {
        ("KiB", "not made"): [None if v.bytes is None else v.bytes / 1024 for v in variants.values()],
        ("\u00b5s a call", "unmeasured"): [v.speed.median_us if v.speed else None for v in variants.values()],
    }
    with _drawing(f"sizes and speeds of {name}", 0.55 + 0.28 * len(variants), 2) as (_, axes, finish):
        for axis, ((label, absent), values) in zip(axes, columns.items(), strict=True):
            _bars(axis, values, list(variants.values()), absent)
            axis.set_xlabel(label)
        axes[0].set_yticks(range(len(variants)), [short(key) for key in variants])
        axes[0].invert_yaxis()
        return finish()


def plot_layers(name: str, search: SearchEvidence) -> str:
    """Each layer's ratio of signal to error, in running order, the first bad one marked."""
    values = [layer.sqnr_db for layer in search.layers]
    with _drawing(f"SQNR by layer of {name}", 2.5) as (_, [axis], finish):
        _columns(axis, [(0.0, value) for value in values], _ACCENT)
        _columns(axis, [(0.0, value if value < BAD_LAYER_DB else 0.0) for value in values], _BAD)
        axis.axhline(BAD_LAYER_DB, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
        axis.set(xlabel="layer, in running order", ylabel="SQNR, dB", xlim=(0, len(values)))
        axis.set_ylim(min([0.0, *values]), 1.25 * max([BAD_LAYER_DB, *values]))
        axis.grid(axis="y")
        axis.locator_params(axis="x", integer=True)
        if search.first_bad_layer is not None:
            _mark(axis, search.layers.index(search.first_bad_layer), len(values), search.first_bad_layer.node)
        return finish()


def plot_search(name: str, search: SearchEvidence) -> str:
    """Error against speed of everything that was tried, the Pareto front and what was taken."""
    timed = any(candidate.speed is not None for candidate in search.candidates)
    points = [_point(candidate, timed=timed) for candidate in search.candidates]
    front = [point for index in search.front if (point := points[index]) is not None]
    with _drawing(f"search for {name}", 2.6) as (figure, [axis], finish):
        axis.plot([x for x, _ in front], [y for _, y in front], color=_MUTED, linewidth=1, zorder=1)
        _scatter(axis, [(p, c) for p, c in zip(points, search.candidates, strict=True) if p is not None])
        if search.chosen is not None and (taken := points[search.chosen]) is not None:
            axis.plot(*taken, "o", color=_INK, markersize=13, markerfacecolor="none", label="taken")
        axis.set(xlabel="times as fast as fp32" if timed else "nodes left in float", ylabel="SQNR, dB")
        axis.margins(0.12, 0.18)
        axis.grid()
        if not timed:
            axis.invert_xaxis()
            axis.locator_params(axis="x", integer=True)
        _legend(figure, axis)
        return finish()


def plot_ranges(name: str, ranges: Sequence[TensorEvidence]) -> str:
    """What each tensor's values reach, and how much of it the method's range keeps."""
    kept = [(0.0, 0.0) if tensor.all_zero else (tensor.low, tensor.high) for tensor in ranges]
    asleep = [index + 0.5 for index, tensor in enumerate(ranges) if tensor.all_zero]
    with _drawing(f"calibration ranges of {name}", 2.6) as (figure, [axis], finish):
        _columns(axis, [(tensor.minimum, tensor.maximum) for tensor in ranges], _SOFT, "all that was seen")
        _columns(axis, kept, _ACCENT, "range by the method")
        if asleep:
            axis.plot(asleep, [0.0] * len(asleep), "x", color=_BAD, markersize=5, label="zero throughout")
        axis.set_yscale("symlog", linthresh=1.0)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set(xlabel="tensor, in running order", ylabel="value", xlim=(0, len(ranges)))
        axis.grid(axis="y")
        axis.locator_params(axis="x", integer=True)
        _legend(figure, axis)
        return finish()


def plot_histogram(histogram: HistogramEvidence, width: int = 96, height: int = 20) -> str:
    """A small one for a table's cell: square roots of the counts, with a line at zero."""
    tallest, step = max(histogram.counts) ** 0.5, width / len(histogram.counts)
    tops = (height - (height - 1) * count**0.5 / tallest for count in histogram.counts)
    outline = "".join(f"V{top:.1f}h{step:.2f}" for top in tops)
    zero = -histogram.start / histogram.width * step
    line = f'<path d="M{zero:.1f} 0V{height}" style="stroke: var(--muted)"/>' if 0 <= zero <= width else ""
    return (
        f'<svg class="small" viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true">'
        f'<path d="M0 {height}{outline}V{height}z" style="fill: var(--accent)"/>{line}</svg>'
    )


def short(name: str, letters: int = 26) -> str:
    """A name in one line without what cannot be printed, its middle left out where it is long."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in name)
    half = (letters - 1) // 2
    return text if len(text) <= letters else f"{text[:half]}\u2026{text[-half:]}"


# --- parts of plots --------------------------------------------------------------------------------------------------

_HEAD_FIGURES: Mapping[str, Callable[[ErrorFigures], float | None]] = {
    "accuracy": lambda error: error.accuracy,
    "agreement with the model": lambda error: error.agreement,
    "cosine": lambda error: error.cosine,
    "SQNR, dB": lambda error: error.sqnr_db,
}


def _dumbbells(axis: Axes, pairs: Sequence[tuple[float, float]]) -> None:
    rows = range(len(pairs))
    before, after = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    axis.hlines(rows, before, after, color=_MUTED, linewidth=1.2, zorder=1)
    axis.plot(before, rows, "o", color=_OTHER, markersize=9, label="fp32")
    axis.plot(after, rows, "o", color=_ACCENT, markersize=5.5, label="as shipped")
    # A hair's breadth must not fill the panel.
    lowest, highest = min(before + after), max(before + after)
    middle, reach = (lowest + highest) / 2, max(0.02, (highest - lowest) * 0.7)
    right = middle + reach
    axis.set_xlim(middle - reach, min(right, 1 + 0.2 * reach) if highest <= 1 else right)
    axis.locator_params(axis="x", nbins=3)
    axis.grid(axis="x")


def _bars(axis: Axes, values: Sequence[float | None], variants: Sequence[VariantEvidence], absent: str) -> None:
    longest = max((value for value in values if value is not None), default=1.0)
    for row, (value, variant) in enumerate(zip(values, variants, strict=True)):
        color = _OTHER if variant.precision == "fp32" else _ACCENT
        filled = color if variant.decision.kept else "none"
        axis.barh(row, value or 0.0, 0.62, color=filled, edgecolor=color, linewidth=1)
        text = absent if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
        axis.text((value or 0.0) + 0.03 * longest, row, text, va="center", color=_INK if value else _MUTED)
    axis.set_xlim(0, 1.45 * longest)
    axis.locator_params(axis="x", nbins=3)
    axis.grid(axis="x")


def _mark(axis: Axes, index: int, count: int, name: str) -> None:
    """The name above its bar, on the side where there is room."""
    top = axis.get_ylim()[1]
    axis.plot([index + 0.5], [0.9 * top], "v", color=_BAD, markersize=6)
    is_left = index < count / 2
    place = (index + 0.5) + (0.03 if is_left else -0.03) * count
    axis.text(place, 0.9 * top, f"first bad: {short(name)}", va="center", ha="left" if is_left else "right")


def _point(candidate: CandidateEvidence, *, timed: bool) -> tuple[float, float] | None:
    pace = float(candidate.float_nodes) if not timed else candidate.speed.speedup if candidate.speed else None
    return None if pace is None or candidate.sqnr_db is None else (pace, candidate.sqnr_db)


def _scatter(axis: Axes, points: Sequence[tuple[tuple[float, float], CandidateEvidence]]) -> None:
    """Full where the budgets hold, hollow where they do not, small and grey where nobody looked."""
    kinds: dict[str, dict[str, Any]] = {
        "within budget": {"color": _ACCENT, "markersize": 6},
        "over it": {"color": _BAD, "markersize": 6, "markerfacecolor": "none"},
        "not looked at": {"color": _OTHER, "markersize": 4},
    }
    for label, look in kinds.items():
        chosen = [point for point, candidate in points if _standing(candidate) == label]
        if chosen:
            axis.plot([x for x, _ in chosen], [y for _, y in chosen], "o", label=label, **look)


def _standing(candidate: CandidateEvidence) -> str:
    if candidate.faults:
        return "over it"
    return "not looked at" if candidate.error is None else "within budget"


def _columns(axis: Axes, ends: Sequence[tuple[float, float]], color: str, label: str | None = None) -> None:
    """A column each from low to high, all in one path; few of them have gaps between."""
    edges: list[float] = list(range(len(ends) + 1))
    lows, highs = ([end[side] for end in ends] for side in (0, 1))
    if len(ends) <= _SEPARATE:
        edges = [index + side for index in range(len(ends)) for side in (0.08, 0.92)]
        lows, highs = ([value for known in values for value in (known, math.nan)][:-1] for values in (lows, highs))
    axis.stairs(highs, edges, baseline=lows, fill=True, color=color, linewidth=0, label=label)


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, handletextpad=0.4, columnspacing=1.2)


# --- to SVG ----------------------------------------------------------------------------------------------------------


@contextmanager
def _drawing(title: str, height: float, columns: int = 1) -> Iterator[tuple[Figure, list[Axes], Callable[[], str]]]:
    """A figure, its panels side by side, and what makes it SVG; the user's own settings of matplotlib have no say."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - only an export needs it
        from matplotlib.figure import Figure as NewFigure  # noqa: PLC0415
        from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415
    except ImportError as absent:
        raise MissingDependencyError("matplotlib", "the report", "pip install 'edge-mbm[export]'") from absent
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # measured with its box; the page's font draws it
        mpl.rcdefaults()
        mpl.rcParams.update({**_STYLE, "svg.hashsalt": title})
        figure = NewFigure(figsize=(_WIDTH, height), layout=ConstrainedLayoutEngine(wspace=0.06), facecolor="none")
        axes = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
        for axis in axes:
            axis.set_facecolor("none")
        yield figure, list(axes), lambda: _svg(figure, title)


def _svg(figure: Figure, title: str) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    # Its style sheet would be the whole page's.
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda tag: _plain_tag(tag[0]), text)
    text = re.sub(r">\s+<", "><", text).replace("<defs></defs>", "").strip()
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None, "matplotlib writes one"
    label = html.escape("".join(c if c.isprintable() else " " for c in title))
    return f'<svg {box[0]} role="img" aria-label="{label}">{text[text.index(">") + 1 :]}'


def _plain_tag(tag: str) -> str:
    """A tag in the page's colours and font, with two decimals, without what nothing refers to."""
    for pattern, into in _REWRITES:
        tag = pattern.sub(into, tag)
    for placeholder, variable in _VARIABLES.items():
        tag = tag.replace(placeholder, variable)
    return tag


_REWRITES = [
    (re.compile(pattern), into)
    for pattern, into in (
        (r"\s+", " "),
        (r' id="(?![mp][0-9a-f]{10}")[^"]*"', ""),  # left: markers and clipping, whose ids are salted with the title
        (r"font-family: [^;\"]*; ?", ""),
        (r' transform="rotate\(-0 [^"]*\)"', ""),
        (r"(\d+\.\d\d)\d+", r"\1"),
        (r"xlink:href", "href"),
    )
]
