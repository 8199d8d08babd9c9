"""The Hessian of an objective and its relatives, as operators, and the engines that multiply."""

from flatkit.hessian.gauss_newton import FisherOperator, GaussNewtonOperator
from flatkit.hessian.operator import HessianOperator
from flatkit.hessian.products import ENGINES, EngineName

__all__ = ["ENGINES", "EngineName", "FisherOperator", "GaussNewtonOperator", "HessianOperator"]
