"""Eigenvalues and trace of the Hessian at the checkpoint."""

from flatkit.analysis.session import Session
from flatkit.results import Cost, Result
from flatkit.spectrum import Estimate, hutchinson_trace


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
