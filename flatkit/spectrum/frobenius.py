"""The Frobenius norm, from random signs."""

import math
from collections.abc import Callable, Generator
from functools import partial

import torch
from torch import Tensor

from flatkit.checks import check_count, check_positive
from flatkit.spectrum.dot import norm, project_out
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.operators import SymmetricOperator, finite_product
from flatkit.spectrum.sampled import Sampled
from flatkit.spectrum.sign_draws import AGREED, random_signs
from flatkit.spectrum.space import Deflation, Space
from flatkit.spectrum.standard_error import half_more, mean, stretch
from flatkit.spectrum.steps import Steps, changed, finish, timed
from flatkit.spectrum.unit_vectors import unit_products

_FIRST = 16  # probes before the standard error is trusted, and images that it stands on
# Probes from which on their own spread is enough, also where one eigenvalue decides.
_ENOUGH = half_more(_FIRST, skewed=True)


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
    steps = frobenius_steps(
        operator, tolerance=tolerance, max_matvecs=max_matvecs, generator=generator
    )
    return finish(steps)


def frobenius_steps(
    operator: SymmetricOperator,
    *,
    tolerance: float = 0.02,
    max_matvecs: int = 400,
    generator: torch.Generator,
    space: Space | Deflation | None = None,
) -> Steps[Estimate]:
    """Tell ‖A‖_F after each product; `frobenius_norm` is the end.

    On a space V that is known the images are squared exactly: ‖A‖² = ‖AV‖² + ‖AP‖² with the
    projection P onto the complement, from where alone the probes are.

    Args:
        operator: A, symmetric.
        tolerance: on the standard error, relative to the norm.
        max_matvecs: probes at most; when spent, the status is `budget`.
        generator: draws the probes; must not be the one that drew the space.
        space: vectors whose images are known; of a `Lanczos` run `deflation` takes no memory.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.tensor([3.0, 4.0])))
    >>> space = Space.of(operator, torch.eye(2))
    >>> float(finish(frobenius_steps(operator, generator=torch.Generator(), space=space)).value)
    5.0
    """
    check_positive("tolerance", tolerance)
    check_count("max_matvecs", max_matvecs, minimum=2)
    known = space.deflation if isinstance(space, Space) else space
    return timed(_estimates(operator, tolerance, max_matvecs, generator, known))


def _estimates(
    operator: SymmetricOperator,
    tolerance: float,
    budget: int,
    generator: torch.Generator,
    space: Deflation | None,
) -> Steps[Estimate]:
    def estimate(found: Sampled, *, ended: bool = False) -> Estimate:
        notes = {"num_probes": found.matvecs, **({} if space is None else {"space": space.size})}
        return found.to_estimate(tolerance, notes, ended=ended)

    end = yield from changed(_sampled(operator, tolerance, budget, generator, space), estimate)
    yield partial(estimate, end, ended=True)


def _sampled(
    operator: SymmetricOperator,
    tolerance: float,
    budget: int,
    generator: torch.Generator,
    space: Deflation | None,
) -> Generator[Callable[[], Sampled], None, Sampled]:
    known = 0.0 if space is None else space.length
    if space is not None and space.size == operator.size:
        return Sampled(known, 0.0, operator.rounding * known, 0, exact=True)
    draws = _Lengths(known)

    def now() -> Sampled:
        value, error, _ = draws.root_of_mean()
        return Sampled(value, error, operator.rounding * value, len(draws))

    look = min(_FIRST if space is None else _FIRST // 2, budget)
    while operator.size > look - len(draws):
        while len(draws) < look:
            probe = random_signs(operator, generator)
            if space is not None:
                probe = project_out(space.vectors, probe)
            draws.add(finite_product(operator, probe))
            yield now
        found, trusted = now(), draws.root_of_mean()[2]
        # Beside what is known a rest that is small may be off by as much as itself.
        doubtful = look < trusted and draws.share > tolerance
        if (found.meets(tolerance) and not doubtful) or look >= budget:
            return found
        needed, most = look * found.share_needed(tolerance), budget
        if look < _ENOUGH < operator.size:  # what images say of the spread is itself uncertain
            needed, most = min(needed, _ENOUGH), min(budget, _ENOUGH)
        if operator.size <= min(needed, budget) - look:
            break
        look = min(budget, trusted) if doubtful else found.next_look(look, tolerance, most)
    # ‖A‖²_F = Σ ‖A eᵢ‖²: P products leave no sampling error, and need no more than the draws would.
    _, columns = unit_products(operator, range(operator.size))
    value, spent = norm(columns), len(draws) + operator.size
    return Sampled(value, 0.0, operator.rounding * value, spent, exact=True)


class _Lengths:
    """Draws ‖Az‖², and the first images Az.

    Args:
        known: the Frobenius norm on a space that is known; z is orthogonal to it.
    """

    def __init__(self, known: float) -> None:
        self._known = known
        self._lengths: list[float] = []
        self._images: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, image: Tensor) -> None:
        """Take a draw."""
        self._lengths.append(norm(image))
        if len(self._images) < _FIRST:
            self._images.append(image)

    @property
    def share(self) -> float:
        """Which part of the square is not known."""
        rest, known = math.hypot(*self._lengths) / math.sqrt(len(self)), self._known
        return (rest / math.hypot(rest, known)) ** 2 if rest else 0.0

    def root_of_mean(self) -> tuple[float, float, int]:
        """Return the root of the mean of squares, its error, and from how many draws it is trusted.

        The error is to first order. As those of the trace, draws of few values agree by chance.
        """
        count, largest = len(self), max(*self._lengths, self._known)
        if largest == 0:
            return 0.0, 0.0, AGREED
        square, error = mean([(length / largest) ** 2 for length in self._lengths])
        once = square * stretch(count - 1) / math.sqrt(count)
        # As in `SignDraws`: two coupled coordinates give equal draws with a probability of 2^(1-n).
        hidden = once * math.sqrt(2 * 2.0 ** (1 - count))
        # By pairs of images, far less noisy than the spread of draws; 2 if one eigenvalue decides.
        relative = self._relative_variance(largest)
        known = once * math.sqrt(relative)
        value = math.hypot(math.sqrt(square), self._known / largest)
        spread = max(error if count > 1 else 0.0, known if count < _ENOUGH else 0.0)
        trusted = AGREED if spread <= hidden else half_more(_FIRST, skewed=relative > 0.25)
        # Of fewer draws than are trusted all may be too small, and their spread with them: so wide
        # that of 300 runs with one large eigenvalue none is off by more than four errors.
        spread *= max(1.0, trusted / count) ** 1.5
        error = math.hypot(spread, hidden) / (2 * value)
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
