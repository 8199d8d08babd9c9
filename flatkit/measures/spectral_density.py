"""Density of the eigenvalues of the Hessian, smoothed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from flatkit.measures.base import Draft, Measure
from flatkit.measures.reading import Reading, detail, over_samples
from flatkit.measures.shared_settings import CurvatureSettings
from flatkit.results.cost import Cost
from flatkit.results.result import Result

if TYPE_CHECKING:
    from flatkit.measures.session import Session
    from flatkit.spectrum.density import Density

_ERROR_IS = (
    "root of two squares: the standard error of the curve over the random starts, wider where they "
    "are few, and how far apart, within the distance of two nodes, the two rules lie whose mean it "
    "is"
)
_PRODUCTS = 8 * 60
"""What it takes in the end, about."""


def run(session: "Session") -> "Iterator[Draft]":
    """Estimate the density; the search of the eigenvalues is the first of its random starts."""
    from flatkit.spectrum.density import density_steps

    with session.meter() as cost:
        # To its end and not only to the shared space: a
        # random start of full length is one rule more.
        while not session.krylov.done:
            session.step_space()
            yield Draft(lambda: (), _PRODUCTS)
        draws, first = session.generator("density"), session.krylov.rule()
        found = density_steps(session.curvature, generator=draws, first=first)
        for done, ask in enumerate(found, start=1):
            yield Draft(partial(_results, session, ask, cost), max(1.0, _PRODUCTS / done))


def _results(
    session: "Session", ask: "Callable[[], Density]", cost: Callable[[], Cost]
) -> list[Result]:
    """Return the density, with its bandwidth and checks of its mass."""
    found, size = ask(), session.curved.num_parameters
    return [
        Result(
            "spectral_density",
            {"eigenvalue": found.grid.tolist(), "density": found.curve.tolist()},
            {"density": found.error.tolist()},
            error_kind="standard_error",
            settings={
                "error_is": _ERROR_IS,
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
        replace(
            detail(result, "density_mean", "mean of the density", *mean, "standard_error"),
            **over_samples(result),
        ),
        detail(result, "density_mass", "mass of the density", own["mass"], 0.0, "exact"),
    ]


MEASURE = Measure(
    "spectral_density",
    "density of the eigenvalues, smoothed",
    run,
    read,
    derivatives=2,
    settings=(CurvatureSettings,),
    on_request=True,
    figures={"density": "flatkit.render.figures.spectra:density_figure"},
    passes=lambda session: 300.0 * session.product_price,
    influence=lambda samples, result: samples.mean_eigenvalue(result),
    about="Where the eigenvalues lie, as a smoothed density of total mass 1. Of a trained "
    "classifier most lie near 0, and a few, about as many as there are classes, stand "
    "apart.",
)
