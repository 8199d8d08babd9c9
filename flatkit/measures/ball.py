"""What the searches in the balls of all radii share: the quadratic model, starts, noise, kinks."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from flatkit.flatness.ball import BallMaximum
from flatkit.flatness.geometry import Geometry
from flatkit.flatness.initial_points import NUM_VECTORS, search_starts
from flatkit.flatness.quadratic_model import ModelMaximum, QuadraticModel, Quantity, ScaledOperator
from flatkit.flatness.r0 import max_loss_increase
from flatkit.flatness.r1 import max_gradient_norm
from flatkit.measures.precision import Jump, gradient_jump, gradient_noise, rounding_radius
from flatkit.measures.shared_settings import CurvatureSettings
from flatkit.objective.settings import ObjectiveSettings
from flatkit.results import Cost
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.lanczos import lanczos

if TYPE_CHECKING:
    from flatkit.measures.session import Session

_TOLERANCE = 1e-2
"""Tolerance of the eigenvalue that scales the model; its vectors are only starts of a search."""
_BASIS = 40
"""Products at most for the basis of the quadratic model."""


class Search(NamedTuple):
    """The maximum that a search found, and what it cost."""

    found: BallMaximum
    cost: Cost


@dataclass
class Ball:
    """What the searches share, in the coordinates of the geometry.

    Attributes:
        session: whose objective is searched.
        geometry: of the ball.
        model: the quadratic model at the checkpoint.
        top: the eigenvalue of largest magnitude.
        vectors: approximate top eigenvectors [K, P], orthonormal.
        noise: what rounding does to the gradient, in the dual norm.
        rounding_radius: the ρ below which rounding may change R1 by more than 1 %.
        jump: of the gradient at the checkpoint.
        searches: what was found, by quantity and radius.
    """

    session: "Session"
    geometry: Geometry
    model: QuadraticModel
    top: Estimate
    vectors: Tensor
    noise: float
    rounding_radius: float
    jump: Jump
    searches: dict[tuple[Quantity, float], Search] = field(
        default_factory=dict[tuple[Quantity, float], Search]
    )

    @property
    def slope(self) -> float:
        """|λ|max with its error."""
        return _largest(self.top)

    def model_maximum(self, which: Quantity, rho: float) -> ModelMaximum:
        """Return the maximum of the quadratic model over the ball."""
        return self.model.maximum(which, rho=rho, slope=self.slope)

    def search(self, which: Quantity, rho: float) -> Search:
        """Search the maximum in one ball, once.

        Every radius starts also from the best point of the radius before, so that neither maximum
        can fall as the ball grows; the gradient norm starts also from the point that the search
        of the loss found, if that was measured, which keeps R0 ≤ R1.
        """
        if (which, rho) not in self.searches:
            self.searches[which, rho] = self._search(which, rho)
        return self.searches[which, rho]

    def _search(self, which: Quantity, rho: float) -> Search:
        session, budget = self.session, self.session.search_budget
        with session.meter() as cost:
            starts = self._known(which, rho) | search_starts(
                self.model,
                rho=rho,
                geometry=self.geometry,
                quantity=which,
                vectors=self.vectors,
                generator=session.generator("start"),
            )
            shared: dict[str, Any] = {
                "rho": rho,
                "starts": starts,
                "geometry": self.geometry,
                "budget": budget,
                "generator": session.generator("walks"),
            }
            if which == "loss":
                found = max_loss_increase(session.objective, **shared)
            else:
                found = max_gradient_norm(session.objective, noise=self.noise, **shared)
            return Search(found, cost())

    def _known(self, which: Quantity, rho: float) -> dict[str, Tensor]:
        """Return what earlier searches found in this ball, by the name of the start."""
        known: dict[str, Search] = {}
        smaller = max((r for w, r in self.searches if w == which and r < rho), default=None)
        if smaller is not None:
            known["smaller radius"] = self.searches[which, smaller]
        if which == "gradient_norm" and ("loss", rho) in self.searches:
            known["loss maximiser"] = self.searches["loss", rho]
        return {name: search.found.coordinates for name, search in known.items()}

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
            "seed": self.session.own(ObjectiveSettings).seed,
        }


def prepare_ball(session: "Session") -> Ball:
    """Return what the searches need to know of the checkpoint."""
    geometry = session.geometry
    operator = ScaledOperator(session.hessian, geometry)
    top = lanczos(
        operator,
        which="magnitude",
        tolerance=_TOLERANCE,
        max_matvecs=session.own(CurvatureSettings).max_matvecs,
        generator=session.generator("extreme"),
    )
    assert top.vectors is not None
    gradient = geometry.displacement(session.gradient)
    model = QuadraticModel(operator, gradient, vectors=top.vectors, max_basis=_BASIS)
    noise = gradient_noise(session, geometry)
    return Ball(
        session,
        geometry,
        model,
        top,
        vectors=model.ritz(min(NUM_VECTORS, operator.size))[1],
        noise=noise,
        rounding_radius=rounding_radius(session, geometry, _largest(top), noise),
        jump=gradient_jump(session, gradient_noise(session, Geometry("l2"))),
    )


def _largest(top: Estimate) -> float:
    return float(top.value.abs()[0] + top.error[0])
