"""All figures that surfaces allow, in files."""

from collections.abc import Sequence
from pathlib import Path

from flatkit.landscape.surface import Surface
from flatkit.render.axes import kind_of, quantities_of
from flatkit.render.figures.lines import curve_figure
from flatkit.render.figures.maps import MapStyle, map_figure
from flatkit.render.figures.save import save_figure
from flatkit.render.figures.surfaces_3d import surface_3d_figure
from flatkit.render.page import save_page


def save_pictures(
    surfaces: Sequence[Surface],
    folder: str | Path,
    *,
    style: MapStyle = "contour",
    formats: Sequence[str] = ("png", "svg"),
    dpi: float = 160,
    interactive: bool = False,
) -> list[Path]:
    """Write the figures of surfaces: those of one kind side by side, on one scale.

    Lines of one kind make one figure, `KIND-line`; planes one from above for every quantity,
    `KIND-plane-QUANTITY`, and one in three dimensions of the loss, `KIND-plane-QUANTITY-3d`.

    Args:
        surfaces: lines and planes.
        folder: for the files; made if it is missing.
        style: of the figures from above: `contour` or `heat`.
        formats: of `png`, `svg`, `pdf`.
        dpi: dots an inch of what is drawn in dots.
        interactive: also a page that turns and zooms for each loss, `KIND-plane-QUANTITY.html`.

    Raises:
        ResultError: a plane has no finite loss.
        MissingDependencyError: `interactive` without the package plotly.
        OutputError: a file cannot be written.

    >>> import tempfile
    >>> line = Surface({"t": [0.0, 1.0]}, {"loss": [1.0, 2.0]})
    >>> [path.name for path in save_pictures([line], tempfile.mkdtemp(), formats=["pdf"])]
    ['random-line.pdf']
    """
    written: list[Path] = []
    for kind in dict.fromkeys(kind_of(surface) for surface in surfaces):
        own = [surface for surface in surfaces if kind_of(surface) == kind]
        lines = [surface for surface in own if len(surface.axes) == 1]
        planes = [surface for surface in own if len(surface.axes) == 2]
        if lines:
            written += save_figure(curve_figure(lines), folder, f"{kind}-line", formats, dpi=dpi)
        for quantity in quantities_of(planes):
            name = f"{kind}-plane-{quantity}"
            figure = map_figure(planes, quantity=quantity, style=style)
            written += save_figure(figure, folder, name, formats, dpi=dpi)
            if not quantity.endswith("loss"):
                continue
            figure = surface_3d_figure(planes, quantity=quantity)
            written += save_figure(figure, folder, f"{name}-3d", formats, dpi=dpi)
            if interactive:
                page = Path(folder) / f"{name}.html"
                written.append(save_page(planes, page, quantity=quantity))
    return written
