"""‖H‖_F, the root of the sum of the squared eigenvalues."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from flatkit.measures.base import Draft, Measure, sampled
from flatkit.measures.reading import Reading, number
from flatkit.measures.shared_settings import CurvatureSettings
from flatkit.measures.trace import TraceSettings
from flatkit.results.result import Result

if TYPE_CHECKING:
    from flatkit.measures.session import Session
    from flatkit.spectrum.estimate import Estimate


def run(session: "Session") -> "Iterator[Draft]":
    """Estimate ‖H‖_F; exact on the Krylov space of the eigenvalues, probed beside it."""
    from flatkit.spectrum.frobenius import frobenius_steps

    given: dict[str, Any] = {
        "tolerance": session.own(TraceSettings).trace_tolerance,
        "max_matvecs": session.own(CurvatureSettings).max_matvecs,
    }

    def results(ask: "Callable[[], Estimate]") -> list[Result]:
        return [session.estimated("frobenius_norm", ask(), given, cost())]

    with session.meter() as cost:
        while not session.has_space:
            session.step_space()
            yield Draft(lambda: ())
        draws, space = session.generator("frobenius"), session.space.deflation
        for ask in frobenius_steps(session.curvature, **given, generator=draws, space=space):
            yield sampled(ask, given["tolerance"], partial(results, ask))


def read(result: Result) -> list[Reading]:
    """Return the norm."""
    return [number(result, "frobenius_norm", "Frobenius norm ‖H‖", role="flatness", better="lower")]


MEASURE = Measure(
    "frobenius_norm",
    "root of the sum of the squared eigenvalues",
    run,
    read,
    derivatives=2,
    settings=(CurvatureSettings, TraceSettings),
    on_request=True,
    passes=lambda session: 60.0 * session.product_price,
    first=lambda session: 2.0 * session.product_price,
    on_space=True,
    in_bfloat16=True,
    influence=lambda samples, result: samples.frobenius_norm(result),
    about="‖H‖, the root of the sum of the squared eigenvalues. It lies between λmax and the "
    "trace in what it counts: many moderate eigenvalues raise it, thousands of tiny ones do "
    "not.",
)
