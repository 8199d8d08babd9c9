"""Bytes: how many a computation holds at once, and how many samples a budget allows."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flatkit.hessian.workspace import scratch_bytes
from flatkit.objective.model.dispatch import Mode, execute, tensors_in

_FIRST, _SECOND = 2, 8
"""Samples of the first two chunks; a single one may take other kernels than many."""
_STRIDE = 16
"""Times as many samples at most from one chunk to the next: bytes might be no line."""


class _Ledger(Mode):
    """Counts the bytes of the tensors that were made inside and still live.

    Attributes:
        history: these bytes at every operation, with the scratch space of its kernel.
        bytes: of what lives.
    """

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.bytes = 0
        self.history: list[int] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        before = {_storage_id(t) for t in tensors_in((args, kwargs))}
        result = execute(func, args, kwargs)
        for tensor in tensors_in(result):
            storage, key = tensor.untyped_storage(), _storage_id(tensor)
            # A view, or what was written in place, lies in the storage of an argument.
            if key not in before and key not in self._live:
                # A storage keeps one object in Python for as long as a graph holds it. Asking all
                # of them at every operation would take time with the square of their number.
                gone = partial(self._forget, key, storage.nbytes())
                self._live[key] = weakref.ref(storage, gone)
                self.bytes += storage.nbytes()
        self.history.append(self.bytes + scratch_bytes(func, args, result))
        return result

    def _forget(self, key: int, size: int, _: object) -> None:
        del self._live[key]
        self.bytes -= size


def measure_bytes(function: Callable[[], Any]) -> tuple[int, int, Any]:
    """Return the peak of the bytes that a function allocates, those of them left, and its result.

    Counted are tensors, and what convolutions on a CPU copy while they run (`scratch_bytes`). Not
    seen are scratch space of other kernels and of other devices, what libraries keep for
    themselves, and freed memory that an allocator does not give back.

    >>> import torch
    >>> measure_bytes(lambda: (torch.zeros(1000) + 1).sum())[:2]
    (8000, 4)
    """
    history, left, result = _watch(function)
    return max(history, default=0), left, result


@dataclass(frozen=True)
class Usage:
    """The bytes of one chunk, as they were measured.

    Attributes:
        size: its samples.
        history: bytes at each operation while it is prepared and multiplied with.
        kept: bytes left afterwards, of the prepared chunk.
    """

    size: int
    history: tuple[int, ...]
    kept: int

    @property
    def peak(self) -> int:
        """The most bytes at once."""
        return max(self.history, default=0)


def measure_chunk(prepare: Callable[[int], Any], size: int) -> Usage:
    """Return the bytes of a chunk.

    Args:
        prepare: samples -> a chunk that was prepared and multiplied with.
        size: samples.
    """
    history, kept, _ = _watch(lambda: prepare(size))
    return Usage(size, history, kept)


def largest_chunk(prepare: Callable[[int], Any], *, samples: int, budget: int) -> Usage:
    """Return the largest chunk within a budget, as it was measured.

    Each operation's bytes are a line in the samples, which two small chunks show; where the highest
    of these lines meets the budget, a chunk is measured, and its line leads on from there. If they
    are lines, the size is right to 3 % and nothing beyond the budget is measured on the way; if
    they bend upwards, it may be smaller. If a single sample takes more, that is what comes back.

    Args:
        prepare: samples -> a chunk that was prepared and multiplied with.
        samples: the most that there are.
        budget: bytes.

    >>> import torch
    >>> chunk = largest_chunk(torch.zeros, samples=100, budget=130)  # of four bytes a sample
    >>> chunk.size, chunk.peak
    (32, 128)
    """
    first = measure_chunk(prepare, min(_FIRST, samples))
    if first.size == samples and (first.peak <= budget or samples == 1):
        return first
    certain = first.size * budget // max(1, first.peak)  # no line rises faster than in proportion
    if certain > first.size:
        low, high = first, measure_chunk(prepare, min(_SECOND, samples, certain))
    else:
        # Two samples hardly fit, if at all: the line is drawn through one and two.
        low, high = measure_chunk(prepare, 1), first
    if high.peak > budget:
        return low
    most = samples
    while True:
        size = _reach(low, high, budget, min(most, _STRIDE * high.size))
        # Another measurement would gain 3 % at most.
        if size - high.size <= high.size // 32:
            return high
        found = measure_chunk(prepare, size)
        if found.peak <= budget:
            low, high = high, found
        else:  # the lines bend upwards: that between the two is never too low
            step, rise = size - high.size, found.peak - high.peak
            most = high.size + (budget - high.peak) * step // rise


def _watch(function: Callable[[], Any]) -> tuple[tuple[int, ...], int, Any]:
    """Return the bytes at every operation of a function, those left at its end, and its result."""
    ledger = _Ledger()
    with ledger:
        result = function()
    return tuple(ledger.history), ledger.bytes, result


def _reach(low: Usage, high: Usage, budget: int, most: int) -> int:
    """Return how many samples a budget allows if each operation's bytes are a line in them.

    Chunks of different operations have only the line of their peaks, which is followed to twice the
    samples.
    """
    step, pairs = high.size - low.size, zip(low.history, high.history, strict=False)
    if len(low.history) != len(high.history):
        pairs, most = [(low.peak, high.peak)], min(most, 2 * high.size)
    for below, above in pairs:
        if above > below:
            most = min(most, high.size + (budget - above) * step // (above - below))
    return most


def _storage_id(tensor: Tensor) -> int:
    """Return what tells storages apart; torch's own weak references take the same."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
