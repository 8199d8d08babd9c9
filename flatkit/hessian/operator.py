"""The Hessian of an objective at a point, through Hessian-vector products."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from flatkit.devices import give_back, ordinary_torch
from flatkit.devices.ranks import Ranks
from flatkit.errors import NonFiniteError
from flatkit.hessian.autotune import Choice, Preference, choose, direction
from flatkit.hessian.plan import Plan, make_plan
from flatkit.hessian.probes import whole_chunk
from flatkit.hessian.products import Engine, EngineName, Prepared, build_engine
from flatkit.hessian.reference import FEW_FOR_ALL, errors_along, total
from flatkit.objective.function import Objective
from flatkit.objective.kept import PRODUCT, Asked, ask, recall
from flatkit.objective.noise import in_other_chunks
from flatkit.objective.parameters import check_like
from flatkit.objective.passes import Chunk
from flatkit.spectrum.operators import SymmetricOperator
from flatkit.spectrum.shards import Shards


@final
class HessianOperator(SymmetricOperator):
    """H(θ) = ∇²L(θ) of an objective, over all the samples, chunk by chunk.

    An engine multiplies. `auto` probes the engines on a few samples at the first product and takes
    the cheapest that is within the tolerance of a product in float64. The choice, its measured
    cost and its error stand in `settings`.

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
        theta = objective.theta if theta is None else theta
        check_like("theta", theta, objective.theta)
        self.theta = theta.detach()
        self.size = objective.num_parameters
        self.dtype, self.device = self.theta.dtype, self.theta.device
        self.memory = memory
        self._preference: Preference = engine
        self._tolerance = tolerance
        self._retain = retain_graph
        self._engine: Engine | None = None
        self._kept: dict[int, Prepared] = {}
        self._passed = False

    @cached_property
    def choice(self) -> Choice:
        """The engine and why; probed when it is first needed."""
        objective, name = self.objective, f"{self._preference}, {self._tolerance:g}"
        known = recall(objective, "engine", name)
        if known is not None:
            return Choice.from_json(known)
        before = objective.cost
        choice = choose(
            objective, self.theta, preference=self._preference, tolerance=self._tolerance
        )
        if objective.kept is not None:
            objective.kept.remember("engine", name, choice.to_json(), objective.cost - before)
        return choice

    @cached_property
    def plan(self) -> Plan:
        """How a pass is cut; measured when it is first needed, after the engines were probed."""
        objective, name = self.objective, f"{self.choice.engine}, {self._retain}, {self.memory}"
        known = recall(objective, "plan", name)
        if known is not None:
            return Plan(**known)
        before = objective.cost
        engine = self._built(self.choice.engine)
        retain, memory = self._retain, self.memory
        plan = objective.ranks.decided(  # the free memory has a say in it
            lambda: asdict(make_plan(objective, self.theta, engine, retain=retain, memory=memory))
        )
        give_back(self.theta)
        if objective.kept is not None:
            objective.kept.remember("plan", name, plan, objective.cost - before)
        return Plan(**plan)

    @property
    def ranks(self) -> Ranks:
        """The processes that multiply together."""
        return self.objective.ranks

    @property
    def settings(self) -> dict[str, Any]:
        """How the products are computed, ready for JSON."""
        return {
            **self.choice.settings(),
            "product_chunk_size": self.plan.chunk_size,
            "chunks_kept": self.plan.kept,
            "memory_budget": self.memory,
        }

    @property
    def parts(self) -> tuple[int, ...]:
        """Sizes of the layers."""
        return self.objective.space.layer_sizes()

    @property
    def rounding(self) -> float:
        """Relative error of a product, as it was measured; where it was not, ε^½ of the dtype."""
        return max(super().rounding, self.choice.rounding(self.dtype), self.noise)

    @cached_property
    def noise(self) -> float:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Twice what is seen of it on samples in 16 bits: no residual is smaller; else 0."""
        if self.objective.narrow is None:
            return 0.0
        seen, _ = self.choice.rounding(self.objective.narrow), self.plan  # decided by all ranks
        found = self.objective.ranks.decided(
            lambda: self._off_in_a_chunk(direction(self.theta)[None])
        )
        off, size = found[0][0], found[1][0]
        return FEW_FOR_ALL * max(seen, off / size if size > 0 else 0.0)

    def product_errors(self, vectors: Tensor, values: Tensor, *, scale: float) -> Tensor:
        """Return by how much products with unit vectors may be off, ‖Ãv − Av‖, float64 [K].

        A product with a random vector is short: its error, relative to its length, says little of
        one with an eigenvector. In 32 bits, products with these vectors are held against float64,
        on samples spread over all the data; said is twice what is seen there, as few samples stand
        for all; of differences, whose rounding grows with a sum, on a chunk as well. Cost: K
        products in float64 of these samples, and of such a chunk.

        Args:
            vectors: v [K, P], unit rows.
            values: vᵀAv [K].
            scale: the largest magnitude of an eigenvalue.
        """
        most = super().product_errors(vectors, values, scale=scale)
        reference, prepare = self.choice.reference, self._built(self.choice.engine).prepare
        if reference is None:
            return most

        def recipe(_: Objective, __: Tensor, chunk: Chunk) -> Prepared:
            return prepare(chunk)

        asked = self._ask("errors", vectors, values)
        (found,) = asked.answer or asked.keep(
            errors_along(reference, self.objective, self.theta, recipe, vectors, values)
        )
        if found is None:
            return most
        found = found.cpu() + 4 * torch.finfo(self.dtype).eps * scale
        if self.choice.engine == "central_difference":
            # Of longer sums the rounding is larger, which differences divide by their step.
            chunk = torch.tensor(self._off_in_a_chunk(vectors)[0], dtype=torch.float64)
            return torch.maximum(found, FEW_FOR_ALL * chunk)
        if self.noise == 0:
            return found
        chunk = torch.tensor(self._off_in_a_chunk(vectors)[0], dtype=torch.float64)
        return torch.maximum(found, chunk) + self._off_elsewhere(vectors)

    def _off_in_a_chunk(self, vectors: Tensor) -> tuple[list[float], list[float]]:
        """Return by how much products of a whole chunk are off, and their lengths, [K].

        Sums within a chunk may lose small terms, which fewer samples do not show. Of 16 bits that
        is against 32, of differences against float64.
        """
        objective, reference, exact = self.objective, self.choice.reference, self.objective.exact
        nothing = [0.0] * len(vectors), [1.0] * len(vectors)
        known = exact is not None or self.choice.engine == "central_difference"
        if reference is None or reference.recipe is None or not known or not objective.divisible:
            return nothing
        whole, parts = whole_chunk(objective, self.plan.chunk_size)
        if exact is None:
            truth = reference.products(objective, self.theta, parts, vectors)
            if truth is None:
                return nothing
        else:
            made = (reference.recipe(exact, self.theta, part) for part in parts)
            truth = total(prepared.products(vectors) for prepared in made)
        found = self._built(self.choice.engine).prepare(whole).products(vectors)
        scale = objective.total_weight / whole.weight
        off, size_of = ((scale * part).double().norm(dim=1) for part in (found - truth, truth))
        return off.tolist(), size_of.tolist()

    def _off_elsewhere(self, vectors: Tensor) -> Tensor:
        """Return by how much products [K, P] differ from those in chunks of another size, [K].

        Cost: 2K products.
        """
        if not self.objective.divisible or self.objective.num_rows < 2:
            return torch.zeros(len(vectors), dtype=torch.float64)
        other = HessianOperator(in_other_chunks(self.objective), self.theta, retain_graph=False)
        other.choice, other.memory = self.choice, self.memory
        size = max(1, -(-min(self.plan.chunk_size, self.objective.num_rows) // 2))
        other.plan = Plan(size, 0)
        off = other.matmat(vectors) - self.matmat(vectors)
        return off.double().norm(dim=1).cpu()

    @ordinary_torch()
    def gradient(self) -> Tensor:
        """Return ∇L(θ) of shape [P]; free if all chunks are kept and were prepared."""
        if self.plan.kept * self.plan.chunk_size < self.objective.most_rows:
            return finite(self.objective.gradient(self.theta), "gradient")
        # The gradient is a by-product of preparing: after a pass it has been paid for.
        new = int(not self._passed)
        asked = self._ask("gradient", gradients=new)
        if asked.answer:
            return asked.answer[0]
        self.objective.count(gradients=new)
        total = torch.zeros_like(self.theta)
        with self.objective.ranks.adding(total):
            for prepared in self._prepared(self.choice.engine):
                assert prepared.gradient is not None  # every engine that keeps a chunk knows it
                total += prepared.gradient
        return asked.keep(finite(total, "gradient"))[0]

    @ordinary_torch()
    def matvec(self, vector: Tensor) -> Tensor:
        """Return H v for v of shape [P]."""
        return finite(self.unchecked(vector), "Hessian-vector product")

    @ordinary_torch()
    def unchecked(self, vector: Tensor) -> Tensor:
        """Return H v, which may hold NaN: to look would be to wait for the device."""
        check_like("vector", vector, self.theta)
        asked = self._ask(PRODUCT, vector, matvecs=1)
        if asked.answer:
            return asked.answer[0]
        total = torch.zeros_like(vector)
        _ = self.plan  # decided before ranks go each its own way
        with self.objective.ranks.adding(total):
            for prepared in self._prepared(self.choice.engine, matvecs=1):
                total += prepared.products(vector[None])[0]
                del prepared  # or the next chunk is prepared beside this one
        if self.objective.kept is not None:  # what is kept goes to the host anyway
            finite(total, "Hessian-vector product")
        return asked.keep(total)[0]

    @ordinary_torch()
    def part_of_product(self, vector: Tensor, shards: Shards) -> Tensor:
        """Return this rank's part [P/N] of H v for v of shape [P].

        What a journal keeps is whole, so that another number of ranks can go on from it: such a
        product is gathered too, for half as many bytes again.
        """
        check_like("vector", vector, self.theta)
        asked = self._ask(PRODUCT, vector, matvecs=1)
        if asked.answer:
            return shards.part(asked.answer[0])
        part, _ = vector.new_zeros(shards.length), self.plan
        with shards.adding(part) as total:
            for prepared in self._prepared(self.choice.engine, matvecs=1):
                total += prepared.products(vector[None])[0]
                del prepared
            finite(total, "Hessian-vector product")
        asked.keep_whole(lambda: shards.whole(part), vector.nbytes)
        return part

    @ordinary_torch()
    def matmat(self, vectors: Tensor) -> Tensor:
        """Return the products with the rows of a block [K, P], as rows [K, P]."""
        check_like("vectors", vectors, self.theta.expand(len(vectors), -1))
        asked = self._ask("products", vectors, matvecs=len(vectors))
        if asked.answer:
            return asked.answer[0]
        total = torch.zeros_like(vectors)
        at_once = len(vectors) if self.memory is None else 1
        _ = self.plan
        with self.objective.ranks.adding(total):
            for prepared in self._prepared(self.choice.engine, matvecs=len(vectors)):
                for rows, sums in zip(vectors.split(at_once), total.split(at_once), strict=True):
                    sums += prepared.products(rows)
                del prepared
        return asked.keep(finite(total, "Hessian-vector product"))[0]

    @property
    def is_kept(self) -> bool:
        """Whether products are kept in a journal."""
        return self.objective.kept is not None

    def known_near(self, vector: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return a vector that is another but for rounding, with its product, of a run before."""
        if self.objective.kept is None:
            return None
        found = self.objective.kept.find_near(self._named(PRODUCT), self.theta, vector)
        if found is not None:
            self._passed = True
            self.objective.count(matvecs=1)
        return found

    def shares(self, vectors: Tensor, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield what blocks of the samples contribute to products [K, P]; they add up to these.

        Args:
            vectors: rows [K, P].
            blocks: the rows of the samples in each, int64, which together are all of them.
        """
        check_like("vectors", vectors, self.theta.expand(len(vectors), -1))
        self._passed = True
        engine, size = self._built(self.choice.engine), self.plan.chunk_size
        at_once = len(vectors) if self.memory is None else 1
        self.objective.count(matvecs=len(vectors))
        for rows in blocks:
            total = torch.zeros_like(vectors)
            with self.objective.ranks.adding(total):
                for chunk in self.objective.chunks_of(rows, size):
                    prepared = engine.prepare(chunk)
                    pieces = zip(vectors.split(at_once), total.split(at_once), strict=True)
                    for some, sums in pieces:
                        sums += prepared.products(some)
                    del prepared
            yield finite(total, "Hessian-vector product")

    def _ask(self, what: str, *given: Tensor, **counts: int) -> Asked:
        """Ask for what the chosen engine gives; what is counted is a pass, made from now on."""
        self._passed = self._passed or bool(counts)
        what = what if self.objective.kept is None else self._named(what)
        return ask(self.objective, what, self.theta, *given, **counts)

    def _named(self, what: str) -> str:
        """Return what a pass gives, with all that its last bits depend on."""
        how = f"{self.choice.engine}, {self.plan.chunk_size} at once, memory {self.memory}"
        return f"{what} by {how}"

    def _built(self, name: EngineName) -> Engine:
        if self._engine is None:
            self._engine = build_engine(name, self.objective, self.theta)
        return self._engine

    def _prepared(self, name: EngineName, *, matvecs: int = 0) -> Iterator[Prepared]:
        """Yield the samples as prepared chunks of an engine, for so many products."""
        engine, plan = self._built(name), self.plan
        self.objective.count(matvecs=matvecs)
        for number, rows in enumerate(self.objective.parts(plan.chunk_size)):
            if number in self._kept:
                yield self._kept[number]
                continue
            prepared = engine.prepare(self.objective.rows(rows))
            if number < plan.kept:
                self._kept[number] = prepared
            yield prepared
            del prepared


def finite(vector: Tensor, what: str) -> Tensor:
    """Return a vector that has no NaN or infinite entry.

    Raises:
        NonFiniteError: it has one.

    >>> finite(torch.ones(1), "gradient")
    tensor([1.])
    """
    if not vector.isfinite().all():
        raise NonFiniteError(
            f"the {what} has NaN or infinite entries; the loss overflows here (try "
            "dtype=float64) or is not twice differentiable at this point"
        )
    return vector
