"""The command `flatkit demo`: the whole way, from training to the claims, by a small study."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from flatkit.checks import check_count
from flatkit.studies.settings import read_study
from flatkit_cli.drawing import drawing_options, take_drawing
from flatkit_cli.options import Command
from flatkit_cli.study import carry_out


@click.command(
    cls=Command,
    short_help="train SGD, SAM and GAM on digits, analyze and compare them",
    help="""Train SGD, SAM and GAM on scikit-learn's digits, compare how flat they end, and judge
what is claimed of them: the study `demo` (`flatkit study demo`), without a plan.

Writes OUT/sgd/seed-0/ckpt.pt and so on, OUT/report.json, OUT/report.md, OUT/report.html and
OUT/figures. Takes about a minute and a half on two cores; first tables are shown as soon as one
seed is done. What is done is not made again.

\b
flatkit demo --out demo
""",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for checkpoints, report and figures.",
)
@click.option("--seeds", type=int, default=3, show_default=True, help="Runs of each optimizer.")
@click.option("--jobs", type=int, metavar="N", help="Runs at once.  [default: as there are cores]")
@drawing_options
def demo(out: Path, seeds: int, jobs: int | None, **options: Any) -> None:
    """Train, measure and show; the help text is that of the command."""
    drawing = take_drawing(options)
    drawing.check()
    asked = replace(read_study("demo"), seeds=tuple(range(check_count("seeds", seeds))))
    carry_out(asked, out, jobs, drawing)
