"""Which engine to use: candidates multiply once on a few samples, held against float64."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from flatkit.devices import give_back, ordinary_torch
from flatkit.errors import FlatkitError, NonFiniteError
from flatkit.hessian.probes import samples_of_probe
from flatkit.hessian.products import (
    FORMULAS,
    EngineName,
    build_engine,
    central_difference,
    difference_error,
    double_backward,
)
from flatkit.hessian.reference import (
    Reference,
    Ways,
    find_reference,
    relative,
    total,
    worst_error,
)
from flatkit.hessian.unsupported import UnsupportedError
from flatkit.hessian.work import Work
from flatkit.objective.function import Objective
from flatkit.objective.passes import Chunk, differentiate

Preference: TypeAlias = Literal["auto"] | EngineName

_CANDIDATES: tuple[tuple[EngineName, ...], ...] = (
    ("layers", "double_backward"),
    ("forward_over_reverse", "reverse_over_forward"),
    ("central_difference",),
)
"""Tried together, one group after the other: the later ones cost more or are less exact."""
_CLOSE = 1.05
"""Of two candidates whose work differs by less than this, the first is taken: in each group the
one whose kernels were faster at equal work (`benchmarks/products.py`)."""
_NEAR = 10.0
"""Times the tolerance up to which an error on some samples may be that of a single one among them,
as next to a kink, where float32 and float64 take different sides: other samples settle it."""
_DIRECTIONS = 8
"""Vectors with which differences are tried, whose error is another one for each."""
NARROW_TOLERANCE = 0.1
"""Least tolerance of a product in 16 bits, with a random vector; its error is part of results."""
NO_STEP = "its step is lost in the rounding to 16 bits"
"""Why there are no differences in 16 bits."""
_HESSIAN = Ways(double_backward, central_difference)
_NOT_FINITE = "the product is not finite"


@dataclass(frozen=True)
class Choice:
    """The engine that was chosen, and why.

    Attributes:
        engine: its name.
        error: ‖computed - true‖/‖true‖ of one product with a random vector, on samples spread over
            all the data; None if there was nothing to compare with. Of central differences it is
            twice the largest of several vectors.
        against: what was taken for the truth.
        cost: a product in gradients, with what can be kept kept, as their multiplications are
            counted on these samples; None if they were not.
        rejected: engine -> why it was not used.
        reference: the products that were taken for the truth.
        tolerance: the error that was asked for; a larger one is the smallest that there was.
        elsewhere: the error on other samples, where these had to settle it.
    """

    engine: EngineName
    error: float | None
    against: str
    cost: float | None
    rejected: dict[str, str] = field(default_factory=dict)
    reference: Reference | None = None
    tolerance: float = float("inf")
    elsewhere: float | None = None

    def settings(self) -> dict[str, Any]:
        """Return the choice ready for JSON."""
        cost = {} if self.cost is None else {"engine_cost_in_gradients": round(self.cost, 2)}
        return {
            "engine": self.engine,
            "engine_error": self.error,
            "engine_error_against": self.against,
            **cost,
            "engines_rejected": self.rejected,
            **({"engine_remark": self.remark} if self.remark else {}),
        }

    def to_json(self) -> dict[str, Any]:
        """Return all of it, ready for JSON; `from_json` makes the same choice of it."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.reference is not None:
            recipe: Any = self.reference.recipe  # a formula, or one with another step
            plain = getattr(recipe, "func", recipe)
            names = [name for name, formula in FORMULAS.items() if formula is plain]
            words = (self.reference.against, self.reference.in_double, self.reference.blur)
            found["reference"] = [names, getattr(recipe, "keywords", {}), *words]
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Choice":
        """Return the choice of which `to_json` has told."""
        given = dict(found)
        if given["reference"] is not None:
            names, steps, against, in_double, *blur = given["reference"]  # none before 0.2
            recipe: Any = FORMULAS[names[0]] if names else None
            recipe = partial(recipe, **steps) if steps else recipe
            given["reference"] = Reference(recipe, against, in_double, *blur)
        return cls(**given)

    @property
    def remark(self) -> str:
        """What a report must say of the error; nothing where the tolerance is met."""
        if self.error is None or self.error <= self.tolerance:
            return ""
        if self.elsewhere is not None:
            return (
                f"products with the Hessian are right to {self.error:.1e} (relative) on some "
                f"samples and to {self.elsewhere:.1e} on others, as next to a kink; the errors "
                "include the larger"
            )
        return (
            f"products with the Hessian are right to {self.error:.1e} (relative), not to the "
            f"{self.tolerance:.0e} that was asked for: {self.engine} is the most accurate engine "
            "here. The errors include this; dtype=float64 makes products more exact"
        )

    def rounding(self, dtype: torch.dtype) -> float:
        """Return the error of a product relative to it; ε^½ of the dtype where not measured."""
        if self.error is None:
            return torch.finfo(dtype).eps ** 0.5
        # Known relative to the truth t. Where the product p is nothing but rounding, as of a loss
        # that is constant, t is far smaller: ‖p - t‖ = e‖t‖ makes ‖p‖ at least (e - 1)‖t‖. Of
        # such products one tells little of the others: twice as much is said.
        return self.error * min(2.0, 1.0 + self.error) / max(1.0, self.error - 1.0)


