"""Layers with weights: linear maps and convolutions, with a BatchNorm that follows folded in."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
import torch.nn.functional as F
from torch import Tensor

from flatkit.hessian.layers.layer import Layer, Parameters, Sum, added
from flatkit.hessian.layers.patches import has_channels_last, prefers_patches, weight_gradient

_Pairs: TypeAlias = Sequence[tuple[Tensor, Tensor]]


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
    def _forward(self, pairs: _Pairs, bias: Tensor | None) -> Tensor:
        """Return Σ W ∗ x + b over pairs (x, W)."""

    @abstractmethod
    def _down(self, pairs: _Pairs) -> Tensor:
        """Return ∂/∂x of Σ ⟨g, W ∗ x⟩ over pairs (g, W)."""

    @abstractmethod
    def _across(self, pairs: _Pairs) -> Tensor:
        """Return ∂/∂W of Σ ⟨g, W ∗ x⟩ over pairs (g, x)."""

    def _laid_out(self, weight: Tensor) -> Tensor:
        """Return a weight as it lies best in memory."""
        return weight

    def record(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Return y."""
        (self._x,) = inputs
        self._own = parameters
        effective, self._offset = self._fold(parameters)
        self._effective = self._laid_out(effective)
        return self._forward([(self._x, self._effective)], self._offset)

    def record_backward(self, gradient: Tensor, total: Sum) -> Sequence[Tensor | None]:
        """Return ∂L/∂x."""
        self._gradient = gradient
        below = self._down([(gradient, self._effective)]) if self.needs_input_gradient else None
        weight = self._across([(gradient, self._x)])
        bias = self._summed(gradient) if self._offset is not None else None
        # ∂L/∂(γ/σ W) and ∂L/∂offset at θ, by which the folded parameters bend each other in `pull`.
        self._first = weight, bias
        self._unfold(weight, bias, total)
        return (below,)

    def push(self, inputs: Sequence[Tensor | None], directions: Parameters) -> Tensor | None:
        """Return ẏ = Ẇ ∗ x + ḃ + W ∗ ẋ."""
        (self._pushed,) = inputs
        self._directions = {name: d[0] for name, d in directions.items() if name in self.names}
        turned, bias = self._fold_direction(self._directions)
        self._weight_direction = None if turned is None else self._laid_out(turned)
        pairs = [(self._x, self._weight_direction), (self._pushed, self._effective)]
        given = [(x, w) for x, w in pairs if x is not None and w is not None]
        if given:
            return self._forward(given, bias)
        if bias is None:
            return None
        shape = [1, -1] + [1] * (self._gradient.ndim - 2)  # channels are second
        return bias.view(shape).expand_as(self._gradient).contiguous()

    def pull(self, gradient: Tensor | None, total: Sum, *, curved: bool) -> Sequence[Tensor | None]:
        """Return W* ġ + Ẇ* g, and add ġ x* + g ẋ*."""
        down, across, bias = list[tuple[Tensor, Tensor]](), list[tuple[Tensor, Tensor]](), None
        if gradient is not None:
            down.append((gradient, self._effective))
            across.append((gradient, self._x))
            bias = self._summed(gradient) if self._offset is not None else None
        if curved and self._weight_direction is not None:
            down.append((self._gradient, self._weight_direction))
        if curved and self._pushed is not None:
            across.append((self._gradient, self._pushed))
        if across:
            self._unfold_direction(self._across(across), bias, total, curved=curved)
        elif curved and self.norm is not None:
            self._unfold_direction(torch.zeros_like(self._first[0]), bias, total, curved=curved)
        return (self._down(down) if down and self.needs_input_gradient else None,)

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
        # (γ/σ) W and (b - μ) γ/σ + β, as in the docstring of the class.
        return _rows(self._scale, weight) * weight, offset

    def _fold_direction(self, directions: Parameters) -> tuple[Tensor | None, Tensor | None]:
        weight = directions.get(self.weight)
        bias = directions.get(self.bias) if self.bias is not None else None
        if self.norm is None:
            return weight, bias
        own, scale = self._own[self.weight], self._scale
        gamma = directions.get(self.norm.weight) if self.norm.weight else None
        self._scale_direction = None if gamma is None else gamma / self.norm.deviation
        # The product rule on what is folded: (γ/σ) Ẇ + (γ̇/σ) W, and the same of the offset.
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
        # The product rule once more, on ∂L/∂W = (γ/σ) ∂L/∂(folded W), and below on that of γ.
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

    def _laid_out(self, weight: Tensor) -> Tensor:
        last = has_channels_last(self._x)
        return weight.contiguous(memory_format=torch.channels_last) if last else weight

    def _forward(self, pairs: _Pairs, bias: Tensor | None) -> Tensor:
        (x, weight), *others = pairs
        result = torch.ops.aten.convolution(x, weight, bias, *self._settings)
        for x, weight in others:
            result += torch.ops.aten.convolution(x, weight, None, *self._settings)
        return result

    def _down(self, pairs: _Pairs) -> Tensor:
        parts = [
            torch.ops.aten.convolution_backward(
                gradient, self._x, weight, None, *self._settings, [True, False, False]
            )[0]
            for gradient, weight in pairs
        ]
        return _total(parts)

    def _across(self, pairs: _Pairs) -> Tensor:
        stride, padding, dilation, *_, groups = self._settings
        weight = self._effective
        if prefers_patches(self._x, self._gradient, groups=groups):
            found = weight_gradient(pairs, weight.shape[2:], stride, padding, dilation)
            return found.contiguous()  # as the parameters lie
        parts = [
            torch.ops.aten.convolution_backward(
                gradient, x, weight, None, *self._settings, [False, True, False]
            )[1]
            for gradient, x in pairs
        ]
        return _total(parts).contiguous()


@final
class NormalisedLinear(Affine):
    """A linear map of rows [B, in] with a BatchNorm after it."""

    def _forward(self, pairs: _Pairs, bias: Tensor | None) -> Tensor:
        (x, weight), *others = pairs
        result = F.linear(x, weight, bias)
        for x, weight in others:
            result.addmm_(x, weight.T)
        return result

    def _down(self, pairs: _Pairs) -> Tensor:
        return _total([gradient @ weight for gradient, weight in pairs])

    def _across(self, pairs: _Pairs) -> Tensor:
        return _total([gradient.T @ x for gradient, x in pairs])


def _total(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of new tensors, in the memory of the first."""
    first, *others = parts
    for other in others:
        first += other
    return first


def _rows(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.ndim - 1))


def _row_sums(product: Tensor) -> Tensor:
    return product.flatten(1).sum(1)
