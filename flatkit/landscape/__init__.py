"""Loss landscapes: directions, slices and planes.

Names load lazily: the settings can be checked without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatkit.landscape.directions import normalise, random_direction
    from flatkit.landscape.frames import Frame, eigen_frame, given_frame, random_frame
    from flatkit.landscape.jobs import measure_into, survey, surveys
    from flatkit.landscape.measure import Survey
    from flatkit.landscape.settings import LandscapeSettings
    from flatkit.landscape.surface import Plane, Slice, loss_plane, loss_slice
    from flatkit.landscape.through import Stop, line_between, pca_frame, plane_through

# No module may have the name of a function: importing it would hide the function.
_HOMES = {
    "Frame": "flatkit.landscape.frames",
    "LandscapeSettings": "flatkit.landscape.settings",
    "Plane": "flatkit.landscape.surface",
    "Slice": "flatkit.landscape.surface",
    "Stop": "flatkit.landscape.through",
    "Survey": "flatkit.landscape.measure",
    "eigen_frame": "flatkit.landscape.frames",
    "given_frame": "flatkit.landscape.frames",
    "line_between": "flatkit.landscape.through",
    "loss_plane": "flatkit.landscape.surface",
    "loss_slice": "flatkit.landscape.surface",
    "measure_into": "flatkit.landscape.jobs",
    "normalise": "flatkit.landscape.directions",
    "pca_frame": "flatkit.landscape.through",
    "plane_through": "flatkit.landscape.through",
    "random_direction": "flatkit.landscape.directions",
    "random_frame": "flatkit.landscape.frames",
    "survey": "flatkit.landscape.jobs",
    "surveys": "flatkit.landscape.jobs",
}

__all__ = [
    "Frame",
    "LandscapeSettings",
    "Plane",
    "Slice",
    "Stop",
    "Survey",
    "eigen_frame",
    "given_frame",
    "line_between",
    "loss_plane",
    "loss_slice",
    "measure_into",
    "normalise",
    "pca_frame",
    "plane_through",
    "random_direction",
    "random_frame",
    "survey",
    "surveys",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'flatkit.landscape' has no attribute {name!r}")
