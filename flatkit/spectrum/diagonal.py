"""The diagonal, from random signs."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from flatkit.checks import check_count
from flatkit.devices import ordinary_torch
from flatkit.results.status import Status
from flatkit.spectrum.dot import norm
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.operators import SymmetricOperator, finite_product
from flatkit.spectrum.sign_draws import random_signs
from flatkit.spectrum.standard_error import EXACT, WIDENED, stretch
from flatkit.spectrum.unit_vectors import unit_products

_TRUSTED = 16  # probes whose agreement in one coordinate is no chance


@ordinary_torch()
def diagonal(
    operator: SymmetricOperator,
    *,
    sizes: Sequence[int] | None = None,
    num_probes: int = 64,
    generator: torch.Generator,
) -> Estimate:
    """Return the diagonal of A, or its sums over parts of the vector, from random signs.

    diag A = E[z ⊙ A z] (Bekas, Kokiopoulou and Saad, 2007); the sum over a part is the trace of
    that diagonal block. Where P products with the unit vectors are no more, these are made: then
    nothing but rounding is left of the error.

    The standard errors are widened as Student's t. With fewer than 16 probes that of an entry is at
    least that of an average one, as draws of a single coordinate then often agree by chance. The
    variance of the sum over a part lies between once and twice the sum of the variances of its
    entries, which are known better than the spread of a few sums tells: it is kept there, and taken
    for no less than it is where a part is coupled alike to itself and to all others.

    Cost: a product a probe; memory 5 vectors of 64 bits.

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
    started, parts = time.perf_counter(), list(sizes or [1] * operator.size)
    if operator.size <= num_probes:
        value, error = _exact(operator, parts)
    else:
        value, error = _sampled(operator, parts, num_probes, generator)
    made = min(num_probes, operator.size)
    return Estimate(
        value=value.cpu(),
        error=error.cpu(),
        error_kind="standard_error",
        status=Status.CONVERGED,
        matvecs=made,
        seconds=time.perf_counter() - started,
        notes={"num_probes": made, "error_is": EXACT if made == operator.size else WIDENED},
    )


def _exact(operator: SymmetricOperator, parts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the sums over parts and their rounding."""
    entries, lengths = unit_products(operator, range(operator.size))
    return _sums(entries, parts), operator.rounding * _sums(lengths, parts)


def _sampled(
    operator: SymmetricOperator, parts: Sequence[int], count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the sums over parts and their standard errors."""
    average = spread = sum_spread = torch.zeros((), dtype=torch.float64)
    scale = 0.0
    for number in range(1, count + 1):
        probe = random_signs(operator, generator)
        draw = (probe * finite_product(operator, probe)).double()
        scale = scale or float(draw.abs().max())  # squares of large numbers overflow
        draw = draw / (scale or 1.0)
        step = draw - average  # Welford, 1962
        average = average + step / number
        spread = spread + step * (draw - average)
        # Welford's update again, of the sums: their spread holds the covariances within a part.
        added = _sums(step, parts)
        sum_spread = sum_spread + added * (added - added / number)
    spread = spread / (count - 1)
    if count < _TRUSTED:
        spread = spread.clamp(min=float(spread.mean()))
    least = _sums(spread, parts)
    share = torch.tensor(parts, device=least.device) / operator.size
    # The spread of a few sums is noisy; these bounds follow from the entries (docstring above).
    variance = (sum_spread / (count - 1)).clamp((1 + share) * least, 2 * least)
    value, error = _sums(average, parts), (variance / count).sqrt() * stretch(count - 1)
    rounding = operator.rounding * torch.maximum(value.abs(), share.sqrt() * norm(average))
    return scale * value, scale * torch.hypot(error, rounding)


def _sums(entries: Tensor, parts: Sequence[int]) -> Tensor:
    """Return the sums of a vector [P] over parts."""
    if len(parts) == len(entries):
        return entries
    return torch.stack([part.sum() for part in entries.split(list(parts))])
