"""The trace by sketches of the range: XTrace, then Hutch++; far fewer products where it decays."""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from flatkit.checks import check_choice, check_count, check_positive
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.hutchinson import hutchinson_steps
from flatkit.spectrum.operators import ProjectedOperator, SymmetricOperator
from flatkit.spectrum.sampled import Sampled
from flatkit.spectrum.sketch import Sketch, share_left
from flatkit.spectrum.space import Deflation, Space
from flatkit.spectrum.standard_error import CAUTIOUS, rounding_error
from flatkit.spectrum.steps import Steps, changed, finish, timed
from flatkit.spectrum.stratified_trace import MIN_PROBES, Draws, entry_by_entry, probed_steps

_FIRST = 16  # vectors of the first sketch
_SMALL = 2 * _FIRST  # coordinates up to which products with the unit vectors cost no more
# Vectors of a sketch from which on it must do better than plain probes to grow further.
_COMPARED = 32

# Bytes of the first probes beside a space, up to which these are kept with their images.
_KEPT_BYTES = 2**28

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
    standard error is of the rest alone, as the sketch has none. So does every method once the
    images of the random vectors depend on each other: that the sketch then holds the whole range
    is seen from the rest, not believed. Where P products with the unit vectors cost less than what
    comes next, these are made: then nothing but rounding is left of the error.

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
    return finish(
        trace_steps(
            operator,
            method=method,
            tolerance=tolerance,
            max_matvecs=max_matvecs,
            max_vectors=max_vectors,
            generator=generator,
        )
    )


def trace_steps(
    operator: SymmetricOperator,
    *,
    method: TraceMethod = "auto",
    tolerance: float = 0.02,
    max_matvecs: int = 400,
    max_vectors: int = 64,
    generator: torch.Generator,
    space: Space | Deflation | None = None,
) -> Steps[Estimate]:
    """Tell tr A after each product; `trace` is its end.

    On a space that is known, such as the Krylov space of eigenvalues, the trace is exact: tr VAVᵀ.
    Only the complement is estimated, by plain probes, whole or layer by layer, which is unbiased
    as the space knows nothing of them. Its own sketch is made, of the first probes, where their
    images promise that it saves half of the products: the share of each outside the span of the
    others is what it would leave.

    Estimates before the end have the status `budget` and standard errors widened as Student's t.
    What is computed next never depends on what was asked.

    Cost: a product a piece of work, but for the entries of a diagonal, which are taken at once.

    Args:
        operator: A, symmetric.
        method: as of `trace`; with a space, of the complement.
        tolerance: on the standard error, relative to the trace.
        max_matvecs: products at most; when spent, the status is `budget`.
        max_vectors: of the sketch.
        generator: draws the probes; must not be the one that drew the space.
        space: vectors whose images are known; of a `Lanczos` run `deflation` takes no memory.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> matrix, given = torch.diag(torch.arange(40.0)), torch.Generator()
    >>> space = Space.of(DenseOperator(matrix), torch.eye(40)[20:])
    >>> steps = trace_steps(DenseOperator(matrix), generator=given, space=space)
    >>> found = finish(steps)
    >>> round(float(found.value)), found.matvecs
    (780, 20)
    """
    check_choice("method", method, get_args(TraceMethod))
    check_positive("tolerance", tolerance)
    check_count("max_matvecs", max_matvecs, minimum=16)
    check_count("max_vectors", max_vectors, minimum=4)
    if method == "hutchinson" and space is None:
        return hutchinson_steps(
            operator, tolerance=tolerance, max_matvecs=max_matvecs, generator=generator
        )
    known = space.deflation if isinstance(space, Space) else space
    process = _Process(operator, method, tolerance, max_matvecs, max_vectors, generator, known)
    notes = {} if space is None else {"space": space.size}
    return timed(_estimates(process.run(), tolerance, notes))


class _Told(NamedTuple):
    """What is known of a trace, and by what."""

    found: Sampled
    estimator: str
    sketch: int


_Work: TypeAlias = Generator[Callable[[], _Told], None, _Told]
"""Tells what is known, and returns the end."""


def _estimates(work: _Work, tolerance: float, notes: dict[str, int]) -> Steps[Estimate]:
    def estimate(told: _Told, *, ended: bool = False) -> Estimate:
        found, estimator, sketch = told
        own = {"estimator": estimator, "sketch": sketch, "by_part": found.by_part, **notes}
        said = {"error_is": CAUTIOUS} if estimator == "xtrace" else {}
        return found.to_estimate(tolerance, {**own, **said}, ended=ended)

    end = yield from changed(work, estimate)
    yield partial(estimate, end, ended=True)