@ordinary_torch()
def choose(
    objective: Objective, theta: Tensor, *, preference: Preference = "auto", tolerance: float = 1e-4
) -> Choice:
    """Return the cheapest engine whose product is within the tolerance of the truth.

    The cheapest by what it multiplies, and by no clock: the same model has the same engine always.

    The truth is a product in float64 by double backward, on the same samples, unless central
    differences settle on another one; where there is neither, nothing, and the choice says so. If
    no engine is within the tolerance, the most accurate of all is taken, and its error stands in
    the choice. An objective is probed once, whatever the point, and keeps the choice.

    Raises:
        FlatkitError: no engine works here; the message names what each of them said.
        NonFiniteError: the products are NaN or infinite.
    """
    if objective.narrow is not None:
        tolerance = max(tolerance, NARROW_TOLERANCE)
    known: dict[tuple[str, float], Choice] = objective.engine_choices
    key = (preference, tolerance)
    if key not in known and objective.ranks.count > 1:  # the first one chooses for all
        chosen = objective.ranks.decided(
            lambda: choose(
                objective.alone(), theta, preference=preference, tolerance=tolerance
            ).to_json()
        )
        known[key] = Choice.from_json(chosen)
    if key in known:
        return known[key]
    # The truth, then the engines a group at a time: later ones where none before is good.
    chunks, vector = samples_of_probe(objective), direction(theta)
    reference, truth = find_reference(_HESSIAN, objective, theta, chunks, vector)
    probe = _Probe(objective, theta, chunks, vector, reference, truth)
    groups: tuple[tuple[EngineName, ...], ...] = (
        _CANDIDATES if preference == "auto" else ((preference,),)
    )
    good: list[_Trial] = []
    for group in groups:
        for name in group:
            probe.trials += _try(probe, name)
        good = _within(probe, tolerance)
        if good:
            break
    good = good or _most_accurate(probe)
    if not good:
        raise _refusal(probe.rejected)
    # The cost is said in gradients, whose work is counted on the same chunk.
    with objective.placed(theta, smooth=False) as point, Work() as done:
        differentiate(objective.chunk_loss(point, chunks[0]), point)
    chosen = _cheapest(probe, good, done.count, tolerance)
    if chosen.engine == "central_difference":
        worst = worst_error(_HESSIAN, reference, objective, theta, directions(theta, _DIRECTIONS))
        chosen = replace(chosen, error=max(worst or 0.0, chosen.error or 0.0))
    known[key] = chosen
    give_back(theta)
    return known[key]


@dataclass
class _Probe:
    """What the engines are tried on, and what came out so far."""

    objective: Objective
    theta: Tensor
    chunks: list[Chunk]
    vector: Tensor
    reference: Reference
    truth: Tensor | None
    trials: list["_Trial"] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Trial:
    """An engine that can multiply, its work for a chunk, and the relative error of its product."""

    name: EngineName
    work: int
    error: float | None
    against: str
    elsewhere: float | None = None


def _within(probe: _Probe, tolerance: float) -> list[_Trial]:
    """Return the engines that are within the tolerance, on other samples where it is close."""
    good = [trial for trial in probe.trials if trial.error is None or trial.error <= tolerance]
    least = min((trial.work for trial in good), default=math.inf)
    for place, trial in enumerate(probe.trials):
        near = trial.error is not None and tolerance < trial.error <= _NEAR * tolerance
        if near and trial.work <= _CLOSE * least:
            elsewhere = _error_elsewhere(probe, trial.name)
            if elsewhere is not None and elsewhere <= tolerance:
                probe.trials[place] = replace(trial, elsewhere=elsewhere)
    good = [trial for trial in probe.trials if trial in good or trial.elsewhere is not None]
    for trial in probe.trials if good else ():
        if trial not in good:
            reason = f"relative error {trial.error:.1e} exceeds {tolerance:.0e}"
            probe.rejected[trial.name] = reason
    return good


