"""Sums, products and what joins tensors, of any shapes that fit each other."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from flatkit.hessian.layers.layer import Layer, Parameters, Sum, added


@final
class Weight(Layer):
    """A parameter that the model uses itself, outside of its modules."""

    def __init__(self, name: str) -> None:
        self.name = name

    def record(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Return the parameter."""
        return parameters[self.name]

    def record_backward(self, gradient: Tensor, total: Sum) -> Sequence[Tensor | None]:
        """Add g."""
        total.add(self.name, gradient)
        return ()

    def push(self, inputs: Sequence[Tensor | None], directions: Parameters) -> Tensor | None:
        """Return ẇ."""
        return directions[self.name][0]

    def pull(self, gradient: Tensor | None, total: Sum, *, curved: bool) -> Sequence[Tensor | None]:
        """Add ġ."""
        if gradient is not None:
            total.add(self.name, gradient)
        return ()


@final
class Terms(Layer):
    """y = ±x₁ ± x₂ + constants, of shapes that broadcast.

    Args:
        function: of the tensors, y.
        signs: of the tensors.
    """

    def __init__(self, function: Callable[..., Tensor], signs: Sequence[int]) -> None:
        self._function, self.signs = function, list(signs)

    def record(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Return y."""
        y = self._function(*inputs)
        self._shapes, self._shape = [x.shape for x in inputs], y.shape
        return y

    def record_backward(self, gradient: Tensor, total: Sum) -> Sequence[Tensor | None]:
        """Return ±g, summed up where a tensor was repeated."""
        parts = (gradient if sign > 0 else -gradient for sign in self.signs)
        # The transpose of broadcasting.
        return [p.sum_to_size(shape) for p, shape in zip(parts, self._shapes, strict=True)]

    def push(self, inputs: Sequence[Tensor | None], directions: Parameters) -> Tensor | None:
        """Return ±ẋ₁ ± ẋ₂."""
        result = None
        for x, sign in zip(inputs, self.signs, strict=True):
            result = added(result, x if x is None or sign > 0 else -x)
        return None if result is None else result.expand(self._shape)

    def pull(self, gradient: Tensor | None, total: Sum, *, curved: bool) -> Sequence[Tensor | None]:
        """Return ±ġ."""
        return self.record_backward(gradient, total) if gradient is not None else _nothing(self)

    @property
    def num_inputs(self) -> int:
        """How many tensors there are."""
        return len(self.signs)


class Bilinear(Layer):
    """y = B(a, b), linear in a and in b.

    Args:
        a: the first operand where it is constant, or None.
        b: the second operand where it is constant, or None.
    """

    def __init__(self, a: Any = None, b: Any = None) -> None:
        self._fixed = a, b

    @abstractmethod
    def _value(self, a: Any, b: Any) -> Tensor:
        """Return B(a, b)."""

    @abstractmethod
    def _first(self, gradient: Tensor, b: Any) -> Tensor:
        """Return ∂/∂a of ⟨gradient, B(a, b)⟩, not yet summed to the shape of a."""

    @abstractmethod
    def _second(self, gradient: Tensor, a: Any) -> Tensor:
        """Return ∂/∂b of ⟨gradient, B(a, b)⟩, not yet summed to the shape of b."""

    @property
    def num_inputs(self) -> int:
        """How many operands are not constant."""
        return self._fixed.count(None)

    def record(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Return y."""
        left = iter(inputs)
        a, b = (next(left) if fixed is None else fixed for fixed in self._fixed)
        self._operands = a, b
        return self._value(a, b)

    def record_backward(self, gradient: Tensor, total: Sum) -> Sequence[Tensor | None]:
        """Return ∂L/∂a and ∂L/∂b."""
        self._gradient = gradient
        return self._pulled(gradient, *self._operands)

    def push(self, inputs: Sequence[Tensor | None], directions: Parameters) -> Tensor | None:
        """Return B(ȧ, b) + B(a, ḃ)."""
        a, b = self._operands
        left = iter(inputs)
        moved_a, moved_b = (next(left) if fixed is None else None for fixed in self._fixed)
        self._moved = moved_a, moved_b
        first = None if moved_a is None else self._value(moved_a, b)
        return added(first, None if moved_b is None else self._value(a, moved_b))

    def pull(self, gradient: Tensor | None, total: Sum, *, curved: bool) -> Sequence[Tensor | None]:
        """Return what ġ gives, and what g gives with the operands moved."""
        own = _nothing(self) if gradient is None else self._pulled(gradient, *self._operands)
        # With one operand constant B is linear, and does not bend.
        if not curved or self.num_inputs == 1:
            return own
        bent = self._pulled(self._gradient, *self._moved)
        return [added(one, other) for one, other in zip(own, bent, strict=True)]

    def _pulled(self, gradient: Tensor, a: Any, b: Any) -> list[Tensor | None]:
        """Return the derivatives of the operands that move; None where the other one is None."""
        own_a, own_b = self._operands
        found: list[Tensor | None] = []
        if self._fixed[0] is None:
            found.append(None if b is None else self._first(gradient, b).sum_to_size(own_a.shape))
        if self._fixed[1] is None:
            found.append(None if a is None else self._second(gradient, a).sum_to_size(own_b.shape))
        return found


@final
class Product(Bilinear):
    """y = a b, entry by entry; one of them may be a number."""

    def _value(self, a: Any, b: Any) -> Tensor:
        return a * b

    def _first(self, gradient: Tensor, b: Any) -> Tensor:
        return gradient * b

    def _second(self, gradient: Tensor, a: Any) -> Tensor:
        return gradient * a


@final
class Quotient(Bilinear):
    """y = a / b, entry by entry, with a constant b."""

    def _value(self, a: Any, b: Any) -> Tensor:
        return a / b

    def _first(self, gradient: Tensor, b: Any) -> Tensor:
        return gradient / b

    def _second(self, gradient: Tensor, a: Any) -> Tensor:
        raise NotImplementedError  # b is constant


@final
class MatrixProduct(Bilinear):
    """y = a b of matrices, or of batches of them."""

    def _value(self, a: Any, b: Any) -> Tensor:
        return torch.matmul(a, b)

    def _first(self, gradient: Tensor, b: Any) -> Tensor:
        return torch.matmul(gradient, b.mT)

    def _second(self, gradient: Tensor, a: Any) -> Tensor:
        return torch.matmul(a.mT, gradient)


@final
class Joining(Layer):
    """Tensors joined along a dimension.

    Args:
        parts: the constant tensors in their places, None for the others.
        dim: the dimension.
    """

    def __init__(self, parts: Sequence[Tensor | None], dim: int) -> None:
        self._parts, self._dim = parts, dim

    @property
    def num_inputs(self) -> int:
        """How many parts are not constant."""
        return sum(part is None for part in self._parts)

    def record(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Return y."""
        left = iter(inputs)
        every = [next(left) if part is None else part for part in self._parts]
        y = torch.cat(every, self._dim)
        if any(part.ndim != y.ndim for part in every):  # torch lets empty ones pass
            every = [part if part.ndim == y.ndim else y.narrow(self._dim, 0, 0) for part in every]
        self._shapes = [part.shape for part in every]
        self._like = y.new_zeros(())
        return y

    def record_backward(self, gradient: Tensor, total: Sum) -> Sequence[Tensor | None]:
        """Return the parts of g."""
        pieces = gradient.split([shape[self._dim] for shape in self._shapes], self._dim)
        return [p for p, part in zip(pieces, self._parts, strict=True) if part is None]

    def push(self, inputs: Sequence[Tensor | None], directions: Parameters) -> Tensor | None:
        """Return the parts ẋ joined."""
        if all(x is None for x in inputs):
            return None
        left = iter(inputs)
        every = [next(left) if part is None else None for part in self._parts]
        filled = [
            self._like.expand(shape) if x is None else x
            for x, shape in zip(every, self._shapes, strict=True)
        ]
        return torch.cat(filled, self._dim)

    def pull(self, gradient: Tensor | None, total: Sum, *, curved: bool) -> Sequence[Tensor | None]:
        """Return the parts of ġ."""
        return self.record_backward(gradient, total) if gradient is not None else _nothing(self)


def _nothing(layer: Terms | Bilinear | Joining) -> list[Tensor | None]:
    return [None] * layer.num_inputs
