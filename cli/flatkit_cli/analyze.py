"""The command `flatkit analyze`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from flatkit.files import check_writable
from flatkit.measures.settings import MEASURES, AnalysisSettings
from flatkit.objective.settings import ObjectiveSettings
from flatkit_cli.options import Command, setting_options
from flatkit_cli.subject import subject_options, take_subject

_DEFAULTS = {field.name: field.default for field in fields(AnalysisSettings)}
_MEASURE_HELP = "".join(f"\n  {name:<23} {text}" for name, text in MEASURES.items())


@click.command(
    cls=Command,
    short_help="measure curvature, flatness and landscape of a checkpoint",
    help=f"""Measure curvature, flatness and landscape of CHECKPOINT.

Model and data are rebuilt from what a checkpoint of flatkit names; those of other programs name
none, so that --task, or --model and --data, must. No code from the file runs.
Every number comes with how wrong it may be: a residual, a standard error, or the word that it is
a lower bound.

\b
flatkit analyze runs/gam/ckpt.pt
flatkit analyze runs/gam/ckpt.pt --rho 0.01 --rho 0.05 --figures figures --json report.json
flatkit analyze runs/gam/ckpt.pt --measures loss,top_eigenvalues --method power --json -
flatkit analyze weights.safetensors --task my_task.py:build

\b
Measures (the costly ones and what follows from others only when named):{_MEASURE_HELP}
""",
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@subject_options
@setting_options(ObjectiveSettings)
@click.option(
    "--measures", multiple=True, metavar="NAME[,NAME]", help="What to measure; repeatable."
)
@setting_options(AnalysisSettings, only=("rho", "budget"))
@click.option(
    "--method",
    type=click.Choice(["auto", "lanczos", "power", "lobpcg", "pyhessian"]),
    default=_DEFAULTS["method"],
    show_default=True,
    help="How to find eigenvalues.",
)
@click.option(
    "--eigenvalues",
    "num_eigenvalues",
    type=int,
    default=_DEFAULTS["num_eigenvalues"],
    show_default=True,
    help="How many of the largest eigenvalues.",
)
@click.option(
    "--tolerance",
    type=float,
    default=_DEFAULTS["tolerance"],
    show_default=True,
    help="Relative residual of the eigenvalues.",
)
@click.option(
    "--trace-tolerance",
    type=float,
    default=_DEFAULTS["trace_tolerance"],
    show_default=True,
    help="Relative standard error of the trace.",
)
@click.option(
    "--max-matvecs",
    type=int,
    default=_DEFAULTS["max_matvecs"],
    show_default=True,
    help="Budget of Hessian-vector products.",
)
@click.option(
    "--trace-method",
    type=click.Choice(["auto", "hutchinson", "hutch++", "xtrace"]),
    default=_DEFAULTS["trace_method"],
    show_default=True,
    help="How to estimate the trace.",
)
@click.option(
    "--params",
    multiple=True,
    metavar="PATTERN",
    help="Curvature of the parameters of such names alone, e.g. 'layer3.*'; repeatable.",
)
@click.option(
    "--by-layer", is_flag=True, help="Also the top eigenvalue and trace of every layer's block."
)
@click.option(
    "--cross-check", is_flag=True, help="Also the eigenvalues by PyHessian, and why they differ."
)
@click.option(
    "--draws",
    type=int,
    default=_DEFAULTS["draws"],
    show_default=True,
    help="Repeat curvature on so many draws of --samples and report the spread.",
)
@click.option(
    "--geometry",
    type=click.Choice(["l2", "adaptive", "filter", "linf"]),
    default=_DEFAULTS["geometry"],
    show_default=True,
    help="Shape of the balls; adaptive and filter are relative to the weights.",
)
@click.option("--m-sharpness", type=int, metavar="M", help="Measure it, with M samples a batch.")
@click.option("--slice-points", type=int, default=_DEFAULTS["slice_points"], show_default=True)
@click.option(
    "--slice-directions", type=int, default=_DEFAULTS["slice_directions"], show_default=True
)
@click.option("--plane-points", type=int, default=_DEFAULTS["plane_points"], show_default=True)
@click.option(
    "--extent",
    type=float,
    default=_DEFAULTS["extent"],
    show_default=True,
    help="Slices and planes reach this many lengths of the weights to each side.",
)
@click.option("--json", "json_file", metavar="FILE", help="Save the report; - prints it alone.")
@click.option(
    "--figures", type=click.Path(path_type=Path), metavar="DIR", help="Draw PNG and SVG there."
)
def analyze(checkpoint: Path, json_file: str | None, figures: Path | None, **options: Any) -> None:
    """Measure and show; the help text is that of the command."""
    make_task = take_subject(options)
    settings = _settings(options)
    if json_file not in (None, "-"):
        check_writable(json_file)
    if figures is not None:
        check_writable(figures / "figure.png")

    from flatkit.measures import analyze as run

    with progress_bar() as progress:
        report = run(
            make_task(checkpoint),
            settings=settings,
            progress=progress,
            command=["flatkit", *sys.argv[1:]],
        )
    if json_file == "-":
        click.echo(report.to_json())
    else:
        show(report)
    if json_file not in (None, "-"):
        click.echo(f"report: {report.save(json_file)}", err=True)
    if figures is not None:
        draw(report, figures)


def show(report: Any) -> None:
    """Print the table of a report."""
    from rich.console import Console

    from flatkit.render import report_table

    Console().print(report_table(report))


def draw(report: Any, folder: Path) -> None:
    """Write the figures of a report."""
    from flatkit.render import save_figures
    from flatkit.results import Comparison, Entry

    name = report.checkpoint.get("name") or "checkpoint"
    written = save_figures(Comparison([Entry(name, name, report)]), folder)
    click.echo(f"figures: {len(written)} files in {folder}", err=True)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback that shows on stderr how far each measure is."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<12}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        tasks: dict[str, Any] = {}

        def update(measure: str, done: int, total: int) -> None:
            if measure not in tasks:
                tasks[measure] = bar.add_task(measure)
            bar.update(tasks[measure], completed=done, total=total)

        yield update


def _settings(options: dict[str, Any]) -> AnalysisSettings:
    """Return the checked settings; measures may be separated by commas."""
    extra = {"layer_curvature": options.pop("by_layer"), "cross_check": options.pop("cross_check")}
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if "measures" in given:
        names = [name.strip() for text in given["measures"] for name in text.split(",")]
        given["measures"] = [name for name in names if name]
    wanted = [name for name, asked in extra.items() if asked]
    if wanted:
        given["measures"] = [*given.get("measures", _DEFAULTS["measures"]), *wanted]
    return AnalysisSettings(**given)
