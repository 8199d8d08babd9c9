"""Pictures of surfaces: labels, scales, what is drawn where; redrawing needs no torch."""

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.path import Path as Outline
from matplotlib.transforms import Affine2D

from flatkit.errors import InvalidArgumentError, ResultError
from flatkit.landscape import Surface
from flatkit.render.figures.colour_scale import scale_of
from flatkit.render.figures.lines import curve_figure
from flatkit.render.figures.maps import map_figure
from flatkit.render.figures.surfaces import save_pictures
from flatkit.render.figures.surfaces_3d import surface_3d_figure
from flatkit.render.page import save_page
from flatkit.render.tables.surfaces import numbers_table

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent.parent
RANDOM = {
    "kind": "random",
    "norms": [12.3, 12.4],
    "normalization": "filter",
    "one_dimensional": "zero",
}


def line(name="gam", curvature=3.0, test=False, **header):
    t = np.linspace(-1, 1, 21)
    quantities = {
        "loss": 0.5 + curvature * t**2,
        "gradient_norm": np.abs(2 * curvature * t),
        "accuracy": 0.95 - 0.1 * t**2,
    }
    if test:
        quantities |= {f"test_{key}": 1.1 * values for key, values in quantities.items()}
    about = {"name": name, "directions": {**RANDOM, "norms": [12.3]}, **header}
    return Surface({"t": t}, quantities, about)


def plane(name="gam", curvature=1.0, n=9, **header):
    x, y = np.linspace(-1, 1, n), np.linspace(-1, 1, n - 2)
    loss = 0.01 + curvature * (x**2 + 2 * y[:, None] ** 2)
    about = {"name": name, "directions": RANDOM, **header}
    return Surface(
        {"x": x, "y": y},
        {"loss": loss, "accuracy": np.exp(-loss), "gradient_norm": loss + 1},
        about,
    )


def trajectory():
    path = {
        "names": [f"gam/epoch-000{n}" for n in (1, 2, 3)],
        "epochs": [1, 2, 3],
        "at": [[0.8, 0.6], [0.4, 0.1], [0.0, 0.0]],
        "off_plane": [0.3, 0.2, 0.0],
    }
    markers = [
        {"name": "gam/epoch-0001", "at": [0.8, 0.6], "off_plane": 0.3},
        {"name": "gam/epoch-0003", "at": [0.0, 0.0], "off_plane": 0.0},
    ]
    directions = {"kind": "pca", "norms": [1.0, 1.0], "explained_variance": [0.812, 0.155]}
    return plane(directions=directions, path=path, markers=markers)


def corners():
    markers = [
        {"name": name, "at": at}
        for name, at in (("sgd", [0.0, 0.0]), ("sam", [0.5, 0.0]), ("gam", [0.25, 0.5]))
    ]
    return plane("sgd – sam – gam", directions={"kind": "checkpoints"}, markers=markers)


def footnote_of(figure: Any) -> str:
    return figure._supxlabel.get_text().replace("\n", " ")


def drawn(axis: Any, points: int) -> list[Any]:
    """Return the lines of so many points."""
    return [found for found in axis.lines if len(found.get_xdata()) == points]


def texts_of(figure: Any) -> list[Any]:
    figure.canvas.draw()
    found = [figure._supxlabel] if getattr(figure, "_supxlabel", None) else []
    found += figure.legends
    for axis in figure.axes:
        found += [axis.title, axis.xaxis.label, axis.yaxis.label]
    return found


