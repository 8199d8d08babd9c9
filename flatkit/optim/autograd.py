"""One gradient pass: the loss at one point, differentiated once or twice, with errors that explain.

The optimizers are written as generators. They yield a `GradientPass` to whoever computes the loss
(a closure, or the loop of a user) and go on when that is done.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar, final

import torch
from torch import Tensor

from flatkit.errors import InvalidArgumentError

T = TypeVar("T")
R = TypeVar("R")

Gradients: TypeAlias = Sequence[Tensor | None]
"""One a parameter; `None` where the loss does not depend on it."""


@final
class GradientPass:
    """The loss at one point: `backward(loss)`, once or, for parts of a batch, several times.

    `loss.backward()` (with a scaler `scaler.scale(loss).backward()`) does the same where the loss
    is differentiated once.

    Args:
        number: of the pass in its step, from 0.
        parameters: whose gradients are wanted.
        twice: the loss is differentiated twice.
        scaler: scales the loss.

    Attributes:
        number: as above.
        twice: as above; then only `backward(loss)` of the pass will do, and all graphs of the pass
            are held until it ends.
        loss: the sum of the losses given so far, detached.

    >>> theta = torch.tensor([3.0], requires_grad=True)
    >>> gradient_pass = GradientPass(0, [theta], twice=False)
    >>> for part in (0.25, 0.75):
    ...     gradient_pass.backward(part * theta.square().sum())
    >>> theta.grad, gradient_pass.loss
    (tensor([6.]), tensor(9.))
    """

    def __init__(
        self,
        number: int,
        parameters: list[Tensor],
        *,
        twice: bool,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.number = number
        self.twice = twice
        self.loss: Any = None
        self._parameters = parameters
        self._scaler = scaler
        self._total: Tensor | None = None
        self._done = False

    def backward(self, loss: Any) -> None:
        """Differentiate the loss; if that is to be done twice, keep it with its graph.

        Raises:
            InvalidArgumentError: the loss is no tensor of one element, depends on no free
                parameter, or was differentiated before.
        """
        if self.twice:
            check_differentiable(loss)
            self._total = loss if self._total is None else self._total + loss
        else:
            backward(loss, scaler=self._scaler)
        self._done = True
        self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()

    def take(self, loss: Any) -> None:
        """Take what a closure returned, which may have called `backward` itself.

        Raises:
            InvalidArgumentError: there is no loss, or nothing that could be differentiated.
        """
        if loss is None:
            raise InvalidArgumentError("the closure must return the loss, got None; add `return`")
        if self.twice or not self._has_gradients():
            self._refuse_gradients()
            self.backward(loss)
        self.loss = loss.detach() if isinstance(loss, Tensor) else loss

    def check_done(self) -> None:
        """Check that the loss was differentiated.

        Raises:
            InvalidArgumentError: it was not, or only once where that must be done twice.
        """
        self._refuse_gradients()
        if not self._done and not self._has_gradients():
            raise InvalidArgumentError(
                f"pass {self.number} ended without a gradient; call gradient_pass.backward(loss) "
                "in the loop over gradient_passes()"
            )

    @property
    def total(self) -> Tensor:
        """The sum of the losses, with its graph."""
        assert self._total is not None  # check_done looked
        return self._total

    def release(self) -> None:
        """Let go of the graph."""
        self._total = None

    def _refuse_gradients(self) -> None:
        if self.twice and self._has_gradients():
            raise InvalidArgumentError(
                "the closure must not call backward() here, because the loss is differentiated "
                "twice; return the loss (in a loop over gradient_passes(): "
                'gradient_pass.backward(loss)), or use engine="central_difference"'
            )

    def _has_gradients(self) -> bool:
        return any(parameter.grad is not None for parameter in self._parameters)


Passes: TypeAlias = Generator[GradientPass, None, R]
"""Yields a pass for each gradient that is wanted, and returns what was made of the gradients."""


def without_grad(inner: Generator[T, None, R]) -> Generator[T, None, R]:
    """Resume a generator with gradients disabled, and leave the mode alone while it waits.

    >>> def modes():
    ...     print("inside", torch.is_grad_enabled())
    ...     yield
    >>> for _ in without_grad(modes()):
    ...     print("outside", torch.is_grad_enabled())
    inside False
    outside True
    """
    without = torch.no_grad()  # entered again and again: to make one costs as much
    try:
        while True:
            with without:
                try:
                    item = next(inner)
                except StopIteration as stop:
                    return stop.value
            yield item
    except BaseException:
        with without:
            inner.close()
        raise


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
def explained() -> Generator[None, None, None]:
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
