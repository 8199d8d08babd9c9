"""Any other differentiable function, by the second derivative that autograd knows."""

from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.fx.node import map_aggregate
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatkit.hessian.layers.layer import Layer, Parameters, Sum
from flatkit.hessian.unsupported import UnsupportedError, torch_derivatives
from flatkit.objective.passes import gradients


@final
class Opaque(Layer):
    """y = f(x₁, ..., w₁, ...) of which only torch knows the derivatives.

    With g held fixed, ⟨g, f(x)⟩ is a scalar whose gradient is J(x)ᵀ g. One backward pass through
    that, along ẋ, gives ẏ = J ẋ (its derivative in g) and the bend of f (its derivative in x).

    Several outputs are laid one after the other in one vector, which is y.

    Args:
        function: of the inputs and of the named parameters.
        names: the parameters.

    Attributes:
        is_smooth: whether y depends on the inputs and parameters smoothly; else it is constant.
        outputs: what the function returns, with a `Piece` of y for each tensor that is smooth.
    """

    def __init__(self, function: Callable[..., Any], names: Sequence[str] = ()) -> None:
        self._function, self.names = function, tuple(names)

    def record(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Return y."""
        values = [*inputs, *(parameters[name] for name in self.names)]
        self._num_inputs = len(inputs)
        self._points = [v.detach().requires_grad_() if v.is_floating_point() else v for v in values]
        # The flash kernels of attention have no second derivative; the plain one has.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            given = dict(zip(self.names, self._points[self._num_inputs :], strict=True))
            y = self._function(*self._points[: self._num_inputs], **given)
            self.outputs, self._y = _one_tensor(y)
        self.is_smooth = self._y.requires_grad
        return self._y.detach()

    def record_backward(self, gradient: Tensor, total: Sum) -> Sequence[Tensor | None]:
        """Return J(x)ᵀ g."""
        with torch.enable_grad(), torch_derivatives():
            self._above = gradient.detach().requires_grad_()
            self._below = gradients(self._y, self._smooth(), self._above, create_graph=True)
        return self._deliver([g.detach() for g in self._below], total)

    def push(self, inputs: Sequence[Tensor | None], directions: Parameters) -> Tensor | None:
        """Return J ẋ, and keep the bend."""
        given = [*inputs, *(self._direction(directions, name) for name in self.names)]
        pairs = [
            (below, direction.view_as(below))
            for below, direction in zip(self._below, self._only_smooth(given), strict=True)
            if direction is not None and below.requires_grad
        ]
        self._bend = None
        if not pairs:
            return None
        outputs, along = zip(*pairs, strict=True)
        with torch_derivatives():
            # ⟨Jᵀg, ẋ⟩ = ⟨g, Jẋ⟩: its derivative in g is Jẋ, and that in x is the bend.
            result, *self._bend = gradients(
                outputs, [self._above, *self._smooth()], along, retain_graph=True
            )
        return result

    def pull(self, gradient: Tensor | None, total: Sum, *, curved: bool) -> Sequence[Tensor | None]:
        """Return J(x)ᵀ ġ + the bend."""
        smooth = self._smooth()
        parts: list[Tensor | None] = [None] * len(smooth)
        if gradient is not None:
            with torch_derivatives():
                parts = list(gradients(self._y, smooth, gradient, retain_graph=True))
        if curved and self._bend is not None:
            parts = [
                bend if part is None else part + bend
                for part, bend in zip(parts, self._bend, strict=True)
            ]
        return self._deliver(parts, total)

    def _smooth(self) -> list[Tensor]:
        return [point for point in self._points if point.requires_grad]

    def _only_smooth(self, values: Sequence[Tensor | None]) -> list[Tensor | None]:
        pairs = zip(values, self._points, strict=True)
        return [value for value, point in pairs if point.requires_grad]

    def _direction(self, directions: Parameters, name: str) -> Tensor | None:
        return directions[name][0] if name in directions else None

    def _deliver(self, parts: Sequence[Tensor | None], total: Sum) -> list[Tensor | None]:
        """Add the derivatives of parameters to their sums, return those of the inputs."""
        left = iter(parts)
        every = [next(left) if point.requires_grad else None for point in self._points]
        for place, name in enumerate(self.names, self._num_inputs):
            part = every[place]
            if part is not None:
                total.add(name, part)
        return every[: self._num_inputs]


@dataclass(frozen=True)
class Piece:
    """A tensor that is part of a longer vector.

    Attributes:
        place: of its first entry; None if it is the whole.
        shape: of the tensor.
    """

    place: int | None
    shape: torch.Size

    def of(self, whole: Tensor) -> Tensor:
        """Return the tensor.

        >>> Piece(1, torch.Size([1, 2])).of(torch.arange(4))
        tensor([[1, 2]])
        """
        if self.place is None:
            return whole
        return whole[self.place : self.place + self.shape.numel()].view(self.shape)


def _one_tensor(found: Any) -> tuple[Any, Tensor]:
    """Return what a function returned with pieces for its smooth tensors, and these as one."""
    if isinstance(found, Tensor):
        return Piece(None, found.shape), found
    smooth: list[Tensor] = []

    def piece(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            if leaf is not None and not isinstance(leaf, (bool, int, float, str)):
                raise UnsupportedError(f"an operation returns a {type(leaf).__name__}")
            return leaf
        if not leaf.requires_grad:
            return leaf
        smooth.append(leaf)
        return Piece(sum(each.numel() for each in smooth[:-1]), leaf.shape)

    pieces = map_aggregate(_as_named_tuple(found), piece)
    if len({tensor.dtype for tensor in smooth}) > 1:
        raise UnsupportedError("an operation returns tensors of several dtypes")
    whole = torch.cat([tensor.reshape(-1) for tensor in smooth]) if smooth else torch.empty(0)
    return pieces, whole


def _as_named_tuple(found: Any) -> Any:
    """Return what torch calls a structure, such as the result of `max`, as a named tuple."""
    if not isinstance(found, tuple) or not type(found).__module__.startswith("torch.return_types"):
        return found
    return namedtuple("Several", type(found).__match_args__)(*found)  # type: ignore[attr-defined]
