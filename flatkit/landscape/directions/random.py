"""Random Gaussian directions, scaled like the weights (Li et al., 2018)."""

from typing import TYPE_CHECKING, get_args

from flatkit.checks import check_choice
from flatkit.landscape.directions.kind import Kind, Request
from flatkit.landscape.settings import Normalization, OneDimensional

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from flatkit.landscape.subspaces import Subspace
    from flatkit.objective.parameters import ParameterSpace


class RandomDirections(Kind):
    """Random directions; several checkpoints are looked at along the same draws."""

    name = "random"
    help = "Gaussian, scaled like the weights; a surface at each checkpoint"
    can_be_scaled = True

    def make(self, request: Request) -> "Subspace":
        """Draw them by the seed."""
        settings, objective = request.settings, request.objective
        return random_subspace(
            objective.space,
            objective.theta,
            dimensions=settings.dimensions,
            seed=settings.seed,
            normalization=settings.normalization or "filter",
            one_dimensional=settings.one_dimensional or "zero",
        )


def random_subspace(
    space: "ParameterSpace",
    theta: "Tensor",
    *,
    dimensions: int = 2,
    seed: int = 0,
    generator: "Generator | None" = None,
    normalization: Normalization = "filter",
    one_dimensional: OneDimensional = "zero",
    may_be_flat: bool = False,
) -> "Subspace":
    """Return the line or plane of random Gaussian directions, each by `random_direction`.

    Args:
        space: the names and shapes of θ.
        theta: the centre [P].
        dimensions: 1 or 2.
        seed: of the draws.
        generator: draws them; by default a new one with the seed.
        normalization: `filter`, `layer` or `none`, as `normalise` scales.
        one_dimensional: whether biases stay (`zero`) or move (`whole`).
        may_be_flat: lets directions pass that are zero or parallel.

    >>> import torch
    >>> from flatkit.objective.parameters import ParameterSpace
    >>> space = ParameterSpace.of({"weight": torch.ones(2, 2)})
    >>> random_subspace(space, torch.ones(4)).describe()["normalization"]
    'filter'
    """
    import torch

    from flatkit.landscape.subspaces import Subspace

    generator = generator or torch.Generator().manual_seed(seed)
    vectors = [
        random_direction(
            space,
            theta,
            generator=generator,
            normalization=normalization,
            one_dimensional=one_dimensional,
        )
        for _ in range(dimensions)
    ]
    said = {"normalization": normalization, "one_dimensional": one_dimensional, "seed": seed}
    rows = torch.stack(vectors) if dimensions > 1 else vectors[0][None]
    return Subspace("random", theta, rows, said, may_be_flat=may_be_flat)


def random_direction(
    space: "ParameterSpace",
    theta: "Tensor",
    *,
    generator: "Generator",
    normalization: Normalization = "filter",
    one_dimensional: OneDimensional = "zero",
) -> "Tensor":
    """Return a random Gaussian direction [P], scaled like the weights.

    Args:
        space: the names and shapes of θ.
        theta: the point [P].
        generator: draws the direction, the same for every dtype and device.
        normalization: `filter`, `layer` or `none`, as `normalise` scales.
        one_dimensional: whether biases stay (`zero`) or move (`whole`).

    >>> import torch
    >>> from flatkit.objective.parameters import ParameterSpace
    >>> space = ParameterSpace.of({"weight": torch.ones(2, 2), "bias": torch.ones(2)})
    >>> theta = torch.tensor([3.0, 4.0, 0.0, 1.0, 1.0, 1.0])
    >>> direction = random_direction(space, theta, generator=torch.Generator())
    >>> [round(float(row.norm()), 5) for row in direction.split(2)]
    [5.0, 1.0, 0.0]
    """
    import torch

    # On the CPU and in float32 whatever the network is: the same draw on every device.
    drawn = torch.randn(space.size, generator=generator, dtype=torch.float32).to(theta)
    return _scale(space, theta, drawn, normalization, one_dimensional)


def normalise(
    space: "ParameterSpace",
    theta: "Tensor",
    direction: "Tensor",
    *,
    normalization: Normalization = "filter",
    one_dimensional: OneDimensional = "zero",
) -> "Tensor":
    """Return a direction [P] scaled like the weights.

    With `filter`, each filter of the direction (a slice of a weight along its first dimension)
    gets the norm of the same filter of θ; with `layer`, each parameter the norm of that parameter.
    A step of 1 then is as long as the weights themselves, so that networks of different scales
    can be compared.

    Args:
        space: the names and shapes of θ.
        theta: the point [P].
        direction: what to scale [P]; left as it is.
        normalization: `filter`, `layer`, or `none`, where the whole direction gets unit length.
        one_dimensional: what happens to parameters without filters (biases, BatchNorm): `zero`
            leaves them where they are, as in the paper; `whole` moves them: each with the norm of
            that parameter, or, with `none`, as the direction says.

    >>> import torch
    >>> from flatkit.objective.parameters import ParameterSpace
    >>> space = ParameterSpace.of({"weight": torch.ones(1, 2), "bias": torch.ones(1)})
    >>> theta, direction = torch.tensor([3.0, 4.0, 2.0]), torch.tensor([1.0, 0.0, 9.0])
    >>> normalise(space, theta, direction)
    tensor([5., 0., 0.])
    >>> normalise(space, theta, direction, one_dimensional="whole")
    tensor([5., 0., 2.])
    """
    return _scale(space, theta, direction.clone(), normalization, one_dimensional)


def _scale(
    space: "ParameterSpace",
    theta: "Tensor",
    direction: "Tensor",
    normalization: Normalization,
    one_dimensional: OneDimensional,
) -> "Tensor":
    """Scale a direction [P] in place, and return it."""
    check_choice("normalization", normalization, get_args(Normalization))
    check_choice("one_dimensional", one_dimensional, get_args(OneDimensional))
    filters = space.filters(theta)
    for name, rows in space.filters(direction).items():  # rows [F, ...], views of the direction
        if not space.is_weight(name) and one_dimensional == "zero":
            rows.zero_()
        elif normalization == "layer":
            rows.mul_(_ratio(filters[name].norm(), rows.norm()))
        elif normalization == "filter":
            rows.mul_(
                _ratio(filters[name].norm(dim=1, keepdim=True), rows.norm(dim=1, keepdim=True))
            )
    return direction.div_(direction.norm()) if normalization == "none" else direction


def _ratio(wanted: "Tensor", have: "Tensor") -> "Tensor":
    """Return wanted/have; 0 where a given direction has nothing to scale."""
    return (wanted / have).where(have > 0, 0.0)
