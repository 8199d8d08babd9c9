"""Who watches a study: nobody, a callback, or the table of `flatkit.render.studies`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flatkit.measures.watching import Progress, chosen_watcher
from flatkit.results.report import Report
from flatkit.studies.outcome import Outcome
from flatkit.studies.runs import Run, finished

_TABLE = "flatkit.render.studies", "watcher_here"
"""Module and function of what watches by itself; by name, as tables are made of studies."""


@dataclass(frozen=True)
class DoneRun:
    """A run that is done.

    Attributes:
        run: which.
        folder: where it lies.
    """

    run: Run
    folder: Path

    @property
    def outcome(self) -> Mapping[str, Any]:
        """What came out of it, as `flatkit.studies.runs.run_one` returns it."""
        return finished(self.folder)

    @property
    def report(self) -> Report | None:
        """What was measured; None if it diverged, or only chooses values."""
        path = self.folder / "report.json"
        return Report.load(path) if path.is_file() else None


class StudyWatcher(Protocol):
    """What is told as a study goes on."""

    def begin(self, runs: Sequence[Run], kept: Sequence[DoneRun], jobs: int) -> object:
        """Take note of the runs, before the first is made; twice where values are chosen first.

        Args:
            runs: all.
            kept: those that an earlier call has made.
            jobs: how many are made at once.
        """
        ...

    def done(self, found: DoneRun) -> object:
        """Take note of a run that is done."""
        ...

    def early(self, seeds: int, outcome: Callable[[], Outcome]) -> object:
        """Take note that so many seeds are whole: 1, 2, 4, 8 and so on.

        Args:
            seeds: how many.
            outcome: makes what they allow to say, which takes a while for many runs.
        """
        ...

    def end(self) -> object:
        """Leave; called also where the study fails."""
        ...


class SilentStudy:
    """Watches nothing.

    >>> SilentStudy().early(1, lambda: None)
    """

    def begin(self, runs: Sequence[Run], kept: Sequence[DoneRun], jobs: int) -> None:
        """Show nothing."""

    def done(self, found: DoneRun) -> None:
        """Show nothing."""

    def early(self, seeds: int, outcome: Callable[[], Outcome]) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""


class CountingStudy(SilentStudy):
    """Tells a callback how many runs are done.

    Args:
        progress: called with `runs`, how many are done and how many there are.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress, self._done, self._total = progress, 0, 0

    def begin(self, runs: Sequence[Run], kept: Sequence[DoneRun], jobs: int) -> None:
        """Take note of how many there are."""
        # What an earlier call has made counts as done from the start.
        self._done, self._total = len(kept), len(runs)

    def done(self, found: DoneRun) -> None:
        """Tell how many are done."""
        self._done += 1
        self._progress("runs", self._done, self._total)


def watcher_of_study(progress: Any) -> StudyWatcher:
    """Return who watches.

    Args:
        progress: a `StudyWatcher`; a callback; False for nobody; else a table where there is a
            terminal or a notebook.

    >>> type(watcher_of_study(False)).__name__
    'SilentStudy'
    """
    return chosen_watcher(progress, SilentStudy, _TABLE, CountingStudy)
