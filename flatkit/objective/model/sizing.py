"""How many samples go through a model at once, so that what they leave behind fits in memory."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

from flatkit.objective.model.dispatch import Mode, execute, tensors_in
from flatkit.objective.model.habits import WATCHED
from flatkit.objective.reading.sample_set import default_chunk_size

if TYPE_CHECKING:
    from flatkit.objective.function import Objective

_FEW = 32
"""Samples that go through at once without a look."""
MOST_BYTES = 2**28
"""Bytes that the operations of a forward pass may make; its derivatives take some times as many."""


def made_by(func: Any, result: Any) -> list[Tensor]:
    """Return the tensors that an operation makes; those of a view are none.

    Args:
        func: what a `TorchDispatchMode` is told of.
        result: what came of it.
    """
    # A view holds no memory of its own.
    return [] if _is_view(func) else tensors_in(result)


@cache  # torch makes the arguments of a schema anew whenever it is asked for them
def _is_view(func: Any) -> bool:
    given = getattr(getattr(func, "_schema", None), "arguments", ())
    alias = given[0].alias_info if given else None
    # By torch's schemas `a` returns a view of its argument, and `a!` writes into it.
    return alias is not None and not alias.is_write


class _Made(Mode):
    """Adds up the bytes that operations make; views make none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = execute(func, args, kwargs)
        self.bytes += sum(tensor.nbytes for tensor in made_by(func, result))
        return result


def rows_within(
    run: Callable[[], object], rows: int, most: int, *, most_bytes: int = MOST_BYTES
) -> int:
    """Return how many rows may go through at once.

    Counted, not timed, and by a limit that no machine moves: the same rows give the same sums.

    Args:
        run: a forward pass of some rows.
        rows: how many these are.
        most: rows at once, if memory is no matter.
        most_bytes: that their operations may make.

    >>> import torch
    >>> rows_within(lambda: torch.zeros(2, 2**20) + 1, 2, 100)
    32
    """
    with _Made() as made:
        run()
    # At least a byte, for models that make nothing, as an identity.
    each = max(1, made.bytes // rows)
    return max(1, min(most, most_bytes // each))


def rows_at_once(objective: "Objective") -> int:
    """Return how many samples go through a model at once where nobody says it. Cost: 8 samples."""
    most = default_chunk_size(objective.samples)
    # So few fit anyway, and the look itself costs a pass.
    if most <= _FEW or not objective.divisible or objective.samples.counts is not None:
        return most
    return min(most, rows_that_fit(objective))


def rows_that_fit(objective: "Objective", *, most: int = MOST_BYTES) -> int:
    """Return how many samples could go through at once, were there as many. Cost: 8 samples.

    Args:
        objective: whose samples can be cut as one likes.
        most: bytes that the operations of a forward pass may make.
    """
    few = objective.spread(WATCHED)
    with objective.placed(objective.theta) as point:
        rows = min(WATCHED, objective.num_rows)
        return rows_within(lambda: objective.outputs(point, few), rows, most, most_bytes=most)
