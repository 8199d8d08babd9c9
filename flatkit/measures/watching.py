"""Who watches an analysis: nobody, a callback, or the table of `flatkit.render.live`."""

import random
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from flatkit.measures.schedule import Schedule

Progress: TypeAlias = Callable[[str, int, int], object]
"""Called with the measure, the steps done and the steps in all."""

_TABLE = "flatkit.render.live", "watcher_here"
"""Module and function of what watches by itself in a terminal and a notebook; by name, as tables
are made of measures and not measures of tables."""


class Watcher(Protocol):
    """What is told as an analysis goes on; it asks the schedule for what it shows."""

    def begin(self, schedule: "Schedule") -> object:
        """Take note of the forecast, before the first piece of work."""
        ...

    def look(self, schedule: "Schedule") -> object:
        """Look at what is there after a piece of work; called often."""
        ...

    def end(self, schedule: "Schedule") -> object:
        """Leave; called also where the analysis fails."""
        ...


class Silent:
    """Watches nothing.

    >>> Silent().look(None)
    """

    def begin(self, schedule: Any) -> None:
        """Show nothing."""

    def look(self, schedule: Any) -> None:
        """Show nothing."""

    def end(self, schedule: Any) -> None:
        """Show nothing."""


class Counting(Silent):
    """Tells a callback how many measures are done."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begin(self, schedule: "Schedule") -> None:
        """Tell how many there are."""
        self._tell(schedule)

    def look(self, schedule: "Schedule") -> None:
        """Tell how many are done."""
        self._tell(schedule)

    def _tell(self, schedule: "Schedule") -> None:
        self._progress("analysis", schedule.num_done, len(schedule.processes))


def watcher_of(progress: "Progress | Watcher | bool | None") -> Watcher:
    """Return who watches.

    Args:
        progress: a watcher; a callback; False for nobody; else a table where there is a terminal
            or a notebook.

    >>> type(watcher_of(False)).__name__
    'Silent'
    """
    return chosen_watcher(progress, Silent, _TABLE, Counting)


def chosen_watcher(
    progress: Any, silent: Callable[[], Any], table: tuple[str, str], counting: Callable[..., Any]
) -> Any:
    """Return who watches anything that goes on.

    Args:
        progress: a watcher; a callback; False for nobody; else what watches by itself.
        silent: makes what watches nothing.
        table: module and function of what watches by itself.
        counting: makes a watcher of a callback.

    >>> chosen_watcher(False, Silent, _TABLE, Counting).look(None)
    """
    if progress is False:
        return silent()
    if progress is None or progress is True:
        module, function = table
        # Measuring must leave the user's random numbers as they were, watching too.
        state = random.getstate()
        shown = import_module(module)  # rich draws random numbers while it is imported
        random.setstate(state)
        return getattr(shown, function)()
    return counting(progress) if callable(progress) else progress
