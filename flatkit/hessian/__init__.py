"""The Hessian of an objective and its relatives, as operators, and the engines that multiply."""

from flatkit.hessian.engine import ENGINES, EngineName
from flatkit.hessian.gauss_newton import FisherOperator, GaussNewtonOperator
from flatkit.hessian.operator import HessianOperator

__all__ = ["ENGINES", "EngineName", "FisherOperator", "GaussNewtonOperator", "HessianOperator"]
