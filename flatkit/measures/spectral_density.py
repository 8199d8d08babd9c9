"""Density of the eigenvalues of the Hessian, smoothed."""

from typing import TYPE_CHECKING

from flatkit.measures.base import Measure
from flatkit.measures.reading import Reading, detail
from flatkit.measures.shared_settings import CurvatureSettings
from flatkit.results import Result

if TYPE_CHECKING:
    from flatkit.measures.session import Session


def run(session: "Session") -> list[Result]:
    """Return the density, with its bandwidth and checks of its mass."""
    from flatkit.spectrum.density import spectral_density

    with session.meter() as cost:
        found = spectral_density(session.curvature, generator=session.generator("density"))
        size = session.curved.num_parameters
        return [
            Result(
                "spectral_density",
                {"eigenvalue": found.grid.tolist(), "density": found.curve.tolist()},
                {"density": found.error.tolist()},
                error_kind="standard_error",
                settings={
                    "bandwidth": found.bandwidth,
                    "mass": found.mass,
                    "mean": found.mean,
                    "mean_error": found.mean_error,
                    "trace": found.mean * size,
                    "trace_error": found.mean_error * size,
                    "nodes": found.nodes.tolist(),
                    "weights": found.weights.tolist(),
                    **session.measured_on,
                },
                cost=cost(),
            )
        ]


def read(result: Result) -> list[Reading]:
    """Return the mean eigenvalue, which is trace/P, and the mass, which is 1."""
    own = result.settings
    mean = (own["mean"], own["mean_error"])
    return [
        detail(result, "density_mean", "mean of the density", *mean, "standard_error"),
        detail(result, "density_mass", "mass of the density", own["mass"], 0.0, "exact"),
    ]


MEASURE = Measure(
    "spectral_density",
    "density of the eigenvalues, smoothed",
    run,
    read,
    settings=(CurvatureSettings,),
    on_request=True,
    figures={"density": "flatkit.render.figures.spectra:density_figure"},
    passes=lambda session: 300.0 * session.product_price,
)
