"""Landscapes as data: surfaces in files, grids, journals, exports and numbers; no torch."""

from flatkit.surfaces.export import EXPORTS, export
from flatkit.surfaces.grids import axis_steps
from flatkit.surfaces.journal import Journal
from flatkit.surfaces.numbers import (
    Barrier,
    Numbers,
    barrier_height,
    barriers,
    basin,
    numbers,
    roughness,
)
from flatkit.surfaces.refinement import Refinement
from flatkit.surfaces.surface import Surface, load_surface

__all__ = [
    "EXPORTS",
    "Barrier",
    "Journal",
    "Numbers",
    "Refinement",
    "Surface",
    "axis_steps",
    "barrier_height",
    "barriers",
    "basin",
    "export",
    "load_surface",
    "numbers",
    "roughness",
]
