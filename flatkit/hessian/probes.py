"""The samples on which products are compared, and how many of them go through at once."""

from typing import TYPE_CHECKING

from flatkit.objective.model.sizing import MOST_BYTES, rows_that_fit
from flatkit.objective.passes import Chunk
from flatkit.objective.proofs.spread import spread_by_weight, spread_rows

if TYPE_CHECKING:
    from flatkit.objective.function import Objective

_FEWEST, _SHARE, _WORK, _MOST = 2, 20, 1_000_000, 256
"""Samples of a probe: so many at least; one in so many, or as many as make so much work (parameters
times samples) if that is more; and so many at most. Rare samples that take another way through the
model should be among them, and all of it, in float64 for the most part, cost less than one of the
products that follow."""
_CARE = 4
"""Parts into which a chunk of the objective is cut for a probe."""
_LITTLE = 2**24
"""Bytes of a forward pass that are no burden, even to whoever asked for small chunks."""


def rows_of_probe(objective: "Objective", *, most: int = _MOST) -> int:
    """Return how many samples, of which there may be fewer, `samples_of_probe` takes about."""
    wanted = max(_FEWEST, objective.num_rows // _SHARE, _WORK // objective.num_parameters)
    return min(wanted, most)


def samples_of_probe(objective: "Objective", *, most: int = _MOST, draw: int = 0) -> list[Chunk]:
    """Return samples spread over all the data, in chunks, on which products are compared.

    Args:
        objective: whose samples.
        most: so many at most.
        draw: which of several draws.
    """
    count, cut = objective.num_rows, objective.chunk_size
    size = rows_of_probe(objective, most=most)
    if not objective.divisible:  # the chunks are part of the function: some whole ones
        chosen = spread_rows(objective.num_chunks, max(2, size // cut), draw).tolist()
        return [objective.rows(slice(cut * number, cut * (number + 1))) for number in chosen]
    rows = spread_by_weight(objective.weights, min(count, size), draw).unique()
    # In float64 and twice differentiated, a sample holds some times what it does in a gradient.
    at_once = max(1, cut // _CARE)
    # There may be room for more all the same; ranks that hold a model in parts cut alike.
    may_fit = objective.sharded is None and objective.samples.counts is None
    if may_fit and len(rows) > at_once:
        most = MOST_BYTES if cut >= count else _LITTLE
        at_once = max(at_once, min(cut, rows_that_fit(objective, most=most) // _CARE))
    return [objective.rows(part) for part in rows.to(objective.device).split(at_once)]


def whole_chunk(objective: "Objective", size: int) -> tuple[Chunk, list[Chunk]]:
    """Return samples spread over all the data as one chunk, and in parts that float64 has room for.

    Args:
        objective: whose samples.
        size: of the chunk; where there are fewer samples, all of them.
    """
    rows = spread_rows(objective.num_rows, min(size, objective.num_rows)).to(objective.device)
    parts = rows.split(-(-len(rows) // _CARE))
    return objective.rows(rows), [objective.rows(part) for part in parts]
