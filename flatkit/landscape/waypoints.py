"""What a landscape is looked at: checkpoints that name their model and data, and tasks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from flatkit.checkpoints.checkpoint import Checkpoint
from flatkit.errors import CheckpointError, InvalidArgumentError
from flatkit.landscape.trajectories import Waypoint
from flatkit.objective.function import Objective
from flatkit.objective.task import Task

Subject: TypeAlias = Task | Checkpoint | Callable[[], Task]
"""A function makes its task when it is its turn, so that many need not be in memory at once."""


def task_of(subject: Subject) -> Task:
    """Return the task of a subject.

    Raises:
        CheckpointError: a checkpoint does not name its model, or has weights that are not finite.
        InvalidArgumentError: it is no subject.

    >>> from torch import nn
    >>> task = Task(nn.Linear(1, 1), "mse", (torch.ones(1, 1), torch.ones(1, 1)))
    >>> task_of(task) is task_of(lambda: task)
    True
    """
    if isinstance(subject, Task):
        return subject
    if isinstance(subject, Checkpoint):
        return subject.task()
    if callable(subject):
        return subject()
    raise InvalidArgumentError(
        "a landscape is that of checkpoints (flatkit.load) or tasks (flatkit.Task), got a "
        f"{type(subject).__name__}"
    )


def origin_of(task: Task) -> dict[str, Any]:
    """Return what a surface says of the weights, ready for JSON.

    >>> from torch import nn
    >>> data = (torch.ones(1, 1), torch.ones(1, 1))
    >>> origin_of(Task(nn.Linear(1, 1), "mse", data, name="mine"))
    {'name': 'mine', 'sha256': None, 'epoch': None}
    """
    origin = task.origin
    return {
        "name": task.name or "model",
        "sha256": origin.get("sha256"),
        "epoch": origin.get("epoch"),
    }


def folder_of(task: Task) -> str:
    """Return the name of the folder of a checkpoint, for the run that it is of.

    >>> from torch import nn
    >>> data = (torch.ones(1, 1), torch.ones(1, 1))
    >>> folder_of(Task(nn.Linear(1, 1), "mse", data, origin={"path": "runs/gam/epoch-1.pt"}))
    'gam'
    """
    path = task.origin.get("path")
    return (Path(path).absolute().parent.name if path else "") or task.name or "model"


@dataclass(frozen=True, eq=False)
class LoadedWeights:
    """The weights of one subject, without its data.

    Attributes:
        origin: `{"name", "sha256", "epoch"}`.
        where: the file, for messages.
        model: holds the weights.

    >>> from torch import nn
    >>> data = (torch.ones(1, 1), torch.ones(1, 1))
    >>> task = Task(nn.Linear(1, 1), "mse", data)
    >>> objective = Objective(task.model, "mse", data)
    >>> LoadedWeights.of(task).stop("a", objective, buffers=False).theta.shape
    torch.Size([2])
    """

    origin: dict[str, Any]
    where: str
    model: Any

    @classmethod
    def of(cls, subject: Subject) -> "LoadedWeights":
        """Return the place; of a checkpoint no data are built.

        Raises:
            CheckpointError: its weights are not finite, or it does not name its model.
        """
        if not isinstance(subject, Checkpoint):
            task = task_of(subject)
            origin = origin_of(task)
            return cls(origin, str(task.origin.get("path", origin["name"])), task.model)
        for tensor, count in subject.non_finite().items():
            raise CheckpointError(
                f"{subject.path} cannot be used: {count} values of {tensor} are NaN or infinite; "
                "leave this checkpoint out"
            )
        origin = {"name": subject.name, "sha256": subject.sha256, "epoch": subject.epoch}
        return cls(origin, subject.path, subject.build_model())

    def stop(self, name: str, objective: Objective, *, buffers: bool) -> Waypoint:
        """Return it as a point of the objective's space.

        Raises:
            CheckpointError: it is of another architecture, or differs in what is frozen.
        """
        own = {n: p.detach().to(objective.theta) for n, p in self.model.named_parameters()}
        wanted = {n: p.detach() for n, p in objective.model.named_parameters()}
        for parameter in sorted(own.keys() ^ wanted.keys()):
            where = "has no" if parameter in wanted else "has another"
            raise CheckpointError(
                f"{self.where} {where} parameter {parameter}: the checkpoints are of different "
                "architectures"
            )
        for parameter, weights in wanted.items():
            self._check(parameter, own[parameter], weights, objective)
        floating = {
            n: b.detach().to(objective.theta)
            for n, b in self.model.named_buffers()
            if b.is_floating_point()
        }
        return Waypoint(name, objective.space.flatten(own), floating if buffers else {})

    def _check(
        self, name: str, own: torch.Tensor, wanted: torch.Tensor, objective: Objective
    ) -> None:
        if own.shape != wanted.shape:
            raise CheckpointError(
                f"{self.where} is of another architecture: {name} has the shape "
                f"{list(own.shape)} there and {list(wanted.shape)} in the others"
            )
        if name not in objective.space.names and not torch.equal(own, wanted.to(own)):
            raise CheckpointError(
                f"{self.where} differs from the others in {name}, which the model has frozen: no "
                "line or plane leads there; let it require gradients"
            )


def distinct(names: Sequence[str]) -> list[str]:
    """Return the names, those that are used before with a number.

    >>> distinct(["a", "b", "a", "a"])
    ['a', 'b', 'a (2)', 'a (3)']
    """
    found: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in found:
            number += 1
            candidate = f"{name} ({number})"
        found.append(candidate)
    return found
