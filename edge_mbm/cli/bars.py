"""Progress bars: one for each stage of a long job, with what it works on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from edge_mbm.cli.terminal import clean, human

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ExportBars", "StageBars"]


class StageBars:
    """A bar for each stage; a context, at whose end without an error the last one is full.

    Args:
        console: where they are drawn.
        share: the column that says how much is done.
        width: of a stage's title.
        estimate_s: over which time the speed is taken.
    """

    def __init__(self, console: Console, share: ProgressColumn, *, width: int, estimate_s: float = 30.0) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), share, TimeElapsedColumn())
        what = TextColumn("{task.fields[what]}", markup=False)
        self.console = console
        self._width = width
        self._progress = Progress(
            *columns, TimeRemainingColumn(), what, console=console, speed_estimate_period=estimate_s
        )
        self._task: TaskID | None = None

    def stage(self, title: str, total: float) -> None:
        """The next stage: the one before is done."""
        self._finish()
        self._task = self._progress.add_task(f"{clean(title):{self._width}}", total=total, what="")

    def update(self, what: str, *, advance: float | None = None, completed: float | None = None) -> None:
        """So much more, or so much in all, of the stage that is at work."""
        if self._task is not None:
            self._progress.update(self._task, advance=advance, completed=completed, what=clean(what))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._finish()
        self._progress.stop()

    def _finish(self) -> None:
        """A stage may take fewer steps than it feared: a cache knew, or a split is shorter."""
        if self._task is not None:
            self._progress.update(self._task, completed=self._progress.tasks[self._task].total, what="")
            self._progress.stop_task(self._task)


class ExportBars(StageBars):
    """An export's ``Progress``, on stderr unless a console is given.

    >>> with ExportBars() as bars:  # doctest: +SKIP
    ...     export_bundle("recipe.toml", "model.mbm", bars)
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console or human(to_stderr=True), MofNCompleteColumn(), width=42)

    def step(self, what: str = "") -> None:
        """See ``Progress.step``."""
        self.update(what, advance=1)
