"""Ritz values: the wanted ones first, and how far off they may be."""

from typing import Literal, TypeAlias

import numpy as np

End: TypeAlias = Literal["largest", "smallest", "magnitude", "both"]


def value_errors(values: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """Return min(r, r²/gap) for each Ritz value, its gap to the other intervals μ ± r.

    Args:
        values: μ [M], in any order.
        residuals: r [M].

    >>> value_errors(np.array([3.0, 1.0]), np.array([0.1, 0.0])).round(4).tolist()
    [0.005, 0.0]
    """
    # To the near end of the other's interval, which holds an eigenvalue: [M, M].
    distances = np.abs(values[:, None] - values[None, :]) - residuals[None, :]
    np.fill_diagonal(distances, np.inf)
    gaps = distances.min(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        sharper = np.where(gaps > 0, residuals**2 / gaps, np.inf)
    return np.minimum(residuals, sharper)


def in_order(values: np.ndarray, weights: np.ndarray, which: End) -> tuple[np.ndarray, np.ndarray]:
    """Return Ritz values and weights, ascending before, with the wanted ones first."""
    keys = {"largest": -values, "smallest": values, "magnitude": -np.abs(values)}
    if which == "both":
        order = np.array(_from_both_ends(len(values)))
    else:
        order = np.argsort(keys[which], kind="stable")
    return values[order], weights[:, order]


def _from_both_ends(count: int) -> list[int]:
    """Return places of an ascending sequence: the last, the first, the last but one, ..."""
    return [number // 2 if number % 2 else count - 1 - number // 2 for number in range(count)]
