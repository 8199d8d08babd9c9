"""Which engine to use: candidates multiply once on a few samples, held against float64."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from flatkit.errors import FlatkitError, NonFiniteError
from flatkit.hessian.products import (
    Engine,
    EngineName,
    build_engine,
    central_difference,
    difference_error,
    double_backward,
)
from flatkit.hessian.unsupported import UnsupportedError
from flatkit.objective.function import Objective
from flatkit.objective.passes import Chunk, differentiate

Preference: TypeAlias = Literal["auto"] | EngineName

_CANDIDATES: tuple[tuple[EngineName, ...], ...] = (
    ("layers", "double_backward"),
    ("forward_over_reverse", "reverse_over_forward"),
    ("central_difference",),
)
"""Tried together, one group after the other: the later ones cost more or are less exact."""
_FEWEST = 8
"""Samples at least of a probe, if a chunk has as many."""
_CHECKED, _TIMED = (1 / 32, 16), (1 / 16, 128)
"""Samples on which products are held against float64, and are timed: that part of all, lest it cost
more than what it saves, and at most so many. Few samples tell what is right, but not what is fast.
"""
_ROUNDS, _MOST_ROUNDS, _SECONDS = 3, 12, 0.1
"""Rounds of timing where it is close: at least, at most, and else until so long has passed."""
_CLEARLY = 0.75
"""One round decides if the fastest engine needs less than this share of the second's time."""
_NOT_FINITE = "the product is not finite"
_SUSPICIOUS = 0.05
"""Relative difference of two products from which on one of them is wrong."""
_DOUBLE_MAX = 20_000_000
"""Parameters up to which a copy in float64 is no burden."""


@dataclass(frozen=True)
class Choice:
    """The engine that was chosen, and why.

    Attributes:
        engine: its name.
        error: ‖computed - true‖/‖true‖ of one product with a random vector, on a few samples;
            None if there was nothing to compare with.
        against: what was taken for the truth.
        cost: a product in gradients, on these samples, with what can be kept kept.
        rejected: engine -> why it was not used.
    """

    engine: EngineName
    error: float | None
    against: str
    cost: float
    rejected: dict[str, str] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Return the choice ready for JSON."""
        return {
            "engine": self.engine,
            "engine_error": self.error,
            "engine_error_against": self.against,
            "engine_cost_in_gradients": round(self.cost, 2),
            "engines_rejected": self.rejected,
        }


def choose(
    objective: Objective, theta: Tensor, *, preference: Preference = "auto", tolerance: float = 1e-4
) -> Choice:
    """Return the cheapest engine whose product is within the tolerance of the truth.

    The truth is a product in float64 by double backward, on the same samples, unless central
    differences settle on another one; where there is neither, nothing, and the choice says so. An
    objective is probed once, whatever the point, and keeps the choice.

    Raises:
        FlatkitError: no engine works here; the message names what each of them said.
        NonFiniteError: the products are NaN or infinite.
    """
    known: dict[tuple[str, float], Choice] = objective.engine_choices
    key = (preference, tolerance)
    if key in known:
        return known[key]
    probe = _Probe(objective, theta, _few(objective, *_CHECKED), _direction(theta))
    truth, probe.against = _truth(probe)
    groups: tuple[tuple[EngineName, ...], ...] = (
        _CANDIDATES if preference == "auto" else ((preference,),)
    )
    good: list[_Trial] = []
    for group in groups:
        trials: list[_Trial] = []
        for name in group:
            trial = _try(probe, name, truth)
            trials += [] if trial is None else [trial]
        good = [trial for trial in trials if trial.error is None or trial.error <= tolerance]
        if not good and group is groups[-1]:
            good = trials  # nothing better is left: the choice states its error
        for trial in trials:
            if trial not in good and group is not groups[-1]:
                reason = f"relative error {trial.error:.1e} exceeds {tolerance:.0e}"
                probe.rejected[trial.name] = reason
        if good:
            break
    if not good:
        raise _refusal(probe.rejected)
    timed, vectors = _few(objective, *_TIMED), probe.vector[None]
    contenders: dict[str, Callable[[], object]] = {"": _gradient(probe, timed)}
    for trial in good:
        contenders[trial.name] = partial(trial.engine.prepare(timed).products, vectors)
    seconds = _fastest_times(contenders, theta.device)
    known[key] = _cheapest(probe, good, seconds)
    return known[key]


@dataclass
class _Probe:
    """What the engines are tried on, and what came out so far."""

    objective: Objective
    theta: Tensor
    chunk: Chunk
    vector: Tensor
    against: str = ""
    rejected: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Trial:
    """An engine that can multiply, and the relative error of its product."""

    name: EngineName
    engine: Engine
    error: float | None


def _try(probe: _Probe, name: EngineName, truth: Tensor | None) -> _Trial | None:
    """Return how far an engine's product is off, or None and note why it has none."""
    try:
        engine = build_engine(name, probe.objective, probe.theta)
        product = engine.prepare(probe.chunk).products(probe.vector[None])[0]
    except UnsupportedError as error:
        probe.rejected[name] = " ".join(str(error).split())[:200]
        return None
    if not product.isfinite().all() and name != "double_backward":
        probe.rejected[name] = _NOT_FINITE
        return None
    if truth is None and name == "central_difference":
        probe.against = "its own product at twice the step"
        error = difference_error(probe.objective, probe.theta, probe.chunk, probe.vector)
        return _Trial(name, engine, error)
    return _Trial(name, engine, _difference(product, truth))


