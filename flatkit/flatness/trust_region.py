"""The ball maximum of a quadratic, exactly: the secular equation in the eigenbasis."""

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

from flatkit.checks import check_positive
from flatkit.devices import ordinary_torch

# Size, relative to the whole, below which a part of the linear term counts as zero.
_ORTHOGONAL = 1e-13


class QuadraticMaximum(NamedTuple):
    """The maximum of q(y) = ½ yᵀA y + cᵀy over ‖y‖ ≤ ρ.

    Attributes:
        value: q(y).
        point: y [M].
        multiplier: μ ≥ 0 with (μ − A) y = c, at least the largest eigenvalue of A.
    """

    value: float
    point: np.ndarray
    multiplier: float


@ordinary_torch()
def quadratic_maximum(matrix: np.ndarray, linear: np.ndarray, rho: float) -> QuadraticMaximum:
    """Return the exact maximum of ½ yᵀA y + cᵀy over ‖y‖ ≤ ρ, A symmetric, also indefinite.

    y maximises if and only if (μ − A) y = c for a μ ≥ max(0, λmax) with μ (ρ − ‖y‖) = 0 (Moré and
    Sorensen, 1983). In the eigenbasis ‖y(μ)‖ falls with μ, so that 1/‖y(μ)‖ = 1/ρ has one root,
    bracketed and found to rounding. In the hard case, where c has no part along the top
    eigenvector, μ = λmax and that eigenvector fills y up to the sphere.

    Cost: an eigendecomposition, M³.

    Args:
        matrix: A [M, M].
        linear: c [M].
        rho: ρ > 0.

    >>> found = quadratic_maximum(np.diag([2.0, -1.0]), np.array([0.0, 3.0]), 1.0)
    >>> round(found.value, 6), round(found.multiplier, 6)  # hard case: y = (0, 1), μ = 2
    (2.5, 2.0)
    """
    check_positive("rho", rho)
    values, vectors = np.linalg.eigh(np.asarray(matrix, dtype=np.float64))
    linear = np.asarray(linear, dtype=np.float64)
    parts, multiplier = _in_eigenbasis(values, vectors.T @ linear, rho)
    value = float(0.5 * parts @ (values * parts) + (vectors.T @ linear) @ parts)
    return QuadraticMaximum(value, vectors @ parts, multiplier)


@ordinary_torch()
def gradient_norm_maximum(matrix: np.ndarray, gradient: np.ndarray, rho: float) -> QuadraticMaximum:
    """Return the exact maximum of ‖g + H y‖ over ‖y‖ ≤ ρ; half its square is a quadratic in y.

    The multiplier is that of ½‖g + H y‖².

    >>> round(gradient_norm_maximum(np.diag([3.0, 1.0]), np.zeros(2), 0.1).value, 6)
    0.3
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    found = quadratic_maximum(matrix @ matrix, matrix @ gradient, rho)
    value = float(np.linalg.norm(gradient + matrix @ found.point))
    return QuadraticMaximum(value, found.point, found.multiplier)


def _in_eigenbasis(values: np.ndarray, linear: np.ndarray, rho: float) -> tuple[np.ndarray, float]:
    """Return y and μ for a diagonal A with ascending values."""
    size = float(np.linalg.norm(linear))
    low = max(float(values[-1]), 0.0)
    if size == 0:
        return _fill_up(np.zeros_like(linear), values, rho), low
    # Eigenvalues that LAPACK does not tell apart from the largest count as equal to it.
    top = values >= low - 1e-12 * max(abs(values[0]), abs(values[-1]))
    if np.linalg.norm(linear[top]) <= _ORTHOGONAL * size:
        rest = np.where(top, 0.0, linear) / np.where(top, 1.0, low - values)
        if np.linalg.norm(rest) <= rho:
            return _fill_up(rest, values, rho), low
        linear = np.where(top, 0.0, linear)

    # In units of the shift s = μ − low, so that nothing cancels near the largest eigenvalue.
    distances = low - values  # [M], >= 0

    def shortfall(shift: float) -> float:
        return 1.0 / float(np.linalg.norm(linear / (distances + shift))) - 1.0 / rho

    most = size / rho
    least = max(most * 1e-18, 1e-300)  # below rounding, and no denormal number
    if shortfall(least) >= 0:  # already shorter than ρ: inside, or so near that rounding decides
        parts = linear / (distances + least)
        return (parts if low > values[-1] else _fill_up(parts, values, rho)), low
    high = most * (1 + 1e-12)  # ‖y‖ ≤ ‖c‖/s: the root lies below, but for rounding
    # The root may lie at any order of magnitude: `xtol` leaves the relative tolerance to decide.
    shift = brentq(shortfall, least, high, xtol=1e-300, maxiter=2000)
    assert isinstance(shift, float)
    parts = linear / (distances + shift)
    # The root is known to rounding, and so is ‖y‖ = ρ: this makes the point feasible.
    return parts * (rho / float(np.linalg.norm(parts))), low + shift


def _fill_up(parts: np.ndarray, values: np.ndarray, rho: float) -> np.ndarray:
    """Add as much of the top eigenvector as the sphere allows, where that gains something."""
    if values[-1] <= 0:
        return parts
    filled = parts.copy()
    rest = rho**2 - float(parts @ parts)
    # With the sign of its own part, along which the linear term does not fall.
    filled[-1] = math.copysign(math.sqrt(max(0.0, rest) + parts[-1] ** 2), parts[-1])
    return filled
