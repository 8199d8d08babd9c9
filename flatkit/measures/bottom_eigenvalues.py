"""Most negative eigenvalues of the Hessian, each with its residual."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flatkit.measures.base import Draft, Measure
from flatkit.measures.reading import Reading, numbered
from flatkit.measures.shared_settings import CurvatureSettings
from flatkit.measures.top_eigenvalues import asked
from flatkit.results.result import Result

if TYPE_CHECKING:
    from flatkit.measures.session import Session


def run(session: "Session") -> "Iterator[Draft]":
    """Find the smallest eigenvalues."""
    from flatkit.spectrum.lanczos import Lanczos

    own = session.own(CurvatureSettings)
    with session.meter() as cost:
        search = Lanczos(
            session.curvature,
            k=own.num_eigenvalues,
            which="smallest",
            tolerance=own.tolerance,
            max_matvecs=own.max_matvecs,
            generator=session.generator("bottom"),
        )

        session.bottom = search

        def results() -> list[Result]:
            settings = {**asked(own), "method": "lanczos"}
            return [session.estimated("bottom_eigenvalues", search.estimate(), settings, cost())]

        for _ in search.steps():
            session.look_at(search)
            yield Draft(results, search.excess)


def read(result: Result) -> list[Reading]:
    """Return every eigenvalue."""
    return numbered(result, "lowest eigenvalue ")


MEASURE = Measure(
    "bottom_eigenvalues",
    "most negative eigenvalues of the Hessian",
    run,
    read,
    derivatives=2,
    settings=(CurvatureSettings,),
    on_request=True,
    passes=lambda session: 40.0 * session.product_price,
    in_bfloat16=True,
    influence=lambda samples, result: samples.bottom_eigenvalues(result),
    about="The most negative curvature. Values well below 0 say that the checkpoint is a saddle "
    "point and no minimum; small ones beside λmax are usual.",
)
