"""Which engine to use: candidates multiply once on a few samples, held against float64."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from flatkit.errors import FlatkitError, InvalidArgumentError, NonFiniteError
from flatkit.hessian.products import (
    Difference,
    Engine,
    EngineName,
    Prepared,
    build_engine,
)
from flatkit.objective.function import Chunk, Objective

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
"""Of the second fastest engine's time: below this one round decides."""
_NOT_FINITE = "the product is not finite"
_SUSPICIOUS = 0.05
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


_CHOICES: "WeakKeyDictionary[Objective, dict[tuple, Choice]]" = WeakKeyDictionary()


def choose(
    objective: Objective, theta: Tensor, *, preference: Preference = "auto", tolerance: float = 1e-4
) -> Choice:
    """Return the cheapest engine whose product is within the tolerance of the truth.

    The truth is a product in float64 by double backward, on the same samples, unless central
    differences settle on another one; where there is neither, nothing, and the choice says so. An
    objective is probed once, whatever the point.

    Raises:
        FlatkitError: no engine works here; the message names what each of them said.
        NonFiniteError: the products are NaN or infinite.
    """
    known = _CHOICES.setdefault(objective, {})
    key = (preference, tolerance)
    if key not in known:
        known[key] = _probe(objective, theta, preference, tolerance)
    return known[key]


@dataclass
class _Trial:
    name: EngineName
    product: Tensor
    prepared: Prepared
    engine: Engine
    error: float | None = None
    seconds: float = 0.0


def _probe(objective: Objective, theta: Tensor, preference: Preference, tolerance: float) -> Choice:
    chunk = _few(objective, *_CHECKED)
    vector = _direction(theta)
    truth, against = _truth(objective, theta, chunk, vector)
    rejected: dict[str, str] = {}
    groups: tuple[tuple[EngineName, ...], ...] = (
        _CANDIDATES if preference == "auto" else ((preference,),)
    )
    for number, group in enumerate(groups):
        trials = [_try(name, objective, theta, chunk, vector, rejected) for name in group]
        trials = [trial for trial in trials if trial is not None]
        for trial in trials:
            trial.error = _difference(trial.product, truth)
            if truth is None and isinstance(trial.prepared, Difference):
                trial.error = trial.prepared.relative_error(vector)
                against = "its own product at twice the step"
        last = number == len(groups) - 1
        good = [t for t in trials if t.error is None or t.error <= tolerance]
        for trial in trials:
            if trial not in good and not last:
                rejected[trial.name] = f"relative error {trial.error:.1e} exceeds {tolerance:.0e}"
        good = good or (trials if last else [])
        if good:
            return _cheapest(good, objective, theta, vector, against, rejected)
    if _NOT_FINITE in rejected.values():
        raise NonFiniteError(
            "the Hessian-vector product has NaN or infinite entries: the loss is not finite at or "
            "near this point (try dtype=float64), or not twice differentiable"
        )
    reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected.items())
    raise FlatkitError(f"no engine can multiply with this Hessian: {reasons}")


def _try(
    name: EngineName,
    objective: Objective,
    theta: Tensor,
    chunk: Chunk,
    vector: Tensor,
    rejected: dict[str, str],
) -> _Trial | None:
    try:
        engine = build_engine(name, objective, theta)
        prepared = engine.prepare(chunk)
        product = prepared.products(vector[None])[0]
    except InvalidArgumentError:
        raise
    except Exception as error:  # whatever a model's operations say when they have no derivative
        rejected[name] = " ".join(str(error).split())[:200] or type(error).__name__
        return None
    if product.isfinite().all() or name == "double_backward":
        return _Trial(name, product, prepared, engine)
    rejected[name] = _NOT_FINITE
    return None


def _cheapest(
    trials: list[_Trial],
    objective: Objective,
    theta: Tensor,
    vector: Tensor,
    against: str,
    rejected: dict[str, str],
) -> Choice:
    def gradient() -> None:
        point = theta.detach().requires_grad_()
        torch.autograd.grad(objective.chunk_loss(point, chunk, smooth=False), point)

    chunk = _few(objective, *_TIMED)
    contenders: dict[str, Callable[[], object]] = {"": gradient}
    for trial in trials:
        prepared = trial.engine.prepare(chunk)
        contenders[trial.name] = lambda prepared=prepared: prepared.products(vector[None])
    seconds = dict.fromkeys(contenders, float("inf"))
    begun = time.perf_counter()
    for turn in range(1, _MOST_ROUNDS + 1):  # in turn, so that noise hurts all alike
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            _wait(theta)
            seconds[name] = min(seconds[name], time.perf_counter() - started)
        first, *others = sorted(seconds[trial.name] for trial in trials)
        clear = all(first < _CLEARLY * other for other in others[:1])
        if clear or (turn >= _ROUNDS and time.perf_counter() - begun > _SECONDS):
            break
    best = min(trials, key=lambda trial: seconds[trial.name])
    for trial in trials:
        if trial is not best:
            cost = seconds[trial.name] / seconds[""]
            rejected[trial.name] = f"costs {cost:.1f} gradients here"
    cost = seconds[best.name] / max(seconds[""], 1e-9)
    return Choice(best.name, best.error, against, cost, rejected)


def _few(objective: Objective, share: float, most: int) -> Chunk:
    if objective.batchnorm == "train":
        return next(objective.chunks())
    size = min(most, max(_FEWEST, int(share * objective.num_samples)))
    return next(objective.chunks(min(size, objective.chunk_size, objective.num_samples)))


def _direction(theta: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(len(theta), generator=generator).to(theta)
    return vector / vector.norm()


def _truth(
    objective: Objective, theta: Tensor, chunk: Chunk, vector: Tensor
) -> tuple[Tensor | None, str]:
    if len(theta) > _DOUBLE_MAX or theta.device.type == "mps":
        return None, "nothing: too large for a copy in float64"
    try:
        precise = objective.in_double()
        part = chunk.in_double()
        rough = _double_product("central_difference", precise, theta, part, vector)
    except Exception as error:  # whatever a model's operations say when they refuse float64
        return None, f"nothing: no gradient in float64 ({type(error).__name__})"
    try:
        exact = _double_product("double_backward", precise, theta, part, vector)
    except Exception as error:  # likewise, when they have no second derivative
        return rough, f"central differences in float64 ({type(error).__name__} by double backward)"
    if float((exact - rough).norm()) > _SUSPICIOUS * float(rough.norm()) > 0:
        if not _settles(precise, theta.double(), part, vector.double()):
            return exact, "double backward in float64, with a kink of the loss near this point"
        # Some operations answer twice differentiated with a zero instead of an error.
        return rough, "central differences in float64, as autograd contradicts them"
    return exact, "double backward in float64"


def _double_product(
    name: EngineName, objective: Objective, theta: Tensor, chunk: Chunk, vector: Tensor
) -> Tensor:
    engine = build_engine(name, objective, theta.double())
    return engine.prepare(chunk).products(vector.double()[None])[0]


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


def _wait(theta: Tensor) -> None:
    if theta.device.type == "cuda":
        torch.cuda.synchronize(theta.device)
