"""A trace by random signs on the whole vector, or on one layer at a time where that pays."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from flatkit.spectrum.operators import SymmetricOperator, finite_product
from flatkit.spectrum.sampled import Sampled
from flatkit.spectrum.sign_draws import AGREED, SignDraws, random_signs
from flatkit.spectrum.standard_error import half_more, rounding_error
from flatkit.spectrum.steps import end_of
from flatkit.spectrum.unit_vectors import exact_trace

MIN_PROBES = 8  # probes of the whole vector before their standard error is trusted
# Probes of every part before theirs are, at least 4; parts of no more coordinates are exact.
_MIN_EACH = 5
# Probes of every part before the standard error of the sum is; at most twice the others.
_SETTLED = 10


class StratifiedProbes:
    """Values zᵀAz of random signs z, on all coordinates together or on one part of them.

    The trace is the sum of the traces of the diagonal blocks, of any partition of the coordinates.
    A probe of one part sees its block alone, so that the blocks beside the diagonal add nothing to
    the variance. Where these are large, as in networks whose curvature couples layers more than it
    acts within them, that outweighs a product for every part. With n draws of the variance s² a
    part, the variance of the sum is Σ s²/n; draws go where they lower it most (Neyman, 1934).
    With few draws, s²/n is multiplied by (n - 1)/(n - 3), the variance of Student's t.

    Args:
        operator: A, symmetric.
        parts: sizes of the parts, adding up to P.
        generator: draws the signs.
        whole: draws of all coordinates that were made before.

    Attributes:
        products: how many were made.
        whole: draws of all coordinates.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        parts: Sequence[int],
        generator: torch.Generator,
        whole: SignDraws | None = None,
    ) -> None:
        self._operator, self._generator = operator, generator
        ends = list(accumulate(parts))
        self._parts = [slice(end - size, end) for end, size in zip(ends, parts, strict=True)]
        self.whole = SignDraws() if whole is None else whole
        self._own = [SignDraws() for _ in parts]
        self._exact: dict[int, float] = {}
        self.products = 0

    def draw(self) -> tuple[Tensor, Tensor]:
        """Probe all coordinates together; return the probe and its image. Cost: a product."""
        probe = random_signs(self._operator, self._generator)
        image = self._multiply(probe)
        self.whole.add(probe, image)
        return probe, image

    def draw_part(self, number: int) -> None:
        """Probe one part. Cost: a product."""
        self._probe_part(number, random_signs(self._operator, self._generator))

    def draw_each(self) -> None:
        """Probe every part, which is a probe of all of them too. Cost: a product a part."""
        for _ in self._drawing_each():
            pass

    def trying(self) -> Iterator[None]:
        """Try every part, a product at a time."""
        for _ in range(_MIN_EACH):
            yield from self._drawing_each()

    def settling(self) -> Iterator[None]:
        """Make sure of every part: the smallest exactly, `_SETTLED` probes of all others.

        Where a pair of coordinates decides, a probe gives one of two values: a few draws may all
        be the same, which is no sign of how far they are off. Cost: as much as the trial at most.
        """
        for number, part in enumerate(self._parts):
            if part.stop - part.start <= _MIN_EACH:  # draws without a spread
                places = range(part.start, part.stop)
                self._exact[number] = exact_trace(self._operator, places).value
                self.products += len(places)
                yield
                continue
            while len(self._own[number]) < _SETTLED:
                self.draw_part(number)
                yield

    def draw_best(self) -> None:
        """Probe the part whose next draw lowers the variance of the sum most. Cost: a product."""
        errors = zip(self._errors(), self._own, strict=True)
        gains = [error / math.sqrt(len(own) + 1) for error, own in errors]
        self.draw_part(gains.index(max(gains)))

    def pooled(self, known: float = 0.0) -> Sampled:
        """Return known + the trace, from probes of all coordinates."""
        return self._found(known + self.whole.value, self.whole.error, by_part=False)

    def by_part(self, known: float = 0.0) -> Sampled:
        """Return known + the trace, from probes of the parts."""
        values = [self._exact.get(number, own.value) for number, own in enumerate(self._own)]
        return self._found(known + math.fsum(values), math.hypot(*self._errors()), by_part=True)

    def parts_pay(self, known: float, tolerance: float) -> bool:
        """Return whether the parts, which were tried, need fewer products than the whole."""
        parts = self.by_part(known)
        whole = len(self.whole) * parts._replace(error=self.whole.error).share_needed(tolerance)
        return self.needed_by_part(parts.target(tolerance)) < whole

    def needed_by_part(self, error: float) -> float:
        """Return how many products make the error this, draws being where they lower it most."""
        spread = sum(
            own.spread for number, own in enumerate(self._own) if number not in self._exact
        )
        return (spread / error) * (spread / error) if error > 0 else math.inf

    def _found(self, value: float, error: float, *, by_part: bool) -> Sampled:
        size, whole = self.whole.frobenius, self.whole.value
        rounding = rounding_error(self._operator.rounding, frobenius=size, value=whole)
        return Sampled(value, error, rounding, self.products, by_part)

    def _errors(self) -> list[float]:
        return [0.0 if number in self._exact else own.error for number, own in enumerate(self._own)]

    def _drawing_each(self) -> Iterator[None]:
        probe = random_signs(self._operator, self._generator)
        total, probe = torch.zeros_like(probe), probe.to(torch.int8)  # it waits for others
        for number in range(len(self._parts)):
            total += self._probe_part(number, probe)
            if number == len(self._parts) - 1:
                self.whole.add(probe, total)
            yield

    def _probe_part(self, number: int, probe: Tensor) -> Tensor:
        """Return the product with the piece of a probe on a part."""
        operator, part = self._operator, self._parts[number]
        piece = torch.zeros(len(probe), dtype=operator.dtype, device=operator.device)
        piece[part] = probe[part]
        product = self._multiply(piece)
        self._own[number].add(probe[part], product[part])
        return product

    def _multiply(self, vector: Tensor) -> Tensor:
        self.products += 1
        return finite_product(self._operator, vector)


