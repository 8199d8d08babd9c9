"""The diagonal and the Frobenius norm, from random signs."""

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from flatkit.checks import check_count, check_positive
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.hutchinson import mean, random_signs, sample
from flatkit.spectrum.operators import SymmetricOperator, finite_product
from flatkit.status import Status

_FEWEST_PROBES = 16  # of the Frobenius norm, before its standard error is trusted


def diagonal(
    operator: SymmetricOperator,
    *,
    sizes: Sequence[int] | None = None,
    num_probes: int = 64,
    generator: torch.Generator,
) -> Estimate:
    """Return the diagonal of A, or its sums over parts of the vector, from random signs.

    diag A = E[z ⊙ A z] (Bekas, Kokiopoulou and Saad, 2007); the sum over a part is the trace of
    that diagonal block.

    Cost: a product a probe; memory 4 vectors.

    Args:
        operator: A, symmetric.
        sizes: of the parts, adding up to P; by default every entry is its own.
        num_probes: how many probes, at least 2.
        generator: draws the probes.

    Returns:
        Estimate with values [P], or [len(sizes)], and standard errors of the same shape.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.tensor([3.0, 1.0, 2.0])))
    >>> diagonal(operator, sizes=[1, 2], generator=torch.Generator()).value.tolist()
    [3.0, 3.0]
    """
    check_count("num_probes", num_probes, minimum=2)
    started = time.perf_counter()
    average = squares = torch.zeros((), dtype=torch.float64)
    for number in range(1, num_probes + 1):
        probe = random_signs(operator, generator)
        draw = (probe * finite_product(operator, probe)).double()
        if sizes is not None:
            draw = torch.stack([part.sum() for part in draw.split(list(sizes))])
        step = draw - average  # Welford, 1962
        average = average + step / number
        squares = squares + step * (draw - average)
    error = (squares / (num_probes - 1) / num_probes).sqrt()
    return Estimate(
        value=average.cpu(),
        error=error.cpu(),
        error_kind="standard_error",
        status=Status.CONVERGED,
        matvecs=num_probes,
        seconds=time.perf_counter() - started,
        notes={"num_probes": num_probes},
    )


def frobenius_norm(
    operator: SymmetricOperator,
    *,
    tolerance: float = 0.02,
    max_matvecs: int = 400,
    generator: torch.Generator,
) -> Estimate:
    """Return ‖A‖_F = √(Σ λ²) from E‖A z‖² = ‖A‖_F² over random signs z.

    The standard error is that of the mean of squares, carried through the root. Unbiased for the
    square; the root of a mean is a little low, by half the squared relative error.

    Cost: a product a probe; memory 2 vectors.

    Args:
        operator: A, symmetric.
        tolerance: on the standard error, relative to the norm.
        max_matvecs: probes at most; when spent, the status is `budget`.
        generator: draws the probes.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.tensor([3.0, 4.0])))
    >>> float(frobenius_norm(operator, generator=torch.Generator()).value)
    5.0
    """
    check_positive("tolerance", tolerance)
    check_count("max_matvecs", max_matvecs, minimum=2)

    def draw() -> float:
        size = float(finite_product(operator, random_signs(operator, generator)).double().norm())
        return size * size

    return sample(
        draw,
        _root_of_mean,
        tolerance=tolerance,
        min_matvecs=_FEWEST_PROBES,
        max_matvecs=max_matvecs,
    )


def _root_of_mean(squares: Tensor) -> tuple[float, float]:
    """Return the root of the mean of squares, and its standard error to first order."""
    square, error = mean(squares)
    value = math.sqrt(square)
    return value, error / (2 * value) if value > 0 else 0.0
