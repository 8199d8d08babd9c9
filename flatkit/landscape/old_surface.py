"""Slices and planes: the loss, accuracy and gradient norm along one or two directions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flatkit.checks import check_count, check_positive
from flatkit.errors import InvalidArgumentError
from flatkit.landscape.evaluate import Engine, batches
from flatkit.landscape.settings import Quantity
from flatkit.objective.function import Objective

Progress = Callable[[int, int], object]
"""Called with the points done and the points in all."""


@dataclass(frozen=True)
class Slice:
    """Quantities along D directions.

    Attributes:
        coordinate: the steps t [n] of θ + t·d.
        loss: D rows of n values; infinite beyond the float range, None where it is no number.
        accuracy: likewise, or None if the model is not a classifier.
        gradient_norm: likewise, or None if it was not asked for.

    >>> Slice([0.0, 1.0], loss=[[0.0, 2.0]], accuracy=None, gradient_norm=None).loss[0][1]
    2.0
    """

    coordinate: list[float]
    loss: list[list[float | None]]
    accuracy: list[list[float | None]] | None
    gradient_norm: list[list[float | None]] | None


@dataclass(frozen=True)
class Plane:
    """Quantities on a grid θ + x·d₁ + y·d₂.

    Attributes:
        x: steps along the first direction [nx].
        y: steps along the second direction [ny].
        loss: ny rows of nx values; infinite beyond the float range, None where it is no number.
        accuracy: likewise, or None if the model is not a classifier, or it was not asked for.

    >>> plane = Plane([0.0, 1.0], [0.0], loss=[[0.0, 2.0]], accuracy=None)
    >>> plane.loss[0][1]  # at x[1], y[0]
    2.0
    """

    x: list[float]
    y: list[float]
    loss: list[list[float | None]]
    accuracy: list[list[float | None]] | None


def symmetric_grid(extent: float, points: int) -> list[float]:
    """Return `points` even steps from −extent to extent, with 0 exactly in the middle.

    Raises:
        InvalidArgumentError: points is even or below 3, or extent is not positive.

    >>> symmetric_grid(1.0, 5)
    [-1.0, -0.5, 0.0, 0.5, 1.0]
    """
    check_positive("extent", extent)
    if check_count("points", points, minimum=3) % 2 == 0:
        raise InvalidArgumentError(
            f"points must be odd, so that the checkpoint itself is one of them, got {points}"
        )
    half = points // 2
    return [extent * (index / half) for index in range(-half, half + 1)]


def loss_slice(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    directions: Tensor,
    coordinate: Sequence[float],
    with_gradient_norm: bool = True,
    progress: Progress | None = None,
) -> Slice:
    """Return loss, accuracy and gradient norm at θ + t·d for each direction and step.

    Cost: D·n forward passes, or D·n gradients with the gradient norm; memory does not depend on
    n. Small networks take several points in a pass, see `flatkit.landscape.evaluate`.

    Args:
        objective: L.
        theta: the centre [P]; the objective's own by default.
        directions: [D, P].
        coordinate: the steps t [n].
        with_gradient_norm: also measure ‖∇L‖, the first-order picture.
        progress: called after every point.

    >>> from torch import nn
    >>> data = (torch.tensor([[1.0]]), torch.tensor([[0.0]]))  # L = θ²
    >>> objective = Objective(nn.Linear(1, 1, bias=False), "mse", data)
    >>> line = loss_slice(objective, torch.zeros(1), directions=torch.ones(1, 1), coordinate=[0, 2])
    >>> line.loss, line.gradient_norm
    ([[0.0, 4.0]], [[0.0, 4.0]])
    """
    quantities: list[Quantity] = ["loss", "accuracy"]
    if with_gradient_norm:
        quantities.append("gradient_norm")
    count = len(directions)
    steps = [
        [float(step) if number == row else 0.0 for number in range(count)]
        for row in range(count)
        for step in coordinate
    ]
    found = _measure(objective, theta, directions, steps, quantities, progress)
    losses, accuracies, norms = (
        [values.get(name) for values in found] for name in ("loss", "accuracy", "gradient_norm")
    )
    width = len(coordinate)
    return Slice(
        coordinate=[float(step) for step in coordinate],
        loss=_rows(losses, width),
        accuracy=None if None in accuracies else _rows(accuracies, width),
        gradient_norm=_rows(norms, width) if with_gradient_norm else None,
    )


def loss_plane(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    first: Tensor,
    second: Tensor,
    x: Sequence[float],
    y: Sequence[float],
    with_accuracy: bool = True,
    progress: Progress | None = None,
) -> Plane:
    """Return loss and accuracy at θ + x·d₁ + y·d₂ on a grid; `loss[j][i]` belongs to x[i], y[j].

    Cost: nx·ny forward passes; memory does not depend on the grid.

    Args:
        objective: L.
        theta: the centre [P]; the objective's own by default.
        first: d₁ [P].
        second: d₂ [P].
        x: steps along d₁ [nx].
        y: steps along d₂ [ny].
        with_accuracy: also measure the accuracy, of a classifier.
        progress: called after every point.

    >>> from torch import nn
    >>> data = (torch.eye(2), torch.zeros(2, 1))  # L = (θ₁² + θ₂²) / 2
    >>> objective = Objective(nn.Linear(2, 1, bias=False), "mse", data)
    >>> axes = torch.eye(2)
    >>> loss_plane(
    ...     objective, torch.zeros(2), first=axes[0], second=axes[1], x=[0, 1, 2], y=[0, 4]
    ... ).loss
    [[0.0, 0.5, 2.0], [8.0, 8.5, 10.0]]
    """
    directions = torch.stack([first, second])
    steps = [[float(right), float(up)] for up in y for right in x]
    quantities: list[Quantity] = ["loss", "accuracy"] if with_accuracy else ["loss"]
    found = _measure(objective, theta, directions, steps, quantities, progress)
    losses, accuracies = ([values.get(name) for values in found] for name in ("loss", "accuracy"))
    return Plane(
        x=[float(step) for step in x],
        y=[float(step) for step in y],
        loss=_rows(losses, len(x)),
        accuracy=None if None in accuracies else _rows(accuracies, len(x)),
    )


def _measure(
    objective: Objective,
    theta: Tensor | None,
    directions: Tensor,
    steps: Sequence[Sequence[float]],
    quantities: Sequence[Quantity],
    progress: Progress | None,
) -> list[dict[str, float | None]]:
    """Return the quantities at every point, None where one is no number."""
    centre = objective.theta if theta is None else theta
    far = max(steps, key=lambda point: sum(map(abs, point)), default=None)
    engine = Engine(objective, centre, directions, quantities=quantities, far=far)
    found: list[dict[str, float | None]] = []
    for part in batches(steps, engine.batch):
        for values in engine.values(part):
            found.append({name: _number(value) for name, value in values.items()})
            _report(progress, len(found), len(steps))
    return found


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _rows(values: list, width: int) -> list[list]:
    return [values[start : start + width] for start in range(0, len(values), width)]


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
