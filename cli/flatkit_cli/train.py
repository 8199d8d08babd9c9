"""`flatkit train`: train a model and leave checkpoints that `flatkit analyze` reads."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatkit.data import DATASETS
from flatkit.models import MODELS
from flatkit.training.applicable import (
    AUGMENTATIONS,
    BASES,
    DEVICES,
    GAM_MODES,
    GAM_ORACLES,
    OPTIMIZERS,
    PRECISIONS,
    RHO_SCHEDULES,
    SCHEDULES,
    WRAPPERS,
)
from flatkit.training.logs import LOGS
from flatkit.training.settings_file import read_settings, recipe_names
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
    _setting(
        "--data-root",
        "Folder of cifar10, cifar100, mnist and fashion_mnist.",
        "$FLATKIT_DATA_ROOT, or data",
        metavar="DIR",
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
    _setting("--base", "Optimizer that sam, asam, gsam and gam wrap.", "sgd", type=_names(BASES)),
    _setting(
        "--gam-mode",
        "GAM with four gradients a step, or exact with Hessian-vector products.",
        "accelerated",
        type=_names(GAM_MODES),
    ),
    _setting(
        "--rho",
        "Radius of the ball, of sam, asam, gsam and gam.",
        f"{WRAPPERS['sam']['rho']} with sam and gsam, {WRAPPERS['asam']['rho']} with asam, "
        f"{_GAM['rho']} with gam",
        type=float,
    ),
    _setting("--rho-prime", "Second radius, of gam.", f"{_GAM['rho_prime']}", type=float),
    _setting(
        "--alpha",
        "Weight alpha, of gsam and gam.",
        f"{WRAPPERS['gsam']['alpha']} with gsam, {_GAM['alpha']} with gam",
        type=float,
    ),
    _setting("--beta", "Weight beta, of gam.", f"{_GAM['beta']}", type=float),
    _setting("--gamma", "Weight gamma, of gam.", f"{_GAM['gamma']}", type=float),
    _setting("--oracle", "The loss under gam.", "loss", type=_names(GAM_ORACLES)),
    _setting(
        "--rho-sam",
        "Radius of sam, of gam with --oracle sam.",
        f"{GAM_ORACLES['sam']['rho_sam']}",
        type=float,
    ),
    _setting(
        "--rho-schedule",
        "The radii over the epochs: as they are, along half a cosine, or proportional to the "
        "learning rate.",
        "constant",
        type=_names(RHO_SCHEDULES),
    ),
    _setting(
        "--rho-final",
        "Share of the radii that the cosine, or a rate of 0, leaves.",
        "0.0",
        type=float,
    ),
    _setting("--eta", "Added to the weights' sizes, of asam.", "0.01", type=float),
    _setting(
        "--every", "Perturb in every N-th step only; the base steps in the others.", "1", type=int
    ),
    _setting("--max-norm", "Clip the gradient that the base uses.", "none", type=float),
    _setting("--epochs", "Passes over the training data.", "60", type=int),
    _setting("--batch-size", "Samples a step.", "64", type=int),
    _setting(
        "--accumulate",
        "Parts of a batch, each in memory by itself; their gradients add up to the batch's.",
        "1",
        type=int,
    ),
    _setting(
        "--precision",
        "Of the training passes, by autocast, with scaled losses in float16; weights and "
        "evaluations stay float32.",
        "float32",
        type=_names(PRECISIONS),
    ),
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
    _setting("--schedule", "Learning rate over the epochs.", "cosine", type=_names(SCHEDULES)),
    _setting(
        "--milestones",
        "Fractions of the epochs at which --schedule step lowers the rate.",
        "0.5,0.75",
        metavar="F,F,...",
    ),
    _setting("--decay", "Factor of --schedule step.", "0.1", type=float),
    _setting("--label-smoothing", "Label smoothing of the cross-entropy.", "0.0", type=float),
    _setting("--augment", "Random moves of images.", "none", type=_names(AUGMENTATIONS)),
    _setting(
        "--ema", "Decay of a moving average of the weights, kept in ema.pt.", "0: none", type=float
    ),
    _setting("--seed", "Seed of weights, data order and augmentation.", "0", type=int),
    _setting("--device", "auto takes cuda, then mps, then cpu.", "auto", type=_names(DEVICES)),
    click.option(
        "--deterministic/--no-deterministic",
        default=None,
        help="Only kernels that repeat themselves bit for bit.  [default: no-deterministic]",
    ),
    _setting("--evaluate-every", "Epochs between evaluations.", "1", type=int),
    _setting("--save-every", "Keep epoch-NNNN.pt every so many epochs; 0: none.", "0", type=int),
    click.option(
        "--log",
        multiple=True,
        type=_names(LOGS),
        help="Also write OUT/history.csv or OUT/tensorboard. Repeatable.",
    ),
)


def _settings(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.option(
    "--config",
    "source",
    metavar="FILE.toml|RECIPE",
    help="Settings, by their names with underscores; the options override them. "
    f"Recipes: {', '.join(recipe_names())}.",
)
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
    source: str | None,
    out: Path,
    track_curvature: int | None,
    resume: bool,
    overwrite: bool,
    **options: Any,
) -> None:
    """Train a model with SGD, AdamW, SAM, ASAM, GSAM or GAM.

    Writes ckpt.pt and history.json into --out after every epoch, whole or not at all, and prints
    the path of the checkpoint. A run that was stopped goes on bit for bit with --resume, which
    needs no other option than --out. An option that the chosen optimizer does not know is an
    error.
    """
    from flatkit.training import RunTracker
    from flatkit.training import train as run_training
    from flatkit_cli.progress import progress

    config = _config(source, options, out if resume else None)
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


def _config(source: str | None, options: dict[str, Any], resumed: Path | None) -> "TrainingConfig":
    from flatkit.training import TrainingConfig, stored_config

    given = {name: value for name, value in options.items() if value not in (None, ())}
    for name, option in (("data_kwargs", "--data-arg"), ("model_kwargs", "--model-arg")):
        if name in given:
            given[name] = parse_assignments(given[name], option)
    if "milestones" in given:
        given["milestones"] = parse_numbers(given["milestones"], "--milestones")
    if source is not None:
        given = _overridden(read_settings(source), given)
    if resumed is not None:
        return stored_config(resumed).resumed_with(given)
    return TrainingConfig(**given)


def _overridden(settings: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a file with those of the command line in front, argument by argument.

    Arguments of the file's data or model do not outlive another choice of data or model.
    """
    merged = {**settings, **given}
    for kind in ("data", "model"):
        key, chosen = f"{kind}_kwargs", given.get(kind)
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
