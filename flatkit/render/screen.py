"""A place where a table is drawn again and again as work goes on, and that is gone at the end."""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from io import StringIO
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live

from flatkit.render.notation import duration

_EVERY = 0.25
"""Seconds between two pictures of a table."""


class Screen(ABC):
    """Where a table is drawn, and lines above it."""

    def __init__(self) -> None:
        self._drawn = 0.0

    @abstractmethod
    def say(self, words: RenderableType) -> None:
        """Show what stays above the table."""

    @abstractmethod
    def open(self) -> None:
        """Make the place of the table."""

    def draw(self, table: Callable[[], RenderableType]) -> None:
        """Show a table in the place of the one before, if that is long enough ago."""
        if time.monotonic() - self._drawn >= _EVERY:
            self._show(table())
            self._drawn = time.monotonic()

    @abstractmethod
    def close(self) -> None:
        """Take the table away."""

    @abstractmethod
    def _show(self, table: RenderableType) -> None: ...


class TerminalScreen(Screen):
    """The standard error of a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)
        # Drawn when there is news, and by no thread beside the computation.
        self._live = Live(console=self._console, transient=True, auto_refresh=False)

    def say(self, words: RenderableType) -> None:
        """Print it."""
        self._console.print(words)

    def open(self) -> None:
        """Begin below what was printed."""
        self._live.start()

    def close(self) -> None:
        """Take the table away; what was said stays."""
        self._live.stop()

    def _show(self, table: RenderableType) -> None:
        self._live.update(table, refresh=True)


class NotebookScreen(Screen):
    """The output of a cell; what was said last stands above the table, and goes with it."""

    def __init__(self) -> None:
        super().__init__()
        self._said = ""
        self._place: Any = None

    def say(self, words: RenderableType) -> None:
        """Show it above the table from now on."""
        self._said = html_of(words)
        if self._place is not None:
            self._update(self._said)

    def open(self) -> None:
        """Make the place of the table, with what was said."""
        from IPython.display import HTML, display

        self._place = display(HTML(self._said), display_id=True)

    def close(self) -> None:
        """Take all away."""
        self._update("")

    def _show(self, table: RenderableType) -> None:
        self._update(self._said + html_of(table))

    def _update(self, text: str) -> None:
        from IPython.display import HTML

        self._place.update(HTML(text))


def screen_here() -> Screen | None:
    """Return the screen of a notebook or a terminal; None where there is neither.

    >>> screen_here() is None
    True
    """
    if in_notebook():
        return NotebookScreen()
    return TerminalScreen() if sys.stderr.isatty() else None


def so_far(what: str, done: int, total: int, kept: int, elapsed: float, jobs: int) -> str:
    """Return how many of several things are done, and how long the others may take.

    Args:
        what: they are.
        done: how many of them are.
        total: of so many.
        kept: how many were done before it began.
        elapsed: seconds since then.
        jobs: how many are made at once.

    >>> so_far("runs", 3, 4, 1, 20.0, 2)
    '3 of 4 runs done in 20 s, about 10 s left, 2 at once'
    """
    text = f"{done} of {total} {what} done"
    # Once something was done now; what was kept from before took no time.
    if kept < done < total:
        left = elapsed / (done - kept) * (total - done)
        text += f" in {duration(elapsed)}, about {duration(left)} left"
    return f"{text}, {jobs} at once" if jobs > 1 and done < total else text


def html_of(table: RenderableType) -> str:
    """Return what rich draws as HTML."""
    console = Console(record=True, file=StringIO(), width=110, force_jupyter=False)
    console.print(table)
    # A bare <pre> takes the colours of the notebook, not those of rich's page.
    return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def in_notebook() -> bool:
    """Whether this runs in a notebook.

    >>> in_notebook()
    False
    """
    # Not imported: where nobody did, this is no notebook.
    shell = sys.modules.get("IPython")
    here = shell.get_ipython() if shell is not None else None
    return here is not None and type(here).__name__ == "ZMQInteractiveShell"
