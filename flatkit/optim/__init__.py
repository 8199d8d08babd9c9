"""SAM, GAM and their relatives: optimizers that look around a point before they step from it."""

from flatkit.optim.gam import GAM
from flatkit.optim.sam import ASAM, GSAM, SAM
from flatkit.optim.schedules import ConstantRho, CosineRho, ProportionalRho, RhoSchedule
from flatkit.optim.wrapper import PerturbedOptimizer

__all__ = [
    "ASAM",
    "GAM",
    "GSAM",
    "SAM",
    "ConstantRho",
    "CosineRho",
    "PerturbedOptimizer",
    "ProportionalRho",
    "RhoSchedule",
]
