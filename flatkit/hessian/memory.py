"""Bytes: how many a computation holds at once, and how many samples a budget allows."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Ledger(TorchDispatchMode):
    """Counts the bytes of the tensors that were made inside and still live."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._bytes = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Mapping | None = None
    ) -> Any:
        before = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        self.sweep()
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in before and storage._cdata not in self._live:
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self._bytes += storage.nbytes()
        self.peak = max(self.peak, self._bytes)
        return result

    def sweep(self) -> int:
        """Forget what is gone, and return the bytes of what lives."""
        for key in [key for key, (ref, _) in self._live.items() if ref.expired()]:
            self._bytes -= self._live.pop(key)[1]
        return self._bytes


def measure_bytes(function: Callable[[], Any]) -> tuple[int, int, Any]:
    """Return the peak of the bytes that a function allocates, those of them left, and its result.

    Scratch space inside a single kernel is not seen.

    >>> import torch
    >>> measure_bytes(lambda: (torch.zeros(1000) + 1).sum())[:2]
    (8000, 4)
    """
    ledger = _Ledger()
    with ledger:
        result = function()
    return ledger.peak, ledger.sweep(), result


@dataclass(frozen=True)
class Footprint:
    """Bytes as a straight line in the number of samples.

    Attributes:
        fixed: bytes of a product whatever the samples.
        peak: bytes a sample, while a chunk is prepared and multiplied with.
        kept: bytes a sample, of a prepared chunk.
        kept_fixed: bytes of a prepared chunk whatever its samples.
    """

    fixed: float
    peak: float
    kept: float
    kept_fixed: float

    def plan(self, samples: int, budget: int, most: int) -> tuple[int, int]:
        """Return the chunk size and how many prepared chunks to keep.

        If everything fits, all chunks are kept; else chunks are as large as the budget allows
        and, as far as it still goes, some of them are kept.

        >>> Footprint(fixed=100, peak=10, kept=5, kept_fixed=0).plan(100, budget=200, most=100)
        (10, 0)
        """
        size = min(samples, most)
        chunks = -(-samples // size)
        everything = (
            self.fixed + self.peak * size + (chunks - 1) * (self.kept * size + self.kept_fixed)
        )
        if everything <= budget:
            return size, chunks
        size = int(max(1, min(size, (budget - self.fixed) / max(1.0, self.peak))))
        left = budget - self.fixed - self.peak * size
        each = self.kept * size + self.kept_fixed
        return size, int(max(0, left // each)) if each > 0 else 0


def footprint(
    prepare: Callable[[int], Any], *, few: int, most: int, budget: int, steps: int = 12
) -> Footprint:
    """Return the footprint of a product, measured on two chunks of growing size.

    The peak is the largest of several stages, each a line in the number of samples with a fixed
    part of its own, so that what small chunks show may not hold for large ones: chunks are doubled
    until twice the last one would go beyond the budget.

    Args:
        prepare: samples -> a chunk that was prepared and multiplied with.
        few: samples of the first chunk.
        most: samples at most.
        budget: bytes.
        steps: doublings at most.
    """
    size, measured = few, [_measure(prepare, few)]
    for _ in range(steps):
        size = 2 * size
        measured.append(_measure(prepare, size))
        (low, _), (high, _) = measured[-2:]
        if 2 * size > most or high + 2 * (high - low) > budget:
            break
    half = size / 2
    (low, low_kept), (high, high_kept) = measured[-2:]
    peak, kept = (high - low) / half, (high_kept - low_kept) / half
    return Footprint(
        fixed=max(0.0, high - peak * size),
        peak=max(0.0, peak),
        kept=max(0.0, kept),
        kept_fixed=max(0.0, high_kept - kept * size),
    )


def free_bytes(device: torch.device) -> int:
    """Return the memory that nobody uses on a device; 0 if it cannot be told.

    >>> free_bytes(torch.device("meta"))
    0
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu" and "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0


def _measure(prepare: Callable[[int], Any], size: int) -> tuple[int, int]:
    """Return the peak bytes of a chunk and those that it keeps."""
    peak, left, holder = measure_bytes(lambda: prepare(size))
    del holder
    return peak, left


def _tensors(value: Any) -> list[Tensor]:
    return [item for item in tree_leaves(value) if isinstance(item, Tensor)]
