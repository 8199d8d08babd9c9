"""How objects show themselves: in a line, in a notebook, as a table, as figures.

Tables and figures are made of results, and not results of them: `flatkit.render` is reached by its
name, when something is to be shown.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any

from flatkit.checks import nearest
from flatkit.errors import UnknownNameError

if TYPE_CHECKING:
    from pandas import DataFrame

_SHORT = 60
"""Characters of a list in a line."""


class Plots:
    """The figures of an object: called, the one that tells most; by name, each of them.

    `dir`, and so the tab key, lists those that the object has something to draw for.

    Args:
        subject: what is drawn.

    >>> from flatkit.results.report import Report
    >>> dir(Plots(Report([])))
    []
    """

    def __init__(self, subject: Any) -> None:
        self._subject = subject

    def __call__(self, **options: Any) -> Any:
        """Return the figure that tells most, a `matplotlib.figure.Figure`.

        A notebook shows it once, whether the cell ends in it or not.

        Args:
            **options: of the function that draws it.

        Raises:
            NothingToDrawError: there is nothing to draw; the message says what would have a figure.
        """
        return _drawing(_render("plots", "best")(self._subject))(**options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the function that draws one figure; it takes options alone."""
        # `copy`, `pickle` and notebooks ask for such names, and would get figures.
        if name.startswith("__"):
            raise AttributeError(name)
        return _drawing(_render("plots", "figure")(self._subject, name))

    def __dir__(self) -> list[str]:
        return list(_render("plots", "names")(self._subject))

    def __repr__(self) -> str:
        return f"figures: {', '.join(dir(self)) or 'none'}; .plot() draws the first"


class Shown:
    """An object with a short line, a table in notebooks, a data frame and figures.

    >>> class Walk(Shown):
    ...     def __repr__(self):
    ...         return "<a walk of 3 > 2 steps>"
    >>> Walk()._repr_html_()
    '<pre>&lt;a walk of 3 &gt; 2 steps&gt;</pre>'
    """

    @property
    def plot(self) -> Plots:
        """The figures: `.plot()` draws the one that tells most, `.plot.NAME()` another one."""
        return Plots(self)

    def to_dataframe(self) -> "DataFrame":
        """Return the numbers as a tidy table of pandas.

        Raises:
            MissingDependencyError: without the package pandas.
        """
        return _render("frames", "frame")(self)

    def _repr_html_(self) -> str:
        """Return what a notebook shows, in the colours of its page."""
        return _render("notebook", "html")(self)


def table_of(subject: Any, format: str, **options: Any) -> str:
    """Return the table of a report or comparison in a format."""
    return _render("tables.formats", "table")(subject, format, **options)


def _render(module: str, name: str) -> Any:
    return getattr(import_module(f"flatkit.render.{module}"), name)


def _drawing(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that draws, and lets a notebook show what it drew."""

    @wraps(draw)
    def shown(**options: Any) -> Any:
        return _render("notebook", "at_end")(draw(**options))

    return shown


def in_short(value: Any) -> str:
    """Return a value in a line: numbers with four digits, of long lists the beginning.

    >>> in_short(3.14159), in_short([1.0, 2.0]), in_short({"loss": [1.0], "x": [2.0]})
    ('3.142', '[1, 2]', '{loss, x}')
    >>> in_short(list(range(100)))
    '[0, 1, 2, … of 100]'
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        keys: list[str] = [str(key) for key in value]
        text = ", ".join(keys)
        return f"{{{text if len(text) <= _SHORT else f'{keys[0]}, … of {len(keys)}'}}}"
    if isinstance(value, list | tuple):
        # Not of the whole list, which may have a million entries.
        text = ", ".join(map(in_short, value[:20]))
        if len(value) <= 20 and len(text) <= _SHORT:
            return f"[{text}]"
        return f"[{', '.join(map(in_short, value[:3]))}, … of {len(value)}]"
    text = str(value)
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}…"


def no_such(key: object, kind: str, known: Iterable[str]) -> UnknownNameError:
    """Return the error of a name that there is not: it names those that there are.

    >>> str(no_such("trase", "result", ["trace", "loss"]))
    "there is no result 'trase', but trace, loss; did you mean 'trace'?"
    """
    names = list(known)
    there = f", but {', '.join(names)}" if names else ", and no other"
    return UnknownNameError(f"there is no {kind} {key!r}{there}{nearest(key, names)}")
