"""The trace of an operator by random probes, with its standard error."""

import math
import time

import torch
from torch import Tensor

from flatkit.checks import check_count, check_positive
from flatkit.errors import InvalidArgumentError
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.operators import SymmetricOperator
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
    started = time.perf_counter()
    draws: list[float] = []
    while True:
        probe = random_signs(operator, generator)
        draws.append(float(probe.double() @ operator.matvec(probe).double()))
        samples = torch.tensor(draws, dtype=torch.float64)
        mean = float(samples.mean())
        error = float(samples.std()) / math.sqrt(len(draws)) if len(draws) > 1 else math.inf
        converged = len(draws) >= min_matvecs and error <= tolerance * abs(mean)
        if converged or len(draws) >= max_matvecs:
            break
    return Estimate(
        value=samples.mean(),
        error=torch.tensor(error, dtype=torch.float64),
        error_kind="standard_error",
        status=Status.CONVERGED if converged else Status.BUDGET,
        matvecs=len(draws),
        seconds=time.perf_counter() - started,
        notes={"num_probes": len(draws)},
    )


def random_signs(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    """Return a vector [P] of random signs."""
    bits = torch.randint(0, 2, (operator.size,), generator=generator, dtype=torch.int8)
    return (2 * bits - 1).to(operator.device, operator.dtype)
