"""The shape of the ball: how long a displacement is, and what its maximiser looks like."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from flatkit.checks import check_choice, check_positive
from flatkit.errors import InvalidArgumentError
from flatkit.objective.parameters import ParameterSpace

GeometryName: TypeAlias = Literal["l2", "adaptive", "filter", "linf"]
GEOMETRIES = get_args(GeometryName)

_PART = 2**17
"""Coordinates that are scaled in float64 at once, as all of a large network take long and no little
memory."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """A ball {δ = T u : ‖u‖ ≤ ρ} around a point, in coordinates u [P].

    In these coordinates the loss has the gradient T g and the Hessian T H T, and the gradient is
    measured in the norm that is dual to that of u. So R0 ≤ R1 in every geometry, and where T scales
    with the weights (`adaptive`: T = |θ|, Kwon et al. 2021; `filter`: the norm of the filter),
    nothing changes under the rescalings of Dinh et al. (2017), which leave the function of a ReLU
    network as it is. A weight that is exactly zero has T = 0: it does not move.

    Attributes:
        name: `l2`, `adaptive`, `filter` or `linf`.
        scale: T [P], or None for the identity.
    """

    name: GeometryName
    scale: Tensor | None = None

    @property
    def is_round(self) -> bool:
        """Whether the ball is round in its coordinates: the norm of u is the Euclidean one."""
        return self.name != "linf"

    @property
    def frozen(self) -> int:
        """How many parameters do not move because their scale is zero."""
        return 0 if self.scale is None else int((self.scale == 0).sum())

    def displacement(self, u: Tensor) -> Tensor:
        """Return δ = T u; of u [..., P]. Covariant: gradients and products map the same way."""
        return u if self.scale is None else self.scale * u

    def norm(self, u: Tensor) -> Tensor:
        """Return ‖u‖, in float64, of u [..., P]."""
        return _norm(u, 2 if self.is_round else torch.inf)

    def dual_norm(self, gradient: Tensor) -> Tensor:
        """Return the norm of a gradient with respect to u [..., P], in float64."""
        return _norm(gradient, 2 if self.is_round else 1)

    def maximiser(self, gradient: Tensor, radius: float) -> Tensor:
        """Return the u of length ρ along which a linear function grows most; 0 for a zero one.

        >>> Geometry("l2").maximiser(torch.tensor([3.0, -4.0]), 10.0)
        tensor([ 6., -8.])
        >>> Geometry("linf").maximiser(torch.tensor([3.0, -4.0]), 10.0)
        tensor([ 10., -10.])
        """
        if not self.is_round:
            return radius * gradient.sign()
        norm = _norm(gradient, 2)[..., None]
        # The least positive number stands for a norm of zero: 0 times anything finite is 0.
        scale = radius / norm.clamp(min=torch.finfo(torch.float64).tiny)
        if gradient.shape[-1] <= _PART:
            return (gradient * scale).to(gradient)
        u = torch.empty_like(gradient)
        for part, own in zip(gradient.split(_PART, -1), u.split(_PART, -1), strict=True):
            own.copy_(part * scale)
        return u

    def retract(self, u: Tensor, radius: float) -> Tensor:
        """Return the points [..., P] brought back to the sphere of radius ρ, or into the cube.

        >>> Geometry("l2").retract(torch.tensor([3.0, 4.0]), 10.0)
        tensor([6., 8.])
        """
        return self.maximiser(u, radius) if self.is_round else u.clamp(-radius, radius)


def _norm(vectors: Tensor, order: float) -> Tensor:
    """Return the norms of [..., P] in float64, without a copy of them."""
    return torch.linalg.vector_norm(vectors, ord=order, dim=-1, dtype=torch.float64)


def geometry_of(name: str, space: ParameterSpace, theta: Tensor) -> Geometry:
    """Return the geometry of a name around a point.

    Args:
        name: one of `GEOMETRIES`.
        space: the parts of the point.
        theta: the point [P].

    Raises:
        InvalidArgumentError: no such name, or every weight is zero in an adaptive geometry.

    >>> space = ParameterSpace.of({"weight": torch.ones(3)})
    >>> ball = geometry_of("adaptive", space, torch.tensor([2.0, -3.0, 0.0]))
    >>> ball.scale, ball.frozen
    (tensor([2., 3., 0.]), 1)
    """
    check_choice("geometry", name, GEOMETRIES)
    if name == "l2" or name == "linf":
        return Geometry(name)
    scale = theta.abs() if name == "adaptive" else space.filter_norms(theta)
    if not bool(scale.any()):
        raise InvalidArgumentError(
            f"geometry={name!r} measures displacements relative to the weights, and all of them "
            "are zero; use geometry='l2'"
        )
    return Geometry("adaptive" if name == "adaptive" else "filter", scale)


def check_radius(rho: float, theta: Tensor, geometry: Geometry) -> float:
    """Return ρ if θ + δ differs from θ in the dtype of θ for displacements of that length.

    Raises:
        InvalidArgumentError: ρ is no finite number > 0, or smaller than the rounding of θ.

    >>> check_radius(0.1, torch.ones(3), Geometry("l2"))
    0.1
    """
    check_positive("rho", rho, hint="the radius of a ball in parameter space")
    size = geometry.norm(theta if geometry.scale is None else (geometry.scale != 0).to(theta))
    # In coordinates u the weights are θ/T, at most 1 in size each; where T = 0 nothing moves.
    smallest = torch.finfo(theta.dtype).eps * float(size)
    if rho < smallest:
        raise InvalidArgumentError(
            f"rho = {rho:g} is below the rounding of the parameters in "
            f"{str(theta.dtype).removeprefix('torch.')} ({smallest:.1e}): theta + delta would be "
            "theta; choose a larger rho, or dtype=float64"
        )
    return rho
