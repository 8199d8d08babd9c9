"""Power iteration that stops on the residual and knows the sign of what it finds."""

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flatkit.checks import check_count, check_positive
from flatkit.devices import ordinary_torch
from flatkit.results.status import Status
from flatkit.spectrum.dot import inner, norm
from flatkit.spectrum.estimate import Estimate, residual_norms
from flatkit.spectrum.operators import (
    ProjectedOperator,
    SymmetricOperator,
    check_finite,
    check_k,
    random_vector,
    refuse_noisy,
)
from flatkit.spectrum.rank import notes
from flatkit.spectrum.second_start import SecondStart, look_again

_PATIENCE = 8  # iterations without progress after which a tie of λ and −λ is suspected
# Part of a residual that is left after these iterations, and part of ‖Av‖ that it exceeds.
_NO_PROGRESS, _TIED = 0.8, 0.05


@dataclass
class _Search:
    """The running state: what was found and what may still be spent."""

    budget: int
    tolerance: float
    matvecs: int = 0
    scale: float = 0.0  # the largest ‖Av‖ seen
    values: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    vectors: list[Tensor] = field(default_factory=list)
    negative_end: float | None = None
    tie: bool = False
    at_wrong_end: bool = False  # products ran out before the upper end was looked at

    @property
    def allowed(self) -> float:
        return self.tolerance * self.scale

    @property
    def order(self) -> list[int]:
        """Places of the values, the largest first."""
        return sorted(range(len(self.values)), key=lambda i: -self.values[i])

    @property
    def exhausted(self) -> bool:
        return self.matvecs >= self.budget


@ordinary_torch()
def power_iteration(
    operator: SymmetricOperator,
    *,
    k: int = 1,
    tolerance: float = 1e-4,
    max_matvecs: int = 1000,
    generator: torch.Generator,
) -> Estimate:
    """Return the k largest (most positive) eigenvalues by power iteration with deflation.

    v ← Av/‖Av‖, μ = vᵀAv, until ‖Av − μv‖ ≤ tolerance·max ‖Av‖. Each value holds to its residual:
    some eigenvalue lies within it, and μ is at most the largest one. Whether a larger
    one was missed, a second random start tells in the complement of what was found (`look_again`):
    another one lies at most `unseen_within` above, but for a probability of 0.1 %, and that is part
    of the error. Where it exceeds the tolerance the status is `rank`.

    Plain power iteration finds the eigenvalue of largest magnitude. Where that is negative, or
    where ‖Av‖ settles but v does not (λ and −λ tie), the iteration goes on with A + σI, σ = ‖Av‖,
    whose largest eigenvalue belongs to the largest one of A; `notes` say so.

    Cost: a product an iteration, rate |λ2/λ1|, and those of a Lanczos search; memory k + 5
    vectors. `lanczos` needs far fewer products where memory allows some more vectors.

    Args:
        operator: A, symmetric.
        k: how many eigenvalues.
        tolerance: on the residual, relative to the largest magnitude seen.
        max_matvecs: products in all, but for the k that check the vectors if k > 1; when spent,
            the status is `budget`.
        generator: draws the starts.

    Raises:
        InvalidArgumentError: k > P, or an argument out of range.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.tensor([3.0, 1.0, -5.0])))
    >>> round(float(power_iteration(operator, generator=torch.Generator()).value[0]), 3)
    3.0
    """
    check_k(operator, k)
    refuse_noisy(operator, "power iteration")
    check_positive("tolerance", tolerance)
    # The couplings of k vectors that are not exact add up: each is held to a part of the tolerance.
    search = _Search(check_count("max_matvecs", max_matvecs), tolerance / math.sqrt(k))
    started = time.perf_counter()
    second: SecondStart | None = None
    while len(search.values) < k or (second is not None and second.missing):
        if search.exhausted and search.values:
            break
        _find_next(operator, search, generator)
        if len(search.values) >= k and not search.exhausted:
            second = _look_again(operator, search, k, tolerance, generator)
    order = search.order[:k]
    values = torch.tensor([search.values[i] for i in order], dtype=torch.float64)
    vectors = torch.stack([search.vectors[i] for i in order])
    errors = torch.tensor([search.errors[i] for i in order], dtype=torch.float64)
    if k > 1:  # what deflation removed belongs to the residual too
        errors = residual_norms(operator, values, vectors)
        search.matvecs += len(order)
    settled = bool((errors <= tolerance * search.scale).all()) and not search.at_wrong_end
    beyond = torch.zeros_like(values) if second is None else second.margins(values)
    status = Status.BUDGET
    if len(order) == k and settled:
        ranked = second is not None and bool((beyond <= tolerance * search.scale).all())
        status = Status.CONVERGED if ranked else Status.RANK
    return Estimate(
        value=values,
        error=torch.maximum(errors, beyond)
        + operator.product_errors(vectors, values, scale=search.scale),
        error_kind="residual",
        status=status,
        matvecs=search.matvecs,
        seconds=time.perf_counter() - started,
        held=vectors,
        notes={
            "negative_end": search.negative_end,
            "tie": search.tie,
            **notes(errors.numpy(), None if second is None else beyond.numpy()),
        },
    )


