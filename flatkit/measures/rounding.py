"""Increase of the loss when the weights are rounded to few bits, and what the trace predicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatkit.checks import check_count
from flatkit.measures.base import Measure
from flatkit.measures.reading import Reading, number
from flatkit.objective.settings import ObjectiveSettings
from flatkit.results.result import Result
from flatkit.settings import setting

if TYPE_CHECKING:
    from flatkit.measures.session import Session

_PROBES = 16


def _check_bits(name: str, value: int) -> int:
    return check_count(name, value, minimum=2)


@dataclass(frozen=True, kw_only=True)
class RoundingSettings:
    """To how many bits weights are rounded."""

    bits: Sequence[int] = setting(
        (8, 4),
        "Bits to which weights are rounded, by the measure rounding.",
        check=_check_bits,
        group="Flatness",
        metavar="B,B,...",
    )


def run(session: "Session") -> list[Result]:
    """Round the weights and measure; predict by the traces of the diagonal blocks."""
    from flatkit.flatness.rounding import expected_increase, rounded
    from flatkit.spectrum.diagonal import diagonal

    objective, found = session.objective, list[Result]()
    with session.meter() as cost:
        # Once for all bits: the curvature of a tensor's block does not depend on them.
        traces = diagonal(
            session.hessian,
            sizes=objective.space.sizes,
            num_probes=_PROBES,
            generator=session.generator("rounding"),
        )
        shared = cost()
    base = session.evaluations["train"][0].loss
    for bits in session.own(RoundingSettings).bits:
        with session.meter() as cost:
            point = rounded(objective.theta, objective.space, bits)
            increase = float(objective.loss(point.theta)) - base
            # The prediction is linear in the traces: by a diagonal matrix, one error at a time.
            variances = expected_increase(point.steps, traces.error.diag()).square().sum().sqrt()
            settings = {
                "bits": bits,
                "predicted": float(expected_increase(point.steps, traces.value)),
                "predicted_error": float(variances),
                "predicted_is": "half the trace of each tensor's block by its rounding variance",
                "probes": _PROBES,
                "seed": session.own(ObjectiveSettings).seed,
            }
            # What all bits share is charged to the first; `cost() - cost()` is nothing.
            spent = cost() + (shared if not found else cost() - cost())
            found.append(Result("rounding", increase, 0.0, settings=settings, cost=spent))
    return found


def read(result: Result) -> list[Reading]:
    """Return the increase under the number of bits, with what was predicted beside it."""
    bits, predicted = result.settings["bits"], result.settings["predicted"]
    return [
        number(
            result,
            f"rounding[bits={bits}]",
            f"ΔL at {bits} bits",
            role="fit",
            better="lower",
            remark=f"{predicted:.3g} by the trace",
        )
    ]


MEASURE = Measure(
    "rounding",
    "increase of the loss when weights are rounded to few bits, and what the trace predicts",
    run,
    read,
    settings=(RoundingSettings,),
    on_request=True,
    passes=lambda session: _PROBES * session.product_price + 1.0,
    influence=lambda samples, result: samples.rounded_increase(result),
    about="How much the loss rises when every weight is rounded to so many bits, as on small "
    "devices, and what the trace of each tensor's block predicts of it. Lower is better; where "
    "the two agree, flatness is what rounding needs.",
)
