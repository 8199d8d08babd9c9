"""One visit: the parameters stand at a point, and the caller differentiates the loss there."""

from typing import Any, final

import torch
from torch import Tensor

from flatkit.errors import InvalidArgumentError
from flatkit.optim.autograd import backward, check_differentiable


@final
class GradientPass:
    """What a loop does at one point: `visit.backward(loss)`, once or, for parts of a batch, often.

    `loss.backward()` (with a scaler `scaler.scale(loss).backward()`) is as good where the loss is
    differentiated once.

    Args:
        number: of the pass in its step, from 0.
        parameters: whose gradients are wanted.
        twice: the loss is differentiated twice.
        scaler: scales the loss.

    Attributes:
        number: as above.
        twice: as above; then only `visit.backward(loss)` will do, and all graphs of the pass are
            held until it ends.
        loss: the sum of the losses given so far, detached.

    >>> theta = torch.tensor([3.0], requires_grad=True)
    >>> visit = GradientPass(0, [theta], twice=False)
    >>> for part in (0.25, 0.75):
    ...     visit.backward(part * theta.square().sum())
    >>> theta.grad, visit.loss
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
        """Differentiate the loss, or if that is to be done twice, take it over.

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
                f"pass {self.number} ended without a gradient; call visit.backward(loss) in the "
                "loop over phases()"
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
                "twice; return the loss (in a loop over phases(): visit.backward(loss)), or use "
                'engine="central_difference"'
            )

    def _has_gradients(self) -> bool:
        return any(parameter.grad is not None for parameter in self._parameters)
