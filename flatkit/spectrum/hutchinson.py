"""The trace of an operator by random probes, with its standard error."""

from functools import partial

import torch

from flatkit.checks import check_count, check_positive
from flatkit.errors import InvalidArgumentError
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.operators import SymmetricOperator
from flatkit.spectrum.sampled import Sampled
from flatkit.spectrum.steps import Steps, changed, finish, timed
from flatkit.spectrum.stratified_trace import entry_by_entry, probed_steps

_SMALL = 16  # coordinates up to which an operator is taken entry by entry


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
    return finish(
        hutchinson_steps(
            operator,
            tolerance=tolerance,
            min_matvecs=min_matvecs,
            max_matvecs=max_matvecs,
            generator=generator,
        )
    )


def hutchinson_steps(
    operator: SymmetricOperator,
    *,
    tolerance: float = 0.02,
    min_matvecs: int = 16,
    max_matvecs: int = 400,
    generator: torch.Generator,
) -> Steps[Estimate]:
    """Tell the trace after each probe; `hutchinson_trace` is the end.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.arange(40.0)))
    >>> steps = hutchinson_steps(operator, generator=torch.Generator())
    >>> next(steps)().status.value, float(finish(steps).value)
    ('budget', 780.0)
    """
    check_positive("tolerance", tolerance)
    check_count("min_matvecs", min_matvecs, minimum=2)
    if check_count("max_matvecs", max_matvecs) < min_matvecs:
        raise InvalidArgumentError(
            f"max_matvecs must be at least min_matvecs = {min_matvecs}, got {max_matvecs}"
        )
    return timed(_steps(operator, tolerance, min_matvecs, max_matvecs, generator))


def _steps(
    operator: SymmetricOperator,
    tolerance: float,
    first: int,
    budget: int,
    generator: torch.Generator,
) -> Steps[Estimate]:
    def estimate(found: Sampled, *, ended: bool = False) -> Estimate:
        return found.to_estimate(tolerance, {"num_probes": found.matvecs}, ended=ended)

    if operator.size <= min(_SMALL, budget):
        found = entry_by_entry(operator)
    else:
        work = probed_steps(
            operator,
            parts=(operator.size,),
            tolerance=tolerance,
            first=first,
            budget=budget,
            generator=generator,
        )
        found = yield from changed(work, estimate)
    assert found is not None
    yield partial(estimate, found, ended=True)
