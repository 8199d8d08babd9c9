"""Layers without weights of their own: activations, sums, and maps that are linear already."""

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from flatkit.hessian.layers.layer import Layer, Parameters, Sum, added
from flatkit.hessian.unsupported import torch_derivatives


@final
class Activation(Layer):
    """y = φ(x), entry by entry; φ′ and φ″ come from autograd, once.

    Where φ″ vanishes everywhere (ReLU and its like) no product pays for it.
    """

    takes_blocks = True

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function

    def record(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Return φ(x)."""
        (x,) = inputs
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            y = self._function(point)
            (slope,) = torch.autograd.grad(y.sum(), point, create_graph=True)
            bend = None
            if slope.requires_grad:
                (bend,) = torch.autograd.grad(
                    slope.sum(), point, allow_unused=True, materialize_grads=True
                )
        self._slope = slope.detach()
        self._bend = bend if bend is not None and bool(bend.any()) else None
        return y.detach()

    def record_backward(self, gradient: Tensor, total: Sum) -> Sequence[Tensor | None]:
        """Return φ′(x) g."""
        self._curvature = None if self._bend is None else self._bend * gradient
        self._bend = None
        return (self._slope * gradient,)

    def push(self, inputs: Sequence[Tensor | None], directions: Parameters) -> Tensor | None:
        """Return φ′(x) ẋ."""
        (self._pushed,) = inputs
        if self._pushed is None:
            return None
        if self._curvature is None:
            pushed, self._pushed = self._pushed, None
            return _times(pushed, self._slope)
        return _times(self._pushed, self._slope)

    def pull(self, gradient: Tensor | None, total: Sum, *, curved: bool) -> Sequence[Tensor | None]:
        """Return φ′(x) ġ + φ″(x) g ẋ."""
        below = None if gradient is None else _times(gradient, self._slope)
        if curved and self._curvature is not None and self._pushed is not None:
            below = added(below, _times(self._pushed, self._curvature))
        return (below,)


@final
class Addition(Layer):
    """y = x₁ + x₂, of one shape."""

    takes_blocks = True

    def record(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Return the sum."""
        return inputs[0] + inputs[1]

    def record_backward(self, gradient: Tensor, total: Sum) -> Sequence[Tensor | None]:
        """Return g twice."""
        return gradient, gradient

    def push(self, inputs: Sequence[Tensor | None], directions: Parameters) -> Tensor | None:
        """Return ẋ₁ + ẋ₂."""
        return added(*inputs)

    def pull(self, gradient: Tensor | None, total: Sum, *, curved: bool) -> Sequence[Tensor | None]:
        """Return ġ twice."""
        return gradient, gradient


@final
class LinearMap(Layer):
    """A map without parameters that is linear in its input: reshaping, padding, averaging."""

    def __init__(self, function: Callable[[Tensor], Tensor], *, takes_blocks: bool = False) -> None:
        self._function, self.takes_blocks = function, takes_blocks

    def record(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Return y."""
        (x,) = inputs
        y = self._function(x)
        self._input_shape, self._rows, self._like = x.shape, _rows(y), x.new_empty(0)
        return y

    def record_backward(self, gradient: Tensor, total: Sum) -> Sequence[Tensor | None]:
        """Return Aᵀ g."""
        return (self._transposed(gradient),)

    def push(self, inputs: Sequence[Tensor | None], directions: Parameters) -> Tensor | None:
        """Return A ẋ."""
        (x,) = inputs
        return None if x is None else self._function(x)

    def pull(self, gradient: Tensor | None, total: Sum, *, curved: bool) -> Sequence[Tensor | None]:
        """Return Aᵀ ġ."""
        return (None if gradient is None else self._transposed(gradient),)

    def _transposed(self, gradient: Tensor) -> Tensor:
        # A linear map has the same transpose at every point: a stand-in without memory will do.
        # The first dimension of its result need not be that of its input.
        shape = list(self._input_shape)
        shape[:1] = [rows * (_rows(gradient) // self._rows) for rows in shape[:1]]
        with torch.enable_grad():
            zero = self._like.new_zeros(()).expand(shape)
            point = zero.detach().requires_grad_()
            image = self._function(point)
            with torch_derivatives():  # a shape written into the model fits one size of batch alone
                (below,) = torch.autograd.grad(image, point, gradient)
        return below


@final
class MaxPooling(Layer):
    """The largest entry of each window: locally a selection, of entries that do not change."""

    def __init__(self, pool: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self._pool = pool

    def record(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Return the largest entries."""
        y, chosen = self._pool(inputs[0])
        self._shape, self._chosen = inputs[0].shape, chosen.flatten(2)
        self._output_shape = y.shape
        return y

    def record_backward(self, gradient: Tensor, total: Sum) -> Sequence[Tensor | None]:
        """Return g at the chosen entries."""
        return (self._scattered(gradient),)

    def push(self, inputs: Sequence[Tensor | None], directions: Parameters) -> Tensor | None:
        """Return the chosen entries of ẋ."""
        (x,) = inputs
        if x is None:
            return None
        return x.flatten(2).gather(2, self._chosen).view(self._output_shape)

    def pull(self, gradient: Tensor | None, total: Sum, *, curved: bool) -> Sequence[Tensor | None]:
        """Return ġ at the chosen entries."""
        return (None if gradient is None else self._scattered(gradient),)

    def _scattered(self, gradient: Tensor) -> Tensor:
        flat = gradient.new_zeros(self._shape).flatten(2)
        flat.scatter_add_(2, self._chosen, gradient.flatten(2))
        return flat.view(self._shape)


def max_pooling(**settings: Any) -> MaxPooling:
    """Return two-dimensional max pooling with the arguments of `F.max_pool2d`.

    >>> layer = max_pooling(kernel_size=2)
    >>> layer.record([torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])], {})
    tensor([[[[4.]]]])
    """
    return MaxPooling(lambda x: F.max_pool2d(x, return_indices=True, **settings))


def _rows(tensor: Tensor) -> int:
    return len(tensor) if tensor.ndim else 1


def _times(direction: Tensor, factor: Tensor) -> Tensor:
    """Return the product with a factor [B, ...] of directions [B·K, ...]."""
    if len(direction) == len(factor):
        return direction * factor
    wide = direction.view(len(factor), -1, *factor.shape[1:])  # [B, K, ...]
    return (wide * factor[:, None]).view_as(direction)
