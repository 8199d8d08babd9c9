"""The line through two checkpoints, and the plane through three (Garipov et al., 2018)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flatkit.errors import InvalidArgumentError
from flatkit.landscape.directions.kind import (
    NumberText,
    Request,
    ThroughKind,
    is_plane,
    short_name,
)
from flatkit.landscape.surface import Surface

if TYPE_CHECKING:
    from flatkit.landscape.subspaces import Subspace
    from flatkit.landscape.waypoints import Waypoint

_FLAT = 1e-6
"""Below this share of the longest side, three checkpoints are taken to lie on a line."""

_AS_THEY_ARE = {"normalization": "none", "one_dimensional": "whole"}


class BetweenCheckpoints(ThroughKind):
    """From the first checkpoint to the second, and to the third if there is one."""

    name = "checkpoints"
    help = "the line through two checkpoints, the plane through three"
    lengths = True
    moves_buffers = True

    def check_count(self, count: int, dimensions: int) -> None:
        """Refuse others than two or three."""
        if count not in (2, 3):
            raise InvalidArgumentError(
                "directions 'checkpoints' go through two (a line) or three (a plane) of them, got "
                f"{count}; use pca for a trajectory"
            )

    def make(self, request: Request) -> "Subspace":
        """Go through them."""
        waypoints = request.waypoints
        return line_between(*waypoints) if len(waypoints) == 2 else plane_through(*waypoints)

    def surface_name(self, waypoints: Sequence["Waypoint"], run: str) -> str:
        """Return all their names."""
        return " – ".join(waypoint.name for waypoint in waypoints)

    def axis_label(self, surface: Surface, number: int, text: NumberText) -> str:
        """Return which checkpoint lies at 0 and which at 1; on a plane, that steps are lengths."""
        if is_plane(surface):
            return f"distance ‖Δθ‖, axis {number + 1}"
        names = [short_name(marker["name"]) for marker in surface.header.get("markers", ())]
        if len(names) != 2:
            return super().axis_label(surface, number, text)
        return f"step t  (0: {names[0]}, 1: {names[1]})"

    def footnote(self, surface: Surface, text: NumberText) -> str:
        """Return between how many."""
        plane = is_plane(surface)
        return "through three checkpoints" if plane else "from one checkpoint to the other"


def line_between(first: "Waypoint", second: "Waypoint") -> "Subspace":
    """Return the line θ_a + t·(θ_b − θ_a): t = 0 is the first checkpoint, t = 1 the second.

    Raises:
        InvalidArgumentError: they do not fit together, or are the same point.

    >>> import torch
    >>> from flatkit.landscape.waypoints import Waypoint
    >>> ends = Waypoint("a", torch.zeros(2)), Waypoint("b", torch.tensor([3.0, 4.0]))
    >>> subspace = line_between(*ends)
    >>> subspace.describe()["norms"], subspace.markers[1]["at"]
    ([5.0], [1.0])
    """
    import torch

    from flatkit.landscape.subspaces import Subspace
    from flatkit.landscape.waypoints import check_alike

    check_alike((first, second))
    # Of two near checkpoints the difference has few of float32's digits left.
    vector = second.theta.double() - first.theta.double()
    if not float(vector.norm()) > 0:
        raise InvalidArgumentError(f"{first.name} and {second.name} hold the same weights")
    buffers = {
        name: torch.stack([base, second.buffers[name] - base])
        for name, base in first.buffers.items()
    }
    return Subspace(
        "checkpoints",
        first.theta,
        vector[None].to(first.theta),
        _AS_THEY_ARE,
        [{"name": first.name, "at": [0.0]}, {"name": second.name, "at": [1.0]}],
        buffers=buffers,
    )


def plane_through(first: "Waypoint", second: "Waypoint", third: "Waypoint") -> "Subspace":
    """Return the plane through three checkpoints, with orthonormal axes.

    The first lies at (0, 0), the second on the x axis; steps are lengths in parameter space.

    Raises:
        InvalidArgumentError: they do not fit together, or lie on a line.

    >>> import torch
    >>> from flatkit.landscape.waypoints import Waypoint
    >>> corners = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, 3.0, 0.0]])
    >>> subspace = plane_through(*(Waypoint(n, corner) for n, corner in zip("abc", corners)))
    >>> [marker["at"] for marker in subspace.markers]
    [[0.0, 0.0], [2.0, 0.0], [1.0, 3.0]]
    """
    import torch

    from flatkit.landscape.subspaces import Subspace
    from flatkit.landscape.waypoints import check_alike

    waypoints = (first, second, third)
    check_alike(waypoints)
    centre = first.theta.double()
    one, two = (waypoint.theta.double() - centre for waypoint in (second, third))
    # Gram-Schmidt: the third checkpoint is `along` the first axis and `height` above it.
    length = float(one.norm())
    unit = one / length if length > 0 else one
    along = float(two @ unit)
    rest = two - along * unit
    height = float(rest.norm())
    if not (length > 0 and height > _FLAT * max(length, float(two.norm()))):
        names = ", ".join(waypoint.name for waypoint in waypoints)
        raise InvalidArgumentError(f"{names} lie on a line and span no plane; give two of them")
    places = ([0.0, 0.0], [length, 0.0], [along, height])
    buffers = {}
    for name, base in first.buffers.items():
        # Running statistics move as the weights do: right at all three corners, and linear between.
        right = (second.buffers[name] - base) / length
        up = (third.buffers[name] - base - along * right) / height
        buffers[name] = torch.stack([base, right, up])
    return Subspace(
        "checkpoints",
        first.theta,
        torch.stack([unit, rest / height]).to(first.theta),
        _AS_THEY_ARE,
        [{"name": w.name, "at": at} for w, at in zip(waypoints, places, strict=True)],
        buffers=buffers,
    )
