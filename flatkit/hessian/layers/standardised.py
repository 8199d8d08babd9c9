"""What couples the entries of a row: standardising it, and the softmax."""

from collections.abc import Callable, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from flatkit.hessian.layers.layer import Layer, Parameters, Sum, added


@final
class Standardised(Layer):
    """y = (x - μ)/σ with the mean μ and the deviation σ over the last dimensions.

    Args:
        shape: of the last dimensions.
        eps: added to σ².
    """

    def __init__(self, shape: Sequence[int], eps: float) -> None:
        self._shape, self._eps = list(shape), eps
        self._dims = tuple(range(-len(self._shape), 0))

    def record(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Return y."""
        (x,) = inputs
        variance = x.var(self._dims, correction=0, keepdim=True) if len(x) else x.new_zeros(())
        self._inverse = (variance + self._eps).rsqrt()
        self._y = F.layer_norm(x, self._shape, eps=self._eps)
        return self._y

    def record_backward(self, gradient: Tensor, total: Sum) -> Sequence[Tensor | None]:
        """Return J g; J is symmetric."""
        self._gradient = gradient
        self._below, self._share = self._along(gradient)
        return (self._below,)

    def push(self, inputs: Sequence[Tensor | None], directions: Parameters) -> Tensor | None:
        """Return J ẋ."""
        (x,) = inputs
        self._moved = None if x is None else self._along(x)
        return None if self._moved is None else self._moved[0]

    def pull(self, gradient: Tensor | None, total: Sum, *, curved: bool) -> Sequence[Tensor | None]:
        """Return J ġ + J̇ g, where σ̇ = mean(y ẋ)."""
        below = None if gradient is None else self._along(gradient)[0]
        if curved and self._moved is not None:
            y, deviation = self._moved
            turned = self._share * y + self._y * self._mean(self._gradient * y)
            # J = (I - mean - y yᵀ/n)/σ: along ẋ both y (to J ẋ) and 1/σ (by -σ̇/σ²) move.
            bent = (turned + self._below * deviation) * self._inverse
            below = -bent if below is None else below - bent
        return (below,)

    def _along(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return J x = (x - mean(x) - y mean(y x))/σ, and mean(y x)."""
        share = self._mean(self._y * x)
        return (x - self._mean(x) - self._y * share) * self._inverse, share

    def _mean(self, x: Tensor) -> Tensor:
        return x.mean(self._dims, keepdim=True)


@final
class Softmax(Layer):
    """y = exp(x) / Σ exp(x) along a dimension.

    Args:
        function: of x, y.
        dim: the dimension.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], dim: int) -> None:
        self._function, self._dim = function, dim

    def record(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Return y."""
        self._y = self._function(inputs[0])
        return self._y

    def record_backward(self, gradient: Tensor, total: Sum) -> Sequence[Tensor | None]:
        """Return J g; J is symmetric."""
        self._centred = gradient - self._sum(self._y * gradient)
        return (self._y * self._centred,)

    def push(self, inputs: Sequence[Tensor | None], directions: Parameters) -> Tensor | None:
        """Return J ẋ."""
        (x,) = inputs
        self._moved = None if x is None else self._along(x)
        return self._moved

    def pull(self, gradient: Tensor | None, total: Sum, *, curved: bool) -> Sequence[Tensor | None]:
        """Return J ġ + J̇ g."""
        below = None if gradient is None else self._along(gradient)
        if curved and self._moved is not None:
            turned = self._moved * self._centred
            below = added(below, turned - self._y * self._sum(turned))
        return (below,)

    def _along(self, x: Tensor) -> Tensor:
        """Return J x = y (x - Σ y x)."""
        return self._y * (x - self._sum(self._y * x))

    def _sum(self, x: Tensor) -> Tensor:
        return torch.sum(x, self._dim, keepdim=True)
