"""The linear layer, for one direction or for a block of them."""

from collections.abc import Sequence
from typing import final

import torch.nn.functional as F
from torch import Tensor

from flatkit.hessian.layers.layer import Layer, Parameters, Sum


@final
class Linear(Layer):
    """y = x Wᵀ + b over the last dimension; K directions at once if the inputs are rows [B, in].

    A block of K directions makes K small multiplications one large one, which is where blocks are
    cheaper than K single directions.
    """

    def __init__(self, weight: str, bias: str | None) -> None:
        self.weight, self.bias = weight, bias

    needs_input_gradient = True
    """Whether the input depends on parameters; set by the network."""

    @property
    def takes_blocks(self) -> bool:  # type: ignore[override]
        """Whether the inputs are rows."""
        return len(self._shape) == 1

    def record(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Return y."""
        (x,) = inputs
        self._shape = x.shape[:-1]
        self._x = x.reshape(-1, x.shape[-1])  # [B, in]
        self._weight = parameters[self.weight]
        bias = parameters[self.bias] if self.bias is not None else None
        return F.linear(x, self._weight, bias)

    def record_backward(self, gradient: Tensor, total: Sum) -> Sequence[Tensor | None]:
        """Return ∂L/∂x."""
        self._gradient = self._as_rows(gradient)  # [B, out]
        total.add(self.weight, self._gradient.T @ self._x)
        total.add(self.bias, self._gradient.sum(0))
        return (self._as_inputs(self._gradient @ self._weight),)

    def push(self, inputs: Sequence[Tensor | None], directions: Parameters) -> Tensor | None:
        """Return ẏ = x Ẇᵀ + ḃ + ẋ Wᵀ."""
        (x,) = inputs
        self._pushed = None if x is None else self._as_rows(x)  # [B·K, in]
        self._direction = directions.get(self.weight)  # [K, out, in]
        bias = directions.get(self.bias) if self.bias is not None else None
        result = None
        if self._direction is not None:
            columns = self._direction.reshape(-1, self._x.shape[1])  # [K·out, in]
            flat = None if bias is None else bias.reshape(-1)
            result = F.linear(self._x, columns, flat).view(-1, len(self._weight))  # [B·K, out]
        elif bias is not None:
            result = bias.repeat(len(self._x), 1)
        if self._pushed is not None:
            if result is None:
                result = self._pushed @ self._weight.T
            else:
                result.addmm_(self._pushed, self._weight.T)
        return None if result is None else self._as_outputs(result)

    def pull(self, gradient: Tensor | None, total: Sum, *, curved: bool) -> Sequence[Tensor | None]:
        """Return ġ W + g Ẇ, and add ġᵀ x + gᵀ ẋ."""
        below, batch = None, len(self._x)
        if gradient is not None:
            rows = self._as_rows(gradient)  # [B·K, out]
            wide = rows.view(batch, -1)  # [B, K·out]
            total.add_product(self.weight, wide.T, self._x)
            total.add(self.bias, wide.sum(0))
            below = rows @ self._weight if self.needs_input_gradient else None
        if not curved or self._direction is None:  # the rest is about a weight that is free
            return (None if below is None else self._as_inputs(below),)
        if self._pushed is not None and len(self._direction) == 1:
            total.add_product(self.weight, self._gradient.T, self._pushed)
        elif self._pushed is not None:
            # Rows are sample by sample: the view lays the K directions of a sample side by side.
            columns = self._gradient.T @ self._pushed.view(batch, -1)  # [out, K·in]
            blocks = columns.view(len(self._weight), len(self._direction), -1)
            total.add(self.weight, blocks.transpose(0, 1))
        if self.needs_input_gradient:
            turned = self._direction.transpose(0, 1).reshape(len(self._weight), -1)  # [out, K·in]
            if below is None:
                below = (self._gradient @ turned).view(-1, self._x.shape[1])
            else:
                below.view(batch, -1).addmm_(self._gradient, turned)
        return (None if below is None else self._as_inputs(below),)

    def _as_rows(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(-1, tensor.shape[-1])

    def _as_outputs(self, rows: Tensor) -> Tensor:
        return rows if len(self._shape) == 1 else rows.view(*self._shape, -1)

    _as_inputs = _as_outputs
