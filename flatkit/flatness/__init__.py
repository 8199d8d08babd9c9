"""Flatness: the largest loss and the largest gradient norm within a ρ-ball."""

from flatkit.flatness.ball import BallMaximum, maximize_over_ball
from flatkit.flatness.first_order import max_gradient_norm
from flatkit.flatness.zeroth_order import max_loss_increase

__all__ = ["BallMaximum", "max_gradient_norm", "max_loss_increase", "maximize_over_ball"]
