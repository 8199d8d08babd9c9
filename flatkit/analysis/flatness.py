"""R0, R1 and the largest gradient norm for every radius."""

from typing import Any

import torch
from torch import Tensor

from flatkit.analysis.session import Session
from flatkit.flatness import BallMaximum, max_gradient_norm, max_loss_increase
from flatkit.flatness.ball import on_sphere
from flatkit.results import Cost, Result


def flatness(session: Session) -> list[Result]:
    """Return R0, R1 and the largest gradient norm for every ρ, those that were asked for.

    Each radius starts also from the best point of the radius before, so that neither measure can
    fall as the ball grows; R1 starts also from the point that R0 found, which keeps R0 ≤ R1.
    """
    wanted = session.settings.measures
    results: list[Result] = []
    losses: BallMaximum | None = None
    norms: BallMaximum | None = None
    for done, rho in enumerate(session.settings.rho):
        session.report("flatness", done, len(session.settings.rho))
        if "zeroth_order_sharpness" in wanted:
            with session.meter() as cost:
                starts = _starts(session, rho, "smaller radius", losses)
                losses = max_loss_increase(session.objective, rho=rho, starts=starts)
                results.append(_zeroth_order(session, rho, losses, cost()))
        if {"first_order_flatness", "max_gradient_norm"} & set(wanted):
            with session.meter() as cost:
                starts = _starts(session, rho, "smaller radius", norms)
                starts |= _starts_of_gradient_norm(session, rho, losses)
                norms = max_gradient_norm(session.objective, rho=rho, starts=starts)
                results += _first_order(session, rho, norms, losses, cost())
    return [result for result in results if result.measure in wanted]


def _starts(
    session: Session, rho: float, name: str, previous: BallMaximum | None
) -> dict[str, Tensor]:
    """Return where a search in the ball starts: displacements [P] by name."""
    starts = {"random": on_sphere(session.random_vector("start"), rho)}
    for number, eigenvector in enumerate(session.eigenvectors, start=1):
        starts[f"eigenvector {number}"] = on_sphere(eigenvector, rho)
        starts[f"eigenvector {number}, reversed"] = on_sphere(-eigenvector, rho)
    if session.gradient.norm() > 0:
        starts["gradient"] = on_sphere(session.gradient, rho)
    if previous is not None:
        starts[name] = previous.displacement
    return starts


def _starts_of_gradient_norm(
    session: Session, rho: float, losses: BallMaximum | None
) -> dict[str, Tensor]:
    """Return the starts that only the gradient norm has: GAM's step and the loss maximiser."""
    starts = {}
    ascent = session.hessian.matvec(session.gradient)
    if ascent.norm() > 0:
        starts["gradient-norm ascent"] = on_sphere(ascent, rho)
    if losses is not None:
        starts["loss maximiser"] = losses.displacement
    return starts


def _search_settings(session: Session, rho: float, found: BallMaximum) -> dict[str, Any]:
    return {
        "rho": rho,
        "best_start": found.start,
        "starts": sorted(found.trails),
        "stationarity": found.stationarity,
        "evaluations": found.evaluations,
        "seed": session.settings.seed,
    }


def _zeroth_order(session: Session, rho: float, found: BallMaximum, cost: Cost) -> Result:
    rounding = 4 * torch.finfo(session.objective.dtype).eps * abs(session.loss_and_gradient[0])
    one_step = found.trails["gradient"][0] if "gradient" in found.trails else None
    return Result(
        "zeroth_order_sharpness",
        found.value,
        error_kind="lower_bound",
        status="rounding" if rounding > 0.01 * abs(found.value) else found.status,
        settings={
            **_search_settings(session, rho, found),
            "one_step": one_step,
            "value_over_rho_squared": found.value / rho**2,
            "rounding": rounding,
        },
        cost=cost,
    )


def _first_order(
    session: Session, rho: float, found: BallMaximum, losses: BallMaximum | None, cost: Cost
) -> list[Result]:
    """Return R1 and the largest gradient norm, beside what the quadratic model allows."""
    slope = float(session.extreme.value.abs()[0] + session.extreme.error[0])
    gradient = float(session.gradient.double().norm())
    one_step = found.trails.get("gradient-norm ascent", [None])[0]
    missed = losses is not None and losses.value > rho * found.value
    status = "search_missed_maximum" if missed else found.status
    settings = {
        **_search_settings(session, rho, found),
        "one_step": None if one_step is None else rho * one_step,
        "value_over_rho_squared": found.value / rho,
        "ratio_to_top_eigenvalue": _ratio_to_top(session, found.value / rho),
        "upper_estimate": rho * (gradient + rho * slope),
        "upper_estimate_is": "rho (|g| + rho |lambda|max), the bound of the quadratic model here",
    }
    flatness = Result(
        "first_order_flatness",
        rho * found.value,
        error_kind="lower_bound",
        status=status,
        settings=settings,
        cost=cost,
    )
    norm = Result(
        "max_gradient_norm",
        found.value,
        error_kind="lower_bound",
        status=status,
        settings=_search_settings(session, rho, found),
        cost=cost,
    )
    return [flatness, norm]


def _ratio_to_top(session: Session, value: float) -> float | None:
    """Return the value over λmax, if that was measured and is positive."""
    if "top_eigenvalues" not in session.settings.measures:
        return None
    largest = float(session.top.value[0])
    return value / largest if largest > 0 else None
