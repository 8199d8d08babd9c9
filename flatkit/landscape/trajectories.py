"""Frames through checkpoints: from one to another, through three, along a trajectory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flatkit.errors import InvalidArgumentError
from flatkit.landscape.subspaces import Frame

_FLAT = 1e-6
"""Below this share of the longest extent, points are taken to lie on a line, or to coincide."""


@dataclass(frozen=True, eq=False)
class Waypoint:
    """One checkpoint on the way.

    Attributes:
        name: for the picture.
        theta: its parameters [P].
        buffers: its floating-point buffers by name, such as running statistics.

    >>> Waypoint("epoch 1", torch.zeros(2)).name
    'epoch 1'
    """

    name: str
    theta: Tensor
    buffers: Mapping[str, Tensor] = field(default_factory=dict)


def line_between(first: Waypoint, second: Waypoint) -> Frame:
    """Return the line θ_a + t·(θ_b − θ_a): t = 0 is the first checkpoint, t = 1 the second.

    Raises:
        InvalidArgumentError: they do not fit together, or are the same point.

    >>> frame = line_between(Waypoint("a", torch.zeros(2)), Waypoint("b", torch.tensor([3.0, 4.0])))
    >>> frame.describe()["norms"], frame.markers[1]["at"]
    ([5.0], [1.0])
    """
    _check((first, second))
    vector = second.theta.double() - first.theta.double()
    if not float(vector.norm()) > 0:
        raise InvalidArgumentError(f"{first.name} and {second.name} hold the same weights")
    markers = [{"name": first.name, "at": [0.0]}, {"name": second.name, "at": [1.0]}]
    return Frame(
        "checkpoints",
        first.theta,
        vector[None].to(first.theta),
        _AS_THEY_ARE,
        markers,
        buffers={
            name: torch.stack([base, second.buffers[name] - base])
            for name, base in first.buffers.items()
        },
    )


def plane_through(first: Waypoint, second: Waypoint, third: Waypoint) -> Frame:
    """Return the plane through three checkpoints, with orthonormal axes (Garipov et al., 2018).

    The first lies at (0, 0), the second on the x axis; steps are lengths in parameter space.

    Raises:
        InvalidArgumentError: they do not fit together, or lie on a line.

    >>> corners = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, 3.0, 0.0]])
    >>> frame = plane_through(*(Waypoint(n, corner) for n, corner in zip("abc", corners)))
    >>> [marker["at"] for marker in frame.markers]
    [[0.0, 0.0], [2.0, 0.0], [1.0, 3.0]]
    """
    stops = (first, second, third)
    _check(stops)
    centre = first.theta.double()
    one, two = (stop.theta.double() - centre for stop in (second, third))
    length = float(one.norm())
    unit = one / length if length > 0 else one
    along = float(two @ unit)
    rest = two - along * unit
    height = float(rest.norm())
    if not (length > 0 and height > _FLAT * max(length, float(two.norm()))):
        names = ", ".join(stop.name for stop in stops)
        raise InvalidArgumentError(f"{names} lie on a line and span no plane; give two of them")
    places = ([0.0, 0.0], [length, 0.0], [along, height])
    buffers = {}
    for name, base in first.buffers.items():
        right = (second.buffers[name] - base) / length
        up = (third.buffers[name] - base - along * right) / height
        buffers[name] = torch.stack([base, right, up])
    return Frame(
        "checkpoints",
        first.theta,
        torch.stack([unit, rest / height]).to(first.theta),
        _AS_THEY_ARE,
        [{"name": s.name, "at": at} for s, at in zip(stops, places, strict=True)],
        buffers=buffers,
    )


def pca_frame(stops: Sequence[Waypoint], *, dimensions: int = 2) -> Frame:
    """Return the principal axes of a trajectory, through its last point (Li et al., 2018).

    Axes are unit vectors, steps lengths in parameter space. `settings` hold the share of the
    trajectory's variance that each axis explains; `path` the projected points, and how far each
    lies from the plane: the loss of the plane at a projected point is not that of the checkpoint.
    Of a random walk in many dimensions the first two axes explain much as well (Antognini and
    Sohl-Dickstein, 2018): a large share alone says little.

    Cost: T²·P multiplications; memory T vectors, in float64.

    Args:
        stops: the checkpoints in order, at least dimensions + 1.
        dimensions: 1 or 2.

    Raises:
        InvalidArgumentError: too few points, or they span too few dimensions.

    >>> points = torch.tensor([[4.0, 1.0, 0.0], [2.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> frame = pca_frame([Waypoint(str(n), point) for n, point in enumerate(points)])
    >>> frame.path["off_plane"], round(sum(frame.settings["explained_variance"]), 6)
    ([0.0, 0.0, 0.0], 1.0)
    """
    if len(stops) < dimensions + 1:
        raise InvalidArgumentError(
            f"the principal axes of a trajectory in {dimensions} dimension(s) need at least "
            f"{dimensions + 1} checkpoints, got {len(stops)}"
        )
    _check(stops)
    last = stops[-1].theta.double()
    moves = torch.stack([stop.theta.double() - last for stop in stops])  # [T, P]
    centred = moves - moves.mean(dim=0)
    squares, left = torch.linalg.eigh(centred @ centred.T)  # ascending
    squares, left = squares.flip(0), left.flip(1)
    total = float(centred.square().sum())
    if not (total > 0 and float(squares[dimensions - 1]) > _FLAT**2 * total):
        raise InvalidArgumentError(
            f"the checkpoints span fewer than {dimensions} dimension(s); "
            + ("are they all the same?" if dimensions == 1 or total == 0 else "draw a line instead")
        )
    axes = torch.linalg.qr((left[:, :dimensions].T @ centred).T).Q.T  # [D, P], orthonormal
    places = moves @ axes.T  # [T, D]
    signs = torch.where(places[0] < 0, -1.0, 1.0).double()  # the start at the upper right
    axes, places = axes * signs[:, None], places * signs
    off = (moves - places @ axes).norm(dim=1)
    # Rounding of the projection is no distance.
    off = torch.where(off > 1e-12 * moves.norm(dim=1).max(), off, 0.0)
    ends = [
        {"name": stops[t].name, "at": places[t].tolist(), "off_plane": float(off[t])}
        for t in (0, len(stops) - 1)
    ]
    return Frame(
        "pca",
        stops[-1].theta,
        axes.to(stops[-1].theta),
        {
            **_AS_THEY_ARE,
            "explained_variance": (squares[:dimensions] / total).tolist(),
            "points": len(stops),
        },
        ends,
        path={
            "names": [stop.name for stop in stops],
            "at": places.tolist(),
            "off_plane": off.tolist(),
        },
    )


_AS_THEY_ARE = {"normalization": "none", "one_dimensional": "whole"}


def _check(stops: Sequence[Waypoint]) -> None:
    """Refuse checkpoints of different shapes, or with weights that are not finite."""
    first = stops[0]
    for stop in stops:
        if stop.theta.shape != first.theta.shape:
            raise InvalidArgumentError(
                f"{stop.name} has {stop.theta.numel()} parameters and {first.name} has "
                f"{first.theta.numel()}; give checkpoints of one architecture"
            )
        if stop.buffers.keys() != first.buffers.keys():
            different = ", ".join(sorted(stop.buffers.keys() ^ first.buffers.keys())[:3])
            raise InvalidArgumentError(
                f"{stop.name} and {first.name} have different buffers ({different}); "
                "give checkpoints of one architecture"
            )
        if not stop.theta.isfinite().all():
            raise InvalidArgumentError(
                f"{stop.name} has NaN or infinite weights; leave this checkpoint out"
            )
