"""One step's visits to perturbed points: leave θ, take gradients there, come back bit for bit."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flatkit.errors import InvalidArgumentError, NonFiniteError
from flatkit.optim import vectors
from flatkit.optim.differentiation import backward, differentiate, hessian_product
from flatkit.optim.vectors import Vector, Weights

Closure: TypeAlias = Callable[[], Any]
"""Returns the loss as a tensor of one element, or as anything if it has called `backward()`."""


class Excursion:
    """A walk around θ that always comes home; used as a context, under `torch.no_grad`.

    Args:
        param_groups: the groups of an optimizer; parameters with `requires_grad=False` take no
            part. The gradients must be `None` at the start, and are `None` after each pass.
        closure: returns the loss at the parameters as they are.
        eps: added to each norm that is divided by.

    Attributes:
        groups: the param group of each block of a vector, see `flatkit.optim.vectors`.
        pass_number: the number of the pass under way or last made; −1 before the first.
        loss: the loss of the first pass, detached.

    >>> theta = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> groups = [{"params": [theta]}]
    >>> walk = Excursion(groups, lambda: theta.square().sum() / 2, eps=1e-12)
    >>> with torch.no_grad(), walk:
    ...     walk.move(walk.gradient(), [5.0])
    ...     print(theta.tolist(), walk.gradient())
    [6.0, 8.0] [[tensor([6., 8.])]]
    >>> theta.tolist()
    [3.0, 4.0]
    """

    def __init__(
        self, param_groups: Iterable[Mapping[str, Any]], closure: Closure, *, eps: float
    ) -> None:
        self.groups, self._theta = _blocks(param_groups)
        self.pass_number = -1
        self.loss: Any = None
        self._closure = closure
        self._eps = eps
        self._home: Vector = []
        self._used: set[Tensor] = set()

    def __enter__(self) -> None:
        self._home = vectors.copy(self._theta)

    def __exit__(self, *exception: object) -> None:
        self.return_home()
        self._home = []
        for parameter in self._parameters():
            parameter.grad = None  # after an error, nothing is left that might be stepped with

    def gradient(self) -> Vector:
        """Return g = ∇L at the parameters as they are; one pass.

        The closure may call `backward()`, also several times; if it leaves all gradients `None`,
        `backward()` is called here. A missing gradient counts as zero.

        Raises:
            InvalidArgumentError: there is no loss, or nothing that could be differentiated.
        """
        loss = self._evaluate()
        if not self._has_gradients():
            backward(loss)
        return self._own(_taken(parameter) for parameter in self._parameters())

    def gradient_and_growth(self) -> tuple[Vector, Vector]:
        """Return g = ∇L and f = H·g/(‖g‖+eps), the gradient of ‖∇L‖; one pass.

        One gradient and one Hessian-vector product by double backward, together about the
        arithmetic of three gradients.

        Raises:
            InvalidArgumentError: the closure called `backward()`, or the loss cannot be
                differentiated, or not twice.
            NonFiniteError: ‖g‖ is NaN or infinite.
        """
        loss = self._evaluate()
        if self._has_gradients():
            raise InvalidArgumentError(_BACKWARD_CALLED)
        parameters = list(self._parameters())
        gradients = differentiate(loss, parameters)
        gradient = self._own(gradients)
        weight = 1 / (self.norm(gradient, "gradient") + self._eps)
        direction = [tensor for block in gradient for tensor in block]
        growth = self._own(hessian_product(gradients, parameters, direction))
        vectors.scale_(growth, [weight] * len(growth))
        return gradient, growth

    def move(self, direction: Vector, radii: Weights, *, what: str = "gradient") -> None:
        """Move the parameters by radius·d/(‖d‖+eps), the norm over all blocks together.

        Raises:
            NonFiniteError: ‖d‖ is NaN or infinite.
        """
        length = self.norm(direction, what) + self._eps
        vectors.add_(self._theta, direction, [radius / length for radius in radii])

    def return_home(self) -> None:
        """Put the parameters back, bit for bit."""
        vectors.assign_(self._theta, self._home)

    def norm(self, vector: Vector, what: str) -> float:
        """Return the norm of a vector.

        Raises:
            NonFiniteError: it is NaN or infinite.
        """
        length = vectors.norm(vector)
        if not length < float("inf"):  # true for NaN too
            raise NonFiniteError(
                f"the norm of the {what} is {length} in pass {self.pass_number} "
                "(weights put back, no step taken)"
            )
        return length

    def write_gradient(self, gradient: Vector) -> None:
        """Set `.grad` of each parameter that had a gradient in any pass; the others keep `None`."""
        for block, tensors in zip(self._theta, gradient, strict=True):
            for parameter, tensor in zip(block, tensors, strict=True):
                parameter.grad = tensor if parameter in self._used else None

    def _evaluate(self) -> Any:
        self.pass_number += 1
        with torch.enable_grad():
            loss = self._closure()
        if loss is None:
            raise InvalidArgumentError("the closure must return the loss, got None; add `return`")
        if self.pass_number == 0:
            self.loss = loss.detach() if isinstance(loss, Tensor) else loss
        return loss

    def _parameters(self) -> Iterator[Tensor]:
        return (parameter for block in self._theta for parameter in block)

    def _has_gradients(self) -> bool:
        return any(parameter.grad is not None for parameter in self._parameters())

    def _own(self, gradients: Iterable[Tensor | None]) -> Vector:
        """Return copies in the layout of the parameters, zeros where there is no gradient.

        Copies, because autograd and data-parallel buckets may keep, share or overwrite theirs.
        Gradients are drawn one by one, so that each may be freed before the next is copied.
        """
        remaining = iter(gradients)
        return [[self._own_one(p, next(remaining)) for p in block] for block in self._theta]

    def _own_one(self, parameter: Tensor, gradient: Tensor | None) -> Tensor:
        if gradient is None:
            return torch.zeros_like(parameter)
        if gradient.layout is not torch.strided:
            raise InvalidArgumentError(
                f"gradients must be dense, got {gradient.layout}; use sparse=False in the embedding"
            )
        self._used.add(parameter)
        return torch.empty_like(parameter).copy_(gradient)


_BACKWARD_CALLED = (
    "the closure must not call backward() here, because the loss is differentiated twice; "
    "return the loss and leave the rest to the optimizer"
)


def _blocks(
    param_groups: Iterable[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], Vector]:
    """Return the group and the tensors of each block: one group, one device, one dtype."""
    groups: list[Mapping[str, Any]] = []
    theta: Vector = []
    for group in param_groups:
        kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for parameter in group["params"]:
            # Norms of lists with empty tensors are wrong on CUDA before torch 2.6 (pytorch#140066).
            if parameter.requires_grad and parameter.numel() > 0:
                kinds.setdefault((parameter.device, parameter.dtype), []).append(parameter)
        groups += [group] * len(kinds)
        theta += kinds.values()
    return groups, theta


def _taken(parameter: Tensor) -> Tensor | None:
    gradient, parameter.grad = parameter.grad, None
    return gradient
