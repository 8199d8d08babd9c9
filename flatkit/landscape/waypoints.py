"""The weights that a landscape is looked at: where they come from, and as points of one space."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flatkit.checkpoints.checkpoint import Checkpoint
from flatkit.errors import CheckpointError, InvalidArgumentError
from flatkit.objective.function import Objective
from flatkit.objective.model.copier import unwrapped
from flatkit.objective.pytree import dtype_like
from flatkit.objective.task import Task

WeightSource: TypeAlias = Task | Checkpoint | Callable[[], Task]
"""A function makes its task when it is its turn, so that many need not be in memory at once."""


@dataclass(frozen=True, eq=False)
class Waypoint:
    """One checkpoint as a point of parameter space.

    Attributes:
        name: for the picture.
        theta: its parameters [P].
        buffers: its floating-point buffers by name, such as running statistics.
        epoch: of the training, if it is known.

    >>> Waypoint("epoch 1", torch.zeros(2)).name
    'epoch 1'
    """

    name: str
    theta: Tensor
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    epoch: int | None = None


def check_alike(waypoints: Sequence[Waypoint]) -> None:
    """Refuse checkpoints of different shapes, or with weights that are not finite.

    Raises:
        InvalidArgumentError: the checkpoint is named.

    >>> check_alike([Waypoint("a", torch.zeros(2)), Waypoint("b", torch.ones(2))])
    """
    first = waypoints[0]
    for waypoint in waypoints:
        if waypoint.theta.shape != first.theta.shape:
            raise InvalidArgumentError(
                f"{waypoint.name} has {waypoint.theta.numel()} parameters and {first.name} has "
                f"{first.theta.numel()}; give checkpoints of one architecture"
            )
        if waypoint.buffers.keys() != first.buffers.keys():
            different = ", ".join(sorted(waypoint.buffers.keys() ^ first.buffers.keys())[:3])
            raise InvalidArgumentError(
                f"{waypoint.name} and {first.name} have different buffers ({different}); "
                "give checkpoints of one architecture"
            )
        if not waypoint.theta.isfinite().all():
            raise InvalidArgumentError(
                f"{waypoint.name} has NaN or infinite weights; leave this checkpoint out"
            )


def task_of(source: WeightSource) -> Task:
    """Return the task of a source of weights.

    Raises:
        CheckpointError: a checkpoint does not name its model, or has weights that are not finite.
        InvalidArgumentError: it is no source.

    >>> from torch import nn
    >>> task = Task(nn.Linear(1, 1), "mse", (torch.ones(1, 1), torch.ones(1, 1)))
    >>> task_of(task) is task_of(lambda: task)
    True
    """
    if isinstance(source, Task):
        return source
    if isinstance(source, Checkpoint):
        return source.task()
    if callable(source):
        return source()
    raise InvalidArgumentError(
        "a landscape is that of checkpoints (flatkit.load) or tasks (flatkit.Task), got a "
        f"{type(source).__name__}"
    )


@dataclass(frozen=True, eq=False)
class LoadedWeights:
    """A model with the weights of one source, without its data.

    Attributes:
        model: holds the weights.
        name: of the checkpoint or task.
        sha256: of the file, if there is one.
        epoch: of the training, if it is known.
        path: of the file, if there is one.

    >>> from torch import nn
    >>> data = (torch.ones(1, 1), torch.ones(1, 1))
    >>> weights = LoadedWeights.of(Task(nn.Linear(1, 1), "mse", data, name="mine"))
    >>> weights.origin
    {'name': 'mine', 'sha256': None, 'epoch': None}
    >>> weights.waypoint("a", Objective(weights.model, "mse", data)).theta.shape
    torch.Size([2])
    """

    model: Any
    name: str
    sha256: str | None
    epoch: int | None
    path: str | None

    @classmethod
    def of(cls, source: WeightSource) -> "LoadedWeights":
        """Load the weights of a source; of a checkpoint no data are built.

        Raises:
            CheckpointError: its weights are not finite, or it does not name its model.
        """
        if not isinstance(source, Checkpoint):
            task = task_of(source)
            known = (task.origin.get(key) for key in ("sha256", "epoch", "path"))
            return cls(task.model, task.name or "model", *known)
        for tensor, count in source.non_finite().items():
            raise CheckpointError(
                f"{source.path} cannot be used: values of {tensor} that are NaN or infinite: "
                f"{count}; leave this checkpoint out"
            )
        model = source.build_model()
        return cls(model, source.name, source.sha256, source.epoch, source.path)

    @property
    def origin(self) -> dict[str, Any]:
        """What a surface says of the weights, ready for JSON."""
        return {"name": self.name, "sha256": self.sha256, "epoch": self.epoch}

    @property
    def run(self) -> str:
        """The run that the weights are of: the folder of the file, or else the name."""
        return (Path(self.path).absolute().parent.name if self.path else "") or self.name

    def waypoint(self, name: str, objective: Objective, *, with_buffers: bool = False) -> Waypoint:
        """Return the weights as a point of the objective's space.

        Raises:
            CheckpointError: they are of another architecture, or differ in what is frozen.
        """
        where = self.path or self.name
        device, dtype = objective.device, objective.dtype
        own = {
            name: parameter.detach().to(device, dtype_like(parameter.dtype, dtype))
            # Without what DDP and `torch.compile` put before the names.
            for name, parameter in unwrapped(self.model).named_parameters()
        }
        wanted = {n: p.detach() for n, p in objective.model.named_parameters()}
        for parameter in sorted(own.keys() ^ wanted.keys()):
            has = "has no" if parameter in wanted else "has another"
            raise CheckpointError(
                f"{where} {has} parameter {parameter}: the checkpoints are of different "
                "architectures"
            )
        for parameter, weights in wanted.items():
            _check(where, parameter, own[parameter], weights, objective)
        buffers = {
            n: b.detach().to(objective.theta)
            for n, b in unwrapped(self.model).named_buffers()
            if with_buffers and b.is_floating_point()
        }
        return Waypoint(name, objective.space.flatten(own), buffers, self.epoch)


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


def _check(where: str, name: str, own: Tensor, wanted: Tensor, objective: Objective) -> None:
    """Refuse a parameter of another shape, or one that is frozen and differs."""
    if own.shape != wanted.shape:
        raise CheckpointError(
            f"{where} is of another architecture: {name} has the shape "
            f"{list(own.shape)} there and {list(wanted.shape)} in the others"
        )
    # A line moves θ alone: at the other checkpoint it would have these weights of the first.
    if name not in objective.space.names and not torch.equal(own, wanted.to(own)):
        raise CheckpointError(
            f"{where} differs from the others in {name}, which the model has frozen: no "
            "line or plane leads there; let it require gradients"
        )
