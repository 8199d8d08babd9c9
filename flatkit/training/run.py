"""A training run: from settings to a folder with checkpoints and a history, resumable."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flatkit.checkpoints.checkpoint import Checkpoint
from flatkit.checkpoints.loading import load
from flatkit.checkpoints.native import save
from flatkit.devices import resolve_device
from flatkit.errors import CheckpointError, InvalidArgumentError, TrainingDivergedError
from flatkit.objective.users_code import users_code
from flatkit.settings import check_made
from flatkit.training.augmentation import check_augmentable
from flatkit.training.config import TrainingConfig
from flatkit.training.determinism import deterministic_algorithms, private_random_state
from flatkit.training.evaluation import evaluate, gradient_norm
from flatkit.training.folder import RunFolder
from flatkit.training.history import EpochRow, write_history
from flatkit.training.learner import Learner
from flatkit.training.logs import check_logs, open_logs
from flatkit.training.material import Material, material
from flatkit.training.optimizers import build_optimizer
from flatkit.training.precision import check_precision
from flatkit.training.schedules import learning_rate


@dataclass(frozen=True)
class TrainingOutcome:
    """What a run left.

    Attributes:
        checkpoint: the file of the last epoch.
        history: one row an epoch, those before a resumption included.
        epochs_run: epochs of this call; 0 if a finished run was resumed.
    """

    checkpoint: Path
    history: tuple[EpochRow, ...]
    epochs_run: int


def train(
    config: TrainingConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_epoch: Callable[[EpochRow], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    on_step: Callable[[nn.Module, int], object] | None = None,
    save_seconds: float = 0.0,
) -> TrainingOutcome:
    """Train, writing `ckpt.pt` and `history.json` before the first step and after every epoch.

    With a moving average of the weights (`ema`) it is written into `ema.pt`, a checkpoint by
    itself, and the logs that the settings name beside them.

    A run that was killed and resumed ends with the same weights, optimizer state and history
    (seconds aside) bit for bit as one that was not, on the CPU; on a GPU as far as its kernels
    repeat themselves. The caller's random states are untouched.

    Args:
        config: the settings; on resumption those of the run, of which the epochs may grow (then
            the schedule stretches over the new number), and `data_root` and `log` may differ.
        out: folder of the run.
        resume: go on after the last whole epoch in `out`.
        overwrite: replace the run in `out`.
        on_epoch: called with the row of every epoch, after its checkpoint was written.
        on_note: called with sentences that a user should read.
        on_step: called after every step with the model and the number of steps so far, such as
            `CurvatureTracker(...).step`; it must leave the model and the random state alone.
        save_seconds: `ckpt.pt` and `history.json` are left out after an epoch that ends sooner than
            so long after they were written, and is neither the last one nor kept: epochs of a small
            network take less time than its files.

    Raises:
        InvalidArgumentError: settings that cannot be, or `out` holds a run and neither flag is set.
        CheckpointError: the run in `out` cannot be read, or was trained on other data or by
            another task file.
        TaskError: the task file fails.
        DataError: the files of the data set are missing or damaged.
        MissingDependencyError: a package of the data or of a log is not installed.
        TrainingDivergedError: a loss became NaN or infinite; `ckpt.pt` stays that of the last
            good epoch after which it was written.

    >>> import tempfile
    >>> config = TrainingConfig(data="gaussians", epochs=2, device="cpu")
    >>> outcome = train(config, tempfile.mkdtemp())
    >>> [row.epoch for row in outcome.history], outcome.checkpoint.name
    ([1, 2], 'ckpt.pt')
    """
    check_made("config", config, TrainingConfig)
    folder = RunFolder(Path(out))
    folder.check(resume=resume, overwrite=overwrite)
    # Before the data are read, which takes long: a damaged checkpoint is told at once.
    stored = load(folder.checkpoint) if resume else None
    if stored is not None:
        config = _settings(stored).resumed_with(config.to_dict())
    check_logs(config.log)
    plan = _plan(config, folder, stored)
    with ExitStack() as stack:
        # First, as to build the model draws its weights.
        stack.enter_context(private_random_state(plan.device))
        stack.enter_context(deterministic_algorithms(config.deterministic))
        learner = _new_learner(plan) if stored is None else _restored_learner(plan, stored)
        learner.on_step = on_step
        # From the checkpoint, not from history.json: a kill may have come between the two files.
        history = [EpochRow.from_dict(row) for row in stored.history] if stored else []
        if stored is None:
            # Only now: a run that cannot begin must not have removed the one before.
            folder.clear()
            _save(plan, learner, history)
            saved, since = 0, time.monotonic()
        else:
            saved, since = len(history), float("-inf")
            folder.sweep()
            write_history(folder.history, history)  # a kill may have come before it was written
            (on_note or _ignore)(_resumption(stored, config))
        logs = open_logs(config.log, folder.path, history)
        for log in logs:
            stack.enter_context(closing(log))
        for epoch in range(len(history) + 1, config.epochs + 1):
            history.append(_run_epoch(plan, learner, epoch, saved))
            last = epoch == config.epochs or _is_kept(config, epoch)
            if last or time.monotonic() - since >= save_seconds:
                _save(plan, learner, history)
                saved, since = epoch, time.monotonic()
            for report in (*logs, on_epoch or _ignore):
                report(history[-1])
    epochs_run = config.epochs - (stored.epoch if stored else 0)
    return TrainingOutcome(folder.checkpoint, tuple(history), epochs_run)


def stored_config(out: str | Path) -> TrainingConfig:
    """Return the settings of the run in a folder.

    Raises:
        InvalidArgumentError: there is no run.
        CheckpointError: its checkpoint cannot be read, or says nothing of a training.

    >>> import tempfile
    >>> config = TrainingConfig(data="gaussians", epochs=1, device="cpu", seed=3)
    >>> stored_config(train(config, tempfile.mkdtemp()).checkpoint.parent).seed
    3
    """
    folder = RunFolder(Path(out))
    folder.check(resume=True, overwrite=False)
    return _settings(load(folder.checkpoint))


@dataclass(frozen=True)
class _Plan:
    """What stays the same during a run."""

    config: TrainingConfig
    folder: RunFolder
    device: torch.device
    material: Material


def _plan(config: TrainingConfig, folder: RunFolder, stored: Checkpoint | None) -> _Plan:
    device = resolve_device(config.device)
    found = material(config, stored)
    train = found.splits["train"]
    if config.batch_size > train.samples:
        raise InvalidArgumentError(
            f"batch_size must be at most the {train.samples} training samples "
            f"of {found.name}, got {config.batch_size}"
        )
    check_augmentable(config.augment, train.in_shape)
    check_precision(config.precision, device)
    return _Plan(config, folder, device, found.to(device))


def _new_learner(plan: _Plan) -> Learner:
    torch.manual_seed(plan.config.seed)
    return _learner(plan, plan.material.build())


def _restored_learner(plan: _Plan, stored: Checkpoint) -> Learner:
    if plan.config.task:
        stored.load_into(model := plan.material.build())
    else:
        model = stored.build_model()
    learner = _learner(plan, model)
    try:
        device = stored.training_state["device"]
        learner.load_state(stored.training_state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{stored.path} cannot be resumed: its training state is missing or malformed ({error})"
        ) from error
    if device != plan.device.type:
        raise InvalidArgumentError(
            f"the run was trained on {device} and cannot go on bit for bit on {plan.device.type}; "
            "resume it where it began, or start a new run elsewhere"
        )
    return learner


def _learner(plan: _Plan, model: nn.Module) -> Learner:
    model.to(plan.device)
    optimizer = build_optimizer(plan.config, model)
    train = plan.material.splits["train"]
    return Learner(model, optimizer, loss=plan.material.loss, train=train, config=plan.config)


def _run_epoch(plan: _Plan, learner: Learner, epoch: int, saved: int) -> EpochRow:
    start = time.perf_counter()
    try:
        with users_code("the task", learner.model) if plan.config.task else nullcontext():
            learner.run_epoch(epoch)
            found = _evaluated(plan, learner, epoch)
    except TrainingDivergedError as error:
        raise TrainingDivergedError(
            f"{error}; {plan.folder.checkpoint} holds epoch {saved}"
        ) from error
    return EpochRow(
        epoch=epoch,
        lr=learning_rate(plan.config, epoch),
        gradients=learner.gradients,
        seconds=time.perf_counter() - start,
        rho=learner.rho,
        skipped=learner.skipped,
        **found,
    )


def _evaluated(plan: _Plan, learner: Learner, epoch: int) -> dict[str, Any]:
    """Return the means over each split by their names in a row; None if this epoch has none."""
    if epoch % plan.config.evaluate_every and epoch != plan.config.epochs:
        return dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy"))
    own, loss = plan.material, plan.material.loss
    judge = partial(evaluate, loss=loss, decision=own.decision)
    # Losses are looked at before the file is written,
    # so that no checkpoint of a divergence is kept.
    means = {name: judge(learner.model, split=rows) for name, rows in own.splits.items()}
    if not all(isfinite(mean.loss) for mean in means.values()):
        raise learner.diverged("the loss is not finite after the last step", epoch)
    if learner.average is not None:
        means["average_test"] = judge(learner.average, split=own.splits["test"])
    found = {f"{name}_loss": mean.loss for name, mean in means.items()}
    found |= {f"{name}_accuracy": mean.accuracy for name, mean in means.items()}
    if own.clean is not None:
        found["clean_train_accuracy"] = judge(learner.model, split=own.clean).accuracy
    if plan.config.gradient_norms:
        for name in ("train", "test"):
            found[f"{name}_gradient_norm"] = gradient_norm(learner.model, loss, own.splits[name])
    return found


def _save(plan: _Plan, learner: Learner, history: Sequence[EpochRow]) -> None:
    """Write the kept checkpoint, the average, the last checkpoint and the history, in this order.

    A run that is killed in between is resumed from the last one and writes the others again.
    """
    epoch = len(history)
    # This one first: `ckpt.pt` says that the epoch is done, and nothing of it may then be missing.
    if _is_kept(plan.config, epoch):
        _write(plan, plan.folder.kept(epoch), learner.model, history, learner.state())
    if learner.average is not None:
        _write(plan, plan.folder.average, learner.average, history, {})
    _write(plan, plan.folder.checkpoint, learner.model, history, learner.state())
    write_history(plan.folder.history, history)


def _is_kept(config: TrainingConfig, epoch: int) -> bool:
    return bool(config.save_every and epoch) and epoch % config.save_every == 0


def _write(
    plan: _Plan, target: Path, model: nn.Module, history: Sequence[EpochRow], state: dict[str, Any]
) -> None:
    save(
        target,
        **plan.material.recipe,
        state_dict=model.state_dict(),
        epoch=len(history),
        config=plan.config.to_dict(),
        history=[row.to_dict() for row in history],
        training_state=state,
    )


def _settings(stored: Checkpoint) -> TrainingConfig:
    try:
        return TrainingConfig.from_dict(stored.config)
    except (InvalidArgumentError, TypeError) as error:
        raise CheckpointError(f"{stored.path} cannot be resumed: {error}") from error


def _resumption(stored: Checkpoint, config: TrainingConfig) -> str:
    if stored.epoch == config.epochs:
        return f"nothing to do: {stored.path} has all its {config.epochs} epochs"
    text = f"resuming {stored.path} after epoch {stored.epoch} of {config.epochs}"
    before = stored.config["epochs"]
    kind = config.schedule
    # A schedule of the radii stretches as that of the rate does.
    if kind == "none" and config.rho_schedule == "cosine":
        kind = "cosine rho"
    if config.epochs > before and kind != "none":
        text += (
            f"; the {kind} schedule stretches from {before} to {config.epochs} epochs, "
            "so the result is not that of a run that was planned so long"
        )
    return text


def _ignore(_: object) -> None:
    """Take no notice."""
