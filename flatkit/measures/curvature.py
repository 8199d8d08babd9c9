"""Eigenvalues, trace, density and layers of the Hessian at the checkpoint."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from flatkit.hessian import HessianOperator
from flatkit.integrations.pyhessian import explain_disagreement
from flatkit.measures.session import Session
from flatkit.results import Cost, Result
from flatkit.spectrum import lanczos, spectral_density
from flatkit.spectrum.diagonal import frobenius_norm
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.xtrace import trace as trace_of


def top_eigenvalues(session: Session) -> list[Result]:
    """Return the largest eigenvalues of the Hessian, with residuals."""
    with session.meter() as cost:
        own = {**_asked(session), **_over_draws(session, session.top, session.eigenvalues)}
        return [_result("top_eigenvalues", session.top, session, own, cost())]


def bottom_eigenvalues(session: Session) -> list[Result]:
    """Return the most negative eigenvalues of the Hessian, with residuals."""
    own = session.settings
    with session.meter() as cost:
        estimate = lanczos(
            session.curvature,
            k=own.num_eigenvalues,
            which="smallest",
            tolerance=own.tolerance,
            max_matvecs=own.max_matvecs,
            generator=session.generator("bottom"),
        )
        asked = {**_asked(session), "method": "lanczos"}
        return [_result("bottom_eigenvalues", estimate, session, asked, cost())]


def trace(session: Session) -> list[Result]:
    """Return the trace of the Hessian, with its standard error."""
    own = session.settings

    def measure(hessian: HessianOperator) -> Estimate:
        return trace_of(
            hessian,
            method=own.trace_method,
            tolerance=own.trace_tolerance,
            max_matvecs=own.max_matvecs,
            generator=session.generator("trace"),
        )

    with session.meter() as cost:
        estimate = measure(session.curvature)
        asked = {
            "method": own.trace_method,
            "tolerance": own.trace_tolerance,
            "max_matvecs": own.max_matvecs,
            **_over_draws(session, estimate, measure),
        }
        return [_result("trace", estimate, session, asked, cost())]


def frobenius(session: Session) -> list[Result]:
    """Return ‖H‖_F, with its standard error."""
    own = session.settings
    with session.meter() as cost:
        estimate = frobenius_norm(
            session.curvature,
            tolerance=own.trace_tolerance,
            max_matvecs=own.max_matvecs,
            generator=session.generator("frobenius"),
        )
        asked = {"tolerance": own.trace_tolerance, "max_matvecs": own.max_matvecs}
        return [_result("frobenius_norm", estimate, session, asked, cost())]


def density(session: Session) -> list[Result]:
    """Return the spectral density, with its bandwidth and checks of its mass."""
    with session.meter() as cost:
        found = spectral_density(session.curvature, generator=session.generator("density"))
        size = session.curved.num_parameters
        return [
            Result(
                "spectral_density",
                {"eigenvalue": found.grid.tolist(), "density": found.curve.tolist()},
                {"density": found.error.tolist()},
                error_kind="standard_error",
                settings={
                    "bandwidth": found.bandwidth,
                    "mass": found.mass,
                    "mean": found.mean,
                    "mean_error": found.mean_error,
                    "trace": found.mean * size,
                    "trace_error": found.mean_error * size,
                    "nodes": found.nodes.tolist(),
                    "weights": found.weights.tolist(),
                    **_where(session),
                },
                cost=cost(),
            )
        ]


def layers(session: Session) -> list[Result]:
    """Return top eigenvalue and trace of the diagonal block of every layer."""
    own, objective = session.settings, session.curved
    rows: dict[str, list[Any]] = {"layer": [], "parameters": [], "top": [], "trace": []}
    errors: dict[str, list[float]] = {"top": [], "trace": []}
    statuses = []
    with session.meter() as cost:
        groups = objective.space.layers()
        for done, (layer, names) in enumerate(groups.items()):
            session.report("layers", done, len(groups))
            block = HessianOperator(objective.block(names), memory=own.memory)
            budget = min(own.max_matvecs, 200)  # of each layer
            generator = session.generator(f"layer {layer}")
            top = lanczos(block, tolerance=own.tolerance, generator=generator, max_matvecs=budget)
            whole = trace_of(
                block, tolerance=own.trace_tolerance, generator=generator, max_matvecs=budget
            )
            rows["layer"].append(layer)
            rows["parameters"].append(block.size)
            rows["top"].append(float(top.value[0]))
            rows["trace"].append(float(whole.value))
            errors["top"].append(float(top.error[0]))
            errors["trace"].append(float(whole.error))
            statuses += [top.status, whole.status]
        return [
            Result(
                "layer_curvature",
                rows,
                errors,
                error_kind="standard_error",
                status=next((s for s in statuses if s != "converged"), "converged"),
                settings={
                    "error_of_top": "residual",
                    "tolerance": own.tolerance,
                    "trace_tolerance": own.trace_tolerance,
                    "seed": own.seed,
                },
                cost=cost(),
            )
        ]


def cross_check(session: Session) -> list[Result]:
    """Return the top eigenvalues of flatkit beside those of PyHessian, and why they differ."""
    with session.meter() as cost:
        hessian = session.curvature
        ours = (
            session.top
            if session.settings.method != "pyhessian"
            else session.eigenvalues(hessian, method="lanczos")
        )
        theirs = session.eigenvalues(hessian, method="pyhessian")
        lines = explain_disagreement(ours, theirs)
        return [
            Result(
                "cross_check",
                {"flatkit": ours.value.tolist(), "pyhessian": theirs.value.tolist()},
                {"flatkit": ours.error.tolist(), "pyhessian": theirs.error.tolist()},
                error_kind="residual",
                status="converged" if lines[0].startswith("both agree") else "disagreement",
                settings={
                    "explanation": lines,
                    "flatkit_seconds": ours.seconds,
                    "pyhessian_seconds": theirs.seconds,
                    **_where(session),
                },
                cost=cost(),
            )
        ]


def _asked(session: Session) -> dict[str, Any]:
    own = session.settings
    return {
        "method": "lanczos" if own.method == "auto" else own.method,
        "tolerance": own.tolerance,
        "max_matvecs": own.max_matvecs,
        "k": own.num_eigenvalues,
    }


def _where(session: Session) -> dict[str, Any]:
    params = {"params": list(session.settings.params)} if session.settings.params else {}
    return {**params, "seed": session.settings.seed, **session.curvature.settings}


def _over_draws(
    session: Session, first: Estimate, measure: Callable[[HessianOperator], Estimate]
) -> dict[str, Any]:
    """Return the spread of the first value over draws of the samples, if more were asked for."""
    if session.settings.draws < 2:
        return {}
    values = [float(first.value.reshape(-1)[0])]
    values += [
        float(measure(session.draw(number)).value.reshape(-1)[0])
        for number in range(1, session.settings.draws)
    ]
    return {
        "draws": len(values),
        "draw_values": values,
        "sampling_error": statistics.stdev(values),
        "sampling_error_is": "standard deviation of the value over draws of the samples",
    }


def _result(
    measure: str, estimate: Estimate, session: Session, asked: Mapping[str, Any], cost: Cost
) -> Result:
    return Result(
        measure,
        estimate.value.tolist(),
        estimate.error.tolist(),
        error_kind=estimate.error_kind,
        status=estimate.status,
        settings={**asked, **_where(session), **estimate.notes},
        cost=cost,
    )
