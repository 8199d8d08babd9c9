"""The command `flatkit plan`."""

from pathlib import Path
from typing import Any

import click

from flatkit.measures.settings import AnalysisSettings
from flatkit_cli.options import Command, setting_options, take_settings
from flatkit_cli.output import show
from flatkit_cli.subject import subject_options, take_subject


@click.command(
    cls=Command,
    short_help="say what an analysis of a checkpoint would take",
    help="""Say how long `flatkit analyze` with the same options would take for CHECKPOINT, what it
would hold in memory, and how many passes over the samples each measure would get. A few samples are
timed; nothing is measured.

\b
flatkit plan runs/gam/ckpt.pt
flatkit plan runs/gam/ckpt.pt --measures trace --time 1m
""",
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@subject_options
@setting_options(AnalysisSettings)
def plan(checkpoint: Path, **options: Any) -> None:
    """Measure a few samples and show; the help text is that of the command."""
    make_task = take_subject(options)
    settings = AnalysisSettings(**take_settings(AnalysisSettings, options))

    from flatkit.measures.report import plan as forecast
    from flatkit.render.live import plan_table

    show(plan_table(forecast(make_task(checkpoint), settings=settings)))
