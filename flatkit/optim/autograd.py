"""Gradients and Hessian-vector products of what a closure returned, with errors that explain."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flatkit.errors import InvalidArgumentError

Gradients: TypeAlias = Sequence[Tensor | None]
"""One a parameter; `None` where the loss does not depend on it."""


def backward(loss: Any, *, scaler: torch.amp.GradScaler | None = None) -> None:
    """Call `loss.backward()`, on the scaled loss if there is a scaler.

    Raises:
        InvalidArgumentError: the loss is no tensor of one element, depends on no free parameter,
            or was differentiated before.

    >>> theta = torch.tensor([3.0], requires_grad=True)
    >>> backward(theta.square().sum())
    >>> theta.grad
    tensor([6.])
    """
    check_differentiable(loss)
    with explained():
        (loss if scaler is None else scaler.scale(loss)).backward()


def differentiate(loss: Any, parameters: Sequence[Tensor]) -> Gradients:
    """Return gradients that can be differentiated again.

    Raises:
        InvalidArgumentError: as `backward`.

    >>> theta = torch.tensor([3.0], requires_grad=True)
    >>> differentiate(theta.square().sum(), [theta])
    (tensor([6.], grad_fn=<MulBackward0>),)
    """
    check_differentiable(loss)
    with explained():
        return torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)


def hessian_product(
    gradients: Gradients, parameters: Sequence[Tensor], direction: Sequence[Tensor]
) -> Gradients:
    """Return H·d from the gradients that `differentiate` gave, and free their graph.

    Raises:
        InvalidArgumentError: an operation of the loss has no second derivative in torch.

    >>> theta = torch.tensor([3.0], requires_grad=True)
    >>> gradients = differentiate(theta.square().sum(), [theta])
    >>> hessian_product(gradients, [theta], [torch.tensor([5.0])])
    (tensor([10.]),)
    """
    pairs = [
        (gradient, part)
        for gradient, part in zip(gradients, direction, strict=True)
        if gradient is not None and gradient.requires_grad
    ]
    if not pairs:  # the loss is linear in all parameters
        return [None] * len(parameters)
    outputs, weights = zip(*pairs, strict=True)
    with explained():
        return torch.autograd.grad(outputs, parameters, grad_outputs=weights, allow_unused=True)


def check_differentiable(loss: Any) -> None:
    """Check that a loss has one element and depends on something.

    Raises:
        InvalidArgumentError: otherwise.

    >>> check_differentiable(torch.tensor([1.0]))
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: the loss does not depend on any free parameter; ...
    """
    if not isinstance(loss, Tensor):
        raise InvalidArgumentError(
            "the closure must return the loss as a tensor, or call backward() itself; "
            f"got {type(loss).__name__} and no gradient"
        )
    if loss.numel() != 1:
        raise InvalidArgumentError(
            f"the loss must have one element, got the shape {list(loss.shape)}; take its mean"
        )
    if not loss.requires_grad:
        raise InvalidArgumentError(
            "the loss does not depend on any free parameter; does the closure detach it, or are "
            "all parameters frozen?"
        )


@contextmanager
def explained() -> Iterator[None]:
    """Say what torch's likely errors mean for the closure.

    >>> with explained():
    ...     raise RuntimeError("derivative for aten::x is not implemented")
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: the loss cannot be differentiated twice ...
    """
    try:
        yield
    except RuntimeError as error:
        if "backward through the graph a second time" in str(error):
            raise InvalidArgumentError(
                "the closure called backward() but left no gradient on the optimizer's "
                "parameters, so the loss cannot be differentiated again; let it return the loss "
                "without backward(), or not clear the gradients"
            ) from error
        missing = "derivative for" in str(error) and "not implemented" in str(error)
        if missing or "does not currently support double backward" in str(error):
            raise InvalidArgumentError(
                f"the loss cannot be differentiated twice ({error}); use the accelerated mode, "
                'for a smooth loss engine="central_difference", or for attention the SDPA backend '
                "MATH"
            ) from error
        raise
