"""‖H‖_F, the root of the sum of the squared eigenvalues."""

from typing import TYPE_CHECKING, Any

from flatkit.measures.base import Measure
from flatkit.measures.reading import Reading, number
from flatkit.measures.shared_settings import CurvatureSettings
from flatkit.measures.trace import TraceSettings
from flatkit.results import Result

if TYPE_CHECKING:
    from flatkit.measures.session import Session


def run(session: "Session") -> list[Result]:
    """Return ‖H‖_F, with its standard error."""
    from flatkit.spectrum.frobenius import frobenius_norm

    settings: dict[str, Any] = {
        "tolerance": session.own(TraceSettings).trace_tolerance,
        "max_matvecs": session.own(CurvatureSettings).max_matvecs,
    }
    with session.meter() as cost:
        found = frobenius_norm(
            session.curvature, generator=session.generator("frobenius"), **settings
        )
        return [session.estimated("frobenius_norm", found, settings, cost())]


def read(result: Result) -> list[Reading]:
    """Return the norm, for the table of one report: the largest eigenvalue is what is compared."""
    return [number(result, "frobenius_norm", "frobenius norm")]


MEASURE = Measure(
    "frobenius_norm",
    "root of the sum of the squared eigenvalues",
    run,
    read,
    settings=(CurvatureSettings, TraceSettings),
    on_request=True,
    passes=lambda session: 60.0 * session.product_price,
)
