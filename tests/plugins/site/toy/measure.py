"""‖θ‖, the length of the weights."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flatkit.checks import check_positive
from flatkit.measures.base import Measure
from flatkit.measures.reading import Reading, number
from flatkit.results import Result
from flatkit.settings import setting

if TYPE_CHECKING:
    from flatkit.measures.session import Session


@dataclass(frozen=True)
class NormSettings:
    """Which norm; the value is checked by what the field says of it."""

    norm_order: float = setting(2.0, "Order of the norm of the weights.", check=check_positive)


def run(session: "Session") -> list[Result]:
    """Return ‖θ‖."""
    order = session.own(NormSettings).norm_order
    with session.meter() as cost:
        value = float(session.objective.theta.double().norm(order))
        return [Result("weight_norm", value, 0.0, cost=cost())]


def read(result: Result) -> list[Reading]:
    """Return the length."""
    return [number(result, "weight_norm", "weight norm ‖θ‖", role="flatness", better="lower")]


def draw(comparison: Any) -> Any:
    """Return a figure with a bar a run."""
    from matplotlib.figure import Figure

    figure = Figure()
    found = [entry.report.find("weight_norm").value for entry in comparison.entries]
    figure.subplots().bar(range(len(found)), found)
    return figure


MEASURE = Measure(
    "weight_norm",
    "length of the weights",
    run,
    read,
    settings=(NormSettings,),
    on_request=True,
    figures={"weight-norm": "toy.measure:draw"},
)
