"""Eigenvalues, trace, diagonal and density of a symmetric operator, each with its error."""

from flatkit.spectrum.block import lobpcg
from flatkit.spectrum.density import Density, spectral_density
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.lanczos import lanczos
from flatkit.spectrum.moments import diagonal, frobenius_norm
from flatkit.spectrum.power import power_iteration
from flatkit.spectrum.sketch import trace
from flatkit.spectrum.trace import hutchinson_trace

__all__ = [
    "Density",
    "Estimate",
    "diagonal",
    "frobenius_norm",
    "hutchinson_trace",
    "lanczos",
    "lobpcg",
    "power_iteration",
    "spectral_density",
    "trace",
]
