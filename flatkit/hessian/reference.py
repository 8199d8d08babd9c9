"""What products are held against: float64, by autograd unless differences contradict it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from flatkit.errors import UserCodeError
from flatkit.hessian.probes import samples_of_probe, whole_chunk
from flatkit.hessian.unsupported import UnsupportedError
from flatkit.objective.function import Objective
from flatkit.objective.passes import Chunk, differentiate
from flatkit.objective.proofs.sample_weights import nearby


class Multiplies(Protocol):
    """A chunk of samples at a point, ready to be multiplied with."""

    @property
    def products(self) -> Callable[[Tensor], Tensor]:
        """Vectors [K, P] -> their products [K, P]."""
        ...


Recipe: TypeAlias = Callable[[Objective, Tensor, Chunk], Multiplies]
"""Prepares a chunk."""

_DOUBLE_MAX = 20_000_000
"""Parameters up to which a copy in float64 is no burden."""
_STEPS = {True: (0.01, 0.1, 1.0), False: (1.0, 2.0)}
"""Steps of differences in float64 or not, times the usual one. The shorter, the fewer kinks lie
within them; in float32 rounding forbids it."""
_SUSPICIOUS = {True: 1e-3, False: 0.05}
"""Relative difference of two products from which on one of them is wrong, in float64 or not."""
FEW_FOR_ALL = 2.0
"""Times the error that is seen on a few samples that is said of all."""
_SETTLED = 0.1
"""Part of what contradicts autograd by which differences with two steps may differ."""
_ROUNDED = 0.1
"""Part of a product that rounding makes, from which on it is told."""
_KINK = ", with a kink of the loss near this point"
_NO_DERIVATIVE = "; the gradient is not the derivative of the loss"


class Differences(Protocol):
    """A recipe by differences, whose step can be made longer or shorter."""

    def __call__(
        self, objective: Objective, theta: Tensor, chunk: Chunk, *, steps: float = 1.0
    ) -> Multiplies:
        """Prepare a chunk."""
        ...


@dataclass(frozen=True)
class Ways:
    """Two ways to multiply with one matrix that have little in common.

    Attributes:
        by_autograd: exact, where every operation knows its derivatives.
        by_differences: never far off, where the function is smooth.
    """

    by_autograd: Recipe
    by_differences: Differences


@dataclass(frozen=True)
class Reference:
    """Which products are believed.

    Attributes:
        recipe: how they are computed; None if nothing can be believed.
        against: what they are, in words.
        in_double: whether that is in float64.
        blur: relative error that rounding makes of them, where that was in doubt.
    """

    recipe: Recipe | None
    against: str
    in_double: bool = True
    blur: float = 0.0

    def products(
        self, objective: Objective, theta: Tensor, chunks: Sequence[Chunk], vectors: Tensor
    ) -> Tensor | None:
        """Return the products of some samples, [K, P] in float64; None if none are believed.

        Nor are there any where the model takes other samples in float64, and not these.

        Args:
            objective: L.
            theta: the point [P].
            chunks: the samples.
            vectors: [K, P].
        """
        if self.recipe is None:
            return None
        place = _Place.at(objective, theta, chunks, in_double=self.in_double)
        try:
            return place.products(self.recipe, vectors).double()
        except UserCodeError:
            if not self.in_double:
                raise
            return None


@dataclass(frozen=True, eq=False)
class _Place:
    """An objective, a point and some samples, of one dtype."""

    objective: Objective
    theta: Tensor
    chunks: Sequence[Chunk]
    in_double: bool

    @classmethod
    def at(
        cls, objective: Objective, theta: Tensor, chunks: Sequence[Chunk], *, in_double: bool
    ) -> "_Place":
        if not in_double:
            return cls(objective.exact or objective, theta, chunks, in_double)
        doubles = [chunk.in_double() for chunk in chunks]
        return cls(objective.in_double(), theta.double(), doubles, in_double)

    def products(self, recipe: Recipe, vectors: Tensor) -> Tensor:
        """Return the sum of the products [K, P] of all chunks."""
        given = vectors.to(self.theta)
        return total(recipe(self.objective, self.theta, c).products(given) for c in self.chunks)

    @property
    def dtype(self) -> str:
        return str(self.theta.dtype).removeprefix("torch.")


def find_reference(
    ways: Ways, objective: Objective, theta: Tensor, chunks: Sequence[Chunk], vector: Tensor
) -> tuple[Reference, Tensor | None]:
    """Return which products are to be believed, and that with a vector [P], in float64.

    These are by autograd, unless it has none or differences contradict it: those must agree with
    each other for two steps, and the gradient must be the derivative of the loss. Cost: some 5
    gradients of the samples, and 15 where there is doubt.

    Args:
        ways: to multiply.
        objective: L.
        theta: the point [P].
        chunks: the samples.
        vector: a direction [P].
    """
    place, refusal = _most_exact(objective, theta, chunks)
    without = "" if refusal is None else f" (float64: {refusal})"
    given, short = vector[None].to(place.theta), _STEPS[place.in_double][0]
    rough, exact = torch.zeros_like(given), torch.zeros_like(given)
    try:  # in loops of its own: the way down to a multiplication is to stay short
        for chunk in place.chunks:
            recipe = ways.by_differences(place.objective, place.theta, chunk, steps=short)
            rough += recipe.products(given)
    except UnsupportedError as error:
        return Reference(None, f"nothing: no gradient in {place.dtype} ({_kind(error)})"), None
    try:
        for chunk in place.chunks:
            exact += ways.by_autograd(place.objective, place.theta, chunk).products(given)
    except UnsupportedError as error:
        product, why = place.products(ways.by_differences, given)[0], _kind(error)
        against = f"central differences in {place.dtype} ({why} by double backward){without}"
        return Reference(ways.by_differences, against, place.in_double), product.double()
    found = _believed(ways, place, given, exact[0], rough[0])
    what = "double backward" if found.recipe is ways.by_autograd else "central differences"
    against = f"{what} in {place.dtype}{found.words}{without}"
    return Reference(found.recipe, against, place.in_double, found.blur), found.product.double()


def worst_error(
    ways: Ways, reference: Reference, objective: Objective, theta: Tensor, vectors: Tensor
) -> float | None:
    """Return twice the largest relative error of differences along some vectors; None if unknown.

    Differences are not linear: their error is another one for each vector, and of products with
    eight random ones the largest is some 2 times that of one. It is seen on a whole chunk, as the
    rounding of a gradient grows with the samples that are added up in it. Where nothing more exact
    is known, it is the change at twice the step. Cost: so many products of a chunk by differences,
    and as many in float64, or by differences again.

    Args:
        ways: to multiply; of these the one by differences is asked about.
        reference: which products are believed.
        objective: L.
        theta: the point [P].
        vectors: [K, P].
    """
    chunks = parts = samples_of_probe(objective)
    if objective.divisible:
        whole, parts = whole_chunk(objective, objective.chunk_size)
        chunks = [whole]
    found = total(ways.by_differences(objective, theta, c).products(vectors) for c in chunks)
    by_itself = theta.dtype == torch.float64 and reference.recipe is ways.by_differences
    truth = None
    if reference.in_double and not by_itself:
        truth = reference.products(objective, theta, parts, vectors)
    if truth is None:
        far = partial(ways.by_differences, steps=2.0)
        truth = total(far(objective, theta, c).products(vectors) for c in chunks).double()
    errors = [relative(a - b, b) for a, b in zip(found.double(), truth, strict=True)]
    known = [error for error in errors if error is not None]
    return FEW_FOR_ALL * max(known) if known else None


def errors_along(
    reference: Reference,
    objective: Objective,
    theta: Tensor,
    recipe: Recipe,
    vectors: Tensor,
    values: Tensor,
) -> Tensor | None:
    """Return by how much products with unit vectors are off, float64 [K]; None if none can tell.

    They are held against the reference on samples spread over all the data. Returned is twice what
    is seen there: few samples stand for all, and rounding grows with the curvature of the others.

    Args:
        reference: which products are believed.
        objective: L.
        theta: the point [P].
        recipe: what multiplies.
        vectors: v [K, P], unit rows.
        values: vᵀAv over all the samples [K].
    """
    wider = reference.in_double or objective.narrow is not None
    if theta.dtype == torch.float64 or not wider:
        return None
    chunks = samples_of_probe(objective)
    truth = reference.products(objective, theta, chunks, vectors)
    if truth is None:
        return None
    found = total(recipe(objective, theta, chunk).products(vectors) for chunk in chunks)
    # Each [K].
    off, size, own = (part.norm(dim=1).cpu() for part in (found.double() - truth, truth, found))
    size = torch.maximum(size, own)  # where nothing but rounding is left, the truth is far smaller
    share = sum(chunk.weight for chunk in chunks) / objective.total_weight
    bent = (off * values.cpu().abs() / size).nan_to_num(0.0, posinf=0.0)
    return FEW_FOR_ALL * torch.maximum(off / share, bent)


def total(parts: Iterable[Tensor]) -> Tensor:
    """Return the sum of tensors, one at least.

    >>> total([torch.ones(1), torch.ones(1)])
    tensor([2.])
    """
    first, *others = parts
    return sum(others, first)


def relative(difference: Tensor, truth: Tensor) -> float | None:
    """Return ‖difference‖/‖truth‖; None if that is no number.

    >>> relative(torch.ones(4), 2 * torch.ones(4)), relative(torch.ones(1), torch.zeros(1))
    (0.5, None)
    """
    size, distance = float(truth.norm()), float(difference.norm())
    if not (size < float("inf") and distance < float("inf")):
        return None
    return distance / size if size > 0 else (0.0 if distance == 0 else None)


class _Believed(NamedTuple):
    """What is believed of two products.

    Attributes:
        recipe: that is right.
        product: what it gives, [P].
        words: what there is to say of it.
        blur: its relative error by rounding, where that was in doubt.
    """

    recipe: Recipe
    product: Tensor
    words: str = ""
    blur: float = 0.0


def _believed(ways: Ways, place: _Place, given: Tensor, exact: Tensor, near: Tensor) -> _Believed:
    """Return what to believe of two products."""
    suspicious = _SUSPICIOUS[place.in_double]
    if not float((exact - near).norm()) > suspicious * float(near.norm()):
        return _Believed(ways.by_autograd, exact)
    for steps in _STEPS[place.in_double][1:]:
        recipe: Recipe = partial(ways.by_differences, steps=steps)
        far = place.products(recipe, given)[0]
        off, change = float((exact - far).norm()), float((far - near).norm())
        near = far
        if not off > suspicious * float(far.norm()):
            return _Believed(ways.by_autograd, exact)
        if change > _SETTLED * off:
            continue
        # Some operations answer twice differentiated with a zero instead of an error.
        if not _is_derivative(place, (exact - far) / off):
            return _Believed(ways.by_autograd, exact, _NO_DERIVATIVE)
        return _Believed(recipe, far, ", as autograd contradicts them")
    # Differences grow as the step falls: next to a kink, where they say nothing about autograd; or
    # where they, or all products, are nothing but rounding.
    blur = _blur(ways, place, given, exact)
    words = _KINK if blur < _ROUNDED else ", most of which is rounding"
    return _Believed(ways.by_autograd, exact, words, blur)


def _blur(ways: Ways, place: _Place, given: Tensor, exact: Tensor) -> float:
    """Return the part of a product [P] that changes when the weights are rounded anew."""
    generator = torch.Generator().manual_seed(0)
    size, eps = float(exact.norm()), torch.finfo(place.theta.dtype).eps
    # Uniform in ±4 units of rounding: a change of θ that storing it in this dtype might have made.
    drawn = 2 * torch.rand(len(place.theta), generator=generator, dtype=torch.float64) - 1
    other = replace(place, theta=place.theta * (1 + 4 * eps * drawn.to(place.theta)))
    change = float((other.products(ways.by_autograd, given)[0] - exact).norm())
    return change / size if size > 0 else 0.0


def _is_derivative(place: _Place, direction: Tensor) -> bool:
    """Return whether the slope along a unit direction is that of the values, here and nearby."""
    scale = max(1.0, float(place.theta.norm()))
    step = torch.finfo(place.theta.dtype).eps ** (1 / 3) * scale
    for point in (place.theta, nearby(place.theta)):
        ahead, behind = (_value(place, point + s * step * direction) for s in (1, -1))
        gradient = _gradient(place, point)
        slope, rate = float(gradient @ direction), (ahead - behind) / (2 * step)
        if abs(slope - rate) > 1e-2 * max(abs(slope), abs(rate)) + 1e-4 * float(gradient.norm()):
            return False
    return True


@torch.no_grad()
def _value(place: _Place, point: Tensor) -> float:
    return sum(float(place.objective.chunk_loss(point, chunk)) for chunk in place.chunks)


def _gradient(place: _Place, at: Tensor) -> Tensor:
    with place.objective.placed(at, smooth=False) as point:
        parts = (place.objective.chunk_loss(point, chunk) for chunk in place.chunks)
        return total(differentiate(part, point) for part in parts)


def _most_exact(
    objective: Objective, theta: Tensor, chunks: Sequence[Chunk]
) -> tuple[_Place, str | None]:
    """Return the place in float64, or that of the objective and why there is no float64."""
    refusal = _no_double(objective, theta)
    if refusal is None:
        place = _Place.at(objective, theta, chunks, in_double=True)
        refusal = _refusal_at(place)
        if refusal is None:
            return place, None
    return _Place.at(objective, theta, chunks, in_double=False), refusal


def _no_double(objective: Objective, theta: Tensor) -> str | None:
    if len(theta) > _DOUBLE_MAX:
        return "too large for a copy"
    if theta.device.type == "mps":
        return "not on this device"
    return None if objective.has_double else "not of a sharded model"


@torch.no_grad()
def _refusal_at(place: _Place) -> str | None:
    """Return why a model does not run in float64.

    One chunk does not speak for the others: masks are made where a sample is shorter than the rest.
    """
    try:
        for chunk in place.chunks:
            place.objective.chunk_loss(place.theta, chunk)
    except UserCodeError as error:  # the model or the loss, which ran in float32
        return type(error.__cause__ or error).__name__
    return None


def _kind(error: UnsupportedError) -> str:
    return type(error.__cause__ or error).__name__
