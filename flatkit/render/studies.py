"""A study as it goes on: a live table in a terminal and a notebook, lines in a pipe."""

import time
from collections.abc import Callable, Sequence
from itertools import islice
from statistics import fmean

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flatkit.comparison.readings import compared
from flatkit.render.notation import significant
from flatkit.render.screen import Screen, screen_here, so_far
from flatkit.render.tables.study import study_tables
from flatkit.studies.outcome import Outcome
from flatkit.studies.runs import Run
from flatkit.studies.watching import DoneRun, SilentStudy, StudyWatcher

_SHOWN = 3
"""Measures of flatness that a table shows; more do not fit 80 characters."""
_LOSS, _ACCURACY = "train loss", "test accuracy (%)"


def watcher_here(elsewhere: Callable[[], StudyWatcher] = SilentStudy) -> StudyWatcher:
    """Return what watches by itself: a table in a notebook or on a terminal.

    Args:
        elsewhere: makes what watches where there is neither; by default nothing does.

    >>> type(watcher_here()).__name__
    'SilentStudy'
    """
    screen = screen_here()
    return elsewhere() if screen is None else StudyTable(screen)


class StudyProgress(SilentStudy):
    """What is known of the runs, in words."""

    def __init__(self) -> None:
        self._runs: Sequence[Run] = ()
        self._numbers: dict[str, dict[str, float]] = {}
        self._diverged: set[str] = set()
        self._begun, self._kept, self._jobs = time.monotonic(), 0, 1

    def begin(self, runs: Sequence[Run], kept: Sequence[DoneRun], jobs: int) -> None:
        """Take note of the runs."""
        self._begun, self._kept, self._jobs = time.monotonic(), len(kept), jobs
        self._runs, self._numbers = runs, {}
        for found in kept:
            self._take(found)

    def done(self, found: DoneRun) -> None:
        """Take note of a run."""
        self._take(found)

    def _take(self, found: DoneRun) -> None:
        outcome, report = found.outcome, found.report
        if outcome["diverged"] is not None:
            self._diverged.add(found.run.folder)
        loss, accuracy = outcome.get("train_loss"), outcome.get("test_accuracy")
        scored = outcome.get("validation_accuracy")
        numbers: dict[str, float | None] = {
            _LOSS: loss,
            _ACCURACY: None if accuracy is None else 100 * accuracy,
            "validation accuracy (%)": None if scored is None else 100 * scored,
        }
        readings = compared(report).values() if report is not None else ()
        flat = {one.title: one.value for one in readings if one.role == "flatness"}
        numbers |= dict(islice(flat.items(), _SHOWN))
        known = {title: value for title, value in numbers.items() if value is not None}
        self._numbers[found.run.folder] = known

    @property
    def text(self) -> str:
        """How many runs are done, and how long the others may take.

        >>> StudyProgress().text
        '0 of 0 runs done'
        """
        total, done = len(self._runs), len(self._numbers)
        elapsed = time.monotonic() - self._begun
        return so_far("runs", done, total, self._kept, elapsed, self._jobs)

    def line(self, run: Run) -> str:
        """Return a run in a line."""
        where = ", ".join(part for part in (run.condition, run.arm) if part)
        values = ", ".join(f"{k} {significant(v)}" for k, v in self._numbers[run.folder].items())
        if run.folder in self._diverged:
            values = "diverged"
        tried = "".join(f", {name} {value}" for name, value in run.variant.items())
        return f"{where}{tried}, seed {run.seed}: {values or 'done'}"

    def table(self) -> RenderableType:
        """Return conditions and arms in rows, with the means over the seeds that are done."""
        conditions = any(run.condition for run in self._runs)
        titles = dict.fromkeys(title for own in self._numbers.values() for title in own)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for title in (*(["condition"] if conditions else []), "arm", "runs"):
            table.add_column(title, overflow="fold")
        for title in titles:
            table.add_column(escape(title), justify="right")
        groups: dict[tuple[str, str], list[Run]] = {}
        for run in self._runs:
            # Values that are tried on the validation split stand apart from the runs that count.
            tried = "" if run.measured else "".join(f", {k} {v}" for k, v in run.variant.items())
            groups.setdefault((run.condition, run.arm + tried), []).append(run)
        for (condition, arm), runs in groups.items():
            first = [escape(condition)] if conditions else []
            cells = [self._mean(runs, title) for title in titles]
            table.add_row(*first, escape(arm), self._count(runs), *cells)
        return Group(table, Text(f"{self.text}; Ctrl-C keeps what is done", style="dim"))

    def _count(self, runs: Sequence[Run]) -> str:
        done = sum(run.folder in self._numbers for run in runs)
        diverged = sum(run.folder in self._diverged for run in runs)
        return f"{done}/{len(runs)}" + (f", {diverged} diverged" if diverged else "")

    def _mean(self, runs: Sequence[Run], title: str) -> str:
        found = [self._numbers.get(run.folder, {}).get(title) for run in runs]
        values = [value for value in found if value is not None]
        return significant(fmean(values)) if values else "…"


class StudyTable(StudyProgress):
    """A table of the arms, with what the first seeds say above it.

    Args:
        screen: where it is drawn.
    """

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def begin(self, runs: Sequence[Run], kept: Sequence[DoneRun], jobs: int) -> None:
        """Open the table."""
        super().begin(runs, kept, jobs)
        self._screen.open()
        self._screen.draw(self.table)

    def done(self, found: DoneRun) -> None:
        """Draw, if it is time."""
        super().done(found)
        self._screen.draw(self.table)

    def early(self, seeds: int, outcome: Callable[[], Outcome]) -> None:
        """Show what so many seeds say."""
        self._screen.say(early_tables(seeds, outcome()))

    def end(self) -> None:
        """Take the table away."""
        self._screen.close()


class StudyLines(StudyProgress):
    """A line on stderr for every run that is done, for a pipe or a log."""

    def __init__(self) -> None:
        super().__init__()
        # A log has no width, and rich would break its lines at 80.
        self._console = Console(stderr=True, width=200)

    def done(self, found: DoneRun) -> None:
        """Say it."""
        super().done(found)
        text = f"[{self.text}] {self.line(found.run)}"
        self._console.print(text, markup=False, highlight=False)

    def early(self, seeds: int, outcome: Callable[[], Outcome]) -> None:
        """Say what so many seeds say."""
        Console(stderr=True).print(early_tables(seeds, outcome()))


def early_tables(seeds: int, outcome: Outcome) -> RenderableType:
    """Return what the first seeds say, while others follow."""
    words = f"After {seeds} seed{'' if seeds == 1 else 's'}; more follow."
    return Group(Text(words, style="bold"), study_tables(outcome))
