"""How far the gradient at a checkpoint can be trusted: its rounding, and its jumps."""

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from flatkit.errors import UserCodeError
from flatkit.flatness.geometry import Geometry
from flatkit.objective.function import Objective
from flatkit.objective.narrowing import name_of_dtype
from flatkit.objective.noise import measure_noise
from flatkit.objective.passes import differentiate
from flatkit.objective.proofs.spread import spread_rows
from flatkit.objective.settings import ObjectiveSettings

if TYPE_CHECKING:
    from flatkit.measures.session import Session

_SHARE = 0.01
"""Part of R1 that rounding may change before R1 counts as rounding."""
_DIRECTIONS, _FARTHER = 3, 8.0
_FEWEST, _WORK = 128, 2**26
"""Samples that are looked at: at least so many, and so many times the parameters at most."""


def exactness(
    session: "Session", what: Literal["loss", "accuracy", "gradient"], split: str
) -> tuple[float, Literal["exact", "rounding"]]:
    """Return the error of a number that no solver and no draw is part of, and of what kind it is.

    Cost: nothing but in 16 bits, where the noise of a split is measured once.
    """
    # `exact` leaves out the rounding of the dtype, which the report names.
    if session.objective.narrow is None:
        return 0.0, "exact"
    if split not in session.noises:
        session.noises[split] = measure_noise(session.splits[split])
    return getattr(session.noises[split], what), "rounding"


class Jump(NamedTuple):
    """A change of the gradient that its slope does not explain.

    Attributes:
        size: ‖∇L(θ + hd) − ∇L(θ − hd)‖ for a random direction d.
        distance: h, the length of the step.
        explained: the most that curvature and rounding may have caused.
    """

    size: float
    distance: float
    explained: float

    @property
    def found(self) -> bool:
        """Whether there is a kink within `distance` of the checkpoint."""
        return self.size > self.explained


def gradient_noise(session: "Session", geometry: Geometry) -> float:
    """Return how much of the gradient is rounding, in the norm dual to that of the ball.

    It is what float32 and float64 differ by, scaled to the dtype in use. A model that cannot
    compute in both (constants of a fixed dtype, `x.float()` inside) has its weights rounded anew
    instead, and the largest change counts; `session.noise_from` says which it was. Cost: two
    gradients, or four, once.
    """
    if geometry.name in session.noise:
        return session.noise[geometry.name]
    own = session.objective
    # No double precision on mps, and rounding is much the same elsewhere.
    device = torch.device("cpu") if own.device.type == "mps" else own.device
    scale = None if geometry.scale is None else geometry.scale.to(device)
    # The same ball, its scale where the difference of both gradients is.
    placed = Geometry(geometry.name, scale)
    try:
        if own.sharded is not None:
            raise UserCodeError("a sharded model is measured in its own dtype")
        changes = [_between_dtypes(session, device)]
        session.noise_from = "float32 against float64"
    except UserCodeError:  # the model runs, though not in both
        changes = _rounded_anew(own, session.generator("rounding"))
        session.noise_from = "weights rounded anew, as the model does not take float32 and float64"
    sizes = [float(placed.dual_norm(placed.displacement(change.to(device)))) for change in changes]
    # The largest of few draws: rounding is not to be taken for less than was seen.
    session.noise[geometry.name] = max(sizes)
    return session.noise[geometry.name]


def narrow_noise(session: "Session", geometry: Geometry) -> float:
    """Return by how much 16 bits change the gradient, in the dual norm; 0 where it is not in such.

    Cost: two gradients of the samples that are looked at.
    """
    objective = session.objective
    if objective.exact is None:
        return 0.0
    session.noise_from += f", and {name_of_dtype(objective)} against without"
    theta = objective.theta
    change = _gradient_of(objective, theta) - _gradient_of(objective.exact, theta)
    return float(geometry.dual_norm(geometry.displacement(change)))


