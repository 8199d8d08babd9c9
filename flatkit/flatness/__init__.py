"""Flatness: the largest loss and the largest gradient norm within a ρ-ball."""

from flatkit.flatness.average import AverageIncrease, average_loss_increase
from flatkit.flatness.ball import BallMaximum, maximize_over_ball
from flatkit.flatness.geometry import GEOMETRIES, Geometry, geometry_of
from flatkit.flatness.m_sharpness import BatchSharpness, m_sharpness
from flatkit.flatness.quadratic_model import ModelMaximum, QuadraticModel
from flatkit.flatness.r0 import max_loss_increase
from flatkit.flatness.r1 import max_gradient_norm
from flatkit.flatness.trust_region import gradient_norm_maximum, quadratic_maximum

__all__ = [
    "GEOMETRIES",
    "AverageIncrease",
    "BallMaximum",
    "BatchSharpness",
    "Geometry",
    "ModelMaximum",
    "QuadraticModel",
    "average_loss_increase",
    "geometry_of",
    "gradient_norm_maximum",
    "m_sharpness",
    "max_gradient_norm",
    "max_loss_increase",
    "maximize_over_ball",
    "quadratic_maximum",
]
