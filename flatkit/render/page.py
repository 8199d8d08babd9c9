"""A page with planes that turn and zoom: one HTML file that needs no network."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy

from flatkit.errors import MissingDependencyError, ResultError
from flatkit.files.atomic import write_text_atomically
from flatkit.landscape.directions.kind import short_name
from flatkit.landscape.surface import Surface
from flatkit.render.axes import (
    axis_label,
    explanation,
    in_units,
    quantity_label,
    tick_text,
)
from flatkit.render.figures.colour_scale import Scale, scale_of

_LIFT = 0.015
"""Points and paths are drawn this share of the height above the surface, which would hide them."""


def save_page(surfaces: Sequence[Surface], path: str | Path, *, quantity: str = "loss") -> Path:
    """Write planes side by side, on one scale, as a page that turns under the mouse.

    Values are shown under the pointer, also those that are cut off in height. The page holds
    plotly itself (about 5 MB): it opens anywhere, without a network, and is the same every time.

    Args:
        surfaces: with axes x and y; those without the quantity are left out.
        path: of the `.html`.
        quantity: e.g. `loss`, `test_accuracy`.

    Raises:
        MissingDependencyError: without the package plotly.
        ResultError: no plane has a finite value.
        OutputError: the file cannot be written.

    >>> import tempfile
    >>> steps = [-1.0, 0.0, 1.0]
    >>> bowl = Surface({"x": steps, "y": steps}, {"loss": [[3, 2, 3], [2, 1, 2], [3, 2, 3]]})
    >>> page = save_page([bowl], Path(tempfile.mkdtemp()) / "bowl.html").read_text("utf-8")
    >>> "Plotly.newPlot" in page, "<script src" in page
    (True, False)
    """
    try:
        import plotly.graph_objects as graph
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise MissingDependencyError(
            "interactive pages need the package plotly: pip install 'flatkit[interactive]'"
        ) from error
    planes = [s for s in surfaces if len(s.axes) == 2 and quantity in s.quantities]
    values = [in_units(plane, quantity) for plane in planes]
    if not any(numpy.isfinite(array).any() for array in values):
        raise ResultError(f"no plane holds a finite {quantity}; measure a landscape with it")
    figure = make_subplots(
        cols=len(planes),
        specs=[[{"type": "surface"}] * len(planes)],
        subplot_titles=[escape(plane.name) for plane in planes],  # plotly reads tags in texts
        horizontal_spacing=0.02,
    )
    _fill(figure, graph, planes, values, quantity)
    page = figure.to_html(
        include_plotlyjs=True,
        full_html=True,
        div_id="landscape",  # plotly would draw a random one
        # No button that sends the surface to a server.
        config={"displaylogo": False, "responsive": True, "showSendToCloud": False},
    )
    title = f"{quantity_label(quantity)}: {', '.join(plane.name for plane in planes)}"
    page = page.replace("<head>", f"<head>\n    <title>{escape(title)}</title>", 1)
    return write_text_atomically(path, page)


def _fill(
    figure: Any, graph: Any, planes: Sequence[Surface], values: Sequence[Any], quantity: str
) -> None:
    """Draw planes into the columns of a figure."""
    # One for all planes, so that a flatter one looks flatter.
    scale = scale_of(values, linear=quantity.endswith("accuracy"))
    for number, (plane, array) in enumerate(zip(planes, values, strict=True), start=1):
        figure.add_trace(
            _surface(graph, plane, array, scale, quantity, number == 1), row=1, col=number
        )
        for trace in _points(graph, plane, array, scale):
            figure.add_trace(trace, row=1, col=number)
        figure.update_scenes(_scene(plane, array, scale, quantity), row=1, col=number)
    figure.update_layout(
        template="plotly_white",
        font={"family": "DejaVu Sans, Verdana, sans-serif", "size": 12},
        margin={"l": 10, "r": 10, "t": 60, "b": 60},
        showlegend=False,
    )
    figure.add_annotation(
        text=explanation(planes), x=0.5, y=-0.06, xref="paper", yref="paper", showarrow=False,
        font={"size": 11, "color": "gray"},
    )  # fmt: skip


def _surface(
    graph: Any, plane: Surface, array: Any, scale: Scale, quantity: str, with_bar: bool
) -> Any:
    low, top = scale.range
    return graph.Surface(
        x=plane.axes["x"],
        y=plane.axes["y"],
        z=scale.heights(array),
        customdata=numpy.where(numpy.isfinite(array), array, numpy.nan),
        colorscale="Viridis",
        cmin=low,
        cmax=top,
        showscale=with_bar,
        colorbar={
            "title": {"text": quantity_label(quantity)},
            "tickvals": scale.heights(scale.ticks).tolist(),
            "ticktext": [tick_text(tick) for tick in scale.ticks],
            "len": 0.7,
        },
        contours={"z": {"show": True, "start": low, "end": top, "size": (top - low) / 16,
                        "color": "white", "width": 1}},
        hovertemplate="%{x:.4g}, %{y:.4g}: %{customdata:.5g}<extra></extra>",
    )  # fmt: skip


def _points(graph: Any, plane: Surface, array: Any, scale: Scale) -> list[Any]:
    """Return the path and the checkpoints, on the surface."""
    path, found = plane.header.get("path"), []
    if path:
        found.append((path["at"], path["names"], "lines+markers", 3))
    markers = _markers(plane)
    found.append(([m["at"] for m in markers], [m["name"] for m in markers], "markers", 5))
    return [
        graph.Scatter3d(
            x=[x for x, _ in at],
            y=[y for _, y in at],
            z=_on_surface(plane, array, scale, at),
            text=[escape(short_name(name)) for name in names],
            mode=mode,
            marker={"size": size, "color": "white", "line": {"color": "black", "width": 2}},
            line={"color": "black", "width": 4},
            hovertemplate="%{text}<extra></extra>",
        )
        for at, names, mode, size in found
    ]


def _markers(plane: Surface) -> Sequence[Any]:
    return plane.header.get("markers") or [{"name": plane.name, "at": [0.0, 0.0]}]


def _labels(plane: Surface, array: Any, scale: Scale) -> list[dict[str, Any]]:
    """Return the names of several checkpoints, readable on any colour; one is that of the plane."""
    markers = _markers(plane)
    heights = _on_surface(plane, array, scale, [m["at"] for m in markers])
    if len(markers) < 2:
        return []
    return [
        {
            "text": escape(short_name(marker["name"])),
            **dict(zip("xyz", (*marker["at"], height), strict=True)),
            "ax": 0,
            "ay": -28,
            "arrowhead": 0,
            "bgcolor": "rgba(255, 255, 255, 0.8)",
        }
        for marker, height in zip(markers, heights.tolist(), strict=True)
        if numpy.isfinite(height)
    ]


def _on_surface(plane: Surface, array: Any, scale: Scale, at: Sequence[Any]) -> Any:
    """Return the heights of points, a little above the surface; none outside it."""
    from scipy.interpolate import RegularGridInterpolator

    # As the values lie: [ny, nx].
    axes = (plane.axes["y"], plane.axes["x"])
    smooth = RegularGridInterpolator(axes, scale.heights(array), bounds_error=False)
    low, top = scale.range
    return smooth([(y, x) for x, y in at]) + _LIFT * (top - low)


def _scene(plane: Surface, array: Any, scale: Scale, quantity: str) -> dict[str, Any]:
    return {
        "xaxis": {"title": {"text": axis_label(plane, 0)}},
        "yaxis": {"title": {"text": axis_label(plane, 1)}},
        "zaxis": {
            "title": {"text": quantity_label(quantity)},
            "tickvals": scale.heights(scale.ticks).tolist(),
            "ticktext": [tick_text(tick) for tick in scale.ticks],
            "range": list(scale.range),
        },
        "annotations": _labels(plane, array, scale),
        "aspectratio": {"x": 1, "y": 1, "z": 0.7},
        "camera": {"eye": {"x": 1.0, "y": -1.4, "z": 1.55}, "center": {"x": 0, "y": 0, "z": -0.15}},
    }
