"""The command `flatkit verify`."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from flatkit.files import check_writable
from flatkit.measures.settings import AnalysisSettings
from flatkit.objective.settings import ObjectiveSettings
from flatkit_cli.options import Command, setting_options
from flatkit_cli.subject import subject_options, take_subject


@click.command(
    cls=Command,
    short_help="say whether the theory of flatness holds at a checkpoint",
    help="""Measure R0 and R1 over a ladder of rho at each CHECKPOINT and hold them against the top
eigenvalue. Each claim of the theory holds, fails, or cannot be told, with the reason. Several
checkpoints are measured at the same radii, those that the last one chooses; of checkpoints of
several epochs in one folder, a table and a figure show all of it against the epoch.

\b
flatkit verify runs/gam/ckpt.pt --dtype float64
flatkit verify runs/gam/ckpt.pt --figures figures --json verify.json
flatkit verify runs/gam/epoch-*.pt --figures figures
""",
)
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@subject_options
@setting_options(ObjectiveSettings)
@setting_options(AnalysisSettings, only=("rho", "budget"), defaults={"rho": "a ladder"})
@click.option("--json", "json_file", metavar="FILE", help="Save the report; - prints it alone.")
@click.option(
    "--figures", type=click.Path(path_type=Path), metavar="DIR", help="Draw PNG and SVG there."
)
def verify(
    checkpoints: Sequence[Path],
    rho: Sequence[float] | None,
    json_file: str | None,
    figures: Path | None,
    **options: Any,
) -> None:
    """Measure and show; the help text is that of the command."""
    make_task = take_subject(options)
    given = {name: value for name, value in options.items() if value is not None}
    # What is not allowed is refused before anything is read.
    radii: dict[str, Any] = {} if rho is None else {"rho": rho}
    AnalysisSettings(**radii, **given)
    if json_file not in (None, "-"):
        check_writable(json_file)
    if figures is not None:
        check_writable(figures / "figure.png")

    from flatkit.results import Comparison, Entry
    from flatkit.verify import verify_series
    from flatkit_cli.analyze import progress_bar

    command = ["flatkit", *sys.argv[1:]]
    with progress_bar() as progress:
        subjects = [partial(make_task, path) for path in checkpoints]
        series = verify_series(subjects, rho=rho or (), progress=progress, command=command, **given)
        reports = list(series)
    names = [str(path) for path in checkpoints]
    comparison = Comparison([Entry(n, n, r) for n, r in zip(names, reports, strict=True)])
    output = reports[0] if len(reports) == 1 else comparison
    if json_file == "-":
        click.echo(output.to_json())
    else:
        _show(comparison)
    if json_file not in (None, "-"):
        click.echo(f"report: {output.save(json_file)}", err=True)
    if figures is not None:
        from flatkit.render import save_figures

        click.echo(f"figures: {len(save_figures(comparison, figures))} in {figures}", err=True)


def _show(comparison: Any) -> None:
    from rich.console import Console

    from flatkit.render.figures.series import has_series, series_table
    from flatkit.render.tables.verdict import verdict_table

    for entry in comparison.entries:
        Console().print(verdict_table(entry.name, entry.report))
    if has_series(comparison):
        Console().print(series_table(comparison))
