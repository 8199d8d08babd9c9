"""BatchNorm with running statistics, where no layer before it takes it in."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from flatkit.hessian.layers.affine import Normalisation
from flatkit.hessian.layers.layer import Layer, Parameters, Sum, added


@final
class Channelwise(Layer):
    """y = (x - μ) γ/σ + β by channel, which is the second dimension."""

    def __init__(self, norm: Normalisation) -> None:
        self._norm = norm
        self.names = [name for name in (norm.weight, norm.bias) if name is not None]

    def record(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Return y."""
        (x,) = inputs
        norm, self._tail = self._norm, [1] * (x.ndim - 2)
        gamma = 1.0 if norm.weight is None else parameters[norm.weight]
        self._centred = x - self._wide(norm.mean)
        self._scale = self._wide(gamma / norm.deviation)
        y = self._centred * self._scale
        return y if norm.bias is None else y + self._wide(parameters[norm.bias])

    def record_backward(self, gradient: Tensor, total: Sum) -> Sequence[Tensor | None]:
        """Return g γ/σ."""
        self._gradient = gradient
        self._add(gradient, self._centred, total)
        return (gradient * self._scale,)

    def push(self, inputs: Sequence[Tensor | None], directions: Parameters) -> Tensor | None:
        """Return ẋ γ/σ + (x - μ) γ̇/σ + β̇."""
        (self._pushed,) = inputs
        gamma, beta = (directions.get(name or "") for name in (self._norm.weight, self._norm.bias))
        self._turn = None if gamma is None else self._wide(gamma[0] / self._norm.deviation)
        result = None if self._pushed is None else self._pushed * self._scale
        if self._turn is not None:
            result = added(result, self._centred * self._turn)
        if beta is not None:
            result = added(result, self._wide(beta[0]).expand_as(self._centred))
        return result

    def pull(self, gradient: Tensor | None, total: Sum, *, curved: bool) -> Sequence[Tensor | None]:
        """Return ġ γ/σ + g γ̇/σ."""
        below = None
        if gradient is not None:
            self._add(gradient, self._centred, total)
            below = gradient * self._scale
        # y = (x - μ) γ/σ is bilinear in x and γ: these two terms are all of its second derivative.
        if curved and self._turn is not None:
            below = added(below, self._gradient * self._turn)
        if curved and self._pushed is not None and self._norm.weight is not None:
            total.add(self._norm.weight, self._summed(self._gradient * self._pushed))
        return (below,)

    def _add(self, gradient: Tensor, centred: Tensor, total: Sum) -> None:
        """Add Σ g (x - μ)/σ and Σ g."""
        if self._norm.weight is not None:
            total.add(self._norm.weight, self._summed(gradient * centred))
        if self._norm.bias is not None:
            total.add(self._norm.bias, gradient.sum(self._others(gradient)))

    def _summed(self, product: Tensor) -> Tensor:
        return torch.sum(product, self._others(product)) / self._norm.deviation

    def _others(self, tensor: Tensor) -> list[int]:
        return [0, *range(2, tensor.ndim)]

    def _wide(self, channels: Tensor) -> Tensor:
        return channels.view(-1, *self._tail)
