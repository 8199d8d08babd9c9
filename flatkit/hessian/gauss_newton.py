"""The positive relatives of the Hessian: Gauss-Newton and the empirical Fisher matrix."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from flatkit.devices import ordinary_torch
from flatkit.devices.ranks import Ranks
from flatkit.errors import FlatkitError, InvalidArgumentError
from flatkit.hessian.autotune import NARROW_TOLERANCE, NO_STEP, Choice, direction
from flatkit.hessian.layers.trace import names_of_inputs, trace
from flatkit.hessian.linearised import (
    Head,
    by_differences,
    by_graph,
    by_layers,
    losses_head,
    outputs_head,
)
from flatkit.hessian.operator import finite
from flatkit.hessian.probes import samples_of_probe
from flatkit.hessian.products import EngineName
from flatkit.hessian.reference import (
    Multiplies,
    Recipe,
    Ways,
    errors_along,
    find_reference,
    relative,
)
from flatkit.hessian.unsupported import UnsupportedError
from flatkit.objective.function import Objective
from flatkit.objective.passes import Chunk
from flatkit.spectrum.operators import SymmetricOperator
from flatkit.spectrum.shards import Shards


class _Positive(SymmetricOperator):
    """Jᵀ B J over the chunks.

    Three ways multiply: layer by layer, by two backward passes for J and one for Jᵀ, or with J by
    central differences. Before the first product each is held against float64 on samples spread
    over all the data, as the engines of the Hessian are; the first within the tolerance is used, or
    the most accurate one. The choice and its error stand in `settings`.
    """

    _head: ClassVar[Head]
    _kept: Multiplies | None = None
    """The only chunk, if there is only one and layers multiply."""

    @ordinary_torch()
    def __init__(
        self, objective: Objective, theta: Tensor | None = None, *, tolerance: float = 1e-4
    ) -> None:
        if objective.is_joint:
            raise InvalidArgumentError(
                "Gauss-Newton and Fisher matrices need the derivatives of the outputs, and "
                "fully_shard gathers those of the loss alone; shard the model by DTensors"
            )
        if objective.elsewhere is not None and objective.elsewhere.beyond_outputs:
            raise InvalidArgumentError(
                "Gauss-Newton and Fisher matrices need a loss that depends on θ only through the "
                "outputs of the model, and this one has weights of its own or holds the model's"
            )
        self.objective = objective
        self.theta = (objective.theta if theta is None else theta).detach()
        self.size = objective.num_parameters
        self.dtype, self.device = self.theta.dtype, self.theta.device
        narrow = objective.narrow is not None
        self._tolerance = max(tolerance, NARROW_TOLERANCE) if narrow else tolerance

    @cached_property
    def choice(self) -> Choice:
        """The way that multiplies and why; probed when it is first needed."""
        known: dict[Any, Choice] = self.objective.engine_choices
        key = (type(self).__name__, self._tolerance)
        if key not in known:
            chosen = self._choose()
            # One that is as good elsewhere by a bit must not be another one.
            agreed = self.objective.ranks.decided(lambda: [chosen.engine, chosen.error])
            known[key] = replace(chosen, engine=agreed[0], error=agreed[1])
        return known[key]

    @property
    def ranks(self) -> Ranks:
        """The processes that multiply together."""
        return self.objective.ranks

    @property
    def settings(self) -> dict[str, Any]:
        """How the products are computed, ready for JSON."""
        return self.choice.settings()

    @property
    def parts(self) -> tuple[int, ...]:
        """Sizes of the layers."""
        return self.objective.space.layer_sizes()

    @property
    def rounding(self) -> float:
        """Relative error of a product, as it was measured; where it was not, ε^½ of the dtype."""
        return max(super().rounding, self.choice.rounding(self.objective.narrow or self.dtype))

    @property
    def noise(self) -> float:
        """That error where the model computes in 16 bits; see `HessianOperator`."""
        return 0.0 if self.objective.narrow is None else 2 * self.rounding

    def product_errors(self, vectors: Tensor, values: Tensor, *, scale: float) -> Tensor:
        """Return by how much products with unit vectors may be off; see `HessianOperator`."""
        most = super().product_errors(vectors, values, scale=scale)
        reference, prepare = self.choice.reference, self._recipe
        if reference is None:
            return most
        found = errors_along(reference, self.objective, self.theta, prepare, vectors, values)
        return most if found is None else found + 4 * torch.finfo(self.dtype).eps * scale

    @ordinary_torch()
    def matvec(self, vector: Tensor) -> Tensor:
        """Return the product with a vector [P]."""
        return self.matmat(vector[None])[0]

    @ordinary_torch()
    def matmat(self, vectors: Tensor) -> Tensor:
        """Return the products with the rows of a block [K, P], as rows [K, P]."""
        total = torch.zeros_like(vectors)
        _ = self._recipe  # chosen before ranks go each its own way
        with self.objective.ranks.adding(total):
            self._add_products(total, vectors)
        return finite(total, "product")

    @ordinary_torch()
    def part_of_product(self, vector: Tensor, shards: Shards) -> Tensor:
        """Return this rank's part [P/N] of the product with a vector [P]."""
        part, _ = vector.new_zeros(shards.length), self._recipe
        with shards.adding(part) as total:
            self._add_products(total[None], vector[None])
            finite(total, "product")
        return part

    def _add_products(self, total: Tensor, vectors: Tensor) -> None:
        """Add what the samples of this rank contribute to products [K, P]."""
        for chunk in self.objective.chunks(matvecs=len(vectors)):
            prepared = self._kept or self._recipe(self.objective, self.theta, chunk)
            if self.objective.num_chunks == 1 and self.choice.engine == "layers":
                self._kept = prepared
            total += prepared.products(vectors)
            del prepared  # or the next chunk is prepared beside this one

    @cached_property
    def _recipe(self) -> Recipe:
        return self._recipes()[self.choice.engine]()

    def _recipes(self) -> Mapping[EngineName, Callable[[], Recipe]]:
        """Return the ways by name; making one may find that it is none here."""
        head = type(self)._head

        def layers() -> Recipe:
            if self.objective.sharded is not None:
                raise UnsupportedError("the weights lie in parts on several ranks")
            if self.objective.elsewhere is not None and self.objective.elsewhere.in_model:
                raise UnsupportedError("weights enter beside the model's layers")
            if self.objective.reads_kept:
                raise UnsupportedError("the loss may read what the forward pass keeps in the model")
            names = names_of_inputs(self.objective.samples.inputs)
            return partial(by_layers, trace(self.objective.model, names), head)

        return {
            "layers": layers,
            "double_backward": lambda: partial(by_graph, head),
            "central_difference": lambda: partial(by_differences, head),
        }

    @ordinary_torch()
    def _choose(self) -> Choice:
        objective, theta = self.objective, self.theta
        head, chunks = type(self)._head, samples_of_probe(objective)
        ways = Ways(partial(by_graph, head), partial(by_differences, head))
        vector = direction(theta)
        reference, truth = find_reference(ways, objective, theta, chunks, vector)
        errors: dict[EngineName, float] = {}
        rejected: dict[str, str] = {}
        for name, make in self._recipes().items():
            if name == "central_difference" and objective.narrow is not None:
                rejected[name] = NO_STEP
                continue
            try:
                product = _product(make(), objective, theta, chunks, vector)
            except UnsupportedError as error:
                rejected[name] = " ".join(str(error).split())[:200]
                continue
            off = None if truth is None else relative(product.double() - truth, truth)
            # Infinite, not unknown: without a truth the first way that multiplies wins.
            errors[name] = float("inf") if off is None else off
            if errors[name] <= self._tolerance:
                break
        if not errors:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected.items())
            raise FlatkitError(f"nothing can multiply with this matrix: {reasons}")
        best = min(errors, key=errors.__getitem__)
        for name, error in errors.items():
            if name != best:
                rejected[name] = f"relative error {error:.1e} exceeds {self._tolerance:.0e}"
        error = errors[best] if errors[best] < float("inf") else None
        return Choice(best, error, reference.against, None, rejected, reference, self._tolerance)


