"""`flatkit track`: every checkpoint of a training measured alike, as curves over its epochs."""

import sys
from typing import Any

import click

from flatkit.checkpoints.parts import Parts
from flatkit.measures.settings import AnalysisSettings
from flatkit_cli.measuring import fresh_option
from flatkit_cli.options import option, setting_options, take_settings
from flatkit_cli.output import output_options, take_output
from flatkit_cli.processes import SharedCommand, processes_option


@click.command(
    cls=SharedCommand,
    short_help="curves of curvature over the epochs of a training",
    help="""Measure every checkpoint of one or more runs in the order of the epochs.

RUN is the folder of a run with epoch-*.pt (flatkit train --save-every N leaves them), a folder of
another program's checkpoints, or a pattern in quotes. One table a run and one figure show loss,
accuracy, gradient norm, λmax with 2/η, trace, R1 if it is asked for, and how far the leading
eigenvectors are those of the epoch before. With --json a run that was stopped goes on.

\b
flatkit train --data digits --optimizer gam --save-every 5 --out runs/gam
flatkit track runs/gam --json track.json --figures figures
flatkit track runs/sgd runs/gam --measures loss,top_eigenvalues,first_order_flatness --rho 0.05
flatkit track 'lightning/*.ckpt' --task my_task.py:build
""",
)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@setting_options(Parts, only=("task",))
@option("--entry", metavar="NAME", group="Checkpoint", help="Part of the files with the weights.")
@fresh_option
@setting_options(
    AnalysisSettings,
    defaults={
        "measures": "loss, accuracy, gradient_norm, top_eigenvalues, trace",
        "num_eigenvalues": "3",
        "eigenvectors": "kept until the end alone",
    },
)
@processes_option
@output_options
def track(
    runs: tuple[str, ...], task: str | None, entry: str | None, fresh: bool, **options: Any
) -> None:
    """Measure and show; the help text is that of the command."""
    output, given = take_output(options), take_settings(AnalysisSettings, options)
    output.check()

    from flatkit.comparison.track import track as run
    from flatkit.render.tables.track import track_table

    more = {name: value for name, value in (("task", task), ("entry", entry)) if value is not None}
    comparison = run(
        list(runs),
        journal=output.journal,
        fresh=fresh,
        command=["flatkit", *sys.argv[1:]],
        **more,
        **given,
    )

    def show() -> None:
        output.show(comparison, lambda: track_table(comparison))

    output.write(comparison, comparison, show)
