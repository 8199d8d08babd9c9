"""R0, R1 and their relatives for every radius, each beside what the quadratic model says."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatkit.flatness import BallMaximum, m_sharpness, max_loss_increase
from flatkit.flatness.average import average_loss_increase
from flatkit.flatness.geometry import Geometry, geometry_of
from flatkit.flatness.initial_points import NUM_VECTORS, search_starts
from flatkit.flatness.quadratic_model import ModelMaximum, QuadraticModel, Quantity, ScaledOperator
from flatkit.flatness.r1 import max_gradient_norm
from flatkit.measures.precision import Jump, gradient_jump, gradient_noise, rounding_radius
from flatkit.measures.session import Session
from flatkit.results import Cost, Result
from flatkit.spectrum import lanczos
from flatkit.spectrum.estimate import Estimate

_SEARCHED = {"zeroth_order_sharpness", "first_order_flatness", "max_gradient_norm"}
_START_TOLERANCE = 1e-2
_BASIS = 40


@dataclass
class _Ball:
    """What the searches of all radii share, in the coordinates of the geometry."""

    session: Session
    geometry: Geometry
    model: QuadraticModel
    top: Estimate
    vectors: Tensor
    noise: float
    blurred: float
    jump: Jump

    @property
    def slope(self) -> float:
        """|λ|max with its error."""
        return float(self.top.value.abs()[0] + self.top.error[0])

    def maximum(self, which: Quantity, rho: float) -> ModelMaximum:
        return self.model.maximum(which, rho=rho, slope=self.slope)

    def starts(self, which: Quantity, rho: float, more: dict[str, Tensor]) -> dict[str, Tensor]:
        found = search_starts(
            self.model,
            rho=rho,
            geometry=self.geometry,
            which=which,
            slope=self.slope,
            vectors=self.vectors,
            generator=self.session.generator("start"),
        )
        return more | found


def flatness(session: Session) -> list[Result]:
    """Return R0, R1 and their relatives for every ρ, those that were asked for.

    Each radius starts also from the best point of the radius before, so that neither measure can
    fall as the ball grows; R1 starts also from the point that R0 found, which keeps R0 ≤ R1.
    """
    wanted = set(session.settings.measures)
    geometry = geometry_of(
        session.settings.geometry, session.objective.space, session.objective.theta
    )
    results: list[Result] = []
    if wanted & (_SEARCHED | {"quadratic_model_maximum"}):
        results += _searched(session, _prepare(session, geometry), wanted)
    for rho in session.settings.rho:
        if "average_sharpness" in wanted:
            results.append(_average(session, geometry, rho))
        if "m_sharpness" in wanted:
            results.append(_of_batches(session, geometry, rho))
    return [result for result in results if result.measure in wanted]


def _prepare(session: Session, geometry: Geometry) -> _Ball:
    operator = ScaledOperator(session.hessian, geometry)
    top = lanczos(
        operator,
        which="magnitude",
        tolerance=_START_TOLERANCE,
        max_matvecs=session.settings.max_matvecs,
        generator=session.generator("extreme"),
    )
    assert top.vectors is not None
    gradient = geometry.displacement(session.gradient)
    model = QuadraticModel(operator, gradient, vectors=top.vectors, max_basis=_BASIS)
    vectors = model.ritz(min(NUM_VECTORS, operator.size))[1]
    slope = float(top.value.abs()[0] + top.error[0])
    noise = gradient_noise(session, geometry)
    blurred = rounding_radius(session, geometry, slope, noise)
    jump = gradient_jump(session, gradient_noise(session, Geometry("l2")))
    return _Ball(session, geometry, model, top, vectors, noise, blurred, jump)


def _searched(session: Session, ball: _Ball, wanted: set[str]) -> list[Result]:
    results: list[Result] = []
    losses: BallMaximum | None = None
    norms: BallMaximum | None = None
    budget = session.settings.budget
    for done, rho in enumerate(session.settings.rho):
        session.report("flatness", done, len(session.settings.rho))
        if "zeroth_order_sharpness" in wanted:
            with session.meter() as cost:
                starts = ball.starts("loss", rho, _known("smaller radius", losses))
                losses = max_loss_increase(
                    session.objective,
                    rho=rho,
                    starts=starts,
                    geometry=ball.geometry,
                    budget=budget,
                    generator=session.generator("walks"),
                )
                results.append(_zeroth_order(ball, rho, losses, cost()))
        if {"first_order_flatness", "max_gradient_norm"} & wanted:
            with session.meter() as cost:
                more = _known("smaller radius", norms) | _known("loss maximiser", losses)
                norms = max_gradient_norm(
                    session.objective,
                    rho=rho,
                    starts=ball.starts("gradient_norm", rho, more),
                    geometry=ball.geometry,
                    budget=budget,
                    noise=ball.noise,
                    generator=session.generator("walks"),
                )
                results += _first_order(ball, rho, norms, losses, cost())
        if "quadratic_model_maximum" in wanted and ball.geometry.is_round:
            results.append(_of_model(ball, rho))
    return results


def _known(name: str, found: BallMaximum | None) -> dict[str, Tensor]:
    return {} if found is None else {name: found.coordinates}


def _search_settings(ball: _Ball, rho: float, found: BallMaximum) -> dict[str, Any]:
    return {
        "rho": rho,
        "geometry": ball.geometry.name,
        "frozen_parameters": ball.geometry.frozen,
        "budget": ball.session.settings.budget,
        "gradients_spent": found.gradients,
        "best_start": found.start,
        "starts": sorted(found.trails),
        "trails": {name: list(trail) for name, trail in found.trails.items()},
        "stationarity": found.stationarity,
        "linear_gap": found.linear_gap,
        "evaluations": found.evaluations,
        "seed": ball.session.settings.seed,
    }


def _zeroth_order(ball: _Ball, rho: float, found: BallMaximum, cost: Cost) -> Result:
    session = ball.session
    rounding = 4 * torch.finfo(session.objective.dtype).eps * abs(session.loss_and_gradient[0])
    one_step = found.trails["gradient"][0] if "gradient" in found.trails else None
    model = ball.maximum("loss", rho) if ball.geometry.is_round else None
    return Result(
        "zeroth_order_sharpness",
        found.value,
        error_kind="lower_bound",
        status="rounding" if rounding > 0.01 * abs(found.value) else found.status,
        settings={
            **_search_settings(ball, rho, found),
            "one_step": one_step,
            "value_over_rho_squared": found.value / rho**2,
            "quadratic_model": None if model is None else model.value,
            "rounding": rounding,
        },
        cost=cost,
    )


def _first_order(
    ball: _Ball, rho: float, found: BallMaximum, losses: BallMaximum | None, cost: Cost
) -> list[Result]:
    """Return R1 and the largest gradient norm, beside an estimate of how large it may be."""
    one_step = found.trails.get("gradient-norm ascent", [None])[0]
    missed = losses is not None and losses.value > rho * found.value * (1 + 1e-6)
    status = "search_missed_maximum" if missed else found.status
    if not missed and (rho < ball.blurred or ball.jump.found):
        status = "rounding" if rho < ball.blurred else "kinks"
    settings = {
        **_search_settings(ball, rho, found),
        "one_step": None if one_step is None else rho * one_step,
        "value_over_rho_squared": found.value / rho,
        "ratio_to_top_eigenvalue": _ratio_to_top(ball, found.value / rho),
        "rounding_radius": ball.blurred,
        "gradient_jump": ball.jump.size if ball.jump.found else None,
        "upper_estimate": _upper_estimate(ball, rho, found),
        "upper_estimate_is": "an estimate, no bound: rho (|g| + rho K), K the largest slope of the "
        "gradient that was seen, at the checkpoint or on the way to the best point",
    }
    flat, norm = (
        Result(measure, value, error_kind="lower_bound", status=status, settings=kept, cost=cost)
        for measure, value, kept in (
            ("first_order_flatness", rho * found.value, settings),
            ("max_gradient_norm", found.value, _search_settings(ball, rho, found)),
        )
    )
    return [flat, norm]


def _upper_estimate(ball: _Ball, rho: float, found: BallMaximum) -> float | None:
    """Return ρ(‖g‖ + ρK), at least the value found, where the ball is round."""
    if not ball.geometry.is_round:
        return None
    norm = float(ball.geometry.dual_norm(ball.model.gradient))
    slope = max(ball.slope, (found.value - norm) / rho)
    return rho * (norm + rho * slope)


def _ratio_to_top(ball: _Ball, value: float) -> float | None:
    """Return the value over λmax, if that was measured, is positive and belongs to the geometry."""
    session = ball.session
    if "top_eigenvalues" not in session.settings.measures or ball.geometry.name != "l2":
        return None
    largest = float(session.top.value[0])
    return value / largest if largest > 0 else None


def _of_model(ball: _Ball, rho: float) -> Result:
    with ball.session.meter() as cost:
        found = ball.maximum("gradient_norm", rho)
        return Result(
            "quadratic_model_maximum",
            rho * found.value,
            rho * found.shortfall,
            error_kind="residual",
            settings={
                "rho": rho,
                "geometry": ball.geometry.name,
                "is": "rho max |g + H u| over the ball; the maximum of this model lies at most the "
                "error above the value",
                "basis": len(ball.model.basis),
            },
            cost=cost(),
        )


def _average(session: Session, geometry: Geometry, rho: float) -> Result:
    with session.meter() as cost:
        found = average_loss_increase(
            session.objective, rho=rho, geometry=geometry, generator=session.generator("average")
        )
        return Result(
            "average_sharpness",
            found.value,
            found.error,
            error_kind="standard_error",
            settings={
                "rho": rho,
                "geometry": geometry.name,
                "sigma": found.sigma,
                "pairs": found.samples,
                "seed": session.settings.seed,
            },
            cost=cost(),
        )


def _of_batches(session: Session, geometry: Geometry, rho: float) -> Result:
    m = session.settings.m_sharpness
    assert m is not None
    with session.meter() as cost:
        found = m_sharpness(
            session.objective,
            rho=rho,
            m=m,
            geometry=geometry,
            generator=session.generator("batches"),
        )
        return Result(
            "m_sharpness",
            found.value,
            found.error,
            error_kind="standard_error",
            settings={
                "rho": rho,
                "m": m,
                "geometry": geometry.name,
                "batches": found.batches,
                "one_step": found.one_step,
                "is": "mean over batches of lower bounds; the error is over the batches",
                "seed": session.settings.seed,
            },
            cost=cost(),
        )
