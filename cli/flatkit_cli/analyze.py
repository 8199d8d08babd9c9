"""The command `flatkit analyze`."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatkit.errors import InterruptedAnalysis
from flatkit.measures.registry import MEASURES
from flatkit_cli.measuring import given_settings, measuring_options
from flatkit_cli.output import take_output
from flatkit_cli.processes import SharedCommand, processes_option
from flatkit_cli.subject import take_subject

if TYPE_CHECKING:
    from flatkit.results.report import Report

_MEASURE_HELP = "".join(f"\n  {name:<23} {MEASURES.help(name)}" for name in MEASURES)


@click.command(
    cls=SharedCommand,
    short_help="measure curvature, flatness and landscape of a checkpoint",
    help=f"""Measure curvature, flatness and landscape of CHECKPOINT.

Model and data are rebuilt from what a checkpoint of flatkit names; those of other programs name
none, so that --task, or --model and --data, must. No code from the file runs.
Every number comes with how wrong it may be: a residual, a standard error, or the word that it is
a lower bound.

\b
flatkit analyze runs/gam/ckpt.pt
flatkit analyze runs/gam/ckpt.pt --rho 0.01,0.05 --figures figures --json report.json
flatkit analyze runs/gam/ckpt.pt --measures loss,top_eigenvalues --method power --json -
flatkit analyze weights.safetensors --task my_task.py:build

\b
Measures (the costly ones and what follows from others only when named):{_MEASURE_HELP}
""",
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@measuring_options
@processes_option
def analyze(checkpoint: Path, fresh: bool, **options: Any) -> None:
    """Measure and show; the help text is that of the command."""
    make_task, output = take_subject(options), take_output(options)
    settings = given_settings(options)
    output.check()

    from flatkit.measures import analyze as run
    from flatkit.render import report_table
    from flatkit.render.live import Lines, watcher_here
    from flatkit.results.comparison import Comparison, Entry

    interrupted = False
    try:
        report = run(
            make_task(checkpoint),
            settings=settings,
            progress=watcher_here(Lines),
            command=["flatkit", *sys.argv[1:]],
            journal=output.journal,
            fresh=fresh,
        )
    except InterruptedAnalysis as error:
        report, interrupted = error.report, True
    name = report.checkpoint.get("name") or "checkpoint"
    _say_journal(output.journal, report)
    drawn = Comparison([Entry(name, name, report)])
    output.write(report, drawn, lambda: output.show(report, lambda: report_table(report)))
    # After all is saved and shown: a script learns by the exit code that more was asked.
    if interrupted:
        raise KeyboardInterrupt


def _say_journal(journal: Path | None, report: "Report") -> None:
    """Say what the journal is good for, if it is still there, or why it was not kept."""
    failed = report.analysis.get("journal_failed")
    if failed:
        click.echo(f"not kept for a later run: {failed}", err=True)
    if journal is not None and journal.exists():
        size = f"{journal.stat().st_size / 1e6:,.1f} MB"
        use = "lets this command go on, with more budget or other measures"
        click.echo(f"journal: {journal} ({size}) {use}", err=True)


@contextmanager
def progress_bar() -> Generator[Callable[[str, int, int], None], None, None]:
    """Yield a callback that shows on stderr how far each measure is."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    if not console.is_terminal:  # before rich 15 a bar that shows nothing ends in an empty line
        yield lambda measure, done, total: None
        return
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def update(measure: str, done: int, total: int) -> None:
            if measure not in tasks:
                tasks[measure] = bar.add_task(measure)
            bar.update(tasks[measure], completed=done, total=total)

        yield update
