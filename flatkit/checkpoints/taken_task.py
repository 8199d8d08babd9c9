"""A task with its samples in memory, and with what the settings of a training make of them."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flatkit.data.derived import derivation
from flatkit.errors import InvalidArgumentError
from flatkit.objective.decisions import Decision, decision_of
from flatkit.objective.kept import digest_of_tensors
from flatkit.objective.losses import as_sums
from flatkit.objective.passes import outputs_of
from flatkit.objective.pytree import Tree, leaves, main_tensor
from flatkit.objective.reading.intake import Taken, Taker, take_in
from flatkit.objective.reading.sample_set import Samples
from flatkit.objective.task import Task
from flatkit.objective.users_code import users_code


@dataclass(frozen=True, eq=False)
class TakenTask:
    """A task whose data are in memory, divided as its model and its loss take them.

    Attributes:
        task: its `data` and `test_data` are `Samples`.
        loss: of (outputs, targets), as the samples have these.
        decision: how outputs name a class; None where they name none.
        classes: how many there are; 0 where the targets are no classes [N].
        sha256: of all samples, before any change.
        validation: for choosing settings; None without such.
        clean_targets: the right labels of the training samples, where some were made wrong.
    """

    task: Task
    loss: Any
    decision: Decision | None
    classes: int
    sha256: str
    validation: Samples | None = None
    clean_targets: Tensor | None = None

    @property
    def train(self) -> Samples:
        """The training samples."""
        return self.task.data

    @property
    def test(self) -> Samples | None:
        """The test samples."""
        return self.task.test_data

    def changed(self, changes: Mapping[str, Any]) -> "TakenTask":
        """Return the task with fewer training samples, a validation split, wrong labels.

        Args:
            changes: arguments of `flatkit.data.derived.derivation`.

        Raises:
            InvalidArgumentError: as of `derivation`.
        """
        samples, labels = self.train, self.train.targets if self.classes else None
        made = derivation(len(samples), labels, classes=self.classes, **changes)
        if not made.changes:
            return self

        def rows(chosen: Tensor) -> Samples:
            part = samples.rows(chosen)
            return part if made.labels is None else replace(part, targets=made.labels[chosen])

        noisy = made.labels is not None and "label_noise" in made.changes
        return replace(
            self,
            task=replace(self.task, data=rows(made.train)),
            validation=None if made.validation is None else rows(made.validation),
            clean_targets=samples.targets[made.train] if noisy else None,
        )


def taken(task: Task) -> TakenTask:
    """Return a task with its samples in memory; its model and random states are as they were.

    Raises:
        InvalidArgumentError: the data do not fit the model or the loss, or they come in batches
            that cannot be cut into samples.
        UserCodeError: data set, model or loss raises.

    >>> data = (torch.ones(2, 1), torch.tensor([0, 1]))
    >>> found = taken(Task(nn.Linear(1, 3), "cross_entropy", data))
    >>> found.classes, found.decision, len(found.train)
    (3, Decision(threshold=None), 2)
    """
    with _evaluating(task.model):
        train = _take(task, task.data)
        test = None if task.test_data is None else _take(task, task.test_data).samples
    decision = decision_of(train.loss, train.trial, train.samples.targets)
    both = [train.samples] if test is None else [train.samples, test]
    tensors = [leaf for own in both for part in (own.inputs, own.targets) for leaf in leaves(part)]
    return TakenTask(
        replace(task, data=train.samples, test_data=test),
        train.loss,
        decision,
        _classes(train, decision),
        digest_of_tensors("", tensors),
    )


def _take(task: Task, data: Any) -> Taken:
    def run(inputs: Tree) -> Any:
        with users_code("the model", task.model):
            return outputs_of(task.model, inputs)

    first = next(iter(task.model.parameters()), torch.empty(0))
    loss = as_sums(task.loss)
    found = take_in(
        data, Taker(task.model, loss, run, first.dtype, first.device, None), samples=None, seed=0
    )
    if found.samples.counts is not None:
        raise InvalidArgumentError(
            "the data come in batches that cannot be cut into samples, so that no batches can be "
            "drawn from them; give a data set of samples"
        )
    return found


def _classes(train: Taken, decision: Decision | None) -> int:
    targets, outputs = train.samples.targets, main_tensor(train.trial)
    whole = isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point()
    if decision is None or outputs is None or not whole:
        return 0
    return outputs.shape[1] if decision.threshold is None else 2


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None, None, None]:
    """Let a model be in eval mode, and put the mode of every part of it back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            # `module.train(mode)` would set all parts below it as well.
            module.training = mode
