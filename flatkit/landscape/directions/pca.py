"""Principal axes of checkpoints as a trajectory (Li et al., 2018)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flatkit.errors import InvalidArgumentError
from flatkit.landscape.directions.kind import NumberText, Request, ThroughKind, about, is_plane
from flatkit.landscape.surface import Surface

if TYPE_CHECKING:
    from torch import Tensor

    from flatkit.landscape.subspaces import Subspace
    from flatkit.landscape.waypoints import Waypoint

_FLAT = 1e-6
"""Below this share of the trajectory's extent, an axis is taken to have none."""


class PrincipalAxes(ThroughKind):
    """The axes along which a training moved most."""

    name = "pca"
    help = "principal axes of the checkpoints as a trajectory, through the last"
    lengths = True
    centre = -1

    def check_count(self, count: int, dimensions: int) -> None:
        """Refuse fewer than span the dimensions."""
        if count < dimensions + 1:
            raise InvalidArgumentError(
                f"directions 'pca' need at least {dimensions + 1} checkpoints of a "
                f"trajectory in {dimensions} dimension(s), got {count}"
            )

    def make(self, request: Request) -> "Subspace":
        """Find them."""
        return pca_subspace(request.waypoints, dimensions=request.settings.dimensions)

    def surface_name(self, waypoints: Sequence["Waypoint"], run: str) -> str:
        """Return the name of the run."""
        return run

    def axis_label(self, surface: Surface, number: int, text: NumberText) -> str:
        """Return which axis it is, with its share of the variance."""
        if "explained_variance" not in about(surface):
            return super().axis_label(surface, number, text)
        share = 100 * float(about(surface)["explained_variance"][number])
        return f"principal axis {number + 1}  ({share:.3g} %)"

    def footnote(self, surface: Surface, text: NumberText) -> str:
        """Return how far the checkpoints lie off the line or plane."""
        path = surface.header.get("path") or {}
        off = [float(x) for x in path.get("off_plane", ())]
        words = f"distances ‖Δθ‖ along principal axes of {len(off)} checkpoints, through the last"
        words += "; in brackets: of the variance"
        if off and max(off) > 0:
            where = "plane" if is_plane(surface) else "line"
            words += f"; the path is projected, its points lie up to {text(max(off), 2)} off"
            words += f" the {where}"
        return words


def pca_subspace(waypoints: Sequence["Waypoint"], *, dimensions: int = 2) -> "Subspace":
    """Return the principal axes of a trajectory, through its last point.

    Axes are unit vectors, steps lengths in parameter space. `settings` hold the share of the
    trajectory's variance that each axis explains; `path` the projected points, and how far each
    lies from the plane: the loss of the plane at a projected point is not that of the checkpoint.
    Of a random walk in many dimensions the first two axes explain much as well (Antognini and
    Sohl-Dickstein, 2018): a large share alone says little.

    Cost: T²·P multiplications; memory T vectors, in float64.

    Args:
        waypoints: the checkpoints in order, at least dimensions + 1.
        dimensions: 1 or 2.

    Raises:
        InvalidArgumentError: too few points, or they span too few dimensions.

    >>> import torch
    >>> from flatkit.landscape.waypoints import Waypoint
    >>> points = torch.tensor([[4.0, 1.0, 0.0], [2.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> subspace = pca_subspace([Waypoint(str(n), point) for n, point in enumerate(points)])
    >>> subspace.path["off_plane"], round(sum(subspace.settings["explained_variance"]), 6)
    ([0.0, 0.0, 0.0], 1.0)
    """
    from flatkit.landscape.subspaces import Subspace
    from flatkit.landscape.waypoints import check_alike

    if len(waypoints) < dimensions + 1:
        raise InvalidArgumentError(
            f"the principal axes of a trajectory in {dimensions} dimension(s) need at least "
            f"{dimensions + 1} checkpoints, got {len(waypoints)}"
        )
    check_alike(waypoints)
    axes, places, off, shares = _project(waypoints, dimensions)
    path: dict[str, Any] = {
        "names": [waypoint.name for waypoint in waypoints],
        "at": places,
        "off_plane": off,
    }
    epochs = [waypoint.epoch for waypoint in waypoints]
    if None not in epochs:
        path["epochs"] = epochs
    # The end of the training is the centre, where its loss is that of the checkpoint.
    theta = waypoints[-1].theta
    return Subspace(
        "pca",
        theta,
        axes.to(theta),
        {
            "normalization": "none",
            "one_dimensional": "whole",
            "explained_variance": shares,
            "points": len(waypoints),
        },
        [{"name": waypoints[t].name, "at": places[t], "off_plane": off[t]} for t in (0, -1)],
        path=path,
    )


def _project(
    waypoints: Sequence["Waypoint"], dimensions: int
) -> "tuple[Tensor, list[list[float]], list[float], list[float]]":
    """Return the axes [D, P], the points on them [T, D], their distances, the axes' shares."""
    import torch

    last = waypoints[-1].theta.double()
    moves = torch.stack([waypoint.theta.double() - last for waypoint in waypoints])  # [T, P]
    centred = moves - moves.mean(dim=0)
    # Of the small matrix [T, T], whose eigenvectors are the left singular vectors of [T, P].
    squares, left = torch.linalg.eigh(centred @ centred.T)  # ascending
    squares, left = squares.flip(0), left.flip(1)
    total = float(centred.square().sum())
    if not (total > 0 and float(squares[dimensions - 1]) > _FLAT**2 * total):
        raise InvalidArgumentError(
            f"the checkpoints span fewer than {dimensions} dimension(s); "
            + ("are they all the same?" if dimensions == 1 or total == 0 else "draw a line instead")
        )
    # Left singular vectors times the points: orthogonal but for rounding, and not of length 1.
    axes = torch.linalg.qr((left[:, :dimensions].T @ centred).T).Q.T  # [D, P], orthonormal
    places = moves @ axes.T  # [T, D]
    signs = torch.where(places[0] < 0, -1.0, 1.0).double()  # the start at the upper right
    axes, places = axes * signs[:, None], places * signs
    off = (moves - places @ axes).norm(dim=1)
    # Rounding of the projection is no distance.
    off = torch.where(off > 1e-12 * moves.norm(dim=1).max(), off, 0.0)
    return axes, places.tolist(), off.tolist(), (squares[:dimensions] / total).tolist()
