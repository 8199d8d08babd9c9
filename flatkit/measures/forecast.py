"""How long an analysis will take and what it will hold, before it begins."""

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from flatkit.flatness.functions import product_cost
from flatkit.hessian.memory import measure_bytes
from flatkit.hessian.plan import kept_bytes
from flatkit.hessian.probes import rows_of_probe
from flatkit.measures.base import Measure
from flatkit.measures.precision import looked_at
from flatkit.measures.registry import MEASURES
from flatkit.measures.shared_settings import BallSettings
from flatkit.objective.function import Objective
from flatkit.objective.noise import passes_of_point
from flatkit.objective.passes import differentiate
from flatkit.spectrum.krylov import KEPT_BYTES

if TYPE_CHECKING:
    from flatkit.landscape.job import LandscapeJob
    from flatkit.measures.session import Session

_FEW, _MORE, _TELLS = 8, 32, 0.05
"""Samples that are timed; the line through both leads on to all. The second are more where they
take less than so many seconds, in which a clock and a scheduler would be seen rather than they."""
_OFTEN = 10
"""Times that a pass is timed at most: of a short one the clock and the scheduler make half."""
_WEIGHED = 2
"""Samples whose bytes are counted; twice as many show what one more adds."""
_PRODUCT = 2.8
"""A Hessian-vector product in gradients, before one was timed."""
_IN_DOUBLE, _PROBED, _PLANNED, _ENTERED, _RECORDED = 10, 50, 120, 15, 2.0
"""What is done once, in gradients: of the samples in both precisions that tell its rounding; of
the samples of the probe that chooses what multiplies; of single samples, to count bytes; passes,
however few samples they have; of all samples, when products are recorded. These are middles of what
the networks of `benchmarks/anytime.py` take, which differ by a factor of two."""
_BETWEEN = 8e-4
"""Seconds a gradient that methods and tables take between the passes, of any network."""
_COPIES = 6
"""Vectors of the size of θ beside a Krylov basis: the model, θ, gradients, a copy in float64."""
_BASIS = 20
"""Vectors of the Krylov basis of one eigenvalue."""


@dataclass(frozen=True)
class Forecast:
    """What an analysis takes.

    Attributes:
        loss: seconds of an evaluation of the loss over all samples.
        gradient: seconds of a gradient.
        product: seconds of a Hessian-vector product.
        price: of a product, in gradients of the budget.
        memory: bytes that it will hold, about.
        passes: measure -> gradients that it takes if nothing stops it, about.
        samples: over which that is.
        first: gradients until every measure has a first value, about.
        once: seconds of what is done once: the gradient's rounding, the choice of what multiplies.

    >>> forecast = Forecast(1.0, 3.0, 7.0, price=2, memory=10**9, passes={"trace": 100.0})
    >>> round(forecast.seconds(100.0))
    325
    """

    loss: float
    gradient: float
    product: float
    price: int
    memory: int
    passes: Mapping[str, float] = field(default_factory=dict[str, float])
    samples: int = 0
    first: float = 0.0
    once: float = 0.0

    @property
    def gradients(self) -> float:
        """What all measures take, in gradients."""
        return math.fsum(self.passes.values())

    @property
    def unit(self) -> float:
        """Seconds of a gradient of the budget, where half of them are spent on products."""
        return _BETWEEN + (self.gradient + self.product / self.price) / 2

    def seconds(self, gradients: float) -> float:
        """Return how long so many gradients of the budget take, with what is done once."""
        return self.once + gradients * self.unit

    def within(self, gradients: float, seconds: float) -> float:
        """Return how many gradients are spent under limits, if nothing ends before them."""
        most = min(self.gradients, gradients)
        return min(most, max(0.0, seconds - self.once) / self.unit) if self.unit > 0 else most

    @property
    def first_table(self) -> float:
        """Seconds until every measure has a first value."""
        return self.seconds(self.first)


def forecast(session: "Session") -> Forecast:
    """Measure a few samples and return what the analysis of a session will take.

    Cost: the gradients of about 50 samples.
    """
    chosen = {name: MEASURES[name] for name in session.settings.measures}
    passes = {name: measure.passes(session) for name, measure in chosen.items()}
    first = _gradients_to_first(session, chosen.values())
    searched = any(BallSettings in measure.settings for measure in chosen.values())
    return forecast_of(session.objective, passes, first=first, searched=searched)


