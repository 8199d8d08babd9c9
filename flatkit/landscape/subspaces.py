"""Frames: a centre and the directions of a line or plane, with what is known of them.

A frame of one direction makes a line θ + t·d, one of two a plane θ + x·d₁ + y·d₂.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flatkit.errors import InvalidArgumentError
from flatkit.landscape.directions import normalise, random_direction
from flatkit.landscape.settings import Normalization, OneDimensional
from flatkit.parameters import ParameterSpace
from flatkit.spectrum import lanczos
from flatkit.spectrum.lanczos import End
from flatkit.spectrum.operators import SymmetricOperator


@dataclass(frozen=True, eq=False)
class Frame:
    """Where a landscape is looked at.

    Attributes:
        kind: `random`, `eigenvectors`, `pca`, `checkpoints` or `given`.
        centre: θ [P].
        vectors: the directions [D, P].
        settings: how they were made, ready for JSON.
        markers: points with their names and coordinates: `{"name", "at": [D]}`.
        path: of a trajectory, `{"names": [T], "at": [T, D], "off_plane": [T]}`; the last is the
            distance of each point from the line or plane.
        buffers: name -> [1 + D, ...]: floating-point buffers (running statistics) at the centre,
            and how much a step of 1 along each direction adds; None where they stay.

    >>> Frame("given", torch.zeros(2), torch.tensor([[3.0, 0.0], [1.0, 1.0]])).describe()["norms"]
    [3.0, 1.4142135...]
    >>> Frame("given", torch.zeros(2), torch.ones(2, 2))
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

    def __post_init__(self) -> None:
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
        norms = self.vectors.double().norm(dim=1)
        if not (norms > 0).all():
            raise InvalidArgumentError("directions must not be zero; one of them is")
        if len(norms) == 2 and 1 - abs(self.cosine or 0.0) < 1e-6:
            raise InvalidArgumentError("the two directions are parallel and span no plane")

    @property
    def cosine(self) -> float | None:
        """The cosine between two directions."""
        if len(self.vectors) < 2:
            return None
        first, second = self.vectors.double()
        return float(first @ second / (first.norm() * second.norm()))

    def describe(self) -> dict[str, Any]:
        """Return what a surface says about its directions, ready for JSON."""
        return {
            "kind": self.kind,
            "norms": self.vectors.double().norm(dim=1).tolist(),
            "weight_norm": float(self.centre.double().norm()),
            "cosine": self.cosine,
            **self.settings,
        }


def random_frame(
    space: ParameterSpace,
    theta: Tensor,
    *,
    dimensions: int = 2,
    seed: int = 0,
    normalization: Normalization = "filter",
    one_dimensional: OneDimensional = "zero",
) -> Frame:
    """Return random Gaussian directions, see `random_direction`; the seed draws all of them.

    >>> space = ParameterSpace.of({"weight": torch.ones(2, 2)})
    >>> random_frame(space, torch.ones(4)).describe()["normalization"]
    'filter'
    """
    generator = torch.Generator().manual_seed(seed)
    scaling = {"normalization": normalization, "one_dimensional": one_dimensional}
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
    return Frame("random", theta, torch.stack(vectors), {**scaling, "seed": seed})


def eigen_frame(
    hessian: SymmetricOperator,
    theta: Tensor,
    *,
    dimensions: int = 2,
    which: End = "largest",
    tolerance: float = 1e-4,
    max_matvecs: int = 1000,
    seed: int = 0,
) -> Frame:
    """Return unit eigenvectors of the Hessian, never rescaled: their curvature is the eigenvalue.

    Along them L(θ + t·v) = L + t·(g·v) + ½λt² + …; `settings` hold λ, the residuals and whether
    they converged. Cost: the products of `flatkit.spectrum.lanczos`.

    Args:
        hessian: at θ.
        theta: the centre [P].
        dimensions: how many.
        which: `largest`, `smallest`, `magnitude`, or `both`: the largest and the smallest.
        tolerance: relative residual.
        max_matvecs: budget of products.
        seed: of the start.

    Raises:
        InvalidArgumentError: P < dimensions.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> hessian = DenseOperator(torch.diag(torch.tensor([3.0, 1.0, 2.0])))
    >>> frame = eigen_frame(hessian, torch.zeros(3))
    >>> [round(x, 4) for x in frame.settings["eigenvalues"]]
    [3.0, 2.0]
    """
    found = lanczos(
        hessian,
        k=dimensions,
        which=which,
        tolerance=tolerance,
        max_matvecs=max_matvecs,
        generator=torch.Generator().manual_seed(seed),
    )
    assert found.vectors is not None
    return Frame(
        "eigenvectors",
        theta,
        _with_signs(found.vectors),
        {
            "normalization": "none",
            "one_dimensional": "whole",
            "eigenvalues": found.value.tolist(),
            "residuals": found.error.tolist(),
            "status": found.status,
            "which": which,
            "seed": seed,
        },
    )


def given_frame(
    space: ParameterSpace,
    theta: Tensor,
    vectors: Tensor,
    *,
    normalization: Normalization | None = None,
    one_dimensional: OneDimensional = "whole",
) -> Frame:
    """Return a frame of given vectors [D, P] or [P], as they are or scaled like the weights.

    Raises:
        InvalidArgumentError: they do not fit the parameters, or span no line or plane.

    >>> space = ParameterSpace.of({"weight": torch.ones(2, 2)})
    >>> given_frame(space, torch.zeros(4), torch.ones(4)).describe()["norms"]
    [2.0]
    """
    vectors = vectors.to(theta)
    frame = Frame("given", theta, vectors[None] if vectors.ndim == 1 else vectors)
    if normalization is None:
        settings = {"normalization": "as given", "one_dimensional": "whole"}
        return Frame("given", theta, frame.vectors, settings)
    scaled = [
        normalise(
            space,
            theta,
            vector,
            normalization=normalization,
            one_dimensional=one_dimensional,
        )
        for vector in frame.vectors
    ]
    settings = {"normalization": normalization, "one_dimensional": one_dimensional}
    return Frame("given", theta, torch.stack(scaled), settings)


def _with_signs(vectors: Tensor) -> Tensor:
    """Return the vectors with their largest entry positive, so that a sign is no accident."""
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return vectors * largest.sign()
