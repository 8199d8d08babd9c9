"""Values zᵀAz of random signs z, with a standard error that all coordinates of z ⊙ Az vote on."""

import math

import torch
from torch import Tensor

from flatkit.spectrum.dot import norm
from flatkit.spectrum.operators import SymmetricOperator
from flatkit.spectrum.standard_error import freedom_of, stretch

# Draws that all agree are believed from here on: two coupled coordinates give the same value so
# many times once in 500,000 runs.
AGREED = 20
_COORDINATES = 2**17  # that are added up in float64 at once: of all, a large network has no room


def random_signs(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    """Return a vector [P] of random signs."""
    # Drawn as integers on the CPU: the same for every dtype and device.
    bits = torch.randint(0, 2, (operator.size,), generator=generator, dtype=torch.int8)
    return (2 * bits - 1).to(operator.device, operator.dtype)


class SignDraws:
    """Draws zᵀAz, whose mean is the trace of a symmetric matrix A.

    Their variance is 2 Σ_{i≠j} A_ij². The draws themselves tell it badly: with one large eigenvalue
    they are as skewed as a squared normal number, and few of them are often all small, with a
    small spread, far below the trace. But A_ij² over j ≠ i also adds up to the variance of the
    coordinate i of z ⊙ Az, so that twice the sum of these P variances is the same number, with a
    fraction of the noise: with one large eigenvalue a seventh of its variance.

    The error is widened by Student's t, of as many degrees of freedom as the distances of the draws
    from each other show (Satterthwaite, 1946). That n draws agree proves little while they are
    few: two coupled coordinates give n times the same value with the probability 2^(1 - n), so
    that such a share of ‖Az‖², of which the diagonal may be any part, is added.

    >>> draws = SignDraws()
    >>> draws.add(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 3.0]))
    >>> draws.add(torch.tensor([1.0, -1.0]), torch.tensor([0.0, -1.0]))
    >>> draws.value, len(draws)
    (3.0, 2)
    """

    def __init__(self) -> None:
        self._count = 0
        self._scale = 0.0  # squares of large numbers overflow
        self._average: Tensor | None = None  # [P], in the dtype of the products
        self._sum = self._lengths = self._steps = self._fourth = 0.0

    def __len__(self) -> int:
        return self._count

    def add(self, probe: Tensor, product: Tensor) -> None:
        """Take a draw.

        Args:
            probe: z [P], of signs, in any dtype.
            product: Az [P].
        """
        self._scale = self._scale or _power_of_two(norm(product))
        if self._average is None:
            self._average = torch.zeros_like(product)
        self._count += 1
        square = 0.0
        for first in range(0, len(product), _COORDINATES):
            some = slice(first, first + _COORDINATES)
            draw, average = (probe[some] * product[some]).double(), self._average[some]
            if self._scale > 0:
                draw /= self._scale
            self._sum += float(draw.sum())
            self._lengths += float(draw @ draw)
            draw -= average
            square += float(draw @ draw)
            draw /= self._count
            average += draw  # Welford, 1962
        # Welford's ‖step‖² (n - 1)/n: its expectation is the sum of the P variances, whatever n is.
        square *= (self._count - 1) / self._count
        self._steps += square
        self._fourth += square * square

    @property
    def value(self) -> float:
        """The mean."""
        return self._scale * self._sum / self._count

    @property
    def frobenius(self) -> float:
        """‖A‖_F, as far as the draws tell."""
        return self._scale * math.sqrt(self._lengths / max(self._count, 1))

    @property
    def spread(self) -> float:
        """The standard deviation of a draw; infinite before the second."""
        if self._count < 2:
            return math.inf
        # Σᵢ Var (z ⊙ Az)ᵢ = Σ_{i≠j} A_ij², and Var zᵀAz is twice that.
        return self._scale * math.sqrt(2 * self._steps / (self._count - 1))

    @property
    def agree(self) -> bool:
        """Whether the draws differ by no more than chance may hide."""
        return self._count < 2 or self.spread <= self._hidden

    @property
    def skewed(self) -> bool:
        """Whether few eigenvalues decide, so that by chance all of a few draws are too small."""
        return self._freedom < 8 * (self._count - 1)

    @property
    def error(self) -> float:
        """The standard error of the mean; infinite before the first draw."""
        if self._count == 0:
            return math.inf
        spread = self.spread if self._count > 1 else 0.0
        draws = math.hypot(spread, self._hidden) / math.sqrt(self._count)
        return draws * stretch(min(self._count - 1, self._freedom))

    @property
    def _hidden(self) -> float:
        return self.frobenius * math.sqrt(2 * 2.0 ** (1 - self._count))

    @property
    def _freedom(self) -> float:
        """Degrees of freedom of the variance."""
        return freedom_of(self._count - 1, self._steps, self._fourth)


def _power_of_two(number: float) -> float:
    """Return a power of two near a number, or 0: dividing by it rounds nothing."""
    return math.ldexp(1.0, math.frexp(number)[1] - 1) if number > 0 else 0.0
