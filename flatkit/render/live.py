"""An analysis as it goes on: a live table in a terminal and a notebook, lines in a pipe."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flatkit.measures.watching import Silent, Watcher
from flatkit.render.notation import duration
from flatkit.render.readings import error_text, readings, value_text
from flatkit.render.screen import Screen, screen_here

if TYPE_CHECKING:
    from flatkit.measures.forecast import Forecast
    from flatkit.measures.schedule import Process, Schedule

_WORTH_TELLING = 10.0
"""Seconds from which on an analysis is worth lines in a pipe."""
_GROWTH = 1.5
"""Times as late as the last lines in a pipe come the next ones."""


def watcher_here(elsewhere: Callable[[], Watcher] = Silent) -> Watcher:
    """Return what watches by itself: a table in a notebook or on a terminal.

    Args:
        elsewhere: makes what watches where there is neither; by default nothing does.

    >>> type(watcher_here()).__name__
    'Silent'
    """
    screen = screen_here()
    return elsewhere() if screen is None else LiveTable(screen)


def plan_text(schedule: "Schedule", *, times: int = 1) -> str:
    """Return in a line what an analysis will take, or so many of them."""
    forecast, limit = schedule.forecast, schedule.limit
    left = limit.until - schedule.started
    spent = forecast.within(limit.gradients, left)
    return forecast_text(forecast, gradients=spent, times=times)


def forecast_text(forecast: "Forecast", *, gradients: float = math.inf, times: int = 1) -> str:
    """Return in a line what work will take.

    Args:
        forecast: of it.
        gradients: after how many it ends.
        times: how often the same is done, e.g. at so many checkpoints.
    """
    gradients = min(gradients, forecast.gradients)
    whole = forecast.seconds(gradients)
    parts = [
        f"{duration(forecast.gradient)} a gradient over {forecast.samples:,} samples",
        f"about {duration(forecast.product)} a product",
        f"about {decimal(forecast.memory)} of memory",
    ]
    if forecast.first:
        parts.append(f"first values in about {duration(min(forecast.first_table, whole))}")
    most = "" if times == 1 else f" at each of {times}, in all about {duration(times * whole)}"
    count = f"{gradients:,.0f} gradient{'s' * (round(gradients) != 1)}"
    # Below a quarter of the time it is not what a reader would change.
    dear = times == 1 and forecast.once > whole / 4
    once = f", {duration(forecast.once)} of it once" if dear else ""
    parts.append(f"{count} in about {duration(whole)}{once}{most}")
    if gradients < 0.99 * forecast.gradients:
        everything = duration(forecast.seconds(forecast.gradients))
        parts.append(f"to the end it would take {everything}: a larger budget or fewer samples")
    return "plan: " + "; ".join(parts)


def say_plan(forecast: "Forecast", *, times: int = 1) -> None:
    """Say on stderr what work will take: on a terminal, and elsewhere if that is long."""
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 200)
    if console.is_terminal or times * forecast.seconds(forecast.gradients) >= _WORTH_TELLING:
        line = forecast_text(forecast, times=times)
        console.print(line, style="dim", markup=False, highlight=False)


def plan_table(schedule: "Schedule") -> RenderableType:
    """Return what an analysis will take, in all and for each measure."""
    forecast = schedule.forecast
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("measure", "∇L to its end, about", "time"):
        table.add_column(name, justify="left" if name == "measure" else "right")
    for name, gradients in forecast.passes.items():
        time_needed = duration(gradients * forecast.unit)
        table.add_row(escape(name.replace("_", " ")), f"{gradients:,.0f}", time_needed)
    said = "A pass is over all the samples in use; a product with the Hessian counts as"
    return Group(
        Text(plan_text(schedule)), table, Text(f"{said} {forecast.price} gradients.", style="dim")
    )


def live_table(schedule: "Schedule") -> RenderableType:
    """Return the values so far, what is wanting of each, and the time that is left."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("quantity", "value", "error", "", "∇L"):
        table.add_column(name, justify="right" if name in ("value", "∇L") else "left")
    for process in schedule.processes:
        for cells in _rows(process):
            table.add_row(*cells)
    return Group(table, Text(time_text(schedule), style="dim"))


def time_text(schedule: "Schedule") -> str:
    """Return how far an analysis is and how long it may still take."""
    elapsed, spent = time.monotonic() - schedule.started, schedule.spent
    forecast, limit = schedule.forecast, schedule.limit
    # What takes more than was forecast shows no negative time.
    goal = max(spent, min(forecast.gradients, limit.gradients))
    # What was measured on few samples is corrected by what passes really take.
    unit = elapsed / spent if spent >= 1 else forecast.unit
    left = min((goal - spent) * unit, max(0.0, limit.until - time.monotonic()))
    done = f"{schedule.num_done} of {len(schedule.processes)} measures done"
    return (
        f"{done}, {spent:,.0f} gradients in {duration(elapsed)}, at most about {duration(left)} "
        "left; Ctrl-C keeps what is there"
    )


class LiveTable(Silent):
    """A table of the values so far.

    Args:
        screen: where it is drawn.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def begin(self, schedule: "Schedule") -> None:
        """Say what it will take, and open the table."""
        self._screen.say(Text(plan_text(schedule), style="dim"))
        self._screen.open()

    def look(self, schedule: "Schedule") -> None:
        """Draw, if it is time."""
        self._screen.draw(lambda: live_table(schedule))

    def end(self, schedule: "Schedule") -> None:
        """Take the table away."""
        self._screen.close()


class Lines(Silent):
    """Lines on stderr, for a pipe or a log: the plan, and every value as it comes and closes in."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}
        self._next = _WORTH_TELLING
        # A log has no width, and rich would break its lines at 80.
        self._console = Console(stderr=True, width=200)

    def begin(self, schedule: "Schedule") -> None:
        """Say what it will take, if that is long."""
        forecast = schedule.forecast
        if forecast.seconds(forecast.gradients) >= _WORTH_TELLING:
            self._print(plan_text(schedule))

    def look(self, schedule: "Schedule") -> None:
        """Say what is new, each time after a longer while."""
        elapsed = time.monotonic() - schedule.started
        if elapsed < self._next:
            return
        # Ever rarer: a log of hours is hardly longer than one of minutes.
        self._next = elapsed * _GROWTH
        for process in schedule.processes:
            for title, value, error, state, _ in _rows(process) if process.results else ():
                if self._said.get(title) != f"{value} {error}":
                    self._said[title] = f"{value} {error}"
                    self._print(f"[{duration(elapsed)}] {title}: {value} {error}  {state}")
        self._print(f"[{duration(elapsed)}] {time_text(schedule)}")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)


def _rows(process: "Process") -> "Iterator[tuple[str, str, str, str, str]]":
    """Yield a row for each number of a measure; one without numbers where there are none yet."""
    state = "done" if process.done else _wanting(process.wanting)
    spent = f"{process.spent:,.0f}" if process.spent else ""
    if not process.results:
        yield escape(process.name.replace("_", " ")), "…", "", "" if process.done else "…", spent
    for result in process.results:
        found = readings(result)
        if not found:
            yield escape(result.measure.replace("_", " ")), "", "see figures", state, spent
        for reading in found:
            yield escape(reading.title), value_text(reading), error_text(reading), state, spent
            spent = ""


def _wanting(times: float) -> str:
    return f"error {times:,.1f} × its goal" if times < 1e4 else "…"
