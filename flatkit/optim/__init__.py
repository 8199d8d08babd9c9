"""SAM and GAM: optimizers that look around a point before they step from it."""

from flatkit.optim.gam import GAM
from flatkit.optim.perturbation import PerturbedOptimizer
from flatkit.optim.sam import SAM

__all__ = ["GAM", "SAM", "PerturbedOptimizer"]
