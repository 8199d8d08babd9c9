"""Surfaces: values measured on a grid, their files, exports and numbers; never torch."""

from flatkit.surfaces.export import EXPORTS, export
from flatkit.surfaces.numbers import Numbers, barrier_height, basin, numbers, roughness
from flatkit.surfaces.surface import Surface, load_surface

__all__ = [
    "EXPORTS",
    "Numbers",
    "Surface",
    "barrier_height",
    "basin",
    "export",
    "load_surface",
    "numbers",
    "roughness",
]
