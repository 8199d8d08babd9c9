"""The trace by sketches of the range: XTrace, then Hutch++; far fewer products where it decays."""

import math
import time
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from flatkit.checks import check_choice, check_count, check_positive
from flatkit.spectrum.dot import new_direction
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.hutchinson import hutchinson_trace, random_signs
from flatkit.spectrum.operators import ProjectedOperator, SymmetricOperator, finite_product
from flatkit.spectrum.stratified_trace import MIN_PROBES, probed_trace
from flatkit.status import Status

_FIRST = 16  # vectors of the first sketch
# Vectors of a sketch from which on it must do better than plain probes to grow further.
_COMPARED = 32

TraceMethod: TypeAlias = Literal["auto", "hutchinson", "hutch++", "xtrace"]


def trace(
    operator: SymmetricOperator,
    *,
    method: TraceMethod = "auto",
    tolerance: float = 0.02,
    max_matvecs: int = 400,
    max_vectors: int = 64,
    generator: torch.Generator,
) -> Estimate:
    """Return tr A to a requested standard error.

    `xtrace` (Epperly, Tropp and Webber, 2024) projects out what a sketch of n random vectors saw
    of the range, each vector once left out; n doubles until the standard error meets the tolerance.
    The n estimates share the sketch, so that their spread would be too small an error; it is that
    of the jackknife, from the n values that a vector fewer gives, whose expected square is at least
    the variance with n - 1 vectors (Efron and Stein, 1981). `hutch++` (Meyer et al.,
    2021) takes the trace on a sketch exactly and that of the rest by Hutchinson's estimator; its
    standard error is of the rest alone, as the sketch has none. If P is small, the sketch becomes
    the whole space and the trace exact.

    `auto` sketches with XTrace while `max_vectors` allow, beyond 32 of them only while that does
    better than as many plain probes; it goes on as Hutch++ with the sketch that it has, and where
    it pays takes the rest layer by layer, by the operator's `parts`. That removes the variance of
    all blocks beside the diagonal: in networks early in training, and in those with ReLU, nearly
    all of it.

    Cost: 2 products a vector of the sketch; memory 3 vectors each.

    Args:
        operator: A, symmetric.
        method: `auto`, `hutchinson`, `hutch++` or `xtrace`.
        tolerance: on the standard error, relative to the trace.
        max_matvecs: products at most; when spent, the status is `budget`.
        max_vectors: of the sketch.
        generator: draws the probes.

    Raises:
        InvalidArgumentError: an argument out of range.
        NonFiniteError: a product is not finite.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0])))
    >>> round(float(trace(operator, generator=torch.Generator()).value), 4)
    4.0
    """
    check_choice("method", method, get_args(TraceMethod))
    check_positive("tolerance", tolerance)
    check_count("max_matvecs", max_matvecs, minimum=16)
    check_count("max_vectors", max_vectors, minimum=4)
    if method == "hutchinson":
        return hutchinson_trace(
            operator, tolerance=tolerance, max_matvecs=max_matvecs, generator=generator
        )
    started = time.perf_counter()
    sketch = _Sketch(operator, generator)
    # A vector of the sketch costs two products; Hutch++ and `auto` keep half of these for the rest.
    most = min(max_vectors, max_matvecs // (2 if method == "xtrace" else 4), operator.size)
    value, error = _grow(sketch, method, most=most, tolerance=tolerance)
    converged = error <= tolerance * abs(value)
    matvecs, by_part = sketch.matvecs, False
    estimator = "hutch++" if method == "hutch++" else "xtrace"
    if method == "hutch++" or (method == "auto" and not converged):
        left = max_matvecs - matvecs
        if left >= MIN_PROBES and not sketch.complete:
            value, error, spent, by_part = probed_trace(
                ProjectedOperator(operator, sketch.basis),
                parts=operator.parts if method == "auto" else (operator.size,),
                known=sketch.projected_trace(),
                tolerance=tolerance,
                budget=left,
                generator=generator,
            )
            matvecs, estimator = matvecs + spent, "hutch++"
            converged = error <= tolerance * abs(value)
    return Estimate(
        value=torch.tensor(value, dtype=torch.float64),
        error=torch.tensor(error, dtype=torch.float64),
        error_kind="standard_error",
        status=Status.CONVERGED if converged else Status.BUDGET,
        matvecs=matvecs,
        seconds=time.perf_counter() - started,
        notes={"estimator": estimator, "sketch": sketch.size, "by_part": by_part},
    )


def _grow(
    sketch: "_Sketch", method: TraceMethod, *, most: int, tolerance: float
) -> tuple[float, float]:
    """Double the sketch while that pays; return its trace by XTrace and the standard error."""
    size = most if method == "hutch++" else min(_FIRST, most)
    while True:
        sketch.grow(size)
        value, error = sketch.xtrace()
        converged = error <= tolerance * abs(value)
        if converged or size >= most or sketch.complete:
            return value, error
        if method == "auto" and size >= _COMPARED and error >= sketch.plain_error():
            return value, error
        size = min(2 * size, most)


class _Sketch:
    """Random vectors Ω, A Ω, an orthonormal basis Q of the latter, and A Q; rows are vectors."""

    def __init__(self, operator: SymmetricOperator, generator: torch.Generator) -> None:
        self._operator, self._generator = operator, generator
        empty = torch.empty(0, operator.size, dtype=operator.dtype, device=operator.device)
        self._probes = self._images = self.basis = self._products = empty
        self.matvecs = 0

    @property
    def size(self) -> int:
        return len(self._probes)

    @property
    def complete(self) -> bool:
        """Whether the basis holds the range: further random images add nothing to it."""
        return len(self.basis) < self.size or len(self.basis) >= self._operator.size

    def grow(self, size: int) -> None:
        """Draw vectors until there are so many."""
        new = [random_signs(self._operator, self._generator) for _ in range(size - self.size)]
        if not new:
            return
        probes = torch.stack(new)
        images = self._multiply(probes)
        self._probes = torch.cat([self._probes, probes])
        self._images = torch.cat([self._images, images])
        known = len(self.basis)
        for image in images:
            self._extend(image)
        if len(self.basis) > known:
            fresh = self._multiply(self.basis[known:])
            self._products = torch.cat([self._products, fresh])

    def _multiply(self, vectors: Tensor) -> Tensor:
        self.matvecs += len(vectors)
        return finite_product(self._operator, vectors)

    def _extend(self, image: Tensor) -> None:
        direction = new_direction(self.basis, image, roundings=30)
        if direction is not None:
            self.basis = torch.cat([self.basis, direction[None]])

    def projected_trace(self) -> float:
        """Return tr Qᵀ A Q."""
        return float((self.basis.double() * self._products.double()).sum())

    def plain_error(self) -> float:
        """Return the standard error that Hutchinson's estimator has for as many products."""
        draws = (self._probes.double() * self._images.double()).sum(1)
        return float(draws.std()) / math.sqrt(self.matvecs)

    def xtrace(self) -> tuple[float, float]:
        """Return the mean of the leave-one-out estimates and its jackknife standard error.

        If the basis holds the whole range of A, the trace is that of the projection.
        """
        if self.complete:
            return self.projected_trace(), 0.0
        q, z = self.basis.double(), self._products.double()  # [n, P]
        omega, y = self._probes.double(), self._images.double()
        whole = _Projected(q @ y.T, q @ omega.T, q @ z.T, (omega * y).sum(1))
        fewer = torch.stack([whole.without(i).estimate() for i in range(len(q))])
        spread = (fewer - fewer.mean()).square().sum() * (len(q) - 1) / len(q)
        return float(whole.estimate()), math.sqrt(float(spread))


class _Projected(NamedTuple):
    """What XTrace needs of n vectors, in the basis Q of their images: n×n matrices.

    Attributes:
        images: Qᵀ A Ω.
        probes: Qᵀ Ω.
        projected: Qᵀ A Q.
        squares: ωᵢᵀ A ωᵢ, [n].
    """

    images: Tensor
    probes: Tensor
    projected: Tensor
    squares: Tensor

    def estimate(self) -> Tensor:
        """Return the mean of the n estimates that leave one vector out of the projection each."""
        normals = torch.linalg.inv(self.images).T  # column i ⊥ the images of all but the i-th
        normals = normals / normals.norm(dim=0)
        kept = self.probes - normals * (normals * self.probes).sum(0)
        on_sketch = self.projected.trace() - (normals * (self.projected @ normals)).sum(0)
        bent = self.projected @ kept - 2 * self.images
        return (on_sketch + self.squares + (kept * bent).sum(0)).mean()

    def without(self, i: int) -> "_Projected":
        """Return the same for all vectors but the i-th."""
        rest = [j for j in range(len(self.squares)) if j != i]
        turn, images = torch.linalg.qr(self.images[:, rest])
        return _Projected(
            images,
            turn.T @ self.probes[:, rest],
            turn.T @ self.projected @ turn,
            self.squares[rest],
        )