@dataclass
class _Process:
    """The trace of an operator in small pieces of work.

    Attributes:
        whole: A.
        method: as of `trace`.
        tolerance: relative, on the standard error.
        budget: products.
        max_vectors: of the sketch.
        generator: draws the probes.
        space: where A is known, or None.
    """

    whole: SymmetricOperator
    method: TraceMethod
    tolerance: float
    budget: int
    max_vectors: int
    generator: torch.Generator
    space: Deflation | None

    def __post_init__(self) -> None:
        self.known, self.rounding, self.rest = 0.0, 0.0, self.whole
        if self.space is not None:
            self.known, length = self.space.trace, self.space.length
            self.rounding = rounding_error(self.whole.rounding, frobenius=length, value=self.known)
            self.rest = ProjectedOperator(self.whole, self.space.vectors)

    def run(self) -> _Work:
        """Tell the trace after each product, and return it."""
        if self.space is not None and self.space.size == self.whole.size:
            return _Told(Sampled(self.known, 0.0, self.rounding, 0, exact=True), "space", 0)
        if self.whole.size <= min(_SMALL, self.budget):
            return _Told(entry_by_entry(self.whole), "unit vectors", 0)
        sketch = Sketch(self.rest, self.generator)
        if self.space is not None and self.method in ("auto", "hutchinson"):
            found = yield from changed(self._probes_first(sketch), self._probed)
            if found is not None:
                return self._probed(found)
        latest, ended = yield from self._sketched(sketch)
        return latest if ended else (yield from self._with_rest(sketch, latest))

    def _probed(self, found: Sampled) -> _Told:
        # Both are of the same products: their errors may add up, and do not average out.
        rounding = found.rounding + self.rounding
        return _Told(found._replace(rounding=rounding), "hutch++", 0)

    def _probes_first(
        self, sketch: Sketch
    ) -> Generator[Callable[[], Sampled], None, Sampled | None]:
        """Probe the complement; return its trace, or None where a sketch of these probes pays."""
        auto = self.method == "auto"
        pair = 2 * self.rest.size * self.rest.dtype.itemsize
        fits = auto and _FIRST * pair <= _KEPT_BYTES
        draws = Draws(_FIRST, self._sketch_pays, []) if fits else None
        found = yield from probed_steps(
            self.rest,
            parts=self.whole.parts if auto else (self.whole.size,),
            known=self.known,
            tolerance=self.tolerance,
            budget=self.budget,
            generator=self.generator,
            keep=draws,
        )
        if found is None and draws is not None:
            sketch.adopt(draws.pairs, spent=draws.spent)
        return found

    def _sketch_pays(self, images: Sequence[Tensor], needed: float, left: float) -> bool:
        """Whether a sketch of these images and probes of what it leaves save half of the probes."""
        count = len(images)
        affordable = self.budget - 2 * count >= MIN_PROBES
        return affordable and count + max(0.0, share_left(images) * needed - count) < left / 2

    def _sketched(self, sketch: Sketch) -> Generator[Callable[[], _Told], None, tuple[_Told, bool]]:
        """Double the sketch while that pays; return its trace, and whether that is the end."""
        size, method = self.whole.size, self.method
        # A vector of the sketch costs two products; Hutch++ and `auto` keep half for the rest.
        most = min(self.max_vectors, self.budget // (2 if method == "xtrace" else 4), size)
        goal = most if method == "hutch++" else min(max(_FIRST, sketch.size), most)
        latest = partial(self._plain, sketch)
        while True:
            worth = 2 * (goal - sketch.size) * (2 if sketch.size else 1)
            if size <= min(worth, self.budget - sketch.matvecs):
                found = entry_by_entry(self.whole, spent=sketch.matvecs)
                return _Told(found, "unit vectors", sketch.size), True
            yield from (latest for _ in sketch.growing(goal))
            if sketch.dependent or method == "hutch++":
                return latest(), False
            value, error = sketch.xtrace()
            latest = partial(self._xtraced, sketch, value, error, goal)
            told = latest()
            if told.found.meets(self.tolerance):
                return told, True
            if goal >= most or (
                method == "auto" and goal >= _COMPARED and error >= sketch.plain_error()
            ):
                return told, method == "xtrace" or self.budget - sketch.matvecs < MIN_PROBES
            goal = min(2 * goal, most)

    def _plain(self, sketch: Sketch) -> _Told:
        """Return what the vectors of the sketch tell as plain probes."""
        draws = sketch.plain()
        value, size = draws.value, draws.frobenius
        rounding = rounding_error(self.whole.rounding, frobenius=size, value=value)
        rounding += self.rounding
        found = Sampled(self.known + value, draws.error, rounding, sketch.matvecs)
        return _Told(found, "hutchinson" if self.space is None else "hutch++", sketch.size)

    def _xtraced(self, sketch: Sketch, value: float, error: float, size: int) -> _Told:
        rounding = sketch.rounding + self.rounding
        return _Told(Sampled(self.known + value, error, rounding, sketch.matvecs), "xtrace", size)

    def _with_rest(self, sketch: Sketch, latest: _Told) -> _Work:
        """Return the trace on the sketch and that of the rest, from probes."""

        def whole(found: Sampled) -> _Told:
            matvecs = found.matvecs + sketch.matvecs
            rounding = math.hypot(found.rounding, sketch.rounding) + self.rounding
            return _Told(found._replace(matvecs=matvecs, rounding=rounding), "hutch++", sketch.size)

        def better(found: Sampled) -> _Told:
            """Return what few probes of the rest tell, or what the sketch told before."""
            now = whole(found)
            if now.found.error <= latest.found.error:
                return now
            return latest._replace(found=latest.found._replace(matvecs=now.found.matvecs))

        work = probed_steps(
            ProjectedOperator(self.rest, sketch.basis),
            parts=self.whole.parts if self.method == "auto" else (self.whole.size,),
            known=self.known + sketch.projected_trace(),
            tolerance=self.tolerance,
            budget=self.budget - sketch.matvecs,
            generator=self.generator,
            whole=sketch.draws_of_the_rest(),
        )
        found = yield from changed(work, better)
        assert found is not None
        return whole(found)