def _refusal(rejected: dict[str, str]) -> FlatkitError:
    if _NOT_FINITE in rejected.values():
        return NonFiniteError(
            "the Hessian-vector product has NaN or infinite entries: the loss is not finite at or "
            "near this point (try dtype=float64), or not twice differentiable"
        )
    reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected.items())
    return FlatkitError(f"no engine can multiply with this Hessian: {reasons}")


def _gradient(probe: _Probe, chunk: Chunk) -> Callable[[], object]:
    """Return the gradient of a chunk, to be timed beside the products."""

    def gradient() -> Tensor:
        point = probe.theta.detach().requires_grad_()
        return differentiate(probe.objective.chunk_loss(point, chunk, smooth=False), point)

    return gradient


def _fastest_times(
    contenders: Mapping[str, Callable[[], object]], device: torch.device
) -> dict[str, float]:
    """Return the least seconds of each, until it is clear which of the named ones is fastest."""
    seconds = dict.fromkeys(contenders, float("inf"))
    begun = time.perf_counter()
    for turn in range(1, _MOST_ROUNDS + 1):  # in turn: noise hurts every engine equally
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name] = min(seconds[name], time.perf_counter() - started)
        first, *others = sorted(spent for name, spent in seconds.items() if name)
        clear = all(first < _CLEARLY * other for other in others[:1])
        if clear or (turn >= _ROUNDS and time.perf_counter() - begun > _SECONDS):
            break
    return seconds


def _cheapest(probe: _Probe, trials: list[_Trial], seconds: Mapping[str, float]) -> Choice:
    best = min(trials, key=lambda trial: seconds[trial.name])
    costs = {trial.name: seconds[trial.name] / max(seconds[""], 1e-9) for trial in trials}
    for trial in trials:
        if trial is not best:
            probe.rejected[trial.name] = f"costs {costs[trial.name]:.1f} gradients here"
    return Choice(best.name, best.error, probe.against, costs[best.name], probe.rejected)


def _few(objective: Objective, share: float, most: int) -> Chunk:
    if objective.batchnorm == "train":
        return next(objective.chunks())
    size = min(most, max(_FEWEST, int(share * objective.num_samples)))
    return next(objective.chunks(min(size, objective.chunk_size, objective.num_samples)))


def _direction(theta: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(len(theta), generator=generator).to(theta)
    return vector / vector.norm()


def _truth(probe: _Probe) -> tuple[Tensor | None, str]:
    """Return the product in float64 that is most worth believing, or None, and what it is."""
    if len(probe.theta) > _DOUBLE_MAX or probe.theta.device.type == "mps":
        return None, "nothing: too large for a copy in float64"
    precise, chunk = probe.objective.in_double(), probe.chunk.in_double()
    theta, vector = probe.theta.double(), probe.vector.double()
    refusal = _refusal_of_double(precise, theta, chunk)
    if refusal is not None:
        return None, f"nothing: no gradient in float64 ({refusal})"
    try:
        rough = central_difference(precise, theta, chunk).products(vector[None])[0]
    except UnsupportedError as error:
        return None, f"nothing: no gradient in float64 ({_kind(error)})"
    try:
        exact = double_backward(precise, theta, chunk).products(vector[None])[0]
    except UnsupportedError as error:
        return rough, f"central differences in float64 ({_kind(error)} by double backward)"
    if float((exact - rough).norm()) > _SUSPICIOUS * float(rough.norm()) > 0:
        if not _settles(precise, theta, chunk, vector):
            return exact, "double backward in float64, with a kink of the loss near this point"
        # Some operations answer twice differentiated with a zero instead of an error.
        return rough, "central differences in float64, as autograd contradicts them"
    return exact, "double backward in float64"


@torch.no_grad()
def _refusal_of_double(precise: Objective, theta: Tensor, chunk: Chunk) -> str | None:
    """Return what kind of error a model's own operations raise in float64; None if they work."""
    try:
        precise.outputs(theta, chunk)
    except (RuntimeError, TypeError, ValueError) as error:  # of the user's model: it ran in float32
        return type(error).__name__
    return None


def _kind(error: UnsupportedError) -> str:
    return type(error.__cause__ or error).__name__


def _settles(objective: Objective, theta: Tensor, chunk: Chunk, vector: Tensor) -> bool:
    """Return whether quotients of gradient differences agree for two steps.

    Next to a kink they grow as the step falls, and say nothing about autograd.
    """

    def quotient(step: float) -> Tensor:
        sides = []
        for sign in (1.0, -1.0):
            point = (theta + sign * step * vector).requires_grad_()
            loss = objective.chunk_loss(point, chunk, smooth=False)
            sides.append(torch.autograd.grad(loss, point, materialize_grads=True)[0])
        return (sides[0] - sides[1]) / (2 * step)

    scale = max(1.0, float(theta.norm()))
    long, short = quotient(1e-5 * scale), quotient(1e-6 * scale)
    return float((long - short).norm()) <= _SUSPICIOUS * float(short.norm())


def _difference(product: Tensor, truth: Tensor | None) -> float | None:
    if truth is None:
        return None
    size = float(truth.norm())
    distance = float((product.double() - truth).norm())
    if not (size < float("inf") and distance < float("inf")):
        return None
    return distance / size if size > 0 else (0.0 if distance == 0 else None)
