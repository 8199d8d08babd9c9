"""How far the leading eigenvectors of two Hessians span the same space."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def subspace_overlap(
    first: Any,
    second: Any,
    *,
    values: tuple[Sequence[float], Sequence[float]],
    errors: tuple[Sequence[float], Sequence[float]],
) -> tuple[list[float], list[float | None]]:
    """Return for j = 1 to k - 1 how much of the spaces of the j leading eigenvectors is shared.

    The overlap is ‖AⱼᵀBⱼ‖²_F / j = tr(P_A P_B) / j, with orthonormal eigenvectors as the columns of
    Aⱼ and Bⱼ: 1 for one space, about j/P for two that know nothing of each other (Gur-Ari, Roberts
    and Dyer, 2018). A space is known only as well as its eigenvalues stand apart from the next: by
    Davis and Kahan (1970) the sines of the angles to the true one are at most ‖R‖_F over the gap,
    with the residuals R; so the overlap is off by √(2/j) times the sum of both at most. The last of
    the k eigenvalues tells the gap alone.

    Args:
        first: unit eigenvectors [k, P], largest eigenvalue first.
        second: of the other Hessian.
        values: the eigenvalues of both.
        errors: the residuals of both.

    Returns:
        The overlaps, and how far off each may be: None where a gap is not above its residuals.

    >>> one, other = np.eye(3)[:2], np.eye(3)[[1, 0]]
    >>> known = {"values": ([2.0, 1.0], [2.0, 1.0]), "errors": ([0.0, 0.0], [0.0, 0.0])}
    >>> subspace_overlap(one, one, **known), subspace_overlap(one, other, **known)
    (([1.0], [0.0]), ([0.0], [0.0]))
    """
    shared = np.asarray(first, np.float64) @ np.asarray(second, np.float64).T
    overlaps: list[float] = []
    wrong: list[float | None] = []
    # The first j rows of both give the upper left block of one product of all.
    for j in range(1, len(shared)):
        overlaps.append(float((shared[:j, :j] ** 2).sum() / j))
        sines = [_sine(v, e, j) for v, e in zip(values, errors, strict=True)]
        bound = math.sqrt(2 / j) * sum(sines)
        # An overlap lies in [0, 1], so that a bound of 1 says nothing.
        wrong.append(bound if bound < 1 else None)
    return overlaps, wrong


def _sine(values: Sequence[float], errors: Sequence[float], j: int) -> float:
    """Return a bound of the Frobenius norm of the sines between a computed and the true space."""
    # The next eigenvalue may lie above its Ritz value by as much as its residual.
    gap = values[j - 1] - (values[j] + errors[j])
    residual = math.sqrt(sum(error**2 for error in errors[:j]))
    return residual / gap if gap > 0 else math.inf