FIGURES = {
    "one line": lambda: curve_figure([line()]),
    "lines with test": lambda: curve_figure([line("sgd", 9.0, True), line("gam", 2.0, True)]),
    "one plane": lambda: map_figure([plane()]),
    "heat": lambda: map_figure([plane()], style="heat"),
    "planes": lambda: map_figure(
        [plane(n, c) for n, c in (("sgd", 9.0), ("sam", 3.0), ("gam", 1))]
    ),
    "accuracy": lambda: map_figure([plane()], quantity="accuracy"),
    "trajectory": lambda: map_figure([trajectory()]),
    "three checkpoints": lambda: map_figure([corners()]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_overlaps_another_or_leaves_the_figure(name):
    figure = FIGURES[name]()
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in texts_of(figure)]
    boxes = [box for box in boxes if box.width > 1 and box.height > 1]
    assert len(boxes) >= 3
    width, height = figure.get_size_inches() * figure.dpi
    for number, box in enumerate(boxes):
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        for other in boxes[number + 1 :]:
            assert not (
                box.x0 < other.x1 - 1
                and other.x0 < box.x1 - 1
                and box.y0 < other.y1 - 1
                and other.y0 < box.y1 - 1
            )


@pytest.mark.parametrize("name", FIGURES)
def test_every_axis_says_what_it_is(name):
    for axis in FIGURES[name]().axes:
        assert axis.get_ylabel()
        bar = axis.get_label() == "<colorbar>"
        twin = axis.get_ylabel().startswith("gradient norm") and not axis.get_xlabel()
        assert bar or twin or axis.get_xlabel()


def test_curves_have_the_loss_on_the_left_and_the_gradient_norm_on_the_right():
    figure = curve_figure([line("sgd", 9.0), line("gam", 2.0)])
    left, accuracy, right = figure.axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("loss", "gradient norm ‖∇L‖")
    assert right.yaxis.get_label_position() == "right" and accuracy.get_ylabel() == "accuracy (%)"
    assert "12.3" in left.get_xlabel()
    losses = drawn(left, 21)
    norms = drawn(right, 21)
    np.testing.assert_allclose(losses[0].get_ydata(), line("sgd", 9.0).quantities["loss"])
    np.testing.assert_allclose(norms[1].get_ydata(), line("gam", 2.0).quantities["gradient_norm"])
    assert losses[0].get_color() == norms[0].get_color() != losses[1].get_color()
    assert {x.get_linestyle() for x in losses} == {"-"}
    assert {x.get_linestyle() for x in norms} == {"--"}
    assert drawn(accuracy, 21)[1].get_ydata()[0] == pytest.approx(85.0)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["sgd", "gam", "loss", "gradient norm (right)"]


def test_infinite_values_of_a_curve_are_marked_and_the_rest_is_drawn():
    surface = line()
    surface.quantities["loss"][:3] = math.inf
    figure = curve_figure([surface])
    marks: list[Any] = [x for x in figure.axes[0].lines if x.get_marker() == "^"]
    assert marks[0].get_xdata().tolist() == pytest.approx([-1.0, -0.9, -0.8])
    assert "too large to draw" in [t.get_text() for t in figure.legends[0].get_texts()]


def pixel(figure, axis, x, y):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())
    column, row = axis.transData.transform((x, y))
    return image[image.shape[0] - 1 - round(row), round(column), :3] / 255


@pytest.mark.parametrize("style", ["contour", "heat"])
def test_equal_values_have_equal_colours_in_all_panels(style):
    figure = map_figure([plane("a", 4.0, 41), plane("b", 1.0, 41)], style=style)
    left, right, bar = figure.axes
    one, other = pixel(figure, left, 0.4, 0.12), pixel(figure, right, 0.8, 0.24)
    assert np.allclose(one, other, atol=0.12)  # 0.01 + 4·(0.4² + 2·0.12²) and 0.8² + 2·0.24²
    assert not np.allclose(one, pixel(figure, right, 0.2, 0.06), atol=0.2)
    low, high = bar.get_ylim()
    assert low == pytest.approx(0.01) and high == pytest.approx(12.01)


def test_planes_have_one_range_and_what_was_not_measured_is_white():
    small, large = plane("sharp", 9.0), plane("flat", 1.0)
    small = Surface({k: 0.5 * v for k, v in small.axes.items()}, small.quantities, small.header)
    figure = map_figure([small, large])
    left, right, _ = figure.axes
    assert left.get_xlim() == right.get_xlim() == (-1.0, 1.0)
    assert left.get_ylim() == right.get_ylim() == (-1.0, 1.0)
    assert np.allclose(pixel(figure, left, 0.8, 0.8), 1.0)  # beyond its own range
    assert not np.allclose(pixel(figure, right, 0.8, 0.8), 1.0, atol=0.05)
    assert "one scale of axes and colours" in footnote_of(figure)


def test_the_bar_of_a_logarithmic_scale_has_round_ticks_and_levels_repeat_between_figures():
    first, second = scale_of([np.array([0.011, 3.0])]), scale_of([np.array([0.02, 3.5])])
    assert first.is_log and first.ticks.tolist() == [0.03, 0.1, 0.3, 1.0, 3.0]
    assert len(set(first.lines.tolist()) & set(second.lines.tolist())) >= 15
    accuracy = scale_of([np.array([12.0, 98.0])], linear=True)
    assert not accuracy.is_log and accuracy.low == 12.0 and accuracy.top == 98.0


def test_outliers_do_not_take_the_colours_of_the_rest():
    scale = scale_of([np.concatenate([np.linspace(1, 2, 200), [1e9]])])
    assert scale.extend == "max" and scale.top < 10


