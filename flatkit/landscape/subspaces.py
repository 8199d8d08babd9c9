"""The line or plane of a landscape: a centre, directions, and what is known of them.

One direction d makes the line θ + t·d, two make the plane θ + x·d₁ + y·d₂.
"""

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

from torch import Tensor

from flatkit.errors import InvalidArgumentError


@dataclass(frozen=True, eq=False)
class Subspace:
    """Where a landscape is looked at.

    Attributes:
        kind: a name of `flatkit.landscape.directions.DIRECTIONS`.
        centre: θ [P].
        vectors: the directions [D, P].
        settings: how they were made, ready for JSON.
        markers: points with their names and coordinates: `{"name", "at": [D]}`.
        path: of a trajectory, `{"names": [T], "at": [T, D], "off_plane": [T]}`; the last is the
            distance of each point from the line or plane.
        buffers: name -> [1 + D, ...]: floating-point buffers (running statistics) at the centre,
            and how much a step of 1 along each direction adds; None where they stay.

    Args:
        may_be_flat: lets directions pass that are zero or parallel, which random ones are in a
            model without matrices, or with a single weight.

    >>> import torch
    >>> vectors = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    >>> Subspace("given", torch.zeros(2), vectors).describe()["norms"]
    [3.0, 1.4142135...]
    >>> Subspace("given", torch.zeros(2), torch.ones(2, 2))
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: the two directions are parallel and span no plane
    """

    kind: str
    centre: Tensor
    vectors: Tensor
    settings: Mapping[str, Any] = field(default_factory=dict)
    markers: Sequence[Mapping[str, Any]] = ()
    path: Mapping[str, Any] | None = None
    buffers: Mapping[str, Tensor] | None = None
    may_be_flat: InitVar[bool] = False

    def __post_init__(self, may_be_flat: bool) -> None:
        """Refuse what spans no line or plane.

        Raises:
            InvalidArgumentError: another number of directions, or some that are not finite, zero
                or parallel.
        """
        if self.vectors.ndim != 2 or self.vectors.shape[0] not in (1, 2):
            raise InvalidArgumentError(
                f"a landscape takes one or two directions, got the shape {list(self.vectors.shape)}"
            )
        if self.vectors.shape[1] != self.centre.numel():
            raise InvalidArgumentError(
                f"directions must have {self.centre.numel()} entries, as the parameters, got "
                f"{self.vectors.shape[1]}; do they belong to another architecture?"
            )
        if not self.vectors.isfinite().all():
            raise InvalidArgumentError("directions must be finite; some entries are not")
        if may_be_flat:
            return
        if not (self.vectors.double().norm(dim=1) > 0).all():
            raise InvalidArgumentError("directions must not be zero; one of them is")
        # 1 − cos φ ≈ φ²/2: an angle of less than about 0.0014.
        if self.cosine is not None and 1 - abs(self.cosine) < 1e-6:
            raise InvalidArgumentError("the two directions are parallel and span no plane")

    @property
    def cosine(self) -> float | None:
        """The cosine between two directions; None where there is one alone, or one is zero."""
        if len(self.vectors) < 2:
            return None
        first, second = self.vectors.double()
        length = float(first.norm() * second.norm())
        return float(first @ second) / length if length > 0 else None

    def describe(self) -> dict[str, Any]:
        """Return what a surface says about its directions, ready for JSON."""
        return {
            "kind": self.kind,
            "norms": self.vectors.double().norm(dim=1).tolist(),
            "weight_norm": float(self.centre.double().norm()),
            "cosine": self.cosine,
            **self.settings,
        }
