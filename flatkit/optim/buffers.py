"""Buffers of a model under several passes a step: only the first pass may change them."""

from collections.abc import Iterable
from typing import Protocol, final

from torch import Tensor


class HasBuffers(Protocol):
    """What is needed of a model."""

    def named_buffers(self) -> Iterable[tuple[str, Tensor]]:
        """Return the buffers with their names."""
        ...


@final
class Buffers:
    """The running statistics of BatchNorm and whatever else a forward pass leaves in a buffer.

    Perturbed weights are no part of the training that running means should follow. Values are kept
    and put back, and nothing is switched off. So no switch can stick after an error, a compiled
    model is not compiled anew, and layers of any library are covered.

    Args:
        model: its buffers are looked after; None if there is nothing to look after.

    >>> import torch
    >>> norm = torch.nn.BatchNorm1d(1)
    >>> buffers = Buffers(norm)
    >>> buffers.keep()
    >>> _ = norm(torch.ones(3, 1))
    >>> buffers.put_back()
    >>> norm.running_mean
    tensor([0.])
    """

    def __init__(self, model: HasBuffers | None) -> None:
        self._model = model
        self._kept: dict[str, Tensor] = {}

    def keep(self) -> None:
        """Remember the present values."""
        if self._model is not None:
            self._kept = {name: b.detach().clone() for name, b in self._model.named_buffers()}

    def put_back(self) -> None:
        """Put back the values last kept, if any; also twice."""
        if self._model is None or not self._kept:
            return
        for name, buffer in self._model.named_buffers():
            if name in self._kept:
                buffer.copy_(self._kept[name])
