"""A subspace on which an operator is known: orthonormal vectors and their images."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flatkit.spectrum.dot import dot, norm, norms
from flatkit.spectrum.operators import SymmetricOperator, finite_product


@dataclass(frozen=True)
class Deflation:
    """Orthonormal vectors V, and what is needed of their images for a trace or a norm.

    Attributes:
        vectors: V [M, P].
        projection: V A Vᵀ [M, M], symmetric, float64 on the CPU.
        length: ‖A V‖_F.
    """

    vectors: Tensor
    projection: Tensor
    length: float

    @property
    def size(self) -> int:
        """M."""
        return len(self.vectors)

    @property
    def trace(self) -> float:
        """The trace of V A Vᵀ."""
        return float(self.projection.trace())


@dataclass(frozen=True)
class Space:
    """Orthonormal vectors V and their images A V, rows of the same order.

    Attributes:
        vectors: V [M, P].
        images: A V [M, P].
        matvecs: products that were made for the images alone.

    >>> space = Space(torch.eye(3)[:2], torch.diag(torch.tensor([3.0, -5.0, 1.0]))[:2])
    >>> space.ritz(1)[0].tolist(), space.projection.trace().item()
    ([-5.0], -2.0)
    """

    vectors: Tensor
    images: Tensor
    matvecs: int = 0

    @classmethod
    def of(cls, operator: SymmetricOperator, vectors: Tensor) -> "Space":
        """Return the space of orthonormal vectors [M, P]. Cost: M products."""
        return cls(vectors, finite_product(operator, vectors), len(vectors))

    @property
    def size(self) -> int:
        """M."""
        return len(self.vectors)

    @property
    def projection(self) -> Tensor:
        """V A Vᵀ [M, M], symmetric, float64 on the CPU."""
        projected = dot(self.vectors, self.images)
        return (projected + projected.T) / 2

    @property
    def deflation(self) -> Deflation:
        """What is needed of it for a trace or a norm."""
        return Deflation(self.vectors, self.projection, math.hypot(*map(norm, self.images)))

    def ritz(self, count: int | None = None) -> tuple[Tensor, "Space", Tensor]:
        """Return the Ritz pairs of largest magnitude. Cost: no product.

        Args:
            count: how many; by default all.

        Returns:
            values [K] in float64, their vectors and images, residuals ‖Av − μv‖ [K] in float64.
        """
        values, weights = self.ritz_weights(count)
        rows = weights.to(self.vectors)
        pairs = Space(rows @ self.vectors, rows @ self.images)
        return values, pairs, norms(gaps(pairs.vectors, pairs.images, values.numpy()))

    def ritz_weights(self, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the Ritz values [K] of largest magnitude and W [K, M]: W V are their vectors.

        Both in float64, on the CPU.

        Args:
            count: how many at most; by default all.
        """
        values, parts = np.linalg.eigh(self.projection.numpy())
        order = np.argsort(-np.abs(values), kind="stable")[:count]
        return torch.from_numpy(values[order]), torch.from_numpy(parts.T[order].copy())


def gaps(vectors: Tensor, images: Tensor, values: np.ndarray) -> Tensor:
    """Return Av − μv [K, P] from vectors v [K, P], images Av and values μ [K].

    >>> gaps(torch.eye(1), torch.eye(1), np.array([3.0]))
    tensor([[-2.]])
    """
    return images - torch.from_numpy(values.copy()).to(vectors)[:, None] * vectors
