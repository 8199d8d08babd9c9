"""What a measure is: its settings and help, how it is run, and how its result is read and drawn.

Every file of a measure ends in one `MEASURE = Measure(...)`. Help, tables, figures and comparisons
take all that they know of a measure from there. The file must not import torch when it is imported,
so that help and the tables of saved results are quick: what needs torch is imported in `run`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from flatkit.measures.reading import Reader, plain_readings
from flatkit.results.result import Result

if TYPE_CHECKING:
    from flatkit.measures.influence import Influences
    from flatkit.measures.session import Session
    from flatkit.spectrum.estimate import Estimate


@dataclass(frozen=True)
class Draft:
    """What a measure knows after a piece of its work.

    Attributes:
        results: makes its results as they stand; asked seldom.
        wanting: how many times what is asked for its error still is; infinite without a value.

    >>> Draft(lambda: [Result("loss", 0.5)]).results()[0].value
    0.5
    """

    results: "Callable[[], Sequence[Result]]"
    wanting: float = math.inf


def sampled(
    ask: "Callable[[], Estimate]", tolerance: float, results: "Callable[[], Sequence[Result]]"
) -> Draft:
    """Return the draft of one number that random draws give.

    Args:
        ask: for the number.
        tolerance: on its standard error, relative to it.
        results: makes the results.
    """
    known = ask()
    value, error = abs(float(known.value)), float(known.error)
    if math.isinf(error):
        return Draft(lambda: ())
    return Draft(results, error / (tolerance * value) if value > 0 else _FAR)


_FAR = 1e3
"""How far off an error is that cannot be held against its value, which is 0."""

Run: TypeAlias = "Callable[[Session], Sequence[Result] | Iterator[Draft]]"
"""Measures at once, or yields a draft after each piece of work, the last one of the end.

What a piece does must depend on nothing but the pieces before it and what the session shares: then
a run with a larger budget repeats one with a smaller budget, and goes on.
"""


@dataclass(frozen=True)
class Measure:
    """One quantity that can be measured of a task.

    Attributes:
        name: of its results, and on the command line.
        help: a line of the help.
        run: measures it, with what a session holds; a result for each radius or split.
        read: the numbers of a result, for tables and comparisons. By default the value itself,
            which is compared, or each entry of a list, which only the table of a report shows.
        settings: classes of settings, made of `flatkit.settings.setting`, that `run` asks the
            session for. Classes may be shared by measures.
        on_request: whether it runs only if it is named.
        flag: an option of the command line that adds it to what is measured, e.g. `--by-layer`.
        asked_by: the name of a setting that it needs. Where that is given, it is measured.
        figures: file name -> `module:function` that draws a `Comparison`, or raises a
            `NothingToDrawError`. Measures of one figure name the same function.
        size: of a result without readings, in words, e.g. `5 × 31`.
        remarks: lines below the table of a report.
        passes: how many gradients it takes, about, for a forecast.
        first: how many it takes to its first value, about, beyond the Krylov space of the session;
            by default all of its passes. Measures without a value have their turns by it.
        on_space: whether its first value needs that space.
        absent: why it has no result, where it was done and has none.
        in_bfloat16: whether its errors hold what bfloat16 adds to them; else it is refused there.
        influence: settings to add to a finished result: how other samples would have moved it.
            Asked when all measures are done, as long as there is budget.
        about: how to read its numbers: what they are, which are flatter, what to beware of.
        derivatives: how many derivatives at the point its numbers are made of; where the loss has
            fewer, on a kink, its results say so.

    >>> Measure("answer", "the answer", run=lambda session: [Result("answer", 42.0)]).on_request
    False
    """

    name: str
    help: str
    run: Run
    read: Reader = plain_readings
    settings: Sequence[type] = ()
    on_request: bool = False
    flag: str = ""
    asked_by: str = ""
    figures: Mapping[str, str] = field(default_factory=dict[str, str])
    size: Callable[[Result], str] = lambda result: "-"
    remarks: Callable[[Result], Sequence[str]] = lambda result: ()
    passes: "Callable[[Session], float]" = lambda session: 1.0
    first: "Callable[[Session], float] | None" = None
    on_space: bool = False
    absent: str = "it has no result here"
    in_bfloat16: bool = False
    influence: "Callable[[Influences, Result], Mapping[str, Any]] | None" = None
    about: str = ""
    derivatives: int = 0

    def own_first(self, session: "Session") -> float:
        """Return how many gradients its first value takes beyond the space."""
        return (self.first or self.passes)(session)

    def gradients_to_first(self, session: "Session") -> float:
        """Return how many gradients its first value takes now, if it has not begun, about."""
        shared = session.gradients_to_space if self.on_space else 0.0
        return self.own_first(session) + shared
