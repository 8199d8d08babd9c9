"""A comparison as it goes on: a live table in a terminal and a notebook, lines in a pipe."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flatkit.comparison.watching import RunsWatcher, SilentRuns
from flatkit.measures.watching import Silent, Watcher
from flatkit.render.live import plan_text
from flatkit.render.notation import duration
from flatkit.render.readings import readings, value_text
from flatkit.render.screen import Screen, screen_here, so_far
from flatkit.results.report import Report

if TYPE_CHECKING:
    from flatkit.measures.schedule import Schedule

_SHOWN, _ROWS = 3, 20
"""Numbers and runs that a table shows."""


def watcher_here(elsewhere: Callable[[], RunsWatcher] = SilentRuns) -> RunsWatcher:
    """Return what watches by itself: a table in a notebook or on a terminal.

    Args:
        elsewhere: makes what watches where there is neither; by default nothing does.

    >>> type(watcher_here()).__name__
    'SilentRuns'
    """
    screen = screen_here()
    return elsewhere() if screen is None else RunsTable(screen)


class RunsProgress:
    """What is known of the runs, in words."""

    def __init__(self) -> None:
        self._begun, self._jobs = time.monotonic(), 1
        self._reports: dict[str, Report | None] = {}
        self._state: dict[str, str] = {}
        self._kept, self._plan = 0, ""

    def begin(self, names: Sequence[str], jobs: int, kept: Mapping[str, Report]) -> None:
        """Take note of the runs."""
        self._begun, self._jobs, self._kept = time.monotonic(), jobs, len(kept)
        self._reports = {name: kept.get(name) for name in names}
        self._state = dict.fromkeys(kept, "kept from before")

    def plan(self, make: "Callable[[], Schedule]", times: int) -> None:
        """Take note of what the runs will take."""
        self._plan = plan_text(make(), times=times)
        self._begun = time.monotonic()
        self.changed()

    def watch(self, name: str) -> Watcher:
        """Return what tells how far the analysis of a run is."""
        self._state[name] = "begun"
        return _Piece(self, name)

    def done(self, name: str, report: Report) -> None:
        """Take note of a run."""
        self._reports[name] = report
        self._state[name] = f"done in {duration(report.analysis.get('seconds', 0.0))}"
        self.changed()

    def end(self) -> None:
        """Leave."""

    def at_work(self, name: str, words: str) -> None:
        """Take note of how far a run is."""
        self._state[name] = words
        self.changed()

    def changed(self) -> None:
        """Show it, if it is time."""

    @property
    def text(self) -> str:
        """How many are done, and how long the others may take.

        >>> progress = RunsProgress()
        >>> progress.begin(["sgd", "gam"], 1, {})
        >>> progress.text
        '0 of 2 checkpoints done'
        """
        total = len(self._reports)
        done = sum(report is not None for report in self._reports.values())
        elapsed = time.monotonic() - self._begun
        return so_far("checkpoints", done, total, self._kept, elapsed, self._jobs)

    def line(self, name: str) -> str:
        """Return a run in a line."""
        return f"{name}: {self._state.get(name, '')}{self._numbers(name, ': ')}"

    def table(self) -> RenderableType:
        """Return the last runs that are done, what is at work, and how many there are."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for column in ("run", "", "first numbers"):
            table.add_column(column)
        # The last that were begun: a terminal has no room for all.
        for name in list(self._state)[-_ROWS:]:
            table.add_row(escape(name), self._state[name], escape(self._numbers(name)))
        lines = [Text(text, style="dim") for text in (self._plan, self.text) if text]
        return Group(table, *lines)

    def _numbers(self, name: str, before: str = "") -> str:
        report = self._reports.get(name)
        found = [reading for result in report or () for reading in readings(result)][:_SHOWN]
        text = ", ".join(f"{reading.title} {value_text(reading)}" for reading in found)
        return f"{before}{text}" if text else ""


class RunsTable(RunsProgress):
    """A table of the runs.

    Args:
        screen: where it is drawn.
    """

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def begin(self, names: Sequence[str], jobs: int, kept: Mapping[str, Report]) -> None:
        """Open the table."""
        super().begin(names, jobs, kept)
        self._screen.open()
        self.changed()

    def changed(self) -> None:
        """Draw, if it is time."""
        self._screen.draw(self.table)

    def end(self) -> None:
        """Take the table away."""
        self._screen.close()


class RunLines(RunsProgress):
    """A line on stderr for every run that is done, for a pipe or a log."""

    def __init__(self) -> None:
        super().__init__()
        # A log has no width, and rich would break its lines at 80.
        self._console = Console(stderr=True, width=200)

    def plan(self, make: "Callable[[], Schedule]", times: int) -> None:
        """Say it."""
        super().plan(make, times)
        self._console.print(self._plan, markup=False, highlight=False)

    def done(self, name: str, report: Report) -> None:
        """Say it."""
        super().done(name, report)
        text = f"[{self.text}] {self.line(name)}"
        self._console.print(text, markup=False, highlight=False)


class _Piece(Silent):
    """Tells how far one analysis is."""

    def __init__(self, progress: RunsProgress, name: str) -> None:
        self._progress, self._name = progress, name

    def look(self, schedule: "Schedule") -> None:
        """Say how many measures are done."""
        words = f"{schedule.num_done} of {len(schedule.processes)} measures done"
        self._progress.at_work(self._name, words)