def looked_at(objective: Objective) -> Tensor | None:
    """Return the rows that show rounding and kinks; None for all.

    Fewer of a large network, where a gradient over all of them costs more than it tells.
    """
    # Samples times parameters, which is what a gradient of them costs, about.
    rows = max(_FEWEST, _WORK // objective.num_parameters)
    if rows >= objective.num_rows or not objective.divisible:
        return None
    return spread_rows(objective.num_rows, rows).to(objective.device)


def _gradient_of(objective: Objective, theta: Tensor) -> Tensor:
    """Return the gradient [P] of the mean loss of the samples that are looked at."""
    rows = looked_at(objective)
    if rows is None:
        return objective.gradient(theta)
    total, weight = torch.zeros_like(theta), float(objective.weights[rows.cpu()].sum())
    for part in rows.split(objective.chunk_size):
        with objective.placed(theta, smooth=False) as point:
            loss = objective.chunk_loss(point, objective.rows(part))
            total += differentiate(loss, point)
    return total * (objective.total_weight / weight)


def _between_dtypes(session: "Session", device: torch.device) -> Tensor:
    """Return by how much rounding in the dtype in use changes the gradient, [P]."""
    own, settings = session.objective, session.own(ObjectiveSettings)
    rows = looked_at(own)
    given: dict[str, Any] = {
        "data": own.samples if rows is None else own.samples.rows(rows),
        "samples": None,
        "device": device,
        "examine": False,
    }
    single, double = (
        session.task.objective(settings, dtype=dtype, **given).gradient()
        for dtype in (torch.float32, torch.float64)
    )
    # Rounding is proportional to ε; the difference of the two is that of float32.
    # In float64 itself there is no wider dtype to hold it against.
    share = torch.finfo(own.dtype).eps / torch.finfo(torch.float32).eps
    return (single.double() - double) * share


def _rounded_anew(objective: Objective, generator: torch.Generator) -> list[Tensor]:
    """Return changes of the gradient [P] where each weight moves by up to a unit of rounding."""
    theta = objective.theta
    gradient = _gradient_of(objective, theta).cpu().double()
    eps = torch.finfo(theta.dtype).eps
    changes: list[Tensor] = []
    for _ in range(_DIRECTIONS):
        drawn = 2 * torch.rand(len(theta), generator=generator, dtype=torch.float64) - 1
        # Relative to each weight, as floating-point numbers are rounded.
        moved = (theta.cpu().double() * (1 + eps * drawn)).to(theta)
        changes.append(_gradient_of(objective, moved).cpu().double() - gradient)
    return changes


def rounding_radius(session: "Session", geometry: Geometry, slope: float, noise: float) -> float:
    """Return the ρ below which rounding may change R1 by more than 1 %.

    The gradient is off by `noise`; θ + δ is rounded too, by at most eps ‖θ‖, which moves the
    gradient by up to |λ|max times that.
    """
    theta = session.objective.theta
    lengths = theta if geometry.scale is None else (geometry.scale != 0).to(theta)
    # In coordinates u = δ/T the weights are at most 1 in size each, as in `check_radius`.
    moved = torch.finfo(theta.dtype).eps * float(geometry.norm(lengths))
    return (noise / slope + moved) / _SHARE if slope > 0 else math.inf


def gradient_jump(session: "Session", noise: float) -> Jump:
    """Look for a kink at the checkpoint: a change of ∇L between two points next to it.

    A ReLU whose input is exactly zero, as after an initialisation of zeros, makes ∇L jump there:
    then no quadratic describes the loss in any ball, and R1/ρ² grows without limit as ρ → 0. Over
    a smooth loss the change is proportional to the step, over a jump it is not: a step of 8h must
    change ∇L by at least twice as much as one of h.

    Cost: 12 gradients of the samples that are looked at, all of a small network.
    """
    objective, generator = session.objective, session.generator("kinks")
    objective = objective.exact or objective  # 16 bits make jumps of their own
    theta = objective.theta
    # Weights of zero have no length, and a step of nothing shows nothing.
    length = max(float(theta.double().norm()), 1e-3)
    # A thousand units of rounding: long enough that a kink outweighs them, short beside any ball.
    distance = 1e3 * torch.finfo(theta.dtype).eps * length
    worst = Jump(0.0, distance, 10.0 * noise)
    for _ in range(_DIRECTIONS):
        drawn = torch.randn(theta.numel(), generator=generator, dtype=torch.float64)
        near, far = (
            _change(objective, (factor * distance * drawn / drawn.norm()).to(theta))
            for factor in (1.0, _FARTHER)
        )
        # Of a smooth loss `far` is 8 times `near`, at a jump as large: its half lies between.
        found = Jump(near, distance, 0.5 * far + 10.0 * noise)
        if found.size - found.explained > worst.size - worst.explained:
            worst = found
    return worst


def _change(objective: Objective, step: Tensor) -> float:
    """Return ‖∇L(θ + s) − ∇L(θ − s)‖."""
    theta = objective.theta
    change = _gradient_of(objective, theta + step) - _gradient_of(objective, theta - step)
    return float(change.double().norm())
