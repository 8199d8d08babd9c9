"""Directions that the user gives, as they are or scaled like the weights."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from flatkit.errors import InvalidArgumentError
from flatkit.landscape.directions.kind import Kind, Request
from flatkit.landscape.directions.random import normalise
from flatkit.landscape.settings import Normalization, OneDimensional

if TYPE_CHECKING:
    from torch import Tensor

    from flatkit.landscape.subspaces import Subspace
    from flatkit.objective.parameters import ParameterSpace


class GivenDirections(Kind):
    """Vectors from a `.npy` file."""

    name = "given"
    help = "one or two rows with a number for every parameter"
    can_be_scaled = True
    takes_vectors = True

    def make(self, request: Request) -> "Subspace":
        """Read them."""
        settings, objective = request.settings, request.objective
        assert settings.vectors is not None
        return given_subspace(
            objective.space,
            objective.theta,
            _read(settings.vectors),
            normalization=settings.normalization,
            one_dimensional=settings.one_dimensional or "whole",
        )


def given_subspace(
    space: "ParameterSpace",
    theta: "Tensor",
    vectors: "Tensor",
    *,
    normalization: Normalization | None = None,
    one_dimensional: OneDimensional = "whole",
) -> "Subspace":
    """Return the line or plane of given vectors [D, P] or [P], as they are or scaled.

    Raises:
        InvalidArgumentError: they do not fit the parameters, or span no line or plane.

    >>> import torch
    >>> from flatkit.objective.parameters import ParameterSpace
    >>> space = ParameterSpace.of({"weight": torch.ones(2, 2)})
    >>> given_subspace(space, torch.zeros(4), torch.ones(4)).describe()["norms"]
    [2.0]
    """
    import torch

    from flatkit.landscape.subspaces import Subspace

    vectors = vectors.to(theta)
    rows = vectors[None] if vectors.ndim == 1 else vectors  # [D, P]
    as_given = {"normalization": "as given", "one_dimensional": "whole"}
    unscaled = Subspace("given", theta, rows, as_given)  # refuses what does not fit
    if normalization is None:
        return unscaled
    scaled = [
        normalise(space, theta, row, normalization=normalization, one_dimensional=one_dimensional)
        for row in rows
    ]
    said = {"normalization": normalization, "one_dimensional": one_dimensional}
    return Subspace("given", theta, torch.stack(scaled), said)


def _read(path: str | Path) -> "Tensor":
    """Return the vectors of a file, in float64."""
    import torch

    try:
        array = numpy.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise InvalidArgumentError(f"cannot read {path}: no such file") from error
    except (OSError, ValueError, EOFError) as error:
        raise InvalidArgumentError(f"{path} is no .npy file of numbers ({error})") from error
    if not isinstance(array, numpy.ndarray) or array.dtype.kind not in "fiu":
        raise InvalidArgumentError(f"{path} must hold one array of real numbers, see numpy.save")
    return torch.from_numpy(array.astype(numpy.float64))
