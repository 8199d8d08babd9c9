"""The measures: each takes a session and returns its results."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flatkit.analysis.session import Session
from flatkit.errors import NonFiniteError
from flatkit.flatness import BallMaximum, max_gradient_norm, max_loss_increase
from flatkit.flatness.ball import on_sphere
from flatkit.landscape import loss_plane, loss_slice, random_direction
from flatkit.landscape.surface import symmetric_grid
from flatkit.results import Cost, Result
from flatkit.spectrum import Estimate, hutchinson_trace


def evaluations(session: Session) -> list[Result]:
    """Return loss and accuracy on the training data and, if there are any, the test data."""
    results = []
    for split, objective in (("train", session.objective), ("test", session.test_objective)):
        if objective is None:
            continue
        with session.meter() as cost:
            evaluation = objective.evaluate()
            spent = cost()
        if not math.isfinite(evaluation.loss):
            raise NonFiniteError(
                f"the loss on the {split} data is {evaluation.loss}; the training diverged, "
                "analyze an earlier checkpoint"
            )
        settings = {"split": split, "samples": objective.num_samples}
        loss = {**settings, "loss": objective.describe()["loss"]}
        results.append(Result("loss", evaluation.loss, 0.0, settings=loss, cost=spent))
        if evaluation.accuracy is not None:
            results.append(Result("accuracy", evaluation.accuracy, 0.0, settings=settings))
    return results


def gradient_norm(session: Session) -> list[Result]:
    """Return ‖∇L‖ on the training data."""
    with session.meter() as cost:
        value = float(session.gradient.double().norm())
        return [Result("gradient_norm", value, 0.0, settings={"split": "train"}, cost=cost())]


def top_eigenvalues(session: Session) -> list[Result]:
    """Return the largest eigenvalues of the Hessian, with residuals."""
    with session.meter() as cost:
        return [_result_of(session.top, "top_eigenvalues", session, cost())]


def trace(session: Session) -> list[Result]:
    """Return the trace of the Hessian, with its standard error."""
    with session.meter() as cost:
        estimate = hutchinson_trace(
            session.hessian,
            tolerance=session.settings.trace_tolerance,
            max_matvecs=session.settings.max_matvecs,
            generator=session.generator("trace"),
        )
        return [_result_of(estimate, "trace", session, cost())]


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


def slice_of_loss(session: Session) -> list[Result]:
    """Return loss, accuracy and gradient norm along random filter-normalised directions."""
    settings, objective = session.settings, session.objective
    generator = session.generator("slice")
    directions = torch.stack(
        [
            random_direction(objective.space, objective.theta, generator=generator)
            for _ in range(settings.slice_directions)
        ]
    )
    with session.meter() as cost:
        found = loss_slice(
            objective,
            directions=directions,
            coordinate=symmetric_grid(settings.extent, settings.slice_points),
            progress=lambda done, total: session.report("loss_slice", done, total),
        )
        spent = cost()
    quantities = {
        "loss": found.loss,
        "accuracy": found.accuracy,
        "gradient_norm": found.gradient_norm,
    }
    present = {name: rows for name, rows in quantities.items() if rows is not None}
    return [
        Result(
            "loss_slice",
            {"coordinate": found.coordinate, **present},
            {name: _standard_errors(rows) for name, rows in present.items()},
            error_kind="standard_error",
            settings=_direction_settings(session, directions),
            cost=spent,
        )
    ]


def plane_of_loss(session: Session) -> list[Result]:
    """Return loss and accuracy on the plane of two random filter-normalised directions."""
    settings, objective = session.settings, session.objective
    generator = session.generator("plane")
    first, second = (
        random_direction(objective.space, objective.theta, generator=generator) for _ in range(2)
    )
    steps = symmetric_grid(settings.extent, settings.plane_points)
    with session.meter() as cost:
        plane = loss_plane(
            objective,
            first=first,
            second=second,
            x=steps,
            y=steps,
            progress=lambda done, total: session.report("loss_plane", done, total),
        )
        spent = cost()
    value: dict[str, Any] = {"x": plane.x, "y": plane.y, "loss": plane.loss}
    if plane.accuracy is not None:
        value["accuracy"] = plane.accuracy
    cosine = float(first @ second) / float(first.norm() * second.norm())
    used = {**_direction_settings(session, torch.stack([first, second])), "cosine": cosine}
    return [Result("loss_plane", value, 0.0, settings=used, cost=spent)]


RUNNERS: Mapping[str, Callable[[Session], list[Result]]] = {
    "loss": evaluations,
    "accuracy": evaluations,
    "gradient_norm": gradient_norm,
    "top_eigenvalues": top_eigenvalues,
    "trace": trace,
    "zeroth_order_sharpness": flatness,
    "first_order_flatness": flatness,
    "max_gradient_norm": flatness,
    "loss_slice": slice_of_loss,
    "loss_plane": plane_of_loss,
}
"""Who measures what; one runner may serve several measures at once."""


def _result_of(estimate: Estimate, measure: str, session: Session, cost: Cost) -> Result:
    own = session.settings
    eigenvalues = measure == "top_eigenvalues"
    settings = {
        "method": own.method if eigenvalues else "hutchinson",
        "tolerance": own.tolerance if eigenvalues else own.trace_tolerance,
        "max_matvecs": own.max_matvecs,
        "seed": own.seed,
        **({"k": own.num_eigenvalues} if eigenvalues else {}),
        **estimate.notes,
    }
    return Result(
        measure,
        estimate.value.tolist(),
        estimate.error.tolist(),
        error_kind=estimate.error_kind,
        status=estimate.status,
        settings=settings,
        cost=cost,
    )


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


def _direction_settings(session: Session, directions: Tensor) -> dict[str, Any]:
    return {
        "normalization": "filter",
        "one_dimensional": "zero",
        "num_directions": len(directions),
        "direction_norms": directions.double().norm(dim=1).tolist(),
        "weight_norm": float(session.objective.theta.double().norm()),
        "seed": session.settings.seed,
    }


def _standard_errors(rows: list[list[float | None]]) -> list[float | None]:
    """Return, for each step, the standard error of the mean over the directions."""
    errors: list[float | None] = []
    for column in zip(*rows, strict=True):
        numbers = [x for x in column if x is not None and math.isfinite(x)]
        if len(numbers) < len(column):
            errors.append(None)
            continue
        spread = torch.tensor(numbers, dtype=torch.float64).std()
        errors.append(float(spread) / math.sqrt(len(numbers)))
    return errors
