"""What a run trains and on what: by names in registries, or the user's own task."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flatkit.checkpoints.checkpoint import Checkpoint
from flatkit.checkpoints.parts import file_digest
from flatkit.checkpoints.recipe import data_recipe, model_recipe
from flatkit.checkpoints.taken_task import TakenTask, taken
from flatkit.checkpoints.task_file import load_task
from flatkit.data import DATASETS
from flatkit.data.dataset import Dataset
from flatkit.devices import resolve_device
from flatkit.errors import CheckpointError, InvalidArgumentError, NonAdditiveLossError
from flatkit.models import MODELS
from flatkit.objective.decisions import Decision
from flatkit.objective.function import Objective
from flatkit.objective.losses import CrossEntropy, LossFunction
from flatkit.objective.reading.sample_set import Samples, default_chunk_size
from flatkit.objective.task import Task
from flatkit.training.config import TrainingConfig
from flatkit.training.data import changes_of, training_data
from flatkit.training.determinism import private_random_state
from flatkit.training.rows import Rows


@dataclass(frozen=True, eq=False)
class Material:
    """What is trained, and on what.

    Attributes:
        recipe: what `flatkit.checkpoints.native.save` names it by.
        loss: of (outputs, targets): values of the samples, or their mean.
        decision: how outputs name a class; None where they name none.
        splits: `train`, `test`, and `validation` where there is one.
        clean: the training samples with their right labels, where some were made wrong.
        build: returns the model with its initial weights, once.
        name: of the data, in messages.
    """

    recipe: Mapping[str, Any]
    loss: LossFunction
    decision: Decision | None
    splits: Mapping[str, Rows]
    clean: Rows | None
    build: Callable[[], nn.Module]
    name: str

    def to(self, device: torch.device) -> "Material":
        """Return it with the samples on a device."""
        splits = {name: rows.to(device) for name, rows in self.splits.items()}
        clean = None if self.clean is None else self.clean.to(device)
        # Weights of the classes, for example, are buffers of the loss.
        if isinstance(self.loss, nn.Module):
            self.loss.to(device)
        return replace(self, splits=splits, clean=clean)


def material(config: TrainingConfig, stored: Checkpoint | None = None) -> Material:
    """Return what a run trains, built as its settings say.

    Args:
        config: the settings.
        stored: the checkpoint of a run that goes on.

    Raises:
        InvalidArgumentError: settings that cannot be; a task without test data.
        CheckpointError: the data, or the task file, are not those that the run was trained on.
        TaskError: the task file fails.
        NonAdditiveLossError: the loss of the task is no mean over samples.
    """
    if config.task is not None:
        return _of_task(config, config.task, stored)
    return _of_names(config, stored)


def _of_names(config: TrainingConfig, stored: Checkpoint | None) -> Material:
    dataset = _dataset(config, stored)
    # Its files may lie elsewhere now; which data they are is checked by digest.
    data = {**stored.data, "kwargs": dataset.kwargs} if stored else data_recipe(dataset)
    model = stored.model if stored else _model_spec(config, dataset)
    loss = CrossEntropy(label_smoothing=config.label_smoothing)
    splits = {"train": Rows.of(dataset.train), "test": Rows.of(dataset.test)}
    if dataset.validation is not None:
        splits["validation"] = Rows.of(dataset.validation)
    clean = dataset.clean_targets
    return Material(
        {"model": model, "data": data, "loss": loss.spec()},
        loss,
        Decision(None),
        splits,
        None if clean is None else Rows(dataset.train.inputs, clean),
        # Called when the run has seeded torch: the weights are drawn then.
        lambda: MODELS.build(model["name"], **model["kwargs"]),
        str(config.data),
    )


def _dataset(config: TrainingConfig, stored: Checkpoint | None) -> Dataset:
    place = {} if config.data_root is None else {"root": config.data_root}
    if place and "root" not in DATASETS.complete(str(config.data)):
        raise InvalidArgumentError(
            f"data_root does not apply to {config.data}, which is not read from files; leave it out"
        )
    if stored is not None:
        kwargs = {**stored.data["kwargs"], **place}
        return replace(stored, data={**stored.data, "kwargs": kwargs}).build_data()
    if place and "root" in config.data_kwargs:
        raise InvalidArgumentError("give one of `data_root` and the data argument root, not both")
    return training_data(config)


def _model_spec(config: TrainingConfig, dataset: Dataset) -> dict[str, Any]:
    for name in {"in_shape", "classes"} & config.model_kwargs.keys():
        raise InvalidArgumentError(f"{name} of the model comes from the data; leave it out")
    return model_recipe(str(config.model), config.model_kwargs, dataset)


def _of_task(config: TrainingConfig, function: str, stored: Checkpoint | None) -> Material:
    # Before the file is run: what has changed is refused without executing it.
    file = file_digest(function, "task")
    if stored is not None and stored.task_file.get("sha256") != file:
        raise CheckpointError(
            f"{function.rpartition(':')[0]} has changed since {stored.path} was trained (sha256 "
            f"{str(stored.task_file.get('sha256'))[:12]} there, {file[:12]} here); put the file "
            "back as it was, or start a new run elsewhere"
        )
    whole = taken_task(config, function)
    if stored is not None and stored.task_file.get("data_sha256") != whole.sha256:
        raise CheckpointError(
            f"{stored.path} was trained on other data than {function} gives here (sha256 "
            f"{str(stored.task_file.get('data_sha256'))[:12]}, here {whole.sha256[:12]}); restore "
            "the data, or start a new run elsewhere"
        )
    if whole.test is None:
        raise InvalidArgumentError(
            f"the task of {function} has no test data, on which every epoch is evaluated: return "
            "flatkit.Task(model, loss, data, test_data)"
        )
    _refuse_trained_loss(whole.task, function)
    changes = changes_of(config)
    found = whole.changed(changes)
    splits = {"train": found.train, "test": whole.test}
    if found.validation is not None:
        splits["validation"] = found.validation
    counted = {name: _counted(found, own, examine=name == "train") for name, own in splits.items()}
    rows = {name: own for name, (own, _) in counted.items()}
    clean = found.clean_targets
    task_file = {
        "function": function,
        "sha256": file,
        "data_sha256": whole.sha256,
        "changes": changes,
    }
    return Material(
        {"task_file": task_file},
        found.loss,
        found.decision,
        rows,
        None if clean is None else replace(rows["train"], targets=clean[counted["train"][1]]),
        lambda: found.task.model,
        function,
    )


def _refuse_trained_loss(task: Task, function: str) -> None:
    """Refuse a loss with weights of its own: the optimizer and the checkpoint have the model's."""
    loss: Any = task.loss
    if not isinstance(loss, nn.Module):
        return
    of_model = {id(parameter) for parameter in task.model.parameters()}
    names = [
        name
        for name, parameter in loss.named_parameters()
        if parameter.requires_grad and id(parameter) not in of_model
    ]
    if names:
        raise InvalidArgumentError(
            f"the loss of {function} has parameters of its own ({', '.join(names)}), which would "
            "not be trained: make them part of the model, whose forward then returns what the "
            "loss takes (for ArcFace the scaled cosines, for a learned temperature the divided "
            "logits) and the loss none; or freeze them by requires_grad_(False), if they are "
            "constants"
        )


