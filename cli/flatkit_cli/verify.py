"""The command `flatkit verify`."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatkit.measures.settings import AnalysisSettings
from flatkit.objective.settings import ObjectiveSettings
from flatkit_cli.analyze import progress_bar
from flatkit_cli.options import setting_options
from flatkit_cli.output import output_options, show, take_output
from flatkit_cli.processes import SharedCommand, processes_option
from flatkit_cli.subject import check_subjects, subject_options, take_subject

if TYPE_CHECKING:
    from flatkit.measures.forecast import Forecast
    from flatkit.results.comparison import Comparison


@click.command(
    cls=SharedCommand,
    short_help="say whether the theory of flatness holds at a checkpoint",
    help="""Measure R0 and R1 over a ladder of rho at each CHECKPOINT and hold them against the top
eigenvalue. Each claim of the theory holds, fails, or cannot be told, with the reason. Several
checkpoints are measured at the same radii, those that the last one chooses; of checkpoints of
several epochs in one folder, a table and a figure show all of it against the epoch.

\b
flatkit verify runs/gam/ckpt.pt --dtype float64 --rho 0.01,0.05
flatkit verify runs/gam/ckpt.pt --figures figures --json verify.json
flatkit verify runs/gam/epoch-*.pt --figures figures
""",
)
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@subject_options
@setting_options(ObjectiveSettings)
@setting_options(AnalysisSettings, only=("rho", "search_budget"), defaults={"rho": "a ladder"})
@output_options
@processes_option
def verify(checkpoints: Sequence[Path], rho: Sequence[float] | None, **options: Any) -> None:
    """Measure and show; the help text is that of the command."""
    make_task, output = take_subject(options), take_output(options)
    # What is not given is left to the library, whose defaults are those of its settings.
    given = {name: value for name, value in options.items() if value is not None}
    # What is not allowed is refused before anything is read.
    radii: dict[str, Any] = {} if rho is None else {"rho": rho}
    AnalysisSettings(**radii, **given)
    output.check()
    check_subjects(checkpoints)

    from flatkit.results.comparison import Comparison, Entry
    from flatkit.verify import verify_series

    command = ["flatkit", *sys.argv[1:]]
    entries: list[Entry] = []
    stopped: BaseException | None = None
    with progress_bar() as progress:
        subjects = [partial(make_task, path) for path in checkpoints]
        given |= {"plan": _once(len(subjects)), "progress": progress, "command": command}
        reports = verify_series(subjects, rho=rho or (), **given)
        try:
            for name, report in zip(map(str, checkpoints), reports, strict=True):
                entries.append(Entry(name, name, report))
        # Of a series, what was verified before Ctrl-C or a fault is shown and saved all the same.
        except (Exception, KeyboardInterrupt) as error:
            stopped = error
    if stopped is not None and not entries:
        raise stopped
    comparison = Comparison(entries)
    single = len(checkpoints) == 1
    result = entries[0].report if single else comparison
    output.write(result, comparison, lambda: _show(comparison))
    if stopped is not None:
        raise stopped


def _once(times: int) -> "Callable[[Forecast], None]":
    """Return what says the plan at the first of so many checkpoints."""
    from flatkit.render.live import say_plan

    told: list[Forecast] = []

    def say(forecast: "Forecast") -> None:
        if not told:
            say_plan(forecast, times=times)
        told.append(forecast)

    return say


def _show(comparison: "Comparison") -> None:
    from flatkit.render.series import series_of
    from flatkit.render.tables.series import series_table
    from flatkit.render.tables.verdict import verdict_table

    for entry in comparison.entries:
        show(verdict_table(entry.name, entry.report))
    if series_of(comparison):
        show(series_table(comparison))
