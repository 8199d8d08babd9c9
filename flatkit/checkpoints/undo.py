"""A model that is as it was, bit for bit, unless what was done to it is to stay."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@contextmanager
def undone(model: nn.Module) -> Generator[Callable[[], None], None, None]:
    """Put a model back at the end of the block, also after an error, unless told to keep it.

    Tensors, dtypes, submodules and attributes are put back; what lies inside an attribute, such as
    the items of a list, is not seen. Costs a copy of its parameters and buffers.

    Yields:
        A function to call where the changes shall stay.

    >>> model = nn.Linear(1, 1)
    >>> with undone(model):
    ...     _ = model.double().weight.data.fill_(7.0)
    >>> model.weight.dtype, model.weight.item() == 7.0
    (torch.float32, False)
    """
    kept: list[bool] = []
    tensors = [_Kept(tensor) for tensor in _tensors(model)]
    # Scripted modules have no dictionaries of their own; only their tensors can change.
    modules = [_attributes(m) for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    try:
        yield lambda: kept.append(True)
    finally:
        if not kept:
            for attributes, parts in modules:
                _put_back(attributes, parts)
            for tensor in tensors:
                tensor.put_back()


class _Kept:
    """A tensor with its class, its memory and a copy of its values."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._kind, self._data = tensor, type(tensor), tensor.data
        # Entries that share memory cannot be written one by one, hence do not change.
        overlaps = tensor.layout == torch.strided and any(
            step == 0 and length > 1
            for step, length in zip(_strides(tensor), _lengths(tensor), strict=True)
        )
        self._copy = None if is_lazy(tensor) or overlaps else tensor.detach().clone()

    def put_back(self) -> None:
        if type(self._tensor) is not self._kind:  # a lazy one that was made
            self._tensor.__class__ = self._kind
        self._tensor.data = self._data
        if self._copy is not None:
            with torch.no_grad():
                self._tensor.copy_(self._copy)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _strides(tensor: Tensor) -> tuple[int, ...]:
    return () if is_lazy(tensor) else tuple(tensor.stride())


def _lengths(tensor: Tensor) -> tuple[int, ...]:
    return () if is_lazy(tensor) else tuple(tensor.shape)


_Parts = dict[str, dict[str, Any]]


def _attributes(module: nn.Module) -> tuple[dict[str, Any], _Parts]:
    """Return the dictionary of a module, and copies of it and of the dictionaries of its parts."""
    own = vars(module)
    parts = {name: dict(own[name]) for name in ("_parameters", "_buffers", "_modules")}
    return own, {"": dict(own), **parts}


def _put_back(own: dict[str, Any], parts: _Parts) -> None:
    # The dictionary itself stays: others may hold it.
    own.clear()
    own.update(parts[""])
    for name in ("_parameters", "_buffers", "_modules"):
        own[name].clear()
        own[name].update(parts[name])
