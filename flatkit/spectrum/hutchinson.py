"""The trace of an operator by random probes, with its standard error."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from flatkit.checks import check_count, check_positive
from flatkit.errors import InvalidArgumentError
from flatkit.spectrum.dot import dot_in_double
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.operators import SymmetricOperator, finite_product
from flatkit.status import Status


def hutchinson_trace(
    operator: SymmetricOperator,
    *,
    tolerance: float = 0.02,
    min_matvecs: int = 16,
    max_matvecs: int = 400,
    generator: torch.Generator,
) -> Estimate:
    """Return tr A as the mean of zᵀAz over random signs z (Hutchinson, 1990).

    Unbiased, with variance 2 Σ_{i≠j} A_ij² a probe; the standard error is estimated from the
    probes themselves, and probes are added until it is at most tolerance·|trace|. (Stopping on
    the estimated error makes it slightly optimistic; `min_matvecs` bounds that.)

    Cost: a product a probe; memory 2 vectors.

    Args:
        operator: A, symmetric.
        tolerance: on the standard error, relative to the trace.
        min_matvecs: probes before the standard error is trusted, at least 2.
        max_matvecs: probes at most; when spent, the status is `budget`.
        generator: draws the probes.

    Raises:
        InvalidArgumentError: an argument out of range.
        NonFiniteError: a product is not finite.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.tensor([3.0, 1.0])))
    >>> float(hutchinson_trace(operator, generator=torch.Generator()).value)  # exact if diagonal
    4.0
    """
    check_positive("tolerance", tolerance)
    check_count("min_matvecs", min_matvecs, minimum=2)
    if check_count("max_matvecs", max_matvecs) < min_matvecs:
        raise InvalidArgumentError(
            f"max_matvecs must be at least min_matvecs = {min_matvecs}, got {max_matvecs}"
        )

    def draw() -> float:
        probe = random_signs(operator, generator)
        return dot_in_double(probe, finite_product(operator, probe))

    return sample(draw, mean, tolerance=tolerance, min_matvecs=min_matvecs, max_matvecs=max_matvecs)


def sample(
    draw: Callable[[], float],
    statistic: Callable[[Tensor], tuple[float, float]],
    *,
    tolerance: float,
    min_matvecs: int,
    max_matvecs: int,
) -> Estimate:
    """Return a statistic of random draws, of which there are as many as the tolerance needs.

    Args:
        draw: returns a number, of a product with a new probe.
        statistic: returns the value and its standard error, of two draws or more.
        tolerance: on the standard error, relative to the value.
        min_matvecs: draws before the standard error is trusted.
        max_matvecs: draws at most, at least 2.

    >>> draws = iter([1.0, 3.0])
    >>> found = sample(lambda: next(draws), mean, tolerance=0.5, min_matvecs=2, max_matvecs=9)
    >>> float(found.value), float(found.error), found.matvecs
    (2.0, 1.0, 2)
    """
    started, draws = time.perf_counter(), [draw()]
    value, error, converged = draws[0], math.inf, False
    while not converged and len(draws) < max_matvecs:
        draws.append(draw())
        value, error = statistic(torch.tensor(draws, dtype=torch.float64))
        converged = len(draws) >= min_matvecs and error <= tolerance * abs(value)
    return Estimate(
        value=torch.tensor(value, dtype=torch.float64),
        error=torch.tensor(error, dtype=torch.float64),
        error_kind="standard_error",
        status=Status.CONVERGED if converged else Status.BUDGET,
        matvecs=len(draws),
        seconds=time.perf_counter() - started,
        notes={"num_probes": len(draws)},
    )


def mean(draws: Tensor) -> tuple[float, float]:
    """Return the mean of draws and its standard error.

    >>> mean(torch.tensor([1.0, 3.0], dtype=torch.float64))
    (2.0, 1.0)
    """
    return float(draws.mean()), float(draws.std()) / math.sqrt(len(draws))


def random_signs(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    """Return a vector [P] of random signs."""
    # Drawn as integers on the CPU: the same for every dtype and device.
    bits = torch.randint(0, 2, (operator.size,), generator=generator, dtype=torch.int8)
    return (2 * bits - 1).to(operator.device, operator.dtype)
