"""Results in, tables and pictures out; never torch.

Names load lazily, so that a table does not pay for matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatkit.render.comparison import (
        comparison_markdown,
        comparison_rows,
        comparison_table,
        objective_differences,
    )
    from flatkit.render.curvature import curvature_figure
    from flatkit.render.figures import save_figure, save_figures
    from flatkit.render.flatness import flatness_figure
    from flatkit.render.history import history_figure
    from flatkit.render.planes import plane_figure
    from flatkit.render.series import series_figure, series_table
    from flatkit.render.slices import slice_figure
    from flatkit.render.spectra import density_figure, layer_figure
    from flatkit.render.table import report_table

# No module may have the name of a function: importing it would hide the function.
_HOMES = {
    "comparison_markdown": "flatkit.render.comparison",
    "comparison_rows": "flatkit.render.comparison",
    "comparison_table": "flatkit.render.comparison",
    "curvature_figure": "flatkit.render.curvature",
    "density_figure": "flatkit.render.spectra",
    "flatness_figure": "flatkit.render.flatness",
    "history_figure": "flatkit.render.history",
    "layer_figure": "flatkit.render.spectra",
    "objective_differences": "flatkit.render.comparison",
    "plane_figure": "flatkit.render.planes",
    "report_table": "flatkit.render.table",
    "save_figure": "flatkit.render.figures",
    "save_figures": "flatkit.render.figures",
    "series_figure": "flatkit.render.series",
    "series_table": "flatkit.render.series",
    "slice_figure": "flatkit.render.slices",
}

__all__ = [
    "comparison_markdown",
    "comparison_rows",
    "comparison_table",
    "curvature_figure",
    "density_figure",
    "flatness_figure",
    "history_figure",
    "layer_figure",
    "objective_differences",
    "plane_figure",
    "report_table",
    "save_figure",
    "save_figures",
    "series_figure",
    "series_table",
    "slice_figure",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'flatkit.render' has no attribute {name!r}")
