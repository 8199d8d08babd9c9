"""The trace by sketches of the range: XTrace, then Hutch++; far fewer products where it decays."""

import math
import time
from typing import Literal, TypeAlias, get_args

import torch

from flatkit.checks import check_choice, check_count, check_positive
from flatkit.devices import ordinary_torch
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.hutchinson import hutchinson_trace
from flatkit.spectrum.operators import ProjectedOperator, SymmetricOperator
from flatkit.spectrum.sampled import Sampled
from flatkit.spectrum.sketch import Sketch
from flatkit.spectrum.standard_error import CAUTIOUS
from flatkit.spectrum.stratified_trace import MIN_PROBES, entry_by_entry, probed_trace

_FIRST = 16  # vectors of the first sketch
_SMALL = 2 * _FIRST  # coordinates up to which products with the unit vectors cost no more
# Vectors of a sketch from which on it must do better than plain probes to grow further.
_COMPARED = 32

TraceMethod: TypeAlias = Literal["auto", "hutchinson", "hutch++", "xtrace"]


@ordinary_torch()
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
    check_choice("method", method, get_args(TraceMethod))
    check_positive("tolerance", tolerance)
    check_count("max_matvecs", max_matvecs, minimum=16)
    check_count("max_vectors", max_vectors, minimum=4)
    if method == "hutchinson":
        return hutchinson_trace(
            operator, tolerance=tolerance, max_matvecs=max_matvecs, generator=generator
        )
    started = time.perf_counter()
    sketch = Sketch(operator, generator)
    found, estimator = _sketched(
        sketch, method, tolerance=tolerance, budget=max_matvecs, max_vectors=max_vectors
    )
    if found is None:
        found, estimator = _with_rest(sketch, method, tolerance, max_matvecs), "hutch++"
    notes = {"estimator": estimator, "sketch": sketch.size, "by_part": found.by_part}
    said = {"error_is": CAUTIOUS} if estimator == "xtrace" else {}
    return found.to_estimate(tolerance, started, {**notes, **said})


def _sketched(
    sketch: Sketch, method: TraceMethod, *, tolerance: float, budget: int, max_vectors: int
) -> tuple[Sampled | None, str]:
    """Double the sketch while that pays; return its trace, or None if the rest is to be probed."""
    size = sketch.operator.size
    if size <= min(_SMALL, budget):
        return entry_by_entry(sketch.operator), "unit vectors"
    # A vector of the sketch costs two products; Hutch++ and `auto` keep half of these for the rest.
    most = min(max_vectors, budget // (2 if method == "xtrace" else 4), size)
    goal = most if method == "hutch++" else min(_FIRST, most)
    while True:
        worth = 2 * (goal - sketch.size) * (2 if sketch.size else 1)
        if size <= min(worth, budget - sketch.matvecs):
            return entry_by_entry(sketch.operator, spent=sketch.matvecs), "unit vectors"
        sketch.grow(goal)
        if sketch.dependent or method == "hutch++":
            return None, "hutch++"
        value, error = sketch.xtrace()
        found = Sampled(value, error, sketch.rounding, sketch.matvecs)
        if found.meets(tolerance):
            return found, "xtrace"
        if goal >= most or (
            method == "auto" and goal >= _COMPARED and error >= sketch.plain_error()
        ):
            short = method == "xtrace" or budget - sketch.matvecs < MIN_PROBES
            return (found if short else None), "xtrace"
        goal = min(2 * goal, most)


def _with_rest(sketch: Sketch, method: TraceMethod, tolerance: float, budget: int) -> Sampled:
    """Return the trace on the sketch and that of the rest, from probes."""
    operator = sketch.operator
    found = probed_trace(
        ProjectedOperator(operator, sketch.basis),
        parts=operator.parts if method == "auto" else (operator.size,),
        known=sketch.projected_trace(),
        tolerance=tolerance,
        budget=budget - sketch.matvecs,
        generator=sketch.generator,
        whole=sketch.draws_of_the_rest(),
    )
    matvecs, rounding = found.matvecs + sketch.matvecs, math.hypot(found.rounding, sketch.rounding)
    return found._replace(matvecs=matvecs, rounding=rounding)
