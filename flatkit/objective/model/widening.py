"""Models that compute in 16 bits by themselves: noticed, and computed without."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, final

import torch
from torch import Tensor

from flatkit.objective.model.dispatch import Mode, execute, leaves_in, map_leaves, tensors_in

_FULL = torch.float32
"""Of fewer bits no rounding passes unnoticed."""


@cache  # a mode asks it of every tensor
def is_narrower(dtype: torch.dtype, than: torch.dtype = _FULL) -> bool:
    """Whether real or complex numbers have fewer bits than others.

    >>> is_narrower(torch.bfloat16), is_narrower(torch.float32), is_narrower(torch.int8)
    (True, False, False)
    """
    inexact = dtype.is_floating_point or dtype.is_complex
    return inexact and torch.finfo(dtype).bits < torch.finfo(than).bits


@final
class Roundings(Mode):
    """Notices where numbers are rounded to fewer bits, by a cast or by autocast.

    What is made in 16 bits of nothing, such as a mask, is no rounding. What `Widening` leaves
    without effect is noticed too.

    Args:
        full: the dtype of which no number may be rounded.

    Attributes:
        dtype: to which was rounded, of several the coarsest; None if nothing was.

    >>> with Roundings() as seen, torch.autocast("cpu", torch.bfloat16):
    ...     found = torch.ones(1, 1) @ torch.ones(1, 1)
    >>> seen.dtype
    torch.bfloat16
    """

    def __init__(self, full: torch.dtype = _FULL) -> None:
        super().__init__()
        self.dtype: torch.dtype | None = None
        self._full = full

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = execute(func, args, kwargs)
        asked = [leaf for leaf in leaves_in((args, kwargs)) if isinstance(leaf, torch.dtype)]
        found = [tensor.dtype for tensor in tensors_in(result)] + asked
        # Also a dtype that was asked for: under `Widening` the result no longer shows it.
        narrow = [dtype for dtype in found if is_narrower(dtype, self._full)]
        if narrow and any(self._is_full(t.dtype) for t in tensors_in((args, kwargs))):
            known = [] if self.dtype is None else [self.dtype]
            # Of several the coarsest counts: float8 hides what bfloat16 does.
            self.dtype = max(narrow + known, key=lambda dtype: torch.finfo(dtype).eps)
        return result

    def _is_full(self, dtype: torch.dtype) -> bool:
        inexact = dtype.is_floating_point or dtype.is_complex
        return inexact and not is_narrower(dtype, self._full)


@final
class Widening(Mode):
    """Lets operations compute in one dtype, whatever narrower one they were asked for.

    Casts, autocast, and what is made in a narrower dtype, in derivatives as well: all stand below
    autograd, which sees what comes of them.

    Args:
        dtype: of which all real numbers are; complex ones are of the same width.

    >>> with Widening(torch.float32), torch.autocast("cpu", torch.bfloat16):
    ...     (torch.ones(1, 1) @ torch.ones(1, 1).bfloat16()).dtype
    torch.float32
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given: Any = (args, kwargs or {})
        if func is not torch.ops.aten.view.dtype:  # which asks for other bits, not for rounding
            given = map_leaves(self._wide_dtype, given)
        if not _shares_memory(func):  # what is written or looked into is to remain the same
            given = map_leaves(self._wide_tensor, given)
        result = execute(func, *given)
        # What is made of tensors has their dtype; only what is made of nothing is still narrow.
        if tensors_in(given):
            return result
        return map_leaves(self._wide_tensor, result)  # made of nothing, in the default dtype

    def _wide_dtype(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.dtype) and is_narrower(leaf, self._dtype):
            return self._like(leaf)
        return leaf

    def _wide_tensor(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and is_narrower(leaf.dtype, self._dtype):
            return leaf.to(self._like(leaf.dtype))
        return leaf

    def _like(self, dtype: torch.dtype) -> torch.dtype:
        return self._dtype.to_complex() if dtype.is_complex else self._dtype


@cache
def _shares_memory(func: Any) -> bool:
    """Whether an operation writes into an argument or returns a view of one."""
    # torch's own schema says so of every operation; a list of names would miss new ones.
    given = getattr(getattr(func, "_schema", None), "arguments", ())
    return any(argument.alias_info is not None for argument in given)
