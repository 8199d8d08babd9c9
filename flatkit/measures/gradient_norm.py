"""‖∇L‖ at the checkpoint."""

from typing import TYPE_CHECKING

from flatkit.measures.base import Measure
from flatkit.measures.reading import Reading, number
from flatkit.results.result import Result

if TYPE_CHECKING:
    from flatkit.measures.session import Session


def run(session: "Session") -> list[Result]:
    """Return ‖∇L‖ on the training data."""
    from flatkit.measures.precision import exactness

    with session.meter() as cost:
        value = float(session.gradient.double().norm())
        error = exactness(session, "gradient", "train")
        settings = {"split": "train"}
        return [Result("gradient_norm", value, *error, settings=settings, cost=cost())]


def read(result: Result) -> list[Reading]:
    """Return the norm."""
    return [number(result, "gradient_norm", "gradient norm ‖∇L‖", role="fit", better="lower")]


MEASURE = Measure(
    "gradient_norm",
    "norm of the loss gradient on the training data",
    run,
    read,
    derivatives=1,
    in_bfloat16=True,
    influence=lambda samples, result: samples.gradient_norm(result),
    about="‖∇L‖ at the checkpoint. Near 0 the checkpoint is close to a stationary point, and "
    "R1/ρ² should meet λmax; a large norm says that training had not ended, and R1 and R0 "
    "then hold the slope as well as the curvature.",
)
