"""Top eigenvalue and trace of the diagonal block of the Hessian that belongs to each layer."""

from typing import TYPE_CHECKING, Any

from flatkit.measures.base import Measure
from flatkit.measures.reading import Reading, detail
from flatkit.measures.shared_settings import CurvatureSettings
from flatkit.measures.trace import TraceSettings
from flatkit.objective.settings import ObjectiveSettings
from flatkit.results.result import ErrorKind, Result
from flatkit.results.status import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatkit.measures.session import Session
    from flatkit.spectrum.estimate import Estimate

_BUDGET = 200
"""Products for each of the two numbers of a layer, lest a deep network take hours."""


def run(session: "Session") -> list[Result]:
    """Return both numbers for every layer."""
    rows: dict[str, list[Any]] = {"layer": [], "parameters": [], "top": [], "trace": []}
    errors: dict[str, list[float]] = {"top": [], "trace": []}
    statuses: list[Status | str] = []
    curvature, own = session.own(CurvatureSettings), session.own(TraceSettings)
    with session.meter() as cost:
        groups = session.curved.space.layers()
        for done, (layer, names) in enumerate(groups.items()):
            session.report("layers", done, len(groups))
            size, top, trace = _block(session, layer, names)
            rows["layer"].append(layer)
            rows["parameters"].append(size)
            rows["top"].append(float(top.value[0]))
            rows["trace"].append(float(trace.value))
            errors["top"].append(float(top.error[0]))
            errors["trace"].append(float(trace.error))
            statuses += [top.status, trace.status]
        return [
            Result(
                "layer_curvature",
                rows,
                errors,
                error_kind="standard_error",
                status=next((s for s in statuses if s != Status.CONVERGED), Status.CONVERGED),
                settings={
                    "error_of_top": "residual",
                    "tolerance": curvature.tolerance,
                    "trace_tolerance": own.trace_tolerance,
                    "seed": session.own(ObjectiveSettings).seed,
                },
                cost=cost(),
            )
        ]


def _block(
    session: "Session", layer: str, names: "Sequence[str]"
) -> "tuple[int, Estimate, Estimate]":
    """Return the size, top eigenvalue and trace of one block."""
    from flatkit.hessian.operator import HessianOperator
    from flatkit.spectrum.lanczos import lanczos
    from flatkit.spectrum.xtrace import trace

    own = session.own(CurvatureSettings)
    memory = session.own(ObjectiveSettings).memory
    block = HessianOperator(session.curved.block(names), memory=memory)
    budget = min(own.max_matvecs, _BUDGET)
    generator = session.generator(f"layer {layer}")
    top = lanczos(block, tolerance=own.tolerance, generator=generator, max_matvecs=budget)
    tolerance = session.own(TraceSettings).trace_tolerance
    found = trace(block, tolerance=tolerance, generator=generator, max_matvecs=budget)
    return block.size, top, found


def read(result: Result) -> list[Reading]:
    """Return the top eigenvalue and the trace of every layer's block."""
    kinds: tuple[tuple[str, ErrorKind, str], ...] = (
        ("top", "residual", "λmax of"),
        ("trace", "standard_error", "trace of"),
    )
    return [
        detail(
            result, f"layer_{name}[{layer}]", f"{title} {layer or 'the rest'}", value, error, kind
        )
        for name, kind, title in kinds
        for layer, value, error in zip(
            result.value["layer"], result.value[name], result.error[name], strict=True
        )
    ]


MEASURE = Measure(
    "layer_curvature",
    "top eigenvalue and trace of the Hessian block of each layer",
    run,
    read,
    settings=(CurvatureSettings, TraceSettings),
    on_request=True,
    flag="--by-layer",
    figures={"layers": "flatkit.render.figures.spectra:layer_figure"},
    passes=lambda session: 60.0 * session.product_price * len(session.curved.space.layers()),
)
