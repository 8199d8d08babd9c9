"""How far the gradient at a checkpoint can be trusted: its rounding, and its jumps."""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from flatkit.flatness.geometry import Geometry
from flatkit.objective.function import Objective
from flatkit.objective.settings import ObjectiveSettings

if TYPE_CHECKING:
    from flatkit.measures.session import Session

_SHARE = 0.01
"""Part of R1 that rounding may change before R1 counts as rounding."""
_DIRECTIONS, _FARTHER = 3, 8.0


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

    It is what float32 and float64 differ by, scaled to the dtype in use. Cost: two gradients, once.
    """
    if geometry.name in session.noise:
        return session.noise[geometry.name]
    own, settings, task = session.objective, session.own(ObjectiveSettings), session.task
    # No double precision on mps, and rounding is much the same elsewhere.
    device = torch.device("cpu") if own.device.type == "mps" else own.device
    single, double = (
        task.objective(
            settings, data=own.samples, samples=None, dtype=dtype, device=device
        ).gradient()
        for dtype in (torch.float32, torch.float64)
    )
    scale = None if geometry.scale is None else geometry.scale.to(device)
    difference = Geometry(geometry.name, scale).displacement(single.double() - double)
    share = torch.finfo(own.dtype).eps / torch.finfo(torch.float32).eps
    session.noise[geometry.name] = float(geometry.dual_norm(difference)) * share
    return session.noise[geometry.name]


def rounding_radius(session: "Session", geometry: Geometry, slope: float, noise: float) -> float:
    """Return the ρ below which rounding may change R1 by more than 1 %.

    The gradient is off by `noise`; θ + δ is rounded too, by at most eps ‖θ‖, which moves the
    gradient by up to |λ|max times that.
    """
    theta = session.objective.theta
    lengths = theta if geometry.scale is None else (geometry.scale != 0).to(theta)
    moved = torch.finfo(theta.dtype).eps * float(geometry.norm(lengths))
    return (noise / slope + moved) / _SHARE if slope > 0 else math.inf


def gradient_jump(session: "Session", noise: float) -> Jump:
    """Look for a kink at the checkpoint: a change of ∇L between two points next to it.

    A ReLU whose input is exactly zero, as after an initialisation of zeros, makes ∇L jump there:
    then no quadratic describes the loss in any ball, and R1/ρ² grows without limit as ρ → 0. Over
    a smooth loss the change is proportional to the step, over a jump it is not: a step of 8h must
    change ∇L by at least twice as much as one of h.

    Cost: 12 gradients.
    """
    objective, generator = session.objective, session.generator("kinks")
    theta = objective.theta
    length = max(float(theta.double().norm()), 1e-3)
    distance = 1e3 * torch.finfo(theta.dtype).eps * length
    worst = Jump(0.0, distance, 10.0 * noise)
    for _ in range(_DIRECTIONS):
        drawn = torch.randn(theta.numel(), generator=generator, dtype=torch.float64)
        near, far = (
            _change(objective, (factor * distance * drawn / drawn.norm()).to(theta))
            for factor in (1.0, _FARTHER)
        )
        found = Jump(near, distance, 0.5 * far + 10.0 * noise)
        if found.size - found.explained > worst.size - worst.explained:
            worst = found
    return worst


def _change(objective: Objective, step: Tensor) -> float:
    """Return ‖∇L(θ + s) − ∇L(θ − s)‖."""
    theta = objective.theta
    change = objective.gradient(theta + step) - objective.gradient(theta - step)
    return float(change.double().norm())
