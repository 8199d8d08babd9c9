"""Top eigenvalue and trace of the diagonal block of the Hessian that belongs to each layer."""

import math
from typing import TYPE_CHECKING, NamedTuple

from flatkit.measures.base import Draft, Measure
from flatkit.measures.reading import Reading, detail
from flatkit.measures.shared_settings import CurvatureSettings
from flatkit.measures.trace import TraceSettings
from flatkit.objective.settings import ObjectiveSettings
from flatkit.results.result import Cost, ErrorKind, Result
from flatkit.results.status import Status

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from flatkit.measures.session import Session
    from flatkit.spectrum.estimate import Estimate

_BUDGET = 200
"""Products for each of the two numbers of a layer, lest a deep network take hours."""
_WANTING = 20.0
"""How far off the whole is while layers are missing."""


class _Layer(NamedTuple):
    """A layer, the size of its block, and both numbers."""

    name: str
    size: int
    top: "Estimate"
    trace: "Estimate"


def run(session: "Session") -> "Iterator[Draft]":
    """Find both numbers layer by layer, a product at a time; layers that are done are told."""
    space, done = session.curved.space, list[_Layer]()
    empty = {name for name, size in zip(space.names, space.sizes, strict=True) if not size}
    # A layer without any entry has no block, as a slot of a library that is not in use.
    groups = {layer: names for layer, names in space.layers().items() if {*names} - empty}
    with session.meter() as cost:

        def draft() -> Draft:
            known, share = tuple(done), len(done) / len(groups)
            made = (lambda: [_result(session, known, cost())]) if known else (list)
            return Draft(made, max(1.0, _WANTING * (1 - share)) if known else math.inf)

        for layer, names in groups.items():
            session.report("layers", len(done), len(groups))
            blocks = _block(session, layer, names)
            while True:
                try:
                    next(blocks)
                except StopIteration as end:
                    done.append(end.value)
                    break
                yield draft()
            yield draft()


def _result(session: "Session", layers: "Sequence[_Layer]", cost: Cost) -> Result:
    """Return what is known of some layers."""
    # The first layer that did not converge speaks for all: a table has one status.
    statuses = [status for each in layers for status in (each.top.status, each.trace.status)]
    return Result(
        "layer_curvature",
        {
            "layer": [each.name for each in layers],
            "parameters": [each.size for each in layers],
            "top": [float(each.top.value[0]) for each in layers],
            "trace": [float(each.trace.value) for each in layers],
        },
        {
            "top": [float(each.top.error[0]) for each in layers],
            "trace": [float(each.trace.error) for each in layers],
        },
        error_kind="standard_error",
        status=next((s for s in statuses if s != Status.CONVERGED), Status.CONVERGED),
        settings={
            "error_of_top": "residual",
            "tolerance": session.own(CurvatureSettings).tolerance,
            "trace_tolerance": session.own(TraceSettings).trace_tolerance,
            "seed": session.own(ObjectiveSettings).seed,
        },
        cost=cost,
    )


def _block(
    session: "Session", layer: str, names: "Sequence[str]"
) -> "Generator[None, None, _Layer]":
    """Yield after each product of one block; return both of its numbers."""
    from flatkit.hessian.operator import HessianOperator
    from flatkit.spectrum.lanczos import Lanczos
    from flatkit.spectrum.xtrace import trace_steps

    own = session.own(CurvatureSettings)
    memory = session.own(ObjectiveSettings).memory
    block = HessianOperator(session.curved.block(names), memory=memory)
    budget = min(own.max_matvecs, _BUDGET)
    # By its name: a layer more or less changes the draws of no other one.
    generator = session.generator(f"layer {layer}")
    top = Lanczos(block, tolerance=own.tolerance, generator=generator, max_matvecs=budget)
    while not top.done:
        top.step()
        yield
    found, ask = top.estimate(), None
    tolerance = session.own(TraceSettings).trace_tolerance
    asks = trace_steps(block, tolerance=tolerance, generator=generator, max_matvecs=budget)
    for ask in asks:  # noqa: B007 (the last one is asked)
        yield
    assert ask is not None  # it yields at least once
    return _Layer(layer, block.size, found, ask())


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
    derivatives=2,
    settings=(CurvatureSettings, TraceSettings),
    on_request=True,
    flag="--by-layer",
    figures={"layers": "flatkit.render.figures.spectra:layer_figure"},
    passes=lambda session: 60.0 * session.product_price * len(session.curved.space.layers()),
    first=lambda session: 60.0 * session.product_price,
    about="λmax and trace of each layer's own block of the Hessian: where the curvature comes "
    "from. Blocks leave out how layers interact, so that their λmax never exceeds that of "
    "the whole; their traces add up to it.",
)
