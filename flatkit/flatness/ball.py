"""Maximise a function over a ball, a gradient at a time: the best point that is known so far."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from flatkit.checks import check_count, check_positive
from flatkit.devices import ordinary_torch
from flatkit.errors import InvalidArgumentError
from flatkit.flatness.frank_wolfe import BallFunction, BallSearch
from flatkit.flatness.initial_points import FunctionOfObjective, disagreement, unaided_starts
from flatkit.flatness.iterated_search import DirectionSampler
from flatkit.flatness.rounds import Rounds, Start, angle, linear_gain
from flatkit.results.status import Status
from flatkit.spectrum.steps import Steps


@dataclass(frozen=True)
class BallMaximum:
    """The best point that a search in the ball ‖u‖ ≤ ρ found.

    Attributes:
        value: the function there: a LOWER bound of the maximum over the ball.
        displacement: δ = T u [P].
        coordinates: u [P].
        start: the name of the start that led there.
        stationarity: the angle, in radians, between u and the ascent direction there, 0 at a
            stationary point of the sphere; `None` for an inner point, a ball that is not round, or
            where no direction was asked for yet.
        linear_gap: what the linearised function could still gain in the ball, relative to the
            value; 0 at a stationary point of any ball; `None` where no direction was asked for yet.
            For a concave function nothing more can be gained; otherwise it says only how flat the
            end of the search is.
        status: `CONVERGED` if the best ascent became stationary, along the gradient itself, and a
            first round of other starts led to nothing higher; `KINKS` if ascents ended where the
            gradient jumps, as that of a piecewise linear network does; else `BUDGET`.
        trails: the values along the ascent from each start.
        evaluations: of the function, also next to a point for a secant.
        ascents: of its gradient.
        gradients: what all that cost, in gradients of the loss.
        ends: the values at which ascents ended or led to, by the name of the start. None began
            where another one of this ball had been; walks did, and are not among them.
        phases: of the search that have ended: the ascent from the best start, then rounds.
    """

    value: float
    displacement: Tensor
    coordinates: Tensor
    start: str
    stationarity: float | None
    linear_gap: float | None
    status: Status
    trails: Mapping[str, list[float]]
    evaluations: int
    ascents: int
    gradients: int
    phases: int
    ends: Mapping[str, float] = field(default_factory=dict[str, float])


@ordinary_torch()
def maximize_over_ball(
    function: BallFunction,
    *,
    radius: float,
    starts: Mapping[str, Tensor],
    budget: int = 600,
    tolerance: float = 1e-7,
    noise: float = 0.0,
    explore: DirectionSampler | None = None,
    generator: torch.Generator | None = None,
) -> BallMaximum:
    """Search the maximum of a function over the ball ‖u‖ ≤ ρ, until a budget is spent.

    These are the steps of `search_steps`: a larger budget repeats them and goes on.

    Args:
        function: φ.
        radius: ρ > 0.
        starts: coordinates u [P] by name, each within the ball, the most promising first.
        budget: gradients of the loss that may be spent, about: the value at the first start is
            always taken, and a batch of walks is never cut.
        tolerance: as of `search_steps`, like all the others.
        noise: by how much rounding may change a value.
        explore: draws a direction for a walk from far away.
        generator: draws where walks begin.

    Raises:
        InvalidArgumentError: no start, or an argument out of range.
        NonFiniteError: the function is not finite somewhere in the ball.

    >>> from torch import nn
    >>> from flatkit import Objective
    >>> from flatkit.flatness.geometry import Geometry
    >>> from flatkit.flatness.functions import LossIncrease
    >>> data = (torch.tensor([[1.0]]), torch.tensor([[0.0]]))  # L = θ², at θ = 1
    >>> objective = Objective(nn.Linear(1, 1, bias=False), "mse", data)
    >>> function = LossIncrease(objective, torch.ones(1), Geometry("l2"))
    >>> found = maximize_over_ball(function, radius=0.5, starts={"left": torch.tensor([-0.5])})
    >>> found.value, found.displacement
    (1.25, tensor([0.5000]))
    """
    check_count("budget", budget)
    if not starts:
        raise InvalidArgumentError("starts must hold at least one displacement, got none")
    search = Search(function, radius, starts.items(), tolerance, noise, explore, generator)
    return search.within(budget)


def search_steps(
    function: BallFunction,
    *,
    radius: float,
    starts: Iterable[Start],
    tolerance: float = 1e-7,
    noise: float = 0.0,
    explore: DirectionSampler | None = None,
    generator: torch.Generator | None = None,
) -> Steps[BallMaximum]:
    """Search the maximum of a function over the ball ‖u‖ ≤ ρ, for as long as it is asked to.

    The highest of the first four starts goes on alone. On the sphere of a round ball it ascends by
    L-BFGS, else by Frank-Wolfe steps to the maximiser over the ball of the function linearised at u
    (Frank and Wolfe, 1956), which never descend where φ is convex (the generalised power method,
    Journée et al., 2010). Then come rounds of further starts, each of twice as many: the better
    half takes a step, from the best quarter it ascends. An ascent uses secants of falling length
    first, where the function has them: they cost less than its gradient and see the kinks that they
    span. Where an ascent ends at a kink, a jump of the gradient, each round is followed by walks
    that pass kinks (`iterated_search`), and the search never ends by itself.

    The result is a feasible point, so its value is a LOWER bound of the maximum: a search that
    ends in a local maximum does not know it. The gradient of a piecewise linear network jumps, so
    there even the end of an ascent need not be a local maximum.

    Args:
        function: φ.
        radius: ρ > 0.
        starts: names and coordinates u [P], each within the ball, the most promising first, taken
            when they are needed; and numbers of gradients that it took to find the next.
        tolerance: an ascent ends when a step gains less than this, relative to the value.
        noise: by how much rounding may change a value; smaller gains are none.
        explore: draws a direction [P] for a walk from far away, at a gradient of the loss each,
            such as that in which two halves of the samples disagree; without it all walks begin
            near the best point.
        generator: draws where the walks begin, if there are any.

    Raises:
        InvalidArgumentError: an argument out of range.
        NonFiniteError: the function is not finite somewhere in the ball.
    """
    return Search(function, radius, starts, tolerance, noise, explore, generator).steps()


def search_ball(
    function: FunctionOfObjective,
    *,
    rho: float,
    starts: Mapping[str, Tensor] | Iterable[Start] | None,
    tolerance: float,
    noise: float,
    generator: torch.Generator | None,
) -> "Search":
    """Return a search of the maximum of a function of an objective, which has not begun.

    Walks explore the directions in which halves of the samples disagree.

    Args:
        function: φ.
        rho: ρ.
        starts: as of `search_steps`, or coordinates u [P] by name; None for `unaided_starts`.
        tolerance: gain, relative to the value, that ends an ascent.
        noise: by how much rounding may change a value.
        generator: draws the initial points, if they are not given, and where walks begin.
    """
    generator = generator or torch.Generator().manual_seed(0)

    def explore(generator: torch.Generator) -> Tensor:
        direction = disagreement(function.objective, function.theta, generator)
        return function.geometry.displacement(direction)

    if starts is None:
        starts = unaided_starts(function, rho=rho, generator=generator)
    elif isinstance(starts, Mapping):
        if not starts:
            raise InvalidArgumentError("starts must hold at least one displacement, got none")
        starts = cast(Mapping[str, Tensor], starts).items()
    return Search(function, rho, starts, tolerance, noise, explore, generator)


class Search:
    """A search that is driven from outside, a piece at a time."""

    def __init__(
        self,
        function: BallFunction,
        radius: float,
        starts: Iterable[Start],
        tolerance: float,
        noise: float,
        explore: DirectionSampler | None,
        generator: torch.Generator | None,
    ) -> None:
        check_positive("rho", radius)
        check_positive("tolerance", tolerance)
        self._search = BallSearch(function, radius, tolerance=tolerance, noise=noise)
        generator = generator or torch.Generator().manual_seed(0)
        self._rounds = Rounds(self._search, iter(starts), explore, generator)

    def steps(self) -> Steps[BallMaximum]:
        """Search for as long as it is asked to."""
        with ordinary_torch():
            pieces = self._rounds.run()
        while True:
            # Around each piece: a context around the `yield` below would hold in the caller, too.
            with ordinary_torch(), self._awake():
                # Pieces are None; `self` stands for the end.
                if next(pieces, self) is self:
                    return
            if self._search.iterates:
                yield self.summary

    def within(self, budget: int) -> BallMaximum:
        """Search until a budget is spent."""
        check_count("budget", budget)
        for ask in self.steps():
            if self._search.spent >= budget:
                return ask()
        return self.summary()

    @contextmanager
    def _awake(self) -> Generator[None]:
        """Keep all points meanwhile; where few have room, those that are made anew no longer."""
        try:
            yield
        finally:
            if not self._rounds.has_room:
                self._search.rest()

    def summary(self) -> BallMaximum:
        """Return the best point that is known."""
        with ordinary_torch(), self._awake():
            return self._summary()

    def _summary(self) -> BallMaximum:
        search, best = self._search, self._search.best
        geometry, radius = search.function.geometry, search.radius
        angular = gap = None
        if best.ascent.numel():
            target = geometry.maximiser(best.ascent, radius)
            angular = angle(best, target, radius) if geometry.is_round else None
            gap = max(0.0, linear_gain(best, target)) / abs(best.value) if best.value else 0.0
        return BallMaximum(
            value=best.value,
            displacement=geometry.displacement(best.u),
            coordinates=best.u,
            start=best.name,
            stationarity=angular,
            linear_gap=gap,
            status=self._status(),
            trails={iterate.name: list(iterate.trail) for iterate in search.iterates},
            evaluations=search.evaluations + search.secants,
            ascents=search.ascents,
            gradients=search.spent,
            phases=self._rounds.phases,
            ends={iterate.name: led_to.value for iterate, led_to in self._rounds.ended},
        )

    def _status(self) -> Status:
        best, rounds = self._search.best, self._rounds
        if rounds.ends_at_kink(best) or (rounds.kinked and not best.done):
            return Status.KINKS
        converged = best.done and rounds.looked_elsewhere
        return Status.CONVERGED if converged else Status.BUDGET