def forecast_of(
    objective: Objective,
    passes: Mapping[str, float],
    *,
    first: float = 0.0,
    curved: bool = True,
    searched: bool = False,
) -> Forecast:
    """Measure a few samples and return what passes over all of them will take.

    Cost: the gradients of about 50 samples.

    Args:
        objective: whose passes.
        passes: what is done -> gradients that it takes, about.
        first: gradients until there is a first value of each.
        curved: whether eigenvalues are among it, whose basis takes memory.
        searched: whether balls are searched, for which the gradient's rounding is measured.
    """
    loss, gradient = (_timed(objective, each) for each in (_loss, _gradient))
    rows = objective.most_rows  # of several ranks each goes through its part
    chunks = -(-rows // objective.chunk_size)
    whole = gradient.over(rows, chunks)
    once = 0.0
    if searched:
        seen = looked_at(objective)
        once += gradient.over(_IN_DOUBLE * (rows if seen is None else len(seen)), 0)
    if curved:
        # No measure of its own, but each first product pays for it.
        probed = _PROBED * rows_of_probe(objective) + _PLANNED
        once += gradient.over(probed, _ENTERED) + _RECORDED * whole
    return Forecast(
        loss.over(rows, chunks),
        whole,
        _PRODUCT * whole,
        product_cost(objective),
        _bytes(objective, curved=curved),
        passes,
        objective.num_samples,
        first,
        once,
    )


def landscape_forecast(job: "LandscapeJob") -> Forecast:
    """Measure a few samples and return what the points of a line or plane will take.

    Points that are measured many at once, those of small networks, take less.
    """
    curved = "top_eigenvalue" in job.quantities
    passes: dict[str, float] = {}
    for split, objective in job.objectives.items():
        each = 1.0 if "gradient_norm" in job.quantities else 1 / 3
        search = _BASIS * product_cost(objective) if curved else 0
        passes[split] = job.num_points * (each * passes_of_point(objective) + search)
    return forecast_of(next(iter(job.objectives.values())), passes, curved=curved)


def _gradients_to_first(session: "Session", measures: Collection[Measure]) -> float:
    """Return the gradients until each measure has a value; the Krylov space is shared by them."""
    shared = any(measure.on_space for measure in measures)
    own = math.fsum(measure.own_first(session) for measure in measures)
    return own + shared * session.gradients_to_space


class _Times(NamedTuple):
    """Seconds of a pass: `fixed` of each chunk, and `slope` of each sample."""

    fixed: float
    slope: float

    def over(self, rows: int, chunks: int) -> float:
        """Return the seconds of so many samples in so many chunks."""
        return self.fixed * chunks + self.slope * rows


def _timed(objective: Objective, run: Callable[[Objective, int], object]) -> _Times:
    """Return what a pass takes, from passes over a few samples."""
    rows = objective.num_rows
    if not objective.divisible:
        return _Times(_seconds(objective, run, objective.chunk_size), 0.0)
    # 8 and 32: four times as many tell a slope, and both pass through any model in moments.
    few, more = min(_FEW, rows), min(_MORE, rows)
    run(objective, few)  # the first pass makes what later ones find
    short, long = _seconds(objective, run, few), _seconds(objective, run, more)
    while long < _TELLS and more < rows:
        more = min(4 * more, rows)
        long = _seconds(objective, run, more)
    # Two points on a line: seconds of a sample; below, what is left for the chunk itself.
    slope = max(0.0, long - short) / (more - few) if more > few else 0.0
    # Where the longer pass was no slower, by chance, all of its time counts as that of the samples.
    slope = slope or long / more
    return _Times(max(0.0, short - slope * few), slope)


def _seconds(objective: Objective, run: Callable[[Objective, int], object], rows: int) -> float:
    """Return the least of two times, or of as many as take no longer than a glance."""
    found: list[float] = []
    most = _OFTEN if objective.sharded is None else 2  # ranks in one pass must make as many
    while len(found) < 2 or (len(found) < most and sum(found) < _TELLS):
        begun = time.perf_counter()
        run(objective, rows)
        found.append(time.perf_counter() - begun)
    if objective.sharded is None:
        return min(found)
    return objective.sharded.ranks.decided(lambda: min(found))  # or each would go on as long as it


def _loss(objective: Objective, rows: int) -> object:
    chunk = objective.spread(rows)
    with objective.placed(objective.theta) as point:
        return float(objective.chunk_loss(point, chunk).detach())


def _gradient(objective: Objective, rows: int) -> object:
    chunk = objective.spread(rows)
    with objective.placed(objective.theta) as point:
        return differentiate(objective.chunk_loss(point, chunk), point)


def _bytes(objective: Objective, *, curved: bool) -> int:
    """Return what is held at once: vectors, a Krylov basis, and what a chunk of samples makes."""
    vector = objective.theta.nbytes
    # Each rank holds its part of every vector of the basis.
    basis = (_BASIS + 1) * -(-vector // objective.ranks.count) if curved else 0
    images = basis if 2 * basis <= KEPT_BYTES else 0
    # A model may take nothing less than a chunk of what is not to be cut.
    few = min(_WEIGHED if objective.divisible else objective.chunk_size, objective.num_rows)
    least = measure_bytes(lambda: _gradient(objective, few))[0]
    more = measure_bytes(lambda: _gradient(objective, min(2 * few, objective.num_rows)))[0]
    chunk = min(objective.chunk_size, objective.num_rows)
    each = max(0, more - least) / few
    kept = min(kept_bytes(objective.device), int(each * objective.num_rows)) if curved else 0
    # A product keeps the gradient's graph and makes another one beside it.
    return int(_COPIES * vector + basis + images + kept + 2 * (least + each * (chunk - few)))
