"""What the searches in the balls of all radii share: the quadratic model, starts, noise, kinks."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from flatkit.flatness.ball import BallMaximum
from flatkit.flatness.geometry import Geometry
from flatkit.flatness.initial_points import grown, search_starts
from flatkit.flatness.quadratic_model import ModelMaximum, QuadraticModel, Quantity, ScaledOperator
from flatkit.flatness.r0 import loss_increase_steps
from flatkit.flatness.r1 import gradient_norm_steps
from flatkit.flatness.rounds import Start
from flatkit.measures.catchment import Catchment
from flatkit.measures.precision import (
    Jump,
    exactness,
    gradient_jump,
    gradient_noise,
    narrow_noise,
    rounding_radius,
)
from flatkit.objective.settings import ObjectiveSettings
from flatkit.results.cost import Cost
from flatkit.spectrum.krylov import KEPT_BYTES
from flatkit.spectrum.lanczos import Lanczos
from flatkit.spectrum.steps import Steps

if TYPE_CHECKING:
    from flatkit.measures.session import Session

_PRODUCTS = 12
"""For a Krylov space of a scaled Hessian, which no other measure shares."""
_FROM_GRADIENT = 8
"""Products beyond the Krylov space, from the gradient on: what the model of R0 needs."""
_BYTES = 2**28
"""Bytes of these vectors and their products; at least two of them are made."""
_SMALLER, _OF_LOSS = "smaller radius", "loss maximiser"


class Search(NamedTuple):
    """The maximum that a search found, and what it cost."""

    found: BallMaximum
    cost: Cost


class SearchInBall:
    """One search, a piece at a time, and what it cost so far.

    Attributes:
        cost: so far.
        done: whether nothing is left to do.
        settled: whether a further round promises next to nothing.
    """

    def __init__(self, session: "Session", steps: Steps[BallMaximum]) -> None:
        self._session, self._steps = session, steps
        self._ask: Callable[[], BallMaximum] | None = None
        self.cost, self.done, self.settled = Cost(), False, False
        self._round, self._value = 0, -math.inf

    def step(self) -> bool:
        """Do the next piece of work; return whether there was any."""
        with self._session.meter() as cost:
            ask = next(self._steps, None)
        self.cost += cost()
        self.done = ask is None
        self._ask = ask or self._ask
        return not self.done

    def end_round(self, number: int, least_gain: float) -> None:
        """Settle for the value if the first ascent has ended and this round gained too little.

        Args:
            number: of the round, higher than those before; a second call changes nothing.
            least_gain: that is worth another round, relative to the value.
        """
        found = self.found
        # A round of several radii ends once for each of them, and for this one perhaps twice.
        if found is None or number <= self._round:
            return
        gain, self._round, self._value = found.value - self._value, number, found.value
        self.settled = found.phases > 0 and gain <= least_gain * abs(found.value)
        if self.settled:  # what it would have gone on from is not kept beside other searches
            self._steps, self._ask = iter(()), lambda: found

    @property
    def spent(self) -> int:
        """Gradients of the loss, products of the model among them."""
        return self.cost.gradients + self._session.product_price * self.cost.matvecs

    @property
    def begun(self) -> bool:
        """Whether there is a value."""
        return self._ask is not None

    @property
    def found(self) -> BallMaximum | None:
        """What is known; None before the first value."""
        return None if self._ask is None else self._ask()


@dataclass
class Ball:
    """What the searches share, in the coordinates of the geometry.

    Attributes:
        session: whose objective is searched.
        geometry: of the ball.
        processes: the searches that have begun, by quantity and radius.
        is_modelled: whether the quadratic model costs no further product.
    """

    session: "Session"
    geometry: Geometry
    processes: dict[tuple[Quantity, float], SearchInBall] = field(
        default_factory=dict[tuple[Quantity, float], SearchInBall]
    )
    is_modelled: bool = False
    _crossed: dict[float, BallMaximum] = field(default_factory=dict[float, BallMaximum])

    @cached_property
    def model(self) -> QuadraticModel:
        """The quadratic model at the checkpoint.

        Cost: 8 products beyond those of the Krylov space.
        """
        self.make_model()
        return self._model

    def make_model(self) -> None:
        """Make the model, if that was not done."""
        for _ in self.model_steps():
            pass

    @property
    def slope(self) -> float:
        """|λ|max, with how far beyond it |λ|max may be, as far as Lanczos has come."""
        self.make_model()
        return self._slope

    @property
    def _slope(self) -> float:
        search = self.session.krylov if self._shares_krylov else self._own
        # The value and how far beyond it another one may
        # lie: a bound must not trust the first alone.
        return sum(search.magnitude())

    @cached_property
    def noise(self) -> float:
        """What rounding does to the gradient, in the dual norm; that of 16 bits among it."""
        # Added, as both may be off to one side: float32 in the sums, 16 bits in what is summed.
        rounding = gradient_noise(self.session, self.geometry)
        return rounding + narrow_noise(self.session, self.geometry)

    @property
    def _noise_of_loss(self) -> float:
        """What 16 bits do to the loss; of other dtypes the search knows the rounding."""
        return exactness(self.session, "loss", "train")[0]

    @property
    def rounding_radius(self) -> float:
        """The ρ below which rounding may change R1 by more than 1 %."""
        return rounding_radius(self.session, self.geometry, self.slope, self.noise)

    @cached_property
    def jump(self) -> Jump:
        """Of the gradient at the checkpoint."""
        return gradient_jump(self.session, gradient_noise(self.session, Geometry("l2")))

    @property
    def has_kink(self) -> bool:
        """Whether a kink was found at the checkpoint; no until it was looked for."""
        return "jump" in vars(self) and self.jump.found

    def look_for_kinks(self) -> None:
        """Look for a kink at the checkpoint, if that was not done."""
        _ = self.jump

    def model_maximum(self, which: Quantity, rho: float) -> ModelMaximum:
        """Return the maximum of the quadratic model over the ball."""
        return self.model.maximum(which, rho=rho, slope=self.slope)

    def model_rounding(self, which: Quantity, found: ModelMaximum) -> float:
        """Return by how much 16 bits may put a maximum of the model off; 0 in others.

        That is the error of the gradient, and of a product along the maximiser, held against
        float64 as those of eigenvectors are. Cost: two products of all samples.
        """
        session = self.session
        if session.objective.narrow is None:
            return 0.0
        step = self.geometry.displacement(found.u)
        length = float(step.double().norm())
        if not length:
            return self.noise
        unit = step / length
        along = (unit.double() @ session.hessian.matvec(unit).double())[None].cpu()
        off = session.hessian.product_errors(unit[None], along, scale=self._slope)
        scale = 1.0 if self.geometry.scale is None else float(self.geometry.scale.abs().max())
        moved = scale * length * float(off[0])
        if which == "gradient_norm":
            return self.noise + moved
        reach = float(found.u.double().norm())
        return reach * (self.noise + moved / 2)

    @property
    def basis(self) -> int:
        """Vectors of the basis of the model as it is."""
        return len(self._model.basis)

    def rough_model_maximum(self, which: Quantity, rho: float) -> ModelMaximum:
        """Return the maximum of the model as it is: of the Krylov space alone, before more."""
        return self._model.maximum(which, rho=rho, slope=self._slope)

    def search(self, which: Quantity, rho: float) -> Search:
        """Search the maximum in one ball, until the budget of a search is spent.

        Every radius starts also from the best point of the radius before; the gradient norm starts
        also from the point that the search of the loss found, if that was measured, which keeps
        R0 ≤ R1.
        """
        process, budget = self.process(which, rho), self.session.search_budget
        # A budget smaller than the first start still gives a value.
        while process.spent < budget or not process.begun:
            if not process.step():
                break
        return self.answer(which, rho)

    def process(self, which: Quantity, rho: float) -> SearchInBall:
        """Return a search, to be driven a piece at a time."""
        if (which, rho) not in self.processes:
            shared: dict[str, Any] = {
                "rho": rho,
                "starts": self._starts(which, rho),
                "geometry": self.geometry,
                "generator": self.session.generator("walks"),
            }
            objective = self.session.objective
            steps = (
                loss_increase_steps(objective, noise=self._noise_of_loss, **shared)
                if which == "loss"
                else gradient_norm_steps(objective, noise=self.noise, **shared)
            )
            self.processes[which, rho] = SearchInBall(self.session, steps)
        return self.processes[which, rho]

    def has_begun(self, which: Quantity, rho: float) -> bool:
        """Whether a search has a value."""
        process = self.processes.get((which, rho))
        return process is not None and process.begun

    def is_searching(self, which: Quantity, rho: float) -> bool:
        """Whether a search has begun, promises more, and its budget is not spent."""
        process, budget = self.processes.get((which, rho)), self.session.search_budget
        if process is None or process.done or process.settled:
            return False
        return process.spent < budget

    def look_at_loss_maximiser(self, rho: float) -> None:
        """Find the gradient norm where the search of the loss has ended. Cost: a gradient.

        By the mean value theorem R1 is at least R0.
        """
        process = self.processes.get(("loss", rho))
        found = None if process is None else process.found
        if found is None or rho in self._crossed:
            return
        # In 16 bits the point was only chosen; what is said of it is computed in float32.
        objective = self.session.objective.exact or self.session.objective
        gradient = objective.gradient(objective.theta + found.displacement)
        value = float(self.geometry.dual_norm(self.geometry.displacement(gradient)))
        self._crossed[rho] = replace(found, value=value, stationarity=None, linear_gap=None)

    def answer(self, which: Quantity, rho: float) -> Search:
        """Return the highest point that is known in a ball: smaller ones lie within it."""
        process = self.processes[which, rho]
        best = process.found
        assert best is not None
        # Balls are nested: what a smaller one found is a feasible point of this one.
        others = [
            (_SMALLER, other.found)
            for (quantity, radius), other in self.processes.items()
            if quantity == which and radius < rho
        ]
        if which == "gradient_norm":
            others += [(_OF_LOSS, found) for r, found in self._crossed.items() if r <= rho]
        for name, found in others:
            # Stationarity was measured at the old point and says nothing of this one.
            if found is not None and found.value > best.value:
                best = replace(
                    best,
                    value=found.value,
                    displacement=found.displacement,
                    coordinates=found.coordinates,
                    stationarity=None,
                    linear_gap=None,
                    start=name,
                )
        return Search(best, process.cost)

    def settings(self, rho: float, found: BallMaximum) -> dict[str, Any]:
        """Return how a search was made and how it went, ready for JSON."""
        return {
            "rho": rho,
            "geometry": self.geometry.name,
            "frozen_parameters": self.geometry.frozen,
            "budget": self.session.search_budget,
            "gradients_spent": found.gradients,
            "best_start": found.start,
            "starts": sorted(found.trails),
            "trails": {name: list(trail) for name, trail in found.trails.items()},
            "stationarity": found.stationarity,
            "linear_gap": found.linear_gap,
            "evaluations": found.evaluations,
            "catchment": Catchment.of([*found.ends.values()], found.value).describe(),
            "seed": self.session.own(ObjectiveSettings).seed,
        }

    def _starts(self, which: Quantity, rho: float) -> Iterator[Start]:
        """Yield starts: the step along the gradient, what is known of this ball, the model's."""
        gradient = self.geometry.displacement(self.session.gradient)
        if bool(gradient.any()):
            yield "gradient", partial(self.geometry.maximiser, gradient, rho)
        # Before the model's starts, which cost products:
        # a point of a smaller ball costs a gradient.
        known = self._known(which, rho)
        for name in tuple(known):  # each given up when it is taken
            yield name, partial(self.geometry.retract, known.pop(name).coordinates, rho)
        yield from self.model_steps()
        yield from search_starts(
            self.model,
            rho=rho,
            geometry=self.geometry,
            quantity=which,
            generator=self.session.generator("start"),
            without=["gradient"],
        )

    def _known(self, which: Quantity, rho: float) -> dict[str, BallMaximum]:
        """Return what earlier searches know of this ball, by the name of the start."""
        known: dict[str, BallMaximum | None] = {}
        smaller = max((r for w, r in self.processes if w == which and r < rho), default=None)
        if smaller is not None:
            known[_SMALLER] = self.processes[which, smaller].found
        if which == "gradient_norm" and ("loss", rho) in self.processes:
            known[_OF_LOSS] = self.processes["loss", rho].found
        return {name: found for name, found in known.items() if found is not None}

    def model_steps(self) -> Iterator[int]:
        """Make the model, once, and yield what each product cost."""
        price = self.session.product_price
        while not self.has_space:
            self.step_space()
            yield price
        yield from grown(self._model, self._model.room, price)
        self.is_modelled = True

    @cached_property
    def _model(self) -> QuadraticModel:
        """The model, whose basis is not full yet."""
        session, geometry = self.session, self.geometry
        space = session.space if self._shares_krylov else self._own.space()
        # Twice the bytes: a vector and its product.
        more = max(2, min(_FROM_GRADIENT, _BYTES // (2 * session.gradient.nbytes)))
        model = QuadraticModel(
            ScaledOperator(session.hessian, geometry),
            geometry.displacement(session.gradient),
            space=space,
            max_basis=space.size + more,
            # Filled product by product in `model_steps`, so
            # that other measures have their turns between.
            fill=False,
        )
        if self._shares_krylov:  # from now on one copy serves both
            session.seen = partial(model.first, space.size, space.matvecs)
        return model

    @property
    def has_space(self) -> bool:
        """Whether the Krylov space, from which the model begins, costs no further product."""
        return self.session.has_space if self._shares_krylov else self._own.done

    def step_space(self) -> None:
        """Make a product for that space."""
        if self._shares_krylov:
            self.session.step_space()
        else:
            self._own.step()
            self.session.look_at(self._own)

    @property
    def _shares_krylov(self) -> bool:
        session = self.session
        whole = session.curved is session.objective
        # A scaled ball sees the eigenvalues of another matrix, T H T.
        return self.geometry.scale is None and whole and session.searches_by_krylov

    @cached_property
    def _own(self) -> Lanczos:
        """Products with a Hessian that no other measure multiplies with."""
        operator = ScaledOperator(self.session.hessian, self.geometry)
        # So few that their images are kept: else these would take products, or be recurred.
        room = max(3, KEPT_BYTES // (2 * self.session.gradient.nbytes) - 1)
        return Lanczos(
            operator,
            which="magnitude",
            max_matvecs=_PRODUCTS,
            max_basis=min(_PRODUCTS + 1, room),
            generator=self.session.generator("extreme"),
        )


def prepare_ball(session: "Session") -> Ball:
    """Return what the searches share; nothing is computed yet."""
    return Ball(session, session.geometry)