@dataclass
class Draws:
    """Probes of all coordinates that are kept with their images, as a sketch may be made of them.

    Attributes:
        most: how many are kept.
        pays: whether a sketch pays, given the images, and the probes needed in all and still.
        pairs: probes and images [P] so far.
        spent: products until a sketch paid.
    """

    most: int
    pays: Callable[[Sequence[Tensor], float, float], bool]
    pairs: list[tuple[Tensor, Tensor]]
    spent: int = 0


def probed_trace(
    operator: SymmetricOperator,
    *,
    parts: Sequence[int],
    known: float = 0.0,
    tolerance: float,
    first: int = MIN_PROBES,
    budget: int,
    generator: torch.Generator,
    whole: SignDraws | None = None,
) -> Sampled:
    """Return known + tr A from probes of all coordinates, or of parts where that is cheaper.

    `probed_steps`, to the end.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.arange(40.0)))
    >>> given = {"tolerance": 0.01, "budget": 50, "generator": torch.Generator()}
    >>> found = probed_trace(operator, parts=[40], known=2.0, **given)
    >>> found.value, found.matvecs
    (782.0, 20)
    """
    work = probed_steps(
        operator,
        parts=parts,
        known=known,
        tolerance=tolerance,
        first=first,
        budget=budget,
        generator=generator,
        whole=whole,
    )
    found = end_of(work)
    assert found is not None
    return found


def probed_steps(
    operator: SymmetricOperator,
    *,
    parts: Sequence[int],
    known: float = 0.0,
    tolerance: float,
    first: int = MIN_PROBES,
    budget: int,
    generator: torch.Generator,
    whole: SignDraws | None = None,
    keep: Draws | None = None,
) -> Generator[Callable[[], Sampled], None, Sampled | None]:
    """Tell known + tr A from probes of all coordinates, or of parts where cheaper; return it.

    Probes of the whole vector come first. Where they would need more than twice what it takes to
    try the parts, these are tried, and the cheaper of the two goes on. Where either would need more
    than P products, the diagonal is taken entry by entry. A piece of work is a product, but for
    entries of the diagonal.

    Args:
        operator: A, symmetric.
        parts: sizes of the parts, adding up to P.
        known: a number to which the trace is added, exact.
        tolerance: on the standard error, relative to the sum.
        first: probes before their standard error is trusted.
        budget: products at most.
        generator: draws the probes.
        whole: draws that were made before.
        keep: what keeps the first probes, and ends the work where a sketch pays.

    Returns:
        The end; None where a sketch pays.
    """
    probes = StratifiedProbes(operator, parts, generator, whole)
    pooled = partial(probes.pooled, known)
    trial, tried, compared = _MIN_EACH * len(parts), len(parts) < 2, False
    look = first
    while True:
        while len(probes.whole) < look and probes.products < budget:
            pair = probes.draw()
            if keep is not None and not compared and len(keep.pairs) < keep.most:
                keep.pairs.append(pair)
            del pair  # two vectors, which nobody needs while others work
            yield pooled
        found = probes.pooled(known)
        trusted = AGREED if probes.whole.agree else half_more(first, skewed=probes.whole.skewed)
        doubtful = look < trusted
        if (found.meets(tolerance) and not doubtful) or probes.products >= budget:
            return found
        needed = look * found.share_needed(tolerance)
        left = min(budget - probes.products, needed - look)
        if keep is not None and not compared and len(keep.pairs) == keep.most:
            compared = True
            if keep.pays([image for _, image in keep.pairs], needed, left):
                keep.spent = probes.products
                return None
            keep.pairs.clear()
        if not tried and left > 2 * trial and trial < operator.size:
            tried = True
            yield from (pooled for _ in probes.trying())
            if probes.parts_pay(known, tolerance):
                return (yield from _by_part(operator, probes, known, tolerance, budget))
            look = len(probes.whole)
        elif left >= operator.size:
            return entry_by_entry(operator, known, spent=probes.products)
        else:
            most = look + budget - probes.products
            look = trusted if doubtful else found.next_look(look, tolerance, most)


def entry_by_entry(operator: SymmetricOperator, known: float = 0.0, spent: int = 0) -> Sampled:
    """Return known + tr A from products with the unit vectors.

    Args:
        operator: A.
        known: a number to which the trace is added.
        spent: products that were made before.
    """
    value, rounding = exact_trace(operator)
    return Sampled(known + value, 0.0, rounding, spent + operator.size, exact=True)


def _by_part(
    operator: SymmetricOperator,
    probes: StratifiedProbes,
    known: float,
    tolerance: float,
    budget: int,
) -> Generator[Callable[[], Sampled], None, Sampled]:
    by_part = partial(probes.by_part, known)
    yield from (by_part for _ in probes.settling())
    while True:
        found, spent = probes.by_part(known), probes.products
        if found.meets(tolerance) or spent >= budget:
            return found
        if operator.size <= min(probes.needed_by_part(found.target(tolerance)), budget) - spent:
            return entry_by_entry(operator, known, spent)
        for _ in range(min(1 + spent // 8, budget - spent)):
            probes.draw_best()
            yield by_part