def taken_task(config: TrainingConfig, function: str) -> TakenTask:
    """Return the task of a run as its function returns it, under the seed of the run.

    Args:
        config: whose seed initial weights, and data that are drawn, follow from.
        function: `FILE.py:FUNCTION`.

    Raises:
        TaskError: the file fails.
        InvalidArgumentError: as of `taken`.
    """
    # Outside of it the caller's own random numbers go on as if nothing was built.
    with private_random_state(resolve_device("cpu")):
        torch.manual_seed(config.seed)
        return taken(load_task(function))


def _counted(found: TakenTask, samples: Samples, *, examine: bool) -> tuple[Rows, Tensor]:
    """Return samples as they are trained on, those that count, and which these are, bool [N].

    The objective proves that the loss is their mean.
    """
    task = found.task
    # The test data are not examined again: of one loss the training data prove it.
    own = Objective(task.model, task.loss, samples, examine=examine)
    if not own.divisible:
        raise NonAdditiveLossError(
            "the loss is not a mean over samples that go through the model one by one, as training "
            "in batches, its history and its resumption need: let the loss return one value a "
            "sample (reduction='none'), or train in your own code and measure its checkpoints with "
            "`flatkit analyze --task`"
        )
    alike = bool((own.weights == 1).all())
    # The objective leaves out samples without a target that counts: its weights are of the others.
    counts = torch.isin(samples.indices, own.indices)
    some = samples if bool(counts.all()) else samples.rows(counts.nonzero().squeeze(1))
    weights = None if alike else own.weights.float()
    return Rows(some.inputs, some.targets, weights, default_chunk_size(some)), counts