def test_the_path_is_drawn_where_it_is_and_its_distance_from_the_plane_is_said():
    figure = map_figure([trajectory()])
    axis = figure.axes[0]
    paths = drawn(axis, 3)
    np.testing.assert_allclose(paths[0].get_xdata(), [0.8, 0.4, 0.0])
    np.testing.assert_allclose(paths[0].get_ydata(), [0.6, 0.1, 0.0])
    assert {text.get_text() for text in axis.texts} == {"epoch 1", "epoch 3"}
    assert "81.2 %" in axis.get_xlabel() and "15.5 %" in axis.get_ylabel()
    assert "up to 0.30 off the plane" in footnote_of(figure)


def test_checkpoints_are_marked_by_name_where_they_are():
    axis: Any = map_figure([corners()]).axes[0]
    assert {(t.get_text(), tuple(t.xy)) for t in axis.texts} == {
        ("sgd", (0.0, 0.0)),
        ("sam", (0.5, 0.0)),
        ("gam", (0.25, 0.5)),
    }


def test_what_was_held_and_interpolated_is_said_below():
    surface = plane(statistics="reestimate")
    surface.measured[::2] = False
    text = footnote_of(map_figure([surface]))
    for words in (
        "filter-normalised",
        "biases and BatchNorm parameters stay",
        "estimated again at every point",
        "27 of 63 points measured",
    ):
        assert words in text
    preview = map_figure([plane(complete=False)])
    assert preview.axes[0].get_title() == "gam (preview)"


def test_files_that_were_made_otherwise_are_explained_apart():
    raw = {**RANDOM, "normalization": "none", "one_dimensional": "whole"}
    text = map_figure([plane("a"), plane("b", directions=raw)]).get_supxlabel().replace("\n", " ")
    assert "a: along random filter-normalised directions" in text
    assert "b: along random unit directions" in text
    assert text.count("biases and BatchNorm parameters stay") == 1
    alike = map_figure([plane("a"), plane("b")]).get_supxlabel()
    assert "a: " not in alike and alike.count("along") == 1


def test_the_centre_of_a_relief_is_marked_also_at_height_zero():
    surface = plane()
    values = surface.quantities["loss"] - 0.01
    at_zero = Surface(surface.axes, {"loss": values}, surface.header)
    axis: Any = surface_3d_figure([at_zero]).axes[0]
    assert [line.get_data_3d()[2].tolist() for line in axis.lines] == [[0.0]]


def test_a_relief_has_the_height_of_the_loss_and_holes_where_it_is_infinite():
    surface = plane()
    surface.quantities["loss"][0, 0] = math.inf
    axis: Any = surface_3d_figure([surface]).axes[0]
    assert axis.get_zlabel() == "loss" and axis.get_xlabel().startswith("step t₁")
    low, high = axis.get_zlim()
    assert low == pytest.approx(-2.0) and high == pytest.approx(np.log10(3.01))
    labels = [t.get_text() for t in axis.get_zticklabels()]
    assert labels == ["0.01", "0.03", "0.1", "0.3", "1", "3"]
    drawn_low, drawn_high = axis.zz_dataLim.intervalx
    assert drawn_low == pytest.approx(-2.0, abs=1e-3) and drawn_high <= high + 1e-9


def slanting(text):
    """Return the rectangle around a rotated text."""
    around, angle = text.get_window_extent(), text.get_rotation()
    text.set_rotation(0)
    flat = text.get_window_extent()
    text.set_rotation(angle)
    x, y = (flat.p0 + flat.p1) / 2
    turned = Affine2D().rotate_deg_around(x, y, angle)
    moved = turned.translate(*(around.p0 + around.p1 - flat.p0 - flat.p1) / 2)
    return Outline(flat.corners()[[0, 1, 3, 2, 0]]).transformed(moved)


@pytest.mark.parametrize("count", [1, 3])
def test_the_labels_of_a_relief_stand_apart_from_its_ticks_and_the_footnote(count):
    directions = {"kind": "eigenvectors", "norms": [1.0, 1.0], "eigenvalues": [1.4, 0.0113]}
    figure = surface_3d_figure([plane(directions=directions) for _ in range(count)])
    FigureCanvasAgg(figure).draw()
    axis: Any
    for axis in figure.axes:
        sides = (axis.xaxis, axis.yaxis, axis.zaxis)
        labels = [slanting(side.label) for side in sides]
        ticks = [tick.label1 for side in sides for tick in side.get_major_ticks()]
        others = [t.get_window_extent() for t in (*ticks, *figure.texts) if t.get_text()]
        assert len(others) > 10
        assert not any(one.intersects_bbox(other) for one in labels for other in others)


@pytest.mark.parametrize("draw", [map_figure, surface_3d_figure, curve_figure])
def test_nothing_to_draw_is_an_error_that_says_what_to_do(draw):
    nothing = plane()
    nothing.quantities["loss"][:] = math.nan
    with pytest.raises(ResultError, match="measure a landscape"):
        draw([nothing])


