"""How a pass over the samples is cut for products, and how much of it is kept between them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flatkit.devices import free_bytes, ordinary_torch
from flatkit.errors import InvalidArgumentError
from flatkit.hessian.memory import Usage, largest_chunk, measure_bytes, measure_chunk
from flatkit.hessian.products import Engine, Prepared
from flatkit.objective.function import Objective

_SHARE, _MOST = 0.25, 2**30
"""Prepared chunks are kept as far as they fit into this share of the free memory and, on a CPU,
into so many bytes, so that an analysis leaves room for other work. A budget replaces both."""
_WORTH = 0.3
"""Part of the samples from which on keeping is worth its memory: below it a product is at most an
eighth cheaper."""
_USUAL = 2**29
"""Bytes that a pass holds at once where chunks are not kept and nobody names a budget, about."""
_FEW = 8
"""Samples that show what a prepared chunk holds, where no budget asks for more care."""


@dataclass(frozen=True)
class Plan:
    """How a pass is cut.

    Attributes:
        chunk_size: samples that go through at once.
        kept: chunks that stay prepared between products, from the first on.
    """

    chunk_size: int
    kept: int


@ordinary_torch()
def make_plan(
    objective: Objective,
    theta: Tensor,
    engine: Engine,
    *,
    retain: bool | None = None,
    memory: int | None = None,
) -> Plan:
    """Return how products go over the samples.

    Args:
        objective: L.
        theta: the point [P].
        engine: what multiplies.
        retain: keep prepared chunks, all of them; by default as many as fit.
        memory: bytes that products may hold at once; by default there is no limit.

    Raises:
        InvalidArgumentError: the memory is too little.
    """
    if memory is not None:
        return _within(objective, theta, engine, memory, keep=retain is not False)
    size, whole, keeps = objective.chunk_size, objective.num_chunks, engine.keeps
    keeps = keeps and retain is not False
    if whole == 1 or (keeps and retain):
        return Plan(size, whole if keeps else 0)
    few, peak, held = _few(objective, theta, engine)
    room = few * kept_bytes(theta.device) // max(1, held) if keeps else 0  # in samples
    if room >= objective.num_rows:
        return Plan(size, whole)
    if room < _WORTH * objective.num_rows:
        room = 0
    if objective.divisible:  # else the chunks are part of the function
        # Bytes are taken to grow in proportion to the samples, which errs towards smaller chunks.
        size = min(size, max(few, few * _USUAL // peak))
    return Plan(size, room // size)


def kept_bytes(device: torch.device) -> int:
    """Return the bytes that prepared chunks may hold between products, if nobody names a budget."""
    share = int(_SHARE * free_bytes(device))
    return min(share, _MOST) if device.type == "cpu" else share


def _multiplied(objective: Objective, theta: Tensor, engine: Engine, size: int) -> Prepared:
    """Return a chunk that was prepared and multiplied with: what that leaves behind is kept too."""
    prepared = engine.prepare(next(objective.chunks(size)))
    prepared.products(theta[None])
    theta.isfinite()  # as the sum is looked at in the end
    return prepared


def _few(objective: Objective, theta: Tensor, engine: Engine) -> tuple[int, int, int]:
    """Return a few samples, and the bytes that a product with them takes, and leaves behind."""
    few = max(1, min(_FEW, objective.num_rows // 2))
    if not objective.divisible:  # the chunks are part of the function
        few = objective.chunk_size
    peak, held, _ = measure_bytes(lambda: _multiplied(objective, theta, engine, few))
    return few, max(1, peak), held


def _within(
    objective: Objective, theta: Tensor, engine: Engine, budget: int, *, keep: bool
) -> Plan:
    """Return the largest chunks within a budget, and how many of them can be kept beside one."""

    def prepare(size: int) -> Prepared:
        return _multiplied(objective, theta, engine, size)

    fixed = engine.held + theta.nbytes  # the engine, and the sum of the products
    allowed, samples = budget - fixed, objective.most_rows
    if not objective.divisible:  # the chunks are part of the function
        used = measure_chunk(prepare, min(objective.chunk_size, samples))
    else:
        used = largest_chunk(prepare, samples=samples, budget=allowed)
    if used.peak > allowed:
        raise _too_little(used, fixed, budget)
    if not (keep and engine.keeps):
        return Plan(used.size, 0)
    chunks = -(-samples // used.size)
    # The peak already holds one prepared chunk, so that all fit if all but one do beside it.
    beside = (allowed - used.peak) // max(1, used.kept)
    return Plan(used.size, chunks if beside >= chunks - 1 else beside)


def _too_little(used: Usage, fixed: int, budget: int) -> InvalidArgumentError:
    part = "one" if used.size == 1 else f"{used.size}, the objective's chunk_size,"
    return InvalidArgumentError(
        f"memory must be at least {used.peak + fixed:,} bytes here, got {budget:,}: a product "
        f"takes as much with {part} of the samples at once"
    )
