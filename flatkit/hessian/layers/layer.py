"""What a layer must be able to do, and the parameters that it shares with others."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import final

from torch import Tensor

Parameters = Mapping[str, Tensor]
"""By name: values, or directions with K in front of the shape."""


@final
class Sum:
    """Sums of derivatives by parameter name, inside one vector; tied parameters add up.

    Args:
        slots: views [K, *shape] of the vector, uninitialised.
    """

    def __init__(self, slots: Parameters) -> None:
        self._slots, self._begun = slots, set[str]()

    def add(self, name: str | None, value: Tensor) -> None:
        """Add a derivative [K, *shape]; nothing for a parameter that is not free."""
        if name is None or name not in self._slots:
            return
        slot = self._slots[name]
        value = value.reshape(slot.shape)
        if name in self._begun:
            slot += value
        else:
            slot.copy_(value)
            self._begun.add(name)

    def add_product(self, name: str, left: Tensor, right: Tensor) -> None:
        """Add a matrix product [K·out, B] @ [B, in] for a parameter [out, in], if it is free."""
        if name not in self._slots:
            return
        slot = self._slots[name]
        if len(slot) > 1:  # its K parts do not lie beside each other
            self.add(name, left @ right)
        else:
            matrix = slot.view(left.shape[0], right.shape[1])
            # The memory is uninitialised, perhaps NaN: with β = 0 torch does not read it.
            matrix.addmm_(left, right, beta=1.0 if name in self._begun else 0.0)
            self._begun.add(name)

    def close(self) -> None:
        """Set to zero what nothing was added to."""
        for name in self._slots.keys() - self._begun:
            self._slots[name].zero_()


class Layer(ABC):
    """y = f(x₁, ..., w₁, ...) at a point, with its first two derivatives.

    `record` and `record_backward` are called once; then `push` and `pull` alternate. Directions
    are written ẋ, their results ẏ. K directions lie beside each other in the batch: ẋ is
    [B·K, ...], sample by sample. `None` is a direction of zeros.
    """

    takes_blocks = False
    """Whether K > 1 is allowed."""
    _recorded: frozenset[str] = frozenset()
    """Names of what was recorded, which products begin from."""

    @abstractmethod
    def record(self, inputs: Sequence[Tensor], parameters: Parameters) -> Tensor:
        """Return y, and keep what the derivatives need."""

    @abstractmethod
    def record_backward(self, gradient: Tensor, total: Sum) -> Sequence[Tensor | None]:
        """Return ∂L/∂x of each input from ∂L/∂y, add ∂L/∂w, and keep what R needs of them."""

    @abstractmethod
    def push(self, inputs: Sequence[Tensor | None], directions: Parameters) -> Tensor | None:
        """Return ẏ, the derivative of y along (ẋ, ẇ)."""

    @abstractmethod
    def pull(self, gradient: Tensor | None, total: Sum, *, curved: bool) -> Sequence[Tensor | None]:
        """Return the derivative of ∂L/∂x along the direction last pushed, and add that of ∂L/∂w.

        Args:
            gradient: the derivative of ∂L/∂y.
            total: takes the derivatives of ∂L/∂w.
            curved: with what the layer itself bends; without, this is the plain backward pass of
                `gradient`, as the Gauss-Newton matrix has it.
        """

    @final
    def begin(self) -> None:
        """Know what was recorded: what products add to it is given up."""
        self._recorded = frozenset({*vars(self), "_recorded"})

    @final
    def forget(self) -> None:
        """Give up what a product has left: directions, as long as the weights and activations."""
        for name in vars(self).keys() - self._recorded:
            delattr(self, name)


def added(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return the sum, where None is zero."""
    if first is None or second is None:
        return second if first is None else first
    return first + second