def test_the_page_holds_everything_and_asks_no_network(tmp_path):
    pytest.importorskip("plotly")
    surfaces = [trajectory(), plane("sgd", 3.0)]
    first = save_page(surfaces, tmp_path / "a.html").read_text("utf-8")
    assert save_page(surfaces, tmp_path / "b.html").read_text("utf-8") == first
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", first)
    body = first[first.rindex("Plotly.newPlot") :]
    for words in ("principal axis 1", "epoch 1", "step t", '"sgd"', "loss"):
        assert words in body
    assert '"showSendToCloud": false' in body  # no button that would ask for one
    assert "<title>loss: " in first and "Plotly" in first and len(first) > 2e6  # the library itself


def test_a_name_is_no_tag_of_the_page(tmp_path):
    pytest.importorskip("plotly")
    page = save_page([plane("<i>gam</i>")], tmp_path / "a.html").read_text("utf-8")
    body = page[page.rindex("Plotly.newPlot") :].replace("\\u003c", "<")
    assert "gam" in body and "<i>" not in body


def test_pictures_are_the_same_bytes_again_and_vectors_are_written(tmp_path):
    surfaces = [plane("sgd", 3.0), plane(), line(), trajectory()]
    formats = ("png", "svg", "pdf")
    written = save_pictures(surfaces, tmp_path / "a", formats=formats, style="heat", dpi=50)
    stems = {path.stem for path in written}
    planes = {f"{kind}-plane-{q}" for kind in ("random", "pca") for q in surfaces[0].quantities}
    reliefs = {f"{kind}-plane-loss-3d" for kind in ("random", "pca")}
    assert stems == {"random-line"} | planes | reliefs
    assert len(written) == 3 * len(stems)
    again = save_pictures(surfaces[2:], tmp_path / "b", formats=formats, style="heat", dpi=50)
    assert {path.stem for path in again} > {"random-line", "pca-plane-loss", "pca-plane-loss-3d"}
    for path in again:
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes(), path.name
    with pytest.raises(InvalidArgumentError, match="format"):
        save_pictures(surfaces, tmp_path / "c", formats=("gif",))


def test_colours_of_runs_differ_also_in_lightness_or_dash():
    figure = curve_figure([line(str(n), n + 1.0) for n in range(4)])
    assert len({to_rgb(x.get_color()) for x in drawn(figure.axes[0], 21)}) == 4


def test_redrawing_needs_no_torch_and_no_model(tmp_path):
    files = [
        surface.save(tmp_path / f"{n}.npz")
        for n, surface in enumerate((plane(), plane("sgd", 3.0), line(), trajectory(), corners()))
    ]
    code = f"""
import sys
sys.path[:0] = [{str(ROOT / "cli")!r}, {str(ROOT)!r}]
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] != "torch", "torch was imported"
sys.meta_path.insert(0, Forbidden())
from flatkit_cli.main import main
few = ["--dpi", "50", "--figures", {str(tmp_path / "f")!r}]
code = main(["plot", *{[str(f) for f in files]!r}, *few])
assert code == 0 and "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "f").iterdir()}
    assert {"random-plane-loss.png", "pca-plane-loss.svg", "checkpoints-plane-loss-3d.png"} <= names
    assert "width" in done.stdout and "barrier" in done.stdout
    assert re.search(r"sgd\s+sam\s+", done.stdout)


def test_the_numbers_of_pictures_stand_in_one_table():
    from rich.console import Console

    console = Console(width=120, record=True)
    console.print(numbers_table([line("sgd", 9.0), line("gam", 1.0, test=True)], level=0.25))
    rows = [row.split() for row in console.export_text().splitlines()]
    crossing = 0.1 + 0.1 * (0.25 - 0.09) / (0.36 - 0.09)  # of the chord from t = 0.1 to 0.2
    assert ["sgd", "t", "0.500", f"{2 * 12.3 * crossing:.2f}", "0", "0"] in rows
    assert ["gam", "t", "0.500", "12.3", "0", "0"] in rows
    assert any(row[:2] == ["gam", "(test)"] for row in rows)


def test_a_range_beside_the_centre_has_no_loss_there():
    from rich.console import Console

    t = np.linspace(0.5, 1, 5)
    console = Console(width=120, record=True)
    console.print(numbers_table([Surface({"t": t}, {"loss": 0.1 * t + 0.1}, {"name": "gam"})]))
    (row,) = (x for x in console.export_text().splitlines() if x.strip().startswith("gam"))
    assert "0.150" not in row and row.count("beyond the range") == 2 and row.split()[-1] == "0"
