"""The Hessian of an objective at a point, through Hessian-vector products."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from flatkit.errors import InvalidArgumentError, NonFiniteError
from flatkit.hessian.autotune import Choice, Preference, choose
from flatkit.hessian.memory import free_bytes, largest_chunk, measure_bytes, measure_chunk
from flatkit.hessian.products import Engine, Prepared, build_engine
from flatkit.objective.function import Objective
from flatkit.spectrum.operators import SymmetricOperator

_SHARE = 0.25
"""Of the free memory, that what products share may take if no budget is given."""


@final
class HessianOperator(SymmetricOperator):
    """H(θ) = ∇²L(θ) of an objective, over all the samples, chunk by chunk.

    How it multiplies is an engine's affair: `auto` probes them on a few samples at the first
    product and takes the cheapest that is within the tolerance of a product in float64. The
    choice, its measured cost and error stand in `settings`.

    What the products of a chunk share (its layers, or the graph of its gradient) is kept while it
    fits: without a budget if all the samples are one chunk, or all chunks take at most a quarter of
    the free memory; else as far as `memory` allows. A product then costs about 2 gradients or less,
    instead of 3.

    Args:
        objective: the function.
        theta: the point [P]; the objective's own by default.
        engine: `auto`, or a name of `flatkit.hessian.ENGINES`.
        tolerance: relative error of a product that `auto` accepts.
        retain_graph: keep what products share; by default as far as it fits.
        memory: bytes that products and their planning may hold at once, beside the model, the data
            and the vectors of the caller, a block of results among them; chunk size and what is
            kept then follow from it, and a block goes through row by row. Counted are tensors and
            what convolutions on a CPU copy (`measure_bytes`), not what comes once, whatever the
            samples: the probe of the engines (some vectors in float64 and a few samples), and what
            libraries keep for themselves. Nor does it bind the C library, which may keep freed
            blocks (glibc gives them back with MALLOC_MMAP_THRESHOLD_=65536 in the environment).

    Raises:
        InvalidArgumentError: by a product or `settings`, if `memory` is too little for one sample,
            or for a chunk of the objective where BatchNorm makes these part of the function.
        NonFiniteError: by `gradient` or a product, if the loss or it is NaN or infinite.

    >>> from torch import nn
    >>> data = (torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]]))
    >>> objective = Objective(nn.Linear(1, 1, bias=False), "mse", data)
    >>> HessianOperator(objective) @ torch.tensor([1.0])  # 2·(1² + 2²) / 2
    tensor([5.])
    """

    def __init__(
        self,
        objective: Objective,
        theta: Tensor | None = None,
        *,
        engine: Preference = "auto",
        tolerance: float = 1e-4,
        retain_graph: bool | None = None,
        memory: int | None = None,
    ) -> None:
        self.objective = objective
        self.theta = (objective.theta if theta is None else theta).detach()
        self.size = objective.num_parameters
        self.dtype, self.device = self.theta.dtype, self.theta.device
        self.memory = memory
        self._preference: Preference = engine
        self._tolerance = tolerance
        self._retain = retain_graph
        self._kept: dict[int, Prepared] = {}

    @cached_property
    def choice(self) -> Choice:
        """The engine and why; probed when it is first needed."""
        return choose(
            self.objective, self.theta, preference=self._preference, tolerance=self._tolerance
        )

    @property
    def settings(self) -> dict[str, Any]:
        """How the products are computed, ready for JSON."""
        size, kept = self._plan
        return {
            **self.choice.settings(),
            "product_chunk_size": size,
            "chunks_kept": kept,
            "memory_budget": self.memory,
        }

    @property
    def parts(self) -> tuple[int, ...]:
        """Sizes of the layers."""
        return self.objective.space.layer_sizes()

    @property
    def rounding(self) -> float:
        """Relative error of a product, as it was measured against float64, or of the dtype."""
        return max(super().rounding, self.choice.error or 0.0)

    def gradient(self) -> Tensor:
        """Return ∇L(θ) of shape [P]; free if all chunks are kept and were prepared."""
        size, kept = self._plan
        if kept * size < self.objective.num_samples:
            return _finite(self.objective.gradient(self.theta), "gradient")
        self.objective.tally.gradients += not self._kept
        total = torch.zeros_like(self.theta)
        for prepared in self._prepared():
            if prepared.gradient is None:  # the engine has no use for it
                return _finite(self.objective.gradient(self.theta), "gradient")
            total += prepared.gradient
        return _finite(total, "gradient")

    def matvec(self, vector: Tensor) -> Tensor:
        """Return H v for v of shape [P]."""
        return self.matmat(vector[None])[0]

    def matmat(self, vectors: Tensor) -> Tensor:
        """Return the products with the rows of a block [K, P], as rows [K, P]."""
        total = torch.zeros_like(vectors)
        at_once = len(vectors) if self.memory is None else 1
        for prepared in self._prepared():
            for rows, sums in zip(vectors.split(at_once), total.split(at_once), strict=True):
                sums += prepared.products(rows)
            del prepared  # or the next chunk is prepared beside this one
        self.objective.tally.matvecs += len(vectors)
        return _finite(total, "Hessian-vector product")

    @cached_property
    def _engine(self) -> Engine:
        return build_engine(self.choice.engine, self.objective, self.theta)

    @cached_property
    def _plan(self) -> tuple[int, int]:
        """The chunk size and how many chunks are kept."""
        own, _ = self.objective, self.choice  # the probe is over before bytes are counted
        _, held, engine = measure_bytes(lambda: self._engine)

        def prepare(size: int) -> Prepared:
            prepared = engine.prepare(next(own.chunks(size)))
            prepared.products(self.theta[None])  # what that leaves behind is kept too
            self.theta.isfinite()  # as the sum is looked at in the end
            return prepared

        if self.memory is not None:
            return self._planned(prepare, self.memory, held + self.theta.nbytes)
        retain = own.num_chunks == 1 if self._retain is None else self._retain
        if self._retain is None and engine.keeps and not retain:
            few = max(1, min(8, own.num_samples // 2))
            if own.batchnorm == "train":  # the chunks are part of the function
                few = own.chunk_size
            everything = measure_bytes(lambda: prepare(few))[1] * own.num_samples / few
            retain = everything <= _SHARE * free_bytes(self.device)
        return own.chunk_size, own.num_chunks if retain and engine.keeps else 0

    def _planned(
        self, prepare: Callable[[int], Prepared], budget: int, fixed: int
    ) -> tuple[int, int]:
        """Return the chunk size and how many chunks are kept within a budget.

        Args:
            prepare: samples -> a chunk that was prepared and multiplied with.
            budget: bytes.
            fixed: bytes of them that the engine and the sum take.
        """
        own, allowed = self.objective, budget - fixed
        if own.batchnorm == "train":  # the chunks are part of the function
            used = measure_chunk(prepare, min(own.chunk_size, own.num_samples))
        else:
            used = largest_chunk(prepare, samples=own.num_samples, budget=allowed)
        if used.peak > allowed:
            part = "one" if used.size == 1 else f"{used.size}, the objective's chunk_size,"
            raise InvalidArgumentError(
                f"memory must be at least {used.peak + fixed:,} bytes here, got {budget:,}: a "
                f"product takes as much with {part} of the samples at once"
            )
        if self._retain is False or not self._engine.keeps:
            return used.size, 0
        chunks = -(-own.num_samples // used.size)
        beside = (allowed - used.peak) // max(1, used.kept)
        return used.size, chunks if beside >= chunks - 1 else beside

    def _prepared(self) -> Iterator[Prepared]:
        size, keep = self._plan
        for number, chunk in enumerate(self.objective.chunks(size)):
            if number in self._kept:
                yield self._kept[number]
                continue
            prepared = self._engine.prepare(chunk)
            if number < keep:
                self._kept[number] = prepared
            yield prepared
            del prepared


def _finite(vector: Tensor, what: str) -> Tensor:
    if not vector.isfinite().all():
        raise NonFiniteError(
            f"the {what} has NaN or infinite entries; the loss overflows here (try "
            "dtype=float64) or is not twice differentiable at this point"
        )
    return vector
