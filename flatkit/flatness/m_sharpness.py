"""m-sharpness: the mean over small batches of the largest loss increase of each."""

import math
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

from flatkit.checks import check_count
from flatkit.devices import ordinary_torch
from flatkit.errors import InvalidArgumentError
from flatkit.flatness.ball import Search
from flatkit.flatness.frank_wolfe import FunctionValues
from flatkit.flatness.geometry import Geometry, check_radius
from flatkit.flatness.widened import within
from flatkit.objective.function import Objective
from flatkit.objective.noise import at_point
from flatkit.objective.passes import Chunk, differentiate


class BatchSharpness(NamedTuple):
    """A mean over batches of lower bounds.

    Attributes:
        value: the mean over the batches of the largest increase found: a LOWER bound of the mean
            of the maxima of these batches.
        error: its standard error over the batches: how far the mean over all batches may be.
        batches: how many, of m samples each.
        one_step: the mean over the batches of SAM's one step, ρ g/‖g‖.
        values: the largest increase found of each batch.
    """

    value: float
    error: float
    batches: int
    one_step: float
    values: tuple[float, ...]


@final
class _BatchLoss:
    """The loss increase of one batch, one point at a time."""

    rows, value_cost, ascent_cost = 1, 1, 0

    def __init__(
        self, objective: Objective, theta: Tensor, geometry: Geometry, batch: Chunk
    ) -> None:
        self.objective, self.theta, self.geometry, self.batch = objective, theta, geometry, batch
        self.base, self.gradient = self._evaluate(theta)

    def __call__(self, u: Tensor) -> FunctionValues:
        loss, gradient = self._evaluate(self.theta + self.geometry.displacement(u[0]))
        values = torch.tensor([loss - self.base], dtype=torch.float64)
        return FunctionValues(values, lambda _: self.geometry.displacement(gradient)[None])

    def _evaluate(self, theta: Tensor) -> tuple[float, Tensor]:
        with self.objective.placed(theta) as point:
            # A chunk's part of L is weighted by its size over N; the batch has its own mean.
            loss = self.objective.chunk_loss(point, self.batch)
            loss = loss * (self.objective.total_weight / self.batch.weight)
            return float(loss.detach()), differentiate(loss, point)

    def in_float32(self) -> tuple[Callable[[Tensor], float] | None, float]:
        """Return the increase at a displacement [P] in float32, if the model computes in 16 bits.

        Beside it by how much these put the loss at the centre off: smaller gains are none.
        """
        exact, scale = self.objective.exact, self.objective.total_weight / self.batch.weight
        if exact is None:
            return None, 0.0

        def loss(theta: Tensor) -> float:
            return float(at_point(exact, self.batch, scale, theta, slopes=False)[0])

        base = loss(self.theta)
        return lambda way: loss(self.theta + way) - base, abs(self.base - base)


@ordinary_torch()
def m_sharpness(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    rho: float,
    m: int,
    geometry: Geometry | None = None,
    max_batches: int = 64,
    budget: int = 20,
    generator: torch.Generator,
) -> BatchSharpness:
    """Return the mean over batches B of m samples of max over ‖δ‖ ≤ ρ of L_B(θ+δ) − L_B(θ).

    SAM minimises this with m its batch size (Foret et al., 2021, section 4.1). The samples are
    split at random; what is left of less than m samples is not used. The search in
    each batch starts from its own gradient, both ways. A model that computes in 16 bits chooses
    where to look, and the increases there are those of float32.

    Cost: `budget` gradients of each batch, thus of at most all the samples.

    Args:
        objective: L; with BatchNorm in `eval` mode, so that a batch has a loss of its own.
        theta: the point [P]; the objective's own by default.
        rho: ρ > 0.
        m: samples a batch, at most N/2.
        geometry: of the ball.
        max_batches: batches in use, at random.
        budget: gradients for each batch.
        generator: splits the samples.

    Raises:
        InvalidArgumentError: fewer than two batches of m samples, or BatchNorm in `train` mode.

    >>> from torch import nn
    >>> data = (torch.ones(4, 1), torch.zeros(4, 1))  # every batch has L = θ², at θ = 0
    >>> objective = Objective(nn.Linear(1, 1, bias=False), "mse", data)
    >>> m_sharpness(objective, rho=0.5, m=2, theta=torch.ones(1), generator=torch.Generator()).value
    1.25
    """
    theta = objective.theta if theta is None else theta
    geometry = geometry or Geometry("l2")
    check_radius(rho, theta, geometry)
    if check_count("m_sharpness", m) > objective.num_samples // 2:
        raise InvalidArgumentError(
            f"m_sharpness must be at most {objective.num_samples // 2}, half of the samples, so "
            f"that there are two batches for a standard error; got {m}"
        )
    if objective.samples.counts is not None:
        raise InvalidArgumentError("m_sharpness draws samples, and these batches cannot be cut")
    if not objective.divisible:
        raise InvalidArgumentError(
            "m_sharpness needs `batchnorm` eval and a loss that is a mean over samples: here a "
            "batch has a loss of its own"
        )
    # The same order on all ranks, as their generators are in one state; each takes its batches.
    order = torch.randperm(objective.num_samples, generator=generator)
    batches = order.split(m)[: min(max_batches, objective.num_samples // m)]
    table, ranks = torch.zeros(len(batches), 3, dtype=torch.float64), objective.ranks
    own = ranks.part(len(batches))
    with ranks.adding(table):  # a batch is one rank's
        for row, rows in zip(table[own], batches[own], strict=True):
            batch = objective.rows(rows.to(objective.device))
            function = _BatchLoss(objective, theta, geometry, batch)
            row += torch.tensor(_ascend(function, rho, budget), dtype=torch.float64)
    found, one_steps, spent = table.T
    values = found.tolist()
    # A gradient of a batch is the m/N-th part of one over all samples, in which the cost is said.
    objective.count(gradients=math.ceil(int(spent.sum()) * m / objective.num_samples))
    error = float(found.std()) / math.sqrt(len(values))
    one_step = sum(one_steps.tolist()) / len(values)
    return BatchSharpness(float(found.mean()), error, len(values), one_step, tuple(values))


def _ascend(function: _BatchLoss, rho: float, budget: int) -> tuple[float, float, int]:
    """Return the best increase, that of SAM's step, and the gradients spent."""
    ascent = function.geometry.displacement(function.gradient)
    start = function.geometry.maximiser(ascent, rho)
    starts = {"gradient": start, "gradient, reversed": -start} if bool(start.any()) else {}
    if not starts:
        return 0.0, 0.0, 1
    increase, noise = function.in_float32()
    search = Search(function, rho, starts.items(), 1e-4, noise, None, None)
    found = within(search, increase, budget)
    one_step = found.trails["gradient"][0]
    if increase is not None:
        one_step = increase(function.geometry.displacement(start))
    # The centre lies in the ball, so that the maximum is 0 at least; 1: the gradient at the centre.
    return max(0.0, found.value), one_step, found.gradients + 1
