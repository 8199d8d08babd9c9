"""The Frobenius norm, from random signs."""

import math
import time

import torch
from torch import Tensor

from flatkit.checks import check_count, check_positive
from flatkit.devices import ordinary_torch
from flatkit.spectrum.dot import norm
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.operators import SymmetricOperator, finite_product
from flatkit.spectrum.sampled import Sampled
from flatkit.spectrum.sign_draws import AGREED, random_signs
from flatkit.spectrum.standard_error import half_more, mean, stretch
from flatkit.spectrum.unit_vectors import unit_products

_FIRST = 16  # probes before the standard error is trusted, and images that it stands on


@ordinary_torch()
def frobenius_norm(
    operator: SymmetricOperator,
    *,
    tolerance: float = 0.02,
    max_matvecs: int = 400,
    generator: torch.Generator,
) -> Estimate:
    """Return ‖A‖_F = √(Σ λ²) from E‖A z‖² = ‖A‖_F² over random signs z.

    The standard error is that of the mean of squares, carried through the root, and wider than it
    where draws are few. Unbiased for the square; the root of a mean is a little low, by half the
    squared relative error. Where P products with the unit vectors are cheaper, these are made: then
    nothing but rounding is left of the error.

    Cost: a product a probe; memory 18 vectors.

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
    started = time.perf_counter()
    found = _sample(operator, tolerance, max_matvecs, generator)
    return found.to_estimate(tolerance, started, {"num_probes": found.matvecs})


def _sample(
    operator: SymmetricOperator, tolerance: float, budget: int, generator: torch.Generator
) -> Sampled:
    draws = _Lengths()
    look = min(_FIRST, budget)
    while operator.size > look - len(draws):
        while len(draws) < look:
            draws.add(finite_product(operator, random_signs(operator, generator)))
        value, error, trusted = draws.root_of_mean()
        found = Sampled(value, error, operator.rounding * value, look)
        doubtful = look < trusted
        if (found.meets(tolerance) and not doubtful) or look >= budget:
            return found
        if operator.size <= min(look * found.share_needed(tolerance), budget) - look:
            break
        look = min(budget, trusted) if doubtful else found.next_look(look, tolerance, budget)
    _, columns = unit_products(operator, range(operator.size))
    value, spent = norm(columns), len(draws) + operator.size
    return Sampled(value, 0.0, operator.rounding * value, spent, exact=True)


class _Lengths:
    """Draws ‖Az‖², and the first images Az."""

    def __init__(self) -> None:
        self._lengths: list[float] = []
        self._images: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, image: Tensor) -> None:
        """Take a draw."""
        self._lengths.append(norm(image))
        if len(self._images) < _FIRST:
            self._images.append(image)

    def root_of_mean(self) -> tuple[float, float, int]:
        """Return the root of the mean of squares, its error, and from how many draws it is trusted.

        The error is to first order. As those of the trace, draws of few values agree by chance.
        """
        count, largest = len(self), max(self._lengths)
        if largest == 0:
            return 0.0, 0.0, AGREED
        square, error = mean([(length / largest) ** 2 for length in self._lengths])
        once = square * stretch(count - 1) / math.sqrt(count)
        hidden = once * math.sqrt(2 * 2.0 ** (1 - count))
        relative = self._relative_variance(largest)
        known = once * math.sqrt(relative)
        value = math.sqrt(square)
        spread = max(error, known)
        error = math.hypot(spread, hidden) / (2 * value)
        trusted = AGREED if spread <= hidden else half_more(_FIRST, skewed=relative > 0.25)
        return largest * value, largest * error, trusted

    def _relative_variance(self, scale: float) -> float:
        """Return the variance of a draw in units of its squared mean, as pairs of images tell it.

        It is 2 Σ_{i≠j} (A²)_ij². The products (Az)ᵀAz' of two probes have the mean square
        Σ (A²)_ij², and a coordinate of Az has the mean square (A²)_ii: with one large eigenvalue
        that shows in few draws what their own spread does not.
        """
        count = len(self._images)
        if count < 2:
            return 0.0
        images = torch.stack(self._images).double() / scale  # [n, P]
        products = (images @ images.T).square()
        own = products.diagonal().sqrt()
        squares = images.square()
        entries = (squares.sum(0).square() - squares.square().sum(0)).sum()
        excess = float(products.sum() - products.diagonal().sum() - entries)
        return 2 * max(0.0, excess) / float(own.sum().square() - own.square().sum())