def _look_again(
    operator: SymmetricOperator,
    search: _Search,
    k: int,
    tolerance: float,
    generator: torch.Generator,
) -> SecondStart:
    """Look for larger ones than the first k in the complement of these."""
    order = search.order[:k]
    found = look_again(
        operator,
        torch.tensor([search.values[i] for i in order], dtype=torch.float64),
        torch.stack([search.vectors[i] for i in order]),
        allowed=tolerance * search.scale,
        spent=search.matvecs,
        max_matvecs=search.budget,
        generator=generator,
    )
    search.matvecs += found.matvecs
    return found


def _find_next(operator: SymmetricOperator, search: _Search, generator: torch.Generator) -> None:
    """Append the largest eigenvalue in the complement of the vectors found so far."""
    if search.vectors:
        operator = ProjectedOperator(operator, torch.stack(search.vectors))
    start = random_vector(operator, generator=generator)
    value, error, vector, size = _iterate(operator, 0.0, search, start)
    settled = error <= search.allowed
    if not (settled and value >= 0):
        if search.exhausted:
            search.at_wrong_end = True
        elif settled:
            search.negative_end = min(value, search.negative_end or 0.0)
            # It belongs to the negative end, which the shift moves to 0: no part of the start.
            vector = torch.zeros_like(vector)
        else:
            search.tie = True
        # The products so far took away what belongs to eigenvalues near zero.
        fresh = _unit(operator, random_vector(operator, generator=generator))
        vector = _unit(operator, vector + fresh)
        # σ = ‖Av‖ is about |λ|max: in A + σI the largest one also has the largest magnitude.
        if not search.exhausted:
            value, error, vector, _ = _iterate(operator, size, search, vector)
    search.values.append(value)
    search.errors.append(error)
    search.vectors.append(vector)


def _iterate(
    operator: SymmetricOperator, shift: float, search: _Search, start: Tensor
) -> tuple[float, float, Tensor, float]:
    """Return μ, its residual, v and ‖(A + σI)v‖ of a power iteration with A + σI."""
    vector, errors = _unit(operator, start), []
    multiply = operator.image if isinstance(operator, ProjectedOperator) else operator.matvec
    while True:
        product = multiply(vector)
        if shift:
            product = product.add(vector, alpha=shift)
        search.matvecs += 1
        value, size = inner(vector, product), norm(product)
        check_finite(size)
        errors.append(norm(product.sub(vector, alpha=value)))
        search.scale = max(search.scale, size - shift)  # ‖(A + σI)v‖ ≤ ‖Av‖ + σ
        done = errors[-1] <= search.allowed
        tie = shift == 0 and _is_stuck(errors, size)
        if done or tie or search.exhausted or size == 0:
            return value - shift, errors[-1], vector, size
        vector = _unit(operator, product / size)


def _is_stuck(errors: list[float], size: float) -> bool:
    """Whether the residual stays so large that eigenvalues of opposite sign must be mixed.

    Two eigenvalues of one sign leave a residual of at most half their distance; near enough to
    each other to stop the progress, these leave less than 2 % of ‖Av‖.
    """
    recent = errors[-1 - _PATIENCE :]
    stuck = len(recent) > _PATIENCE and errors[-1] > _NO_PROGRESS * recent[0]
    return stuck and errors[-1] > _TIED * size


def _unit(operator: SymmetricOperator, vector: Tensor) -> Tensor:
    if isinstance(operator, ProjectedOperator):  # rounding leads back to the known vectors
        vector = operator.project(vector)
    return vector / norm(vector)
