"""Loss landscapes: directions, slices and planes."""

from flatkit.landscape.directions import random_direction
from flatkit.landscape.surface import Plane, Slice, loss_plane, loss_slice

__all__ = ["Plane", "Slice", "loss_plane", "loss_slice", "random_direction"]
