"""Most negative eigenvalues of the Hessian, each with its residual."""

from typing import TYPE_CHECKING

from flatkit.measures.base import Measure
from flatkit.measures.reading import Reading, numbered
from flatkit.measures.shared_settings import CurvatureSettings
from flatkit.measures.top_eigenvalues import asked
from flatkit.results import Result

if TYPE_CHECKING:
    from flatkit.measures.session import Session


def run(session: "Session") -> list[Result]:
    """Return the smallest eigenvalues."""
    from flatkit.spectrum.lanczos import lanczos

    own = session.own(CurvatureSettings)
    with session.meter() as cost:
        found = lanczos(
            session.curvature,
            k=own.num_eigenvalues,
            which="smallest",
            tolerance=own.tolerance,
            max_matvecs=own.max_matvecs,
            generator=session.generator("bottom"),
        )
        settings = {**asked(own), "method": "lanczos"}
        return [session.estimated("bottom_eigenvalues", found, settings, cost())]


def read(result: Result) -> list[Reading]:
    """Return every eigenvalue."""
    return numbered(result, "lowest eigenvalue ")


MEASURE = Measure(
    "bottom_eigenvalues",
    "most negative eigenvalues of the Hessian",
    run,
    read,
    settings=(CurvatureSettings,),
    on_request=True,
)
