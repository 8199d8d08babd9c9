"""`flatkit train`: train a model and leave checkpoints that `flatkit analyze` reads."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatkit.data import DATASETS
from flatkit.models import MODELS
from flatkit.training.applicable import (
    BASES,
    DEVICES,
    GAM_MODES,
    OPTIMIZERS,
    SAM_SETTINGS,
    SCHEDULES,
)
from flatkit_cli.assignments import parse_assignments, parse_numbers

if TYPE_CHECKING:
    from flatkit.training import TrainingConfig


def _setting(name: str, text: str, default: str, **more: Any) -> Callable[..., Any]:
    """Return an option that is None unless it is given, so that a resumed run knows what was."""
    text = f"{text}  [default: {default}]"
    return click.option(name, help=text, default=None, **more)


def _names(names: Sequence[str] | dict[str, Any]) -> "click.Choice[str]":
    return click.Choice(list(names))


_GAM = GAM_MODES["accelerated"]
_SGD, _ADAMW = BASES["sgd"], BASES["adamw"]
_OPTIONS = (
    _setting("--data", "Data set.", "digits", type=_names(DATASETS.names)),
    click.option(
        "--data-arg",
        "data_kwargs",
        multiple=True,
        metavar="NAME=VALUE",
        help="Argument of the data set, e.g. test_fraction=0.3. Repeatable.",
    ),
    _setting("--model", "Model.", "mlp", type=_names(MODELS.names)),
    click.option(
        "--model-arg",
        "model_kwargs",
        multiple=True,
        metavar="NAME=VALUE",
        help="Argument of the model, e.g. hidden=64,64 or batchnorm=false. Repeatable.",
    ),
    _setting("--optimizer", "Optimizer.", "sgd", type=_names(OPTIMIZERS)),
    _setting("--base", "Optimizer that sam and gam wrap.", "sgd", type=_names(BASES)),
    _setting(
        "--gam-mode",
        "GAM with four gradients a step, or exact with Hessian-vector products.",
        "accelerated",
        type=_names(GAM_MODES),
    ),
    _setting(
        "--rho",
        "Radius of the ball, of sam and gam.",
        f"{SAM_SETTINGS['rho']} with sam, {_GAM['rho']} with gam",
        type=float,
    ),
    _setting("--rho-prime", "Second radius, of gam.", f"{_GAM['rho_prime']}", type=float),
    _setting("--alpha", "Weight alpha, of gam.", f"{_GAM['alpha']}", type=float),
    _setting("--beta", "Weight beta, of gam.", f"{_GAM['beta']}", type=float),
    _setting("--gamma", "Weight gamma, of gam.", f"{_GAM['gamma']}", type=float),
    _setting("--epochs", "Passes over the training data.", "60", type=int),
    _setting("--batch-size", "Samples a step.", "64", type=int),
    _setting(
        "--lr", "Learning rate.", f"{_SGD['lr']} with sgd, {_ADAMW['lr']} with adamw", type=float
    ),
    _setting("--momentum", "Momentum, of sgd.", f"{_SGD['momentum']}", type=float),
    _setting(
        "--weight-decay",
        "Weight decay.",
        f"{_SGD['weight_decay']} with sgd, {_ADAMW['weight_decay']} with adamw",
        type=float,
    ),
    _setting("--schedule", "Of the learning rate.", "cosine", type=_names(SCHEDULES)),
    _setting(
        "--milestones",
        "Fractions of the epochs at which --schedule step lowers the rate.",
        "0.5,0.75",
        metavar="F,F,...",
    ),
    _setting("--decay", "Factor of --schedule step.", "0.1", type=float),
    _setting("--label-smoothing", "Of the cross-entropy.", "0.0", type=float),
    _setting("--seed", "Of weights and data order.", "0", type=int),
    _setting("--device", "auto takes cuda, then mps, then cpu.", "auto", type=_names(DEVICES)),
    _setting("--save-every", "Keep epoch-NNNN.pt every so many epochs; 0: none.", "0", type=int),
)


def _settings(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@_settings
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the run: ckpt.pt and history.json.",
)
@click.option(
    "--track-curvature",
    type=click.IntRange(min=1),
    metavar="N",
    help="Every N steps, write the top Hessian eigenvalues into curvature.json.",
)
@click.option("--resume", is_flag=True, help="Go on after the last whole epoch in --out.")
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
def train(
    out: Path, track_curvature: int | None, resume: bool, overwrite: bool, **options: Any
) -> None:
    """Train a model with SGD, AdamW, SAM or GAM.

    Writes ckpt.pt and history.json into --out after every epoch, whole or not at all, and prints
    the path of the checkpoint. A run that was stopped goes on bit for bit with --resume, which
    needs no other option than --out. An option that the chosen optimizer does not know is an
    error.
    """
    from flatkit.training import RunTracker
    from flatkit.training import train as run_training
    from flatkit_cli.progress import progress

    config = _config(options, out if resume else None)
    tracker = None
    if track_curvature is not None:
        tracker = RunTracker(config, out, every=track_curvature, resume=resume)
    with progress(config.epochs) as (on_epoch, on_note):
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
    click.echo(str(outcome.checkpoint))


def _config(options: dict[str, Any], resumed: Path | None) -> "TrainingConfig":
    from flatkit.training import TrainingConfig, stored_config

    given = {name: value for name, value in options.items() if value not in (None, ())}
    for name, option in (("data_kwargs", "--data-arg"), ("model_kwargs", "--model-arg")):
        if name in given:
            given[name] = parse_assignments(given[name], option)
    if "milestones" in given:
        given["milestones"] = parse_numbers(given["milestones"], "--milestones")
    if resumed is not None:
        return stored_config(resumed).resumed_with(given)
    return TrainingConfig(**given)


def _interrupted(out: Path) -> str:
    from flatkit.errors import FlatkitError
    from flatkit.training import read_history

    try:
        epochs = f"holds epoch {len(read_history(out / 'history.json'))}"
    except FlatkitError:
        return "stopped before anything was written"
    return f"stopped; {out / 'ckpt.pt'} {epochs}; go on with: flatkit train --out {out} --resume"
