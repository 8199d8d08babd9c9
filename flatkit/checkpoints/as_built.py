"""A model as it was built, so that it takes the weights of one checkpoint after the other."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class AsBuilt:
    """The tensors of a model as it was built.

    Args:
        model: which takes other weights from now on.

    Attributes:
        usable: whether they are all that the model may come to hold of a checkpoint.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> before, kept = layer.weight.item(), AsBuilt(layer)
    >>> _ = nn.init.ones_(layer.weight)
    >>> kept.restore(), layer.weight.item() == before
    (True, True)
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self.usable = model, True
        tensors = list(_tensors(model))
        self._kept: list[tuple[Tensor, Tensor]] = []
        if any(map(nn.parameter.is_lazy, tensors)):
            self.usable = False
        else:
            self._kept = [(tensor, tensor.detach().clone()) for tensor in tensors]

    def restore(self) -> bool:
        """Put them back; return whether the model is then as it was built."""
        now = list(_tensors(self._model))
        # By identity: an adapter or a load hook may have put other tensors in their places.
        same = len(now) == len(self._kept) and all(
            tensor is kept for tensor, (kept, _) in zip(now, self._kept, strict=True)
        )
        if not (self.usable and same):
            return False
        with torch.no_grad():
            for tensor, kept in self._kept:
                if tensor.shape == kept.shape and tensor.dtype == kept.dtype:
                    tensor.copy_(kept)  # in place, as several may share their memory
                else:
                    tensor.data = kept.clone()
        return True


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
