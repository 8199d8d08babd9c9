"""What a measure is: its settings and help, how it is run, and how its result is read and drawn.

Every file of a measure ends in one `MEASURE = Measure(...)`. Help, tables, figures and comparisons
take all that they know of a measure from there. The file must not import torch when it is imported,
so that help and the tables of saved results are quick: what needs torch is imported in `run`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flatkit.measures.reading import Reader, plain_readings
from flatkit.results import Result

if TYPE_CHECKING:
    from flatkit.measures.session import Session


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

    >>> Measure("answer", "the answer", run=lambda session: [Result("answer", 42.0)]).on_request
    False
    """

    name: str
    help: str
    run: "Callable[[Session], Sequence[Result]]"
    read: Reader = plain_readings
    settings: Sequence[type] = ()
    on_request: bool = False
    flag: str = ""
    asked_by: str = ""
    figures: Mapping[str, str] = field(default_factory=dict[str, str])
    size: Callable[[Result], str] = lambda result: "-"
    remarks: Callable[[Result], Sequence[str]] = lambda result: ()
