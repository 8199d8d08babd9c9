"""Eigenvectors of the Hessian at the checkpoint."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flatkit.landscape.directions.kind import Kind, NumberText, Request, about, is_plane
from flatkit.landscape.surface import Surface

if TYPE_CHECKING:
    from torch import Tensor

    from flatkit.landscape.subspaces import Subspace
    from flatkit.spectrum.lanczos import End
    from flatkit.spectrum.operators import SymmetricOperator


class Eigenvectors(Kind):
    """The directions of the largest eigenvalues."""

    name = "eigenvectors"
    help = "of the Hessian, the largest eigenvalues first; a surface at each checkpoint"
    lengths = True

    def make(self, request: Request) -> "Subspace":
        """Find them by Lanczos."""
        from flatkit.hessian.operator import HessianOperator

        objective, settings = request.objective, request.settings
        hessian = HessianOperator(objective, memory=settings.memory)
        return eigen_subspace(
            hessian, objective.theta, dimensions=settings.dimensions, seed=settings.seed
        )

    def usual_range(self, subspace: "Subspace", number: int) -> tuple[float, float]:
        """Return ±√(2/λ): there the loss of the quadratic model, ½λt², has risen by 1."""
        # One range for both axes: steps are lengths, and the sharper direction looks sharper.
        largest = max(abs(value) for value in subspace.settings["eigenvalues"])
        reach = math.sqrt(2 / largest) if largest > 0 else 1.0
        return -reach, reach

    def axis_label(self, surface: Surface, number: int, text: NumberText) -> str:
        """Return which eigenvector it is, with its eigenvalue."""
        if "eigenvalues" not in about(surface):
            return super().axis_label(surface, number, text)
        value = text(float(about(surface)["eigenvalues"][number]), 3)
        return f"along eigenvector {number + 1}  (λ = {value})"

    def shared_label(self, lines: Sequence[Surface], text: NumberText) -> str:
        """Return which eigenvector it is."""
        return "along eigenvector 1 of each"

    def footnote(self, surface: Surface, text: NumberText) -> str:
        """Return that steps are lengths."""
        which = "unit eigenvectors" if is_plane(surface) else "a unit eigenvector"
        return f"distances ‖Δθ‖ along {which} of the Hessian"


def eigen_subspace(
    hessian: "SymmetricOperator",
    theta: "Tensor",
    *,
    dimensions: int = 2,
    which: "End" = "largest",
    tolerance: float = 1e-4,
    max_matvecs: int = 1000,
    seed: int = 0,
) -> "Subspace":
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

    >>> import torch
    >>> from flatkit.spectrum.operators import DenseOperator
    >>> hessian = DenseOperator(torch.diag(torch.tensor([3.0, 1.0, 2.0])))
    >>> subspace = eigen_subspace(hessian, torch.zeros(3))
    >>> [round(x, 4) for x in subspace.settings["eigenvalues"]]
    [3.0, 2.0]
    """
    import torch

    from flatkit.landscape.subspaces import Subspace
    from flatkit.spectrum.lanczos import lanczos

    found = lanczos(
        hessian,
        k=dimensions,
        which=which,
        tolerance=tolerance,
        max_matvecs=max_matvecs,
        generator=torch.Generator().manual_seed(seed),
    )
    assert found.vectors is not None
    said = {
        "normalization": "none",
        "one_dimensional": "whole",
        "eigenvalues": found.value.tolist(),
        "residuals": found.error.tolist(),
        "status": found.status,
        "which": which,
        "seed": seed,
    }
    return Subspace("eigenvectors", theta, _with_signs(found.vectors), said)


def _with_signs(vectors: "Tensor") -> "Tensor":
    """Return the vectors with their largest entry positive, so that a sign is no accident."""
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return vectors * largest.sign()