@final
class GaussNewtonOperator(_Positive):
    """G = Jᵀ (∇²ℓ) J: the Hessian without the curvature of the model itself.

    For losses that are convex in the outputs (cross-entropy, squared error) G is positive
    semi-definite, and equals the Hessian of the model linearised at θ (Schraudolph, 2002). The
    outputs may have any shape, such as [B·T, C] or [T, B, C], and stand in dictionaries and tuples.

    Raises:
        InvalidArgumentError: by a product or `settings`, if the model computes its loss itself.

    >>> from torch import nn
    >>> data = (torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]]))
    >>> objective = Objective(nn.Linear(1, 1, bias=False), "mse", data)
    >>> GaussNewtonOperator(objective) @ torch.tensor([1.0])  # a linear model: the Hessian
    tensor([5.])
    """

    _head = staticmethod(outputs_head)


@final
class FisherOperator(_Positive):
    """F = (1/N) Σₙ gₙ gₙᵀ: the empirical Fisher matrix, gₙ the gradient of the n-th loss.

    Not the Fisher matrix, whose targets are drawn from the model: see Kunstner et al. (2019).

    Raises:
        InvalidArgumentError: by a product or `settings`, if the loss does not return one value per
            sample.

    >>> from torch import nn
    >>> data = (torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]]))
    >>> objective = Objective(nn.Linear(1, 1, bias=False), "mse", data)
    >>> FisherOperator(objective, torch.tensor([1.0])) @ torch.tensor([1.0])  # (2² + 8²) / 2
    tensor([34.])
    """

    _head = staticmethod(losses_head)


def _product(
    recipe: Recipe, objective: Objective, theta: Tensor, chunks: list[Chunk], vector: Tensor
) -> Tensor:
    product = torch.zeros_like(vector)
    for chunk in chunks:
        product += recipe(objective, theta, chunk).products(vector[None])[0]
    return product
