"""Eigenvalues and trace of a symmetric operator, each with its error."""

from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.lanczos import lanczos
from flatkit.spectrum.power import power_iteration
from flatkit.spectrum.trace import hutchinson_trace

__all__ = ["Estimate", "hutchinson_trace", "lanczos", "power_iteration"]
