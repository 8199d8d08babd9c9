"""Layers with weights: linear maps and convolutions, with a BatchNorm that follows folded in."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from flatkit.hessian.layers.layer import Layer, Parameters, Sum, added


@dataclass(frozen=True)
class Normalisation:
    """BatchNorm with running statistics: γ (z - μ)/σ + β; names of γ and β, if they are free."""

    weight: str | None
    bias: str | None
    mean: Tensor
    deviation: Tensor


class Affine(Layer):
    """y = W ∗ x + b, or that normalised: (γ/σ) W ∗ x + (b - μ) γ/σ + β.

    The normalisation is folded into the weights: what multiplies activations is one matrix, and
    the rule of γ, β is a matter of the small tensors alone.
    """

    def __init__(
        self, weight: str, bias: str | None, normalisation: Normalisation | None = None
    ) -> None:
        self.weight, self.bias, self.norm = weight, bias, normalisation

    @abstractmethod
    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return W ∗ x + b."""

    @abstractmethod
    def _transposed(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return ∂/∂x of ⟨gradient, W ∗ x⟩."""

    @abstractmethod
    def _both(self, gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return ∂/∂x (if x depends on parameters) and ∂/∂W of ⟨gradient, W ∗ x⟩."""

    def record(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Return y."""
        (self._x,) = inputs
        self._own = parameters
        self._effective, self._offset = self._fold(parameters)
        return self._apply(self._x, self._effective, self._offset)

    def record_backward(self, gradient: Tensor, total: Sum) -> Sequence[Tensor | None]:
        """Return ∂L/∂x."""
        self._gradient = gradient
        below, weight = self._both(gradient, self._x, self._effective)
        bias = self._summed(gradient) if self._offset is not None else None
        self._first = weight, bias
        self._unfold(weight, bias, total)
        return (below,)

    def push(self, inputs: Sequence[Tensor | None], directions: Parameters) -> Tensor | None:
        """Return ẏ = Ẇ ∗ x + ḃ + W ∗ ẋ."""
        (self._pushed,) = inputs
        self._directions = {name: d[0] for name, d in directions.items() if name in self.names}
        self._weight_direction, bias = self._fold_direction(self._directions)
        result = None
        if self._weight_direction is not None:
            result = self._apply(self._x, self._weight_direction, bias)
        elif bias is not None:
            shape = [1, -1] + [1] * (self._gradient.ndim - 2)  # channels are second
            result = bias.view(shape).expand_as(self._gradient).contiguous()
        if self._pushed is not None:
            own = self._apply(self._pushed, self._effective, None)
            result = own if result is None else result.add_(own)
        return result

    def pull(self, gradient: Tensor | None, total: Sum, *, curved: bool) -> Sequence[Tensor | None]:
        """Return W* ġ + Ẇ* g, and add ġ x* + g ẋ*."""
        below = weight = bias = None
        if gradient is not None:
            below, weight = self._both(gradient, self._x, self._effective)
            bias = self._summed(gradient) if self._offset is not None else None
        if curved and self._pushed is not None:
            other = self._effective if self._weight_direction is None else self._weight_direction
            x, w = self._both(self._gradient, self._pushed, other)
            below = below if self._weight_direction is None else added(below, x)
            weight = added(weight, w)
        elif curved and self._weight_direction is not None and self.needs_input_gradient:
            x = self._transposed(self._gradient, self._x, self._weight_direction)
            below = added(below, x)
        if weight is not None:
            self._unfold_direction(weight, bias, total, curved=curved)
        elif curved and self.norm is not None:
            self._unfold_direction(torch.zeros_like(self._first[0]), bias, total, curved=curved)
        return (below,)

    needs_input_gradient = True
    """Whether the input depends on parameters; set by the network."""

    def _summed(self, gradient: Tensor) -> Tensor:
        """Return the sum over all but the channels, which are second."""
        return gradient.sum([0, *range(2, gradient.ndim)])

    @property
    def names(self) -> set[str]:
        """The parameters."""
        own = {self.weight, self.bias}
        if self.norm is not None:
            own |= {self.norm.weight, self.norm.bias}
        return {name for name in own if name is not None}

    def _fold(self, parameters: Parameters) -> tuple[Tensor, Tensor | None]:
        weight = parameters[self.weight]
        bias = parameters[self.bias] if self.bias is not None else None
        if self.norm is None:
            return weight, bias
        deviation = self.norm.deviation
        gamma = parameters[self.norm.weight] if self.norm.weight else torch.ones_like(deviation)
        self._scale = gamma / deviation
        self._centred = -self.norm.mean if bias is None else bias - self.norm.mean
        offset = self._centred * self._scale
        if self.norm.bias is not None:
            offset = offset + parameters[self.norm.bias]
        return _rows(self._scale, weight) * weight, offset

    def _fold_direction(self, directions: Parameters) -> tuple[Tensor | None, Tensor | None]:
        weight = directions.get(self.weight)
        bias = directions.get(self.bias) if self.bias is not None else None
        if self.norm is None:
            return weight, bias
        own, scale = self._own[self.weight], self._scale
        gamma = directions.get(self.norm.weight) if self.norm.weight else None
        self._scale_direction = None if gamma is None else gamma / self.norm.deviation
        moved = None if weight is None else _rows(scale, weight) * weight
        offset = None if bias is None else bias * scale
        if self._scale_direction is not None:
            moved = added(moved, _rows(self._scale_direction, own) * own)
            offset = added(offset, self._centred * self._scale_direction)
        if self.norm.bias is not None:
            offset = added(offset, directions.get(self.norm.bias))
        return moved, offset

    def _unfold(self, weight: Tensor, bias: Tensor | None, total: Sum) -> None:
        if self.norm is None:
            total.add(self.weight, weight)
            if bias is not None:
                total.add(self.bias, bias)
            return
        assert bias is not None
        total.add(self.weight, _rows(self._scale, weight) * weight)
        total.add(self.bias, self._scale * bias)
        total.add(self.norm.bias, bias)
        scale = _row_sums(weight * self._own[self.weight]) + self._centred * bias
        total.add(self.norm.weight, scale / self.norm.deviation)

    def _unfold_direction(
        self, weight: Tensor, bias: Tensor | None, total: Sum, *, curved: bool
    ) -> None:
        if self.norm is None or not curved:
            if self.norm is not None and bias is None:
                bias = torch.zeros_like(self.norm.mean)
            self._unfold(weight, bias, total)
            return
        first_weight, first_bias = self._first
        assert first_bias is not None
        bias = torch.zeros_like(first_bias) if bias is None else bias
        turn = self._scale_direction
        own = _rows(self._scale, weight) * weight
        below = self._scale * bias
        if turn is not None:
            own = own + _rows(turn, first_weight) * first_weight
            below = below + turn * first_bias
        total.add(self.weight, own)
        total.add(self.bias, below)
        total.add(self.norm.bias, bias)
        scale = _row_sums(weight * self._own[self.weight]) + self._centred * bias
        if self.weight in self._directions:
            scale = scale + _row_sums(first_weight * self._directions[self.weight])
        if self.bias is not None and self.bias in self._directions:
            scale = scale + self._directions[self.bias] * first_bias
        total.add(self.norm.weight, scale / self.norm.deviation)


@final
class Convolution(Affine):
    """A convolution in any number of dimensions, with groups, strides, paddings and dilations."""

    def __init__(
        self,
        weight: str,
        bias: str | None,
        normalisation: Normalisation | None = None,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> None:
        super().__init__(weight, bias, normalisation)
        zeros = [0] * len(stride)
        # As torch's operations take them: not transposed, no padding of the output.
        self._settings = (
            *(list(stride), list(padding), list(dilation)),
            *(False, zeros, groups),
        )

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.aten.convolution(x, weight, bias, *self._settings)

    def _transposed(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return torch.ops.aten.convolution_backward(
            gradient, x, weight, None, *self._settings, [True, False, False]
        )[0]

    def _both(self, gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor | None, Tensor]:
        wanted = [self.needs_input_gradient, True, False]
        below, own, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, *self._settings, wanted
        )
        return below, own


@final
class NormalisedLinear(Affine):
    """A linear map of rows [B, in] with a BatchNorm after it."""

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def _transposed(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return gradient @ weight

    def _both(self, gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor | None, Tensor]:
        below = gradient @ weight if self.needs_input_gradient else None
        return below, gradient.T @ x


def _rows(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.ndim - 1))


def _row_sums(product: Tensor) -> Tensor:
    return product.flatten(1).sum(1)
