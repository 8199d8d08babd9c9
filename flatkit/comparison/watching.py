"""Who watches a comparison: nobody, a callback, or the table of `flatkit.render.runs`."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from flatkit.measures.watching import Counting, Progress, Silent, Watcher, chosen_watcher
from flatkit.results.report import Report

if TYPE_CHECKING:
    from flatkit.measures.schedule import Schedule

_TABLE = "flatkit.render.runs", "watcher_here"
"""Module and function of what watches by itself; by name, as tables are made of comparisons."""


class RunsWatcher(Protocol):
    """What is told as a comparison goes on."""

    def begin(self, names: Sequence[str], jobs: int, kept: Mapping[str, Report]) -> object:
        """Take note of the runs, before the first is measured, so many at once.

        Args:
            names: of all.
            jobs: how many are measured at once.
            kept: those that an earlier call has measured.
        """
        ...

    def plan(self, make: "Callable[[], Schedule]", times: int) -> object:
        """Say what is to come, if anybody reads it: only then is the plan made.

        Args:
            make: of one run.
            times: how many such runs are measured.
        """
        ...

    def watch(self, name: str) -> Watcher:
        """Return what watches the analysis of a run in this process."""
        ...

    def done(self, name: str, report: Report) -> object:
        """Take note of a run that is measured."""
        ...

    def end(self) -> object:
        """Leave; called also where the comparison fails."""
        ...


class SilentRuns:
    """Watches nothing.

    >>> SilentRuns().done("sgd", Report([]))
    """

    def begin(self, names: Sequence[str], jobs: int, kept: Mapping[str, Report]) -> None:
        """Show nothing."""

    def plan(self, make: "Callable[[], Schedule]", times: int) -> None:
        """Make no plan."""

    def watch(self, name: str) -> Watcher:
        """Return what shows nothing."""
        return Silent()

    def done(self, name: str, report: Report) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""


class CountingRuns(SilentRuns):
    """Tells a callback how many checkpoints are done, and of each analysis how many measures.

    Args:
        progress: called with what is counted, how many are done and how many there are.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress, self._done, self._total = progress, 0, 0

    def begin(self, names: Sequence[str], jobs: int, kept: Mapping[str, Report]) -> None:
        """Take note of how many there are."""
        self._done, self._total = len(kept), len(names)

    def watch(self, name: str) -> Watcher:
        """Return what counts the measures."""
        return Counting(self._progress)

    def done(self, name: str, report: Report) -> None:
        """Tell how many checkpoints are done."""
        self._done += 1
        self._progress("checkpoints", self._done, self._total)


def watcher_of_runs(progress: Any) -> RunsWatcher:
    """Return who watches.

    Args:
        progress: a `RunsWatcher`; a callback; False for nobody; else a table or lines where there
            is a terminal or a notebook.

    >>> type(watcher_of_runs(False)).__name__
    'SilentRuns'
    """
    return chosen_watcher(progress, SilentRuns, _TABLE, CountingRuns)
