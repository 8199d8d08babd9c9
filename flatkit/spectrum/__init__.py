"""Eigenvalues, trace, diagonal and density of a symmetric operator, each with its error.

Names load at once: a lazy one would be hidden by the module of the same name.
"""

from flatkit.spectrum.density import Density, spectral_density
from flatkit.spectrum.diagonal import diagonal
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.frobenius import frobenius_norm
from flatkit.spectrum.hutchinson import hutchinson_trace
from flatkit.spectrum.lanczos import lanczos
from flatkit.spectrum.lobpcg import lobpcg
from flatkit.spectrum.power_iteration import power_iteration
from flatkit.spectrum.xtrace import trace

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
