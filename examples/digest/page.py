"""A storyboard as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from digest.shots import Shot
from digest.storyboard import Scene

__all__ = ["Page", "clock"]

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2rem 0 .7rem; }
p.about { margin: .3rem 0 0; opacity: .75; }
p.warning { border-left: 4px solid #c60; padding-left: .7rem; }
ol { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
ol { list-style: none; padding: 0; }
li { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
li img { display: block; width: 100%; aspect-ratio: 16/9; object-fit: cover; background: #8883; }
li div { padding: .5rem .7rem .7rem; }
time { font-variant-numeric: tabular-nums; font-weight: 600; }
small { opacity: .7; } dl { margin: .4rem 0 0; } dt { font-size: .8rem; opacity: .7; } dd { margin: 0; }
svg { width: 100%; height: 2.2rem; } svg rect { fill: currentColor; fill-opacity: .16; }
svg rect.chosen { fill: #07c; fill-opacity: .85; }
"""


class Page(NamedTuple):
    """What the page says."""

    title: str
    scenes: Sequence[Scene]
    summary: Sequence[Scene]
    query: str = ""
    about: Sequence[str] = ()
    """Sentences below the title."""
    warnings: Sequence[str] = ()
    """What was not as it should be, such as a file that breaks off."""

    def html(self) -> str:
        """The whole file. Whatever comes from outside, names and labels and texts, is escaped."""
        asked = f"Summary for “{escape(self.query)}”" if self.query else "Summary"
        about = "".join(f'<p class="about">{escape(line)}</p>' for line in self.about)
        warnings = "".join(f'<p class="warning">{escape(line)}</p>' for line in self.warnings)
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head><body>"
            f"<h1>{escape(self.title)}</h1>{about}{warnings}{self._strip()}"
            f"<h2>{asked}</h2><ol>{''.join(map(_card, self.summary))}</ol>"
            f"<h2>All {len(self.scenes)} shots</h2><ol>{''.join(map(_card, self.scenes))}</ol></body></html>\n"
        )

    def _strip(self) -> str:
        """The shots along the time, those of the summary marked."""
        if not self.scenes:
            return ""
        first, last = self.scenes[0].shot.start, max(scene.shot.end for scene in self.scenes)
        scale = 1000 / max(1, last - first)
        chosen = {scene.shot.start for scene in self.summary}
        bars = "".join(
            f'<rect x="{(shot.start - first) * scale:.1f}" y="4" height="28" rx="2" '
            f'width="{max(1.0, (shot.end - shot.start) * scale - 1.5):.1f}" '
            f'class="{_class(shot, chosen)}">'
            f"<title>{clock(shot.start)} to {clock(shot.end)}</title></rect>"
            for shot in (scene.shot for scene in self.scenes)
        )
        return (
            '<svg viewBox="0 0 1000 36" preserveAspectRatio="none" role="img" '
            f'aria-label="{len(self.scenes)} shots along the time, {len(chosen)} of them in the summary">{bars}</svg>'
        )


def clock(t: int) -> str:
    """A time in ns as 1:02:03.4, without hours where there are none."""
    tenths = round(t / 1e8)
    minutes, seconds = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{f'{hours}:{minutes:02}' if hours else minutes}:{seconds / 10:04.1f}"


def _class(shot: Shot, chosen: set[int]) -> str:
    return "chosen" if shot.start in chosen else "other"


def _card(scene: Scene) -> str:
    picture = base64.b64encode(scene.jpeg).decode()
    shot, labels = scene.shot, ", ".join(f"{escape(name)} <small>{score:.2f}</small>" for name, score in scene.labels)
    notes = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in scene.notes)
    named = escape(", ".join(name for name, _ in scene.labels), quote=True)
    return (
        f'<li><img alt="{named or "keyframe"}" src="data:image/jpeg;base64,{picture}"><div>'
        f"<time>{clock(shot.start)}</time> <small>{(shot.end - shot.start) / 1e9:.1f} s</small><br>{labels}"
        f"{f'<dl>{notes}</dl>' if notes else ''}</div></li>"
    )
