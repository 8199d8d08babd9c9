"""`flatkit train`: train a model and leave checkpoints that `flatkit analyze` reads."""

import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatkit.training.config import TrainingConfig
from flatkit.training.limits import OF_NAMED
from flatkit.training.settings_file import read_settings, recipe_names
from flatkit_cli.options import Command, option, setting_options

if TYPE_CHECKING:
    from flatkit.training.run import TrainingOutcome
    from flatkit.training.run_tracking import RunTracker


@click.command(
    cls=Command,
    short_help="train a network with SGD, AdamW, SAM or GAM",
    help="""Train a model with SGD, AdamW, SAM, ASAM, GSAM or GAM.

Writes ckpt.pt and history.json into --out after every epoch, whole or not at all, prints the path
of the checkpoint, and says on stderr what came out and what to do next. A run that was stopped goes
on bit for bit with --resume, which needs no other option than --out. An option that the chosen
optimizer does not know is an error.

\b
flatkit train --data digits --model mlp --optimizer gam --epochs 5 --out runs/gam
flatkit train --config cifar10-resnet18-gam --out runs/paper
flatkit train --task my_task.py:build --optimizer sam --epochs 20 --out runs/mine
flatkit train --resume --epochs 8 --out runs/gam
""",
)
@setting_options(TrainingConfig)
@option(
    "--config",
    "source",
    metavar="FILE.toml|RECIPE",
    group="Run",
    help="Settings, by their names with underscores; the options override them. "
    f"Recipes: {', '.join(recipe_names())}.",
)
@option(
    "--out",
    group="Run",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the run: ckpt.pt and history.json.",
)
@option(
    "--track-curvature",
    group="Run",
    type=click.IntRange(min=1),
    metavar="N",
    help="Every N steps, write the top Hessian eigenvalues into curvature.json, and with "
    "--log tensorboard to its run `curvature`.",
)
@option("--resume", group="Run", is_flag=True, help="Go on after the last whole epoch in --out.")
@option("--overwrite", group="Run", is_flag=True, help="Replace the run in --out.")
def train(
    source: str | None,
    out: Path,
    track_curvature: int | None,
    resume: bool,
    overwrite: bool,
    **options: Any,
) -> None:
    """Train; the help text is that of the command."""
    from flatkit.training import RunTracker
    from flatkit.training import train as run_training
    from flatkit_cli.progress import progress

    config = _config(source, options, out if resume else None)
    with ExitStack() as stack:
        tracker = None
        if track_curvature is not None:
            tracker = RunTracker(config, out, every=track_curvature, resume=resume)
            stack.callback(tracker.close)
        on_epoch, on_note = stack.enter_context(progress(config.epochs))
        try:
            outcome = run_training(
                config,
                out,
                resume=resume,
                overwrite=overwrite,
                on_epoch=on_epoch,
                on_note=on_note,
                on_step=tracker,
            )
        except KeyboardInterrupt:
            on_note(_interrupted(out))
            raise
    click.echo(_outcome(outcome, tracker, out, config.task), err=True)
    # Alone on stdout, so that a script can take it.
    click.echo(str(outcome.checkpoint))


def _outcome(
    outcome: "TrainingOutcome", tracker: "RunTracker | None", out: Path, task: str | None
) -> str:
    """Say what came out, and what to do next."""
    row = next((r for r in reversed(outcome.history) if r.test_loss is not None), None)
    parts = [f"{len(outcome.history)} epochs"]
    if row is not None and row.test_accuracy is not None:
        parts.append(f"test accuracy {100 * row.test_accuracy:.2f} %")
    elif row is not None:
        parts.append(f"test loss {row.test_loss:.4g}")
    if row is not None:
        parts.append(f"training loss {row.train_loss:.4g}")
    if tracker is not None and tracker.history:
        last = tracker.history[-1]
        top = f"λmax {last.values[0]:.4g} ± {last.errors[0]:.1g} at step {last.step}"
        parts.append(f"{top} (all in {out / 'curvature.json'})")
    checkpoint = shlex.quote(str(outcome.checkpoint))
    of_task = f" --task {shlex.quote(task)}" if task else ""
    return f"{', '.join(parts)}\nnext: flatkit analyze {checkpoint}{of_task}"


def _config(source: str | None, options: dict[str, Any], resumed: Path | None) -> TrainingConfig:
    from flatkit.training import stored_config

    given = {name: value for name, value in options.items() if value is not None}
    if source is not None:
        given = _overridden(read_settings(source), given)
    if resumed is not None:
        return stored_config(resumed).resumed_with(given)
    return TrainingConfig(**given)


def _overridden(settings: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a file with those of the command line in front, argument by argument.

    Arguments of the file's data, model or optimizer do not outlive another choice of it.
    """
    if given.get("task"):
        settings = {name: value for name, value in settings.items() if name not in OF_NAMED}
    elif given.get("data") or given.get("model"):
        settings = {name: value for name, value in settings.items() if name != "task"}
    merged = {**settings, **given}
    for kind in ("data", "model", "optimizer"):
        key, chosen = f"{kind}_kwargs", given.get(kind)
        # The model that was chosen instead would not know the arguments of the other.
        kept = settings.get(key, {}) if chosen in (None, settings.get(kind)) else {}
        merged[key] = {**kept, **given.get(key, {})}
    return merged


def _interrupted(out: Path) -> str:
    from flatkit.errors import FlatkitError
    from flatkit.training import read_history

    try:
        epochs = f"holds epoch {len(read_history(out / 'history.json'))}"
    except FlatkitError:
        return "stopped before anything was written"
    return f"stopped; {out / 'ckpt.pt'} {epochs}; go on with: flatkit train --out {out} --resume"
