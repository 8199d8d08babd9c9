from .figures.curvature import curvature_figure as curvature_figure
from .figures.flatness import flatness_figure as flatness_figure
from .figures.history import history_figure as history_figure
from .figures.planes import plane_figure as plane_figure
from .figures.save import save_figure as save_figure
from .figures.save import save_figures as save_figures
from .figures.series import series_figure as series_figure
from .figures.slices import slice_figure as slice_figure
from .figures.spectra import density_figure as density_figure
from .figures.spectra import layer_figure as layer_figure
from .figures.track import track_figure as track_figure
from .style import figure_style as figure_style
from .tables.comparison import comparison_markdown as comparison_markdown
from .tables.comparison import comparison_rows as comparison_rows
from .tables.comparison import comparison_table as comparison_table
from .tables.comparison import objective_differences as objective_differences
from .tables.report import report_table as report_table
from .tables.series import series_table as series_table
from .tables.track import track_table as track_table

__all__: list[str]
