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
            bend = None
            with torch_derivatives():
                (slope,) = torch.autograd.grad(y.sum(), point, create_graph=True)
                if slope.requires_grad:
                    (bend,) = torch.autograd.grad(slope.sum(), point, materialize_grads=True)
        self._slope = slope.detach()
        self._bend = bend if bend is not None and bool(bend.any()) else None
        return y.detach()

    def record_backward(self, gradient: Tensor, total: Sum) -> Sequence[Tensor | None]:
        """Return φ′(x) g."""
        # φ″(x) g is all that products need of φ″, and takes its place in memory.
        self._curvature = None if self._bend is None else self._bend * gradient
        self._bend = None
        return (self._slope * gradient,)

    def push(self, inputs: Sequence[Tensor | None], directions: Parameters) -> Tensor | None:
        """Return φ′(x) ẋ."""
        (self._pushed,) = inputs
        if self._pushed is None:
            return None
        if self._curvature is None:
            # Without a curvature `pull` does not ask for ẋ: its memory is given back.
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
    """A map without parameters that is linear in its inputs: reshaping, padding, averaging.

    Args:
        function: of the inputs, y.
        linear: y but for what does not depend on the inputs; by default there is no such thing.
        transposed: of (gradient, shape of the input), for one input; by default, by autograd.
        takes_blocks: whether it maps every sample by itself.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        linear: Callable[..., Tensor] | None = None,
        *,
        transposed: Callable[[Tensor, Sequence[int]], Tensor] | None = None,
        takes_blocks: bool = False,
    ) -> None:
        self._function, self._linear = function, linear or function
        self._back, self.takes_blocks = transposed, takes_blocks

    def record(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Return y."""
        y = self._function(*inputs)
        self._shapes, self._rows = [x.shape for x in inputs], _rows(y)
        self._zero = inputs[0].new_zeros(())
        return y

    def record_backward(self, gradient: Tensor, total: Sum) -> Sequence[Tensor | None]:
        """Return Aᵀ g."""
        return self._transposed(gradient)

    def push(self, inputs: Sequence[Tensor | None], directions: Parameters) -> Tensor | None:
        """Return A ẋ."""
        if all(x is None for x in inputs):
            return None
        pairs = zip(inputs, self._shapes, strict=True)
        return self._linear(*(self._zero.expand(s) if x is None else x for x, s in pairs))

    def pull(self, gradient: Tensor | None, total: Sum, *, curved: bool) -> Sequence[Tensor | None]:
        """Return Aᵀ ġ."""
        return [None] * len(self._shapes) if gradient is None else self._transposed(gradient)

    def _transposed(self, gradient: Tensor) -> Sequence[Tensor | None]:
        # A linear map has the same transpose at every point: a stand-in without memory will do.
        # The first dimension of its result need not be that of its input.
        factor = _rows(gradient) // self._rows if self.takes_blocks else 1
        shapes = [[factor * n for n in s[:1]] + [*s[1:]] for s in self._shapes]
        if self._back is not None:
            return (self._back(gradient, shapes[0]),)
        points = [self._zero.expand(shape) for shape in shapes]
        with torch.enable_grad():
            points = [point.detach().requires_grad_() for point in points]
            image = self._linear(*points)
            with torch_derivatives():
                return torch.autograd.grad(image, points, gradient, materialize_grads=True)


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
    if factor.ndim == 0 or len(direction) == len(factor):  # of a scalar parameter: [K] or []
        return direction * factor
    wide = direction.view(len(factor), -1, *factor.shape[1:])  # [B, K, ...]
    return (wide * factor[:, None]).view_as(direction)
