"""The command `flatkit compare`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatkit.checkpoints.parts import Parts
from flatkit.comparison.entries import saved
from flatkit.errors import InvalidArgumentError
from flatkit.measures.settings import AnalysisSettings
from flatkit_cli.measuring import given_settings, measuring_options
from flatkit_cli.options import option, take_settings
from flatkit_cli.output import pairs_option, take_output
from flatkit_cli.processes import SharedCommand, processes_option

if TYPE_CHECKING:
    from flatkit.results.comparison import Comparison


@click.command(
    cls=SharedCommand,
    short_help="measure checkpoints alike, or put saved reports side by side",
    help="""Measure checkpoints alike and put them in one table, also saved reports.

SUBJECT... are checkpoints of any program, reports and comparisons (.json), and patterns of them in
quotes. Checkpoints that name no model of their own need --task, or --model and --data. All are
measured by the same samples, probes and budget; of saved reports nothing is measured again. A run
is called flattest only where it is so beyond the errors. Checkpoints of different functions (other
data, loss, dtype) are refused; saved reports of such are shown with a warning that names what
differs.

With --json FILE finished reports are kept: the same command goes on after it was stopped.

\b
flatkit compare runs/sgd/ckpt.pt runs/gam/ckpt.pt
flatkit compare 'runs/*.pt' --task my_task.py:build --groups '(.*)-seed[0-9]+'
flatkit compare sgd.json gam.json --figures figures --markdown report.md
""",
)
@click.argument("subjects", nargs=-1, required=True, metavar="SUBJECT...")
@option(
    "--groups",
    metavar="REGEX",
    group="Runs",
    help="Repetitions of one method: the part in parentheses of a run's name is its group; "
    "(?P<seed>...) and (?P<epoch>...) are read too. Names are the parts in which paths differ.",
)
@option(
    "--repeats",
    is_flag=True,
    group="Runs",
    help="Reports of one name are repetitions of one method: show mean and spread.",
)
@option(
    "--jobs",
    type=int,
    metavar="N",
    group="Runs",
    help="Checkpoints at once, each in a process.  [default: as cores, for small nets]",
)
@measuring_options
@processes_option
@pairs_option
@option(
    "--markdown",
    type=click.Path(path_type=Path),
    metavar="FILE",
    group="Output",
    help="Write the table there.",
)
def compare(
    subjects: Sequence[str],
    groups: str | None,
    repeats: bool,
    jobs: int | None,
    fresh: bool,
    **options: Any,
) -> None:
    """Measure or merge, and show; the help text is that of the command."""
    from flatkit.render import comparison_table

    output = take_output(options)
    given = {"entry": options.pop("entry"), **take_settings(Parts, options)}
    settings = given_settings(options)
    output.check()
    # Reports alone are shown without torch, which takes longer to load than they do.
    if all(subject.endswith(".json") for subject in subjects):
        # `entry` always stands there; anything else completes checkpoints.
        if given["entry"] or len(given) > 1 or settings != AnalysisSettings():
            raise InvalidArgumentError(
                "nothing of saved reports is measured again; leave out the options of measuring, "
                "or name checkpoints"
            )
        comparison = saved(list(subjects), groups=groups, repeats=repeats)
    else:
        from flatkit.comparison.compare import compare as run
        from flatkit.render.runs import RunLines, watcher_here

        if repeats:
            raise InvalidArgumentError(
                "repeats is about names of saved reports; `groups` tells of checkpoints which are "
                "repetitions"
            )
        comparison = run(
            list(subjects),
            progress=watcher_here(RunLines),
            command=["flatkit", *sys.argv[1:]],
            groups=groups,
            jobs=jobs,
            journal=output.journal,
            fresh=fresh,
            settings=settings,
            **given,
        )
    if output.json_file == "-":
        warn(comparison)

    def show() -> None:
        output.show(comparison, lambda: comparison_table(comparison))

    output.write(comparison, comparison, show)


def warn(comparison: "Comparison") -> None:
    """Say on stderr if the runs measured different functions."""
    from flatkit.render import objective_differences

    for line in objective_differences(comparison):
        click.echo(f"warning: different functions were measured: {line}", err=True)
