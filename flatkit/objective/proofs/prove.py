"""What is proved of an objective before anything is measured with it."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatkit.devices import give_back
from flatkit.errors import NonDeterministicError, NonFiniteError, UserCodeError
from flatkit.objective.proofs.derivative import prove_gradient
from flatkit.objective.proofs.examination import Check, Examination, Found, prove
from flatkit.objective.proofs.signs import signed_weights
from flatkit.objective.proofs.smoothness import prove_smooth
from flatkit.objective.proofs.splitting import Look, prove_apart, prove_parts, telling_rows
from flatkit.objective.proofs.tables import padded_tables
from flatkit.objective.pytree import Tree, leaves
from flatkit.objective.reading.randomness import random_states

if TYPE_CHECKING:
    from flatkit.objective.function import Objective

GRADIENTS_OF = 8
"""Samples whose gradient is held against differences, in float64: a hundredth of one of 500."""


def examine_all(function: "Objective", mean_over: str, *, chosen: bool) -> Examination:
    """Return what was found of an objective; a loss that does not split becomes one batch.

    Args:
        function: the objective.
        mean_over: what it is a mean over, as far as is known.
        chosen: whether `chunk_size` was given.

    Raises:
        NonDeterministicError: two evaluations differ.
        NonAdditiveLossError: the loss is not a mean over samples, nor can it be measured whole.
        WrongGradientError: its gradient is not its derivative.
    """
    # So that what draws random numbers is found out in every run alike.
    _seed(function.device)  # whoever makes an objective puts the random states back
    look = Look.at(function)
    checks = [
        prove("deterministic", lambda: _deterministic(look)),
        prove("additive", lambda: prove_parts(look, chosen=chosen)),
        *_held(function),
    ]
    precise = _precise(function)
    in_parts = checks[1].passed and function.divisible and not look.mean_over
    # In float64 already, or measured as one batch, there is nothing more to see.
    if in_parts and precise not in (function, None) and len(look.rows) > 1:
        checks.append(prove("apart", lambda: prove_apart(look, precise, chosen=chosen)))
    remark = "".join(f"; {check.how}" for check in checks if check.passed is False)
    few = _few(function)
    checks.append(prove("gradient", lambda: prove_gradient(function, precise, few, remark)))
    if checks[-1].passed and precise is not None:  # else differences tell nothing here
        checks.append(prove("smooth", lambda: prove_smooth(precise, few, remark)))
    give_back(function.theta)
    return Examination(look.mean_over or mean_over, tuple(checks))


def smooth_part(part: "Objective", whole: Examination) -> Examination:
    """Return what was found of an objective, for one of fewer parameters.

    Where θ lies on a kink, some of the parameters alone may not. Where it does not, none do.

    Args:
        part: of the parameters.
        whole: of all of them.
    """
    if whole.derivatives == 2:
        return whole
    precise = _precise(part)
    if precise is None:
        return whole
    few = _few(part)
    return whole.adding(prove("smooth", lambda: prove_smooth(precise, few)))


def _few(function: "Objective") -> Tensor:
    """Return the rows whose gradient is looked at: all of a batch that the model takes whole."""
    few = telling_rows(function, GRADIENTS_OF)[0]
    if function.divisible or function.batchnorm == "train":
        return few
    try:
        function.chunk_loss(function.theta, function.rows(few.to(function.device)))
    except UserCodeError:
        return torch.arange(function.num_rows)
    return few


def _precise(function: "Objective") -> "Objective | None":
    """Return an objective in float64, itself where it is that; None where there is none."""
    if function.dtype == torch.float64:
        return function
    return function.in_double() if function.has_double else None


def _seed(device: torch.device) -> None:
    """Seed torch; on a CPU alone only the one generator, as the way to all of them is long."""
    if device.type != "cpu" or torch.cuda.is_initialized():
        torch.manual_seed(0)
    else:
        torch.default_generator.manual_seed(0)


def _held(function: "Objective") -> list[Check]:
    """Return what is held constant: vectors of padding, signs of orthogonal weights."""
    held = {
        "padding": ("vectors of padding_idx", padded_tables(function.model)),
        "signs": ("signs of orthogonal weights", signed_weights(function.model)),
    }
    found: list[Check] = []
    for check, (what, names) in held.items():
        own = ", ".join(name for name in names if name in function.space.names)
        if own:
            found.append(Check(check, True, f"the {what} are held constant, as in training: {own}"))
    return found


def _deterministic(look: Look) -> Found:
    eps = torch.finfo(look.function.dtype).eps
    check_deterministic(look.whole, look.values, eps=eps)
    return True, f"two evaluations of {len(look.rows)} samples spread over the data agree", None


def check_finite(weights: Mapping[str, Tensor], inputs: Tree, loss: Callable[[], float]) -> None:
    """Refuse weights that are not finite, and inputs of which the loss is no number.

    A mask of attention is minus infinity at places that do not count, and models may take NaN for
    what is missing.

    Args:
        weights: by name.
        inputs: a tree of tensors.
        loss: the mean loss, asked for where inputs are not finite.

    Raises:
        NonFiniteError: some are NaN or infinite.

    >>> check_finite({"weight": torch.ones(2)}, torch.tensor(-math.inf), lambda: 0.5)
    """
    for name, part in weights.items():
        if not part.isfinite().all():
            count = int((~part.isfinite()).sum())
            raise NonFiniteError(
                f"the weights are not finite: {name} has {count} NaN or infinite entries; "
                "the training diverged, analyze an earlier checkpoint"
            )
    finite = all(leaf.isfinite().all() for leaf in leaves(inputs))
    if not finite and not math.isfinite(found := loss()):
        raise NonFiniteError(f"the inputs have NaN or infinite entries, and the loss is {found}")


def check_slope(loss: float, gradient: Tensor) -> None:
    """Refuse a loss or a gradient that is not finite.

    Args:
        loss: L(θ).
        gradient: ∇L(θ) [P].

    Raises:
        NonFiniteError: one of them is not; the message says what may be the matter.

    >>> check_slope(1.0, torch.zeros(2))
    """
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"the loss is {loss} at the checkpoint; the training diverged, analyze an earlier "
            "checkpoint"
        )
    if not gradient.isfinite().all():
        raise NonFiniteError(
            f"the loss is {loss:.6g} at the checkpoint, and its gradient NaN or infinite: it has "
            "no derivative there (a square root, norm, power or logarithm of 0 in the model or the "
            "loss?); add a small number inside of it"
        )


def check_deterministic(first: Tensor, value: Callable[[], Tensor], *, eps: float) -> None:
    """Refuse a loss that has two values at one point. Cost: one evaluation, three if it has.

    Args:
        first: the loss of a few samples.
        value: evaluates it again.
        eps: of the dtype in which it is computed.

    Raises:
        NonDeterministicError: the values differ; the message names the cause.

    >>> check_deterministic(torch.tensor(0.5), lambda: torch.tensor(0.5), eps=1e-7)
    """

    def agree(one: Tensor, other: Tensor) -> bool:
        # Threads may add in another order, which is no more than rounding.
        return float((one - other).abs().max()) <= 16 * eps * float(one.abs().max())

    before, second = random_states(), value()
    draws = random_states() != before
    if agree(first, second) or not bool(first.isfinite().all()):
        return
    torch.manual_seed(0)
    # With one seed twice: what then agrees draws from torch, and what does not keeps a state.
    once = value()
    torch.manual_seed(0)
    cause = (
        "the forward pass draws random numbers although dropout layers are off (functional "
        "dropout with training=True, or noise added to activations); switch it off"
        if draws and agree(once, value())
        else "the model or the loss keeps state between calls, or a kernel is not "
        "deterministic; make the forward pass a function of its input"
    )
    found = float(first.mean()), float(second.mean())
    raise NonDeterministicError(
        f"two evaluations at the same point differ: {found[0]!r} and {found[1]!r}; {cause}"
    )