def _error_elsewhere(probe: _Probe, name: EngineName) -> float | None:
    """Return the relative error of an engine's product on another draw of the samples."""
    objective, theta = probe.objective, probe.theta
    chunks, vectors = samples_of_probe(objective, draw=1), probe.vector[None]
    # By the recipe that is known to be right: these samples do not decide anew what is believed.
    truth = probe.reference.products(objective, theta, chunks, vectors)
    if truth is None or not probe.reference.in_double:
        return None
    engine = build_engine(name, objective, theta)
    found = total(engine.prepare(chunk).products(vectors) for chunk in chunks)
    return relative(found.double() - truth, truth)


def _most_accurate(probe: _Probe) -> list[_Trial]:
    """Return the engine of the least error, which the choice states."""
    if not probe.trials:
        return []
    best = min(probe.trials, key=lambda trial: trial.error or 0.0)
    for trial in probe.trials:
        if trial is not best:
            reason = f"relative error {trial.error:.1e}, that of {best.name} is {best.error:.1e}"
            probe.rejected[trial.name] = reason
    return [best]


def _try(probe: _Probe, name: EngineName) -> list[_Trial]:
    """Return how far an engine's product is off, or nothing and note why."""
    if name == "central_difference" and probe.objective.narrow is not None:
        probe.rejected[name] = NO_STEP
        return []
    work = Work()
    try:
        engine = build_engine(name, probe.objective, probe.theta)
        # Of the first chunk alone: to count takes longer than small products, and those of the
        # others cost as many gradients.
        prepared = engine.prepare(probe.chunks[0])
        with work:
            product = prepared.products(probe.vector[None])[0]
        for chunk in probe.chunks[1:]:
            product = product + engine.prepare(chunk).products(probe.vector[None])[0]
    except UnsupportedError as error:
        probe.rejected[name] = " ".join(str(error).split())[:200]
        return []
    if not product.isfinite().all() and name != "double_backward":
        probe.rejected[name] = _NOT_FINITE
        return []
    # Differences that are held against themselves would be right by definition.
    by_itself = probe.reference.recipe is central_difference and probe.theta.dtype == torch.float64
    truthless = probe.truth is None or not probe.reference.in_double or by_itself
    if name == "central_difference" and truthless:
        error = difference_error(probe.objective, probe.theta, probe.chunks[0], probe.vector)
        return [_Trial(name, work.count, error, "its own product at twice the step")]
    truth, reference = probe.truth, probe.reference
    wider = reference.in_double or probe.objective.narrow is not None
    # By the same formula in the same dtype: the difference of 0 would say nothing.
    itself = not wider and reference.recipe is FORMULAS.get(name)
    error = None if truth is None or itself else relative(product.double() - truth, truth)
    error = None if error is None else max(error, reference.blur)
    return [_Trial(name, work.count, error, probe.reference.against)]


def _refusal(rejected: dict[str, str]) -> FlatkitError:
    if _NOT_FINITE in rejected.values():
        return NonFiniteError(
            "the Hessian-vector product has NaN or infinite entries: the loss is not finite at or "
            "near this point (try dtype=float64), or not twice differentiable"
        )
    reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected.items())
    return FlatkitError(f"no engine can multiply with this Hessian: {reasons}")


def _cheapest(probe: _Probe, trials: list[_Trial], gradient: int, tolerance: float) -> Choice:
    least = min(trial.work for trial in trials)
    # The first that is close, not the least: the order of `_CANDIDATES` decides between equals.
    best = next(trial for trial in trials if trial.work <= _CLOSE * least)
    costs = {trial.name: trial.work / max(gradient, 1) for trial in trials}
    for trial in trials:
        if trial is not best:
            probe.rejected[trial.name] = f"costs {costs[trial.name]:.2f} gradients here"
    return Choice(
        best.name,
        best.error,
        best.against,
        costs[best.name],
        probe.rejected,
        probe.reference,
        tolerance,
        best.elsewhere,
    )


def direction(theta: Tensor) -> Tensor:
    """Return a random unit vector [P], the same each time.

    >>> direction(torch.zeros(1)).abs()
    tensor([1.])
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(len(theta), generator=generator).to(theta)
    return vector / vector.norm()


def directions(theta: Tensor, count: int) -> Tensor:
    """Return random unit vectors [K, P], others than `direction`, the same each time.

    >>> directions(torch.zeros(1), 2).abs()
    tensor([[1.],
            [1.]])
    """
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(count, len(theta), generator=generator).to(theta)
    return vectors / vectors.norm(dim=1, keepdim=True)
