"""The trace of an operator by random probes, with its standard error."""

import time

import torch

from flatkit.checks import check_count, check_positive
from flatkit.devices import ordinary_torch
from flatkit.errors import InvalidArgumentError
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.operators import SymmetricOperator
from flatkit.spectrum.stratified_trace import entry_by_entry, probed_trace

_SMALL = 16  # coordinates up to which an operator is taken entry by entry


@ordinary_torch()
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
    probes themselves (`SignDraws`), wider where they are few, and probes are added until it is at
    most tolerance·|trace|. It is looked at a few times only, lest chance decide when to stop. Where
    P products with the unit vectors are cheaper, these are made: then nothing but rounding is left
    of the error.

    Cost: a product a probe; memory 6 vectors.

    Args:
        operator: A, symmetric.
        tolerance: on the standard error, relative to the trace.
        min_matvecs: probes before the standard error is trusted, at least 2.
        max_matvecs: products at most; when spent, the status is `budget`.
        generator: draws the probes.

    Raises:
        InvalidArgumentError: an argument out of range.
        NonFiniteError: a product is not finite.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.tensor([3.0, 1.0])))
    >>> float(hutchinson_trace(operator, generator=torch.Generator()).value)
    4.0
    """
    check_positive("tolerance", tolerance)
    check_count("min_matvecs", min_matvecs, minimum=2)
    if check_count("max_matvecs", max_matvecs) < min_matvecs:
        raise InvalidArgumentError(
            f"max_matvecs must be at least min_matvecs = {min_matvecs}, got {max_matvecs}"
        )
    started = time.perf_counter()
    if operator.size <= min(_SMALL, max_matvecs):
        found = entry_by_entry(operator)
    else:
        found = probed_trace(
            operator,
            parts=(operator.size,),
            tolerance=tolerance,
            first=min_matvecs,
            budget=max_matvecs,
            generator=generator,
        )
    return found.to_estimate(tolerance, started, {"num_probes": found.matvecs})
