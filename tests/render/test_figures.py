"""Figures: what is drawn is what was measured, where it was measured; files repeat bit for bit."""

import math
import struct
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.text import Text

import flatkit.render
from flatkit.errors import InvalidArgumentError, NothingToDrawError, OutputError, ResultError
from flatkit.measures import MEASURES, Measure
from flatkit.render import (
    curvature_figure,
    density_figure,
    flatness_figure,
    history_figure,
    layer_figure,
    plane_figure,
    save_figure,
    save_figures,
    slice_figure,
)
from flatkit.render.style import figure_style, looks
from flatkit.results import Comparison, Entry, Report, Result

RADII = (0.01, 0.03, 0.1)


def slice_result(curvature=3.0, draws=4, seed=0, **changed):
    t = np.linspace(-1, 1, 21)
    factors = curvature * (1 + 0.2 * np.random.default_rng(seed).standard_normal((draws, 1)))
    value = {
        "coordinate": t.tolist(),
        "loss": (0.5 + factors * t**2).tolist(),
        "accuracy": (0.95 - 0.1 * factors * t**2 / curvature).tolist(),
        "gradient_norm": np.abs(2 * factors * t).tolist(),
        **changed,
    }
    error = {
        name: [
            None if None in column or max(column) > 1e100 else float(np.std(column, ddof=1)) / 2
            for column in zip(*rows, strict=True)
        ]
        for name, rows in value.items()
        if name != "coordinate"
    }
    return Result("loss_slice", value, error, "standard_error")


def plane_result(loss, x, y):
    return Result(
        "loss_plane",
        {"x": list(x), "y": list(y), "loss": loss},
        0.0,
        settings={"normalization": "filter", "direction_norms": [12.3, 12.4]},
    )


def bowl(curvature=3.0):
    x = np.linspace(-1, 1, 11)
    return plane_result((0.5 + curvature * (x**2 + x[:, None] ** 2)).tolist(), x, x)


def report(top=3.0, accuracy=0.95, landscape=True):
    results = [
        Result("accuracy", accuracy, 0.0, settings={"split": "test"}),
        Result("gradient_norm", 0.02, 0.0, settings={"split": "train"}),
        Result("top_eigenvalues", [top], [0.05 * top], "residual"),
        Result("trace", 8 * top, top, "standard_error"),
    ]
    for rho in RADII:
        bound = {"rho": rho, "upper_estimate": rho * (0.02 + rho * top)}
        results += [
            Result("zeroth_order_sharpness", 0.4 * top * rho**2, None, "lower_bound",
                   settings={"rho": rho}),
            Result("first_order_flatness", 0.9 * top * rho**2, None, "lower_bound",
                   settings=bound),
        ]  # fmt: skip
    return Report(results + ([slice_result(top), bowl(top)] if landscape else []))


def alone(**reports):
    return Comparison([Entry(name, name, found) for name, found in reports.items()])


def seeds(**tops):
    return Comparison(
        [
            Entry(f"{group}, seed {seed}", group, report(top, 0.95 + 0.001 * seed, seed == 0))
            for group, values in tops.items()
            for seed, top in enumerate(values)
        ]
    )


def of(result):
    return alone(gam=Report([result]))


def of_several(*results):
    return alone(gam=Report(results))


THREE_BY_THREE = seeds(sgd=[9.0, 10.0, 11.0], sam=[5.0, 6.0, 7.0], gam=[2.0, 2.5, 4.5])
HISTORIES = {
    name: [
        {
            "epoch": epoch,
            "lr": 0.1,
            "train_loss": 2.0 / epoch,
            "test_loss": 2.2 / epoch,
            "train_accuracy": 1 - 0.5 / epoch,
            "test_accuracy": 1 - 0.6 / epoch,
        }
        for epoch in range(1, 6)
    ]
    for name in ("sgd", "gam")
}


def lines(axis, **wanted):
    return [
        line
        for line in axis.lines
        if all(getattr(line, f"get_{k}")() == v for k, v in wanted.items())
    ]


def xdata(line):
    return np.asarray(line.get_xdata(), dtype=float)


def ydata(line):
    return np.asarray(line.get_ydata(), dtype=float)


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def colour_at(figure, axis, x, y):
    image = pixels(figure)
    column, row = axis.transData.transform((x, y))
    return image[image.shape[0] - 1 - round(row), round(column), :3] / 255


def test_the_plane_has_its_first_direction_to_the_right_and_its_second_upwards():
    x, y = np.array([-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]), np.array([-3.0, -1.0, 1.0])
    loss = np.full((3, 7), 2.0)  # [ny, nx]
    loss[2, :2] = 0.5  # low at the upper left: y = 1, x = -1 .. -0.5
    loss[0, 5:] = 8.0  # high at the lower right: y = -3, x = 1.5 .. 2
    figure = plane_figure(of(plane_result(loss.tolist(), x, y)))
    axis = figure.axes[0]
    lowest, highest = (matplotlib.colormaps["viridis"](end)[:3] for end in (0.0, 1.0))
    assert np.allclose(colour_at(figure, axis, -0.8, 0.95), lowest, atol=0.06)
    assert np.allclose(colour_at(figure, axis, 1.8, -2.95), highest, atol=0.06)
    for x_at, y_at in ((-0.8, -2.95), (1.8, 0.95)):
        colour = colour_at(figure, axis, x_at, y_at)
        assert not np.allclose(colour, lowest, atol=0.15)
        assert not np.allclose(colour, highest, atol=0.15)
    assert axis.get_xlim() == (-1.0, 2.0) and axis.get_ylim() == (-3.0, 1.0)
    assert "12.3" in axis.get_xlabel() and "12.4" in axis.get_ylabel()


def test_equal_losses_have_equal_colours_in_all_panels():
    flat, steep = (Report([bowl(curvature)]) for curvature in (0.5, 8.0))
    figure = plane_figure(alone(flat=flat, steep=steep))
    left, right, bar = figure.axes
    # 0.5 + 0.5 · 1² in one panel is 0.5 + 8 · 0.25² in the other.
    one, other = colour_at(figure, left, 0.97, 0.0), colour_at(figure, right, 0.0, 0.243)
    assert np.allclose(one, other, atol=0.1)
    assert not np.allclose(one, colour_at(figure, right, 0.97, 0.0), atol=0.3)
    assert bar.get_ylabel() == "loss"
    assert bar.get_ylim()[0] == pytest.approx(0.5) and bar.get_ylim()[1] == pytest.approx(16.5)


def test_points_beyond_the_float_range_are_hatched_not_replaced():
    x = np.linspace(-1, 1, 5)
    loss = (1.0 + x**2 + x[:, None] ** 2).tolist()
    loss[0][0], loss[4][4] = math.inf, None
    figure = plane_figure(of(plane_result(loss, x, x)))
    axis = figure.axes[0]
    greys = [colour_at(figure, axis, *point) for point in ((-0.9, -0.9), (0.9, 0.9))]
    assert all(np.ptp(grey) < 0.02 and grey.mean() > 0.5 for grey in greys)
    assert np.ptp(colour_at(figure, axis, -0.9, 0.9)) > 0.1
    assert any("infinite" in text.get_text() for text in figure.legends[0].get_texts())


@pytest.mark.parametrize(
    "loss",
    [
        [[0.0, 1.0], [1.0, 2.0]],
        [[-1.0, 1.0], [1.0, 2.0]],
        [[1.0, 1.0], [1.0, 1.0]],
        [[0.0, 0.0], [0.0, 0.0]],
        [[1e-8, 1.0], [1e300, 1.7e308]],
    ],
)
def test_planes_with_zero_negative_constant_and_huge_losses_are_drawn(loss):
    pixels(plane_figure(of(plane_result(loss, [0.0, 1.0], [0.0, 1.0]))))


def test_the_slice_is_the_mean_over_the_directions_with_its_standard_error():
    result = slice_result()
    axis = slice_figure(of(result)).axes[0]
    draws = np.array(result.value["loss"])
    (mean,) = [line for line in axis.lines if line.get_linewidth() > 1 and len(ydata(line)) == 21]
    assert np.allclose(ydata(mean), draws.mean(axis=0))
    singles = [ydata(line) for line in axis.lines if line.get_linewidth() < 0.7]
    assert np.allclose(sorted(map(list, singles)), sorted(map(list, draws)))
    band = axis.collections[0].get_paths()[0].vertices
    error = draws.std(axis=0, ddof=1) / math.sqrt(4)
    at_the_end = np.asarray(band)[np.isclose(np.asarray(band)[:, 0], 1.0)][:, 1]
    centre = draws.mean(axis=0)[-1]
    assert at_the_end.min() == pytest.approx(centre - error[-1])
    assert at_the_end.max() == pytest.approx(centre + error[-1])


def test_where_a_draw_has_no_finite_value_the_mean_has_a_gap_and_the_edge_a_mark():
    loss = np.array(slice_result().value["loss"]).tolist()
    loss[1][0], loss[2][-1] = math.inf, None
    figure = slice_figure(of(slice_result(loss=loss)))
    axis = figure.axes[0]
    (mean,) = [line for line in axis.lines if line.get_linewidth() > 1 and len(ydata(line)) == 21]
    assert np.isnan(ydata(mean)).nonzero()[0].tolist() == [0, 20]
    marks = {line.get_marker(): np.asarray(line.get_xdata()).tolist() for line in axis.lines}
    assert marks["^"] == [-1.0] and marks["x"] == [1.0]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["gam", "too large to draw", "no number"]


@pytest.mark.parametrize("status", ["budget", "interrupted", "converged"])
def test_slices_and_planes_without_all_their_points_say_so(status):
    plane = plane_result([[1.0, 2.0], [3.0, 4.0]], [0.0, 1.0], [0.0, 1.0])
    for draw, result in ((slice_figure, slice_result()), (plane_figure, plane)):
        figure = draw(of(replace(result, status=status)))
        said = " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")
        assert ("coarse: the work ended" in said) == (status != "converged")


def test_slices_have_a_panel_for_each_quantity_that_was_measured():
    whole = slice_result()
    less = {key: value for key, value in whole.value.items() if key in ("coordinate", "loss")}
    labels = [axis.get_ylabel() for axis in slice_figure(of(whole)).axes]
    assert labels == ["loss", "gradient norm ‖∇L‖", "accuracy (%)"]
    assert len(slice_figure(of(Result("loss_slice", less))).axes) == 1


def test_the_loss_axis_is_logarithmic_if_asked_or_if_the_range_is_wide():
    wide = slice_result(loss=[[1e-3] * 20 + [1e6]] * 2)
    with_zero = slice_result(loss=[[0.0] + [1e-3] * 19 + [1e6]] * 2)
    assert slice_figure(of(slice_result())).axes[0].get_yscale() == "linear"
    assert slice_figure(of(slice_result()), log_scale=True).axes[0].get_yscale() == "log"
    assert slice_figure(of(wide)).axes[0].get_yscale() == "log"
    assert slice_figure(of(wide), log_scale=False).axes[0].get_yscale() == "linear"
    assert slice_figure(of(with_zero)).axes[0].get_yscale() == "symlog"


@pytest.mark.parametrize("huge", [1e200, 1e250, 1e299, 1.7e308])
@pytest.mark.parametrize("log_scale", [True, False])
def test_values_at_the_end_of_the_float_range_are_drawn_without_a_warning(huge, log_scale):
    result = slice_result(loss=[[1e-3] * 20 + [huge]] * 3)
    result.error["loss"][-1] = huge
    pixels(slice_figure(of(result), log_scale=log_scale))


def test_runs_of_one_group_share_a_colour_and_an_entry_of_the_legend():
    reports = [Report([slice_result(3.0 + seed)]) for seed in range(2)]
    entries = [Entry(f"gam, seed {s}", "gam", found) for s, found in enumerate(reports)]
    figure = slice_figure(Comparison([*entries, Entry("sgd", "sgd", reports[0])]))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["gam", "sgd"]
    thick = [line for line in figure.axes[0].lines if line.get_linewidth() > 1]
    assert len({to_rgba(line.get_color()) for line in thick}) == 2 and len(thick) == 3


def test_flatness_over_rho_squared_stands_beside_the_top_eigenvalue():
    axis = flatness_figure(alone(gam=report(top=3.0))).axes[0]
    first, zeroth = lines(axis, marker="^")
    assert np.allclose(first.get_xdata(), RADII) and np.allclose(zeroth.get_xdata(), RADII)
    assert np.allclose(ydata(first), 0.9 * 3.0) and np.allclose(ydata(zeroth), 2 * 0.4 * 3.0)
    (top,) = lines(axis, linestyle="--")
    assert np.allclose(ydata(top), 3.0)
    band = axis.patches[0].get_window_extent().transformed(axis.transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((2.85, 3.15))
    (ceiling,) = lines(axis, linestyle="-.")
    assert np.allclose(ydata(ceiling), [0.02 / rho + 3.0 for rho in RADII])
    assert axis.get_xscale() == "log" and "0.020" in axis.get_title()


def test_flatness_panels_share_one_axis_so_that_heights_compare():
    axes = flatness_figure(THREE_BY_THREE).axes
    assert [axis.get_title().split("\n")[0] for axis in axes] == ["sgd", "sam", "gam"]
    assert len({axis.get_ylim() for axis in axes}) == 1
    assert all(axis.get_ylim()[0] == 0.0 for axis in axes)


@pytest.mark.parametrize(("largest", "scale"), [(10.0, "linear"), (50.0, "log")])
def test_axes_are_logarithmic_only_where_the_heights_span_decades(largest, scale):
    rows = [{"epoch": 1, "train_loss": largest}, {"epoch": 2, "train_loss": 1.0}]
    assert history_figure({"sgd": rows}).axes[0].get_yscale() == scale
    runs = {"flat": report(1.0, landscape=False), "sharp": report(largest, landscape=False)}
    axes = flatness_figure(alone(**runs)).axes
    assert {axis.get_yscale() for axis in axes} == {scale}
    assert (axes[0].get_ylim()[0] == 0.0) == (scale == "linear")


def test_curvature_shows_every_run_and_the_mean_with_the_standard_deviation():
    axes = {axis.get_title(): axis for axis in curvature_figure(THREE_BY_THREE).axes}
    assert list(axes) == [
        "top eigenvalue λmax", "trace tr H", "R1/ρ² ≥ (ρ = 0.1)", "test accuracy (%)",
    ]  # fmt: skip
    axis = axes["top eigenvalue λmax"]
    drawn = [xdata(line).tolist() for line in axis.lines if line.get_linestyle() == "None"]
    assert [2.0, 2.5, 4.5] in drawn and [9.0, 10.0, 11.0] in drawn
    assert [3.0] in drawn and [10.0] in drawn
    spreads = [
        np.ptp(np.asarray(path.vertices)[:, 0]) / 2
        for bars in axis.collections
        for path in bars.get_paths()
    ]
    assert any(np.isclose(spread, np.std([2.0, 2.5, 4.5], ddof=1)) for spread in spreads)
    assert any(np.isclose(spread, 0.05 * 4.5) for spread in spreads)  # the residual of one run
    assert axis.get_xlim()[0] == 0.0 and axes["test accuracy (%)"].get_xlim()[0] > 50
    assert [label.get_text() for label in axis.get_yticklabels()] == ["sgd", "sam", "gam"]
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first group stands above
    assert axis.get_xlabel() == "← flatter"


def test_runs_of_equal_value_stand_below_each_other_and_no_two_groups_meet():
    same = curvature_figure(seeds(a=[2.0, 2.0, 2.0], b=[2.0, 2.0, 2.0])).axes[0]
    runs = [line for line in same.lines if len(xdata(line)) == 3]
    places = [ydata(line).tolist() for line in runs]
    assert all(len(set(found)) == 3 for found in places)
    assert max(places[0]) < 0.5 < min(places[1])


def test_the_row_of_a_group_is_shaded_only_where_it_is_flattest_beyond_the_errors():
    def shaded(comparison):
        patches: list[Any] = list(curvature_figure(comparison).axes[0].patches)
        return [round(float(np.mean(patch.get_y() + patch.get_height() / 2)))
                for patch in patches]  # fmt: skip

    apart = seeds(sgd=[9.0, 9.1, 9.2], gam=[2.0, 2.1, 2.2])
    assert shaded(apart) == [1] and shaded(seeds(sgd=[9.0, 2.0, 5.0], gam=[4.0, 8.0, 2.2])) == []
    words = [text.get_text() for text in curvature_figure(apart).legends[0].get_texts()]
    assert words == ["a run", "mean ± standard deviation", "flattest, beyond all known errors"]
    alone_ = curvature_figure(alone(sgd=report(2.0), gam=report(2.0)))
    assert not alone_.legends  # no empty strip


def test_the_axis_of_flatness_is_logarithmic_over_decades_and_follows_negative_values():
    wide = curvature_figure(alone(sgd=report(900.0), gam=report(1.2))).axes[0]
    assert wide.get_xscale() == "log"
    negative = curvature_figure(
        alone(**{n: Report([Result("top_eigenvalues", [v], [0.1], "residual")])
                 for n, v in (("a", -1.0), ("b", 2.0))})
    ).axes[0]  # fmt: skip
    assert negative.get_xscale() == "linear" and negative.get_xlim()[0] < -1.0


def test_what_one_run_lacks_is_said_in_its_row():
    bare = Report([Result("top_eigenvalues", [2.0], [0.1], "residual")])
    axes = curvature_figure(alone(a=report(), b=report(), bare=bare)).axes
    texts = {axis.get_title(): [text.get_text() for text in axis.texts] for axis in axes}
    assert texts["top eigenvalue λmax"] == [] and texts["trace tr H"] == ["not measured"]


WIDTHS = {"column": 3.3, "text": 6.9, "slide": 10.0}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["curvature", "flatness", "slice", "plane"])
def test_a_figure_has_the_width_that_is_asked_for_and_no_text_leaves_it(width, name, tmp_path):
    with figure_style(width=width):
        figure = NAMES[name](THREE_BY_THREE)
    assert figure.get_figwidth() == pytest.approx(WIDTHS[width])
    (path,) = save_figure(figure, tmp_path, name, ["png"], dpi=100)
    assert struct.unpack(">II", path.read_bytes()[16:24])[0] == round(100 * WIDTHS[width])
    renderer = FigureCanvasAgg(figure).get_renderer()  # laid out as it was written
    texts = [figure._supxlabel, *figure.legends]
    for axis in figure.axes:
        texts += [axis.title, axis.xaxis.label, axis.yaxis.label]
    boxes = [text.get_window_extent(renderer) for text in texts]
    for box in (box for box in boxes if box.width > 1):
        assert box.x0 >= -1 and box.y0 >= -1
        assert box.x1 <= figure.bbox.width + 1 and box.y1 <= figure.bbox.height + 1
    sizes = {"column": 7.65, "text": 8.55, "slide": 13.5}
    labels = [axis.xaxis.label.get_fontsize() for axis in figure.axes if axis.get_xlabel()]
    assert labels and labels == pytest.approx([sizes[width]] * len(labels))


def test_lines_and_marks_grow_with_the_letters():
    plain = slice_figure(of(slice_result())).axes[0].lines[-2]
    with figure_style(width="slide"):
        large = slice_figure(of(slice_result())).axes[0].lines[-2]
    assert large.get_linewidth() == pytest.approx(1.5 * plain.get_linewidth())
    assert large.get_markersize() == pytest.approx(1.5 * plain.get_markersize())


def test_a_style_file_and_settings_win_over_our_style_and_wrong_ones_are_refused(tmp_path):
    file = tmp_path / "mine.mplstyle"
    file.write_text("axes.grid: False\naxes.labelsize: 21\n")
    with figure_style(style_file=file, settings={"axes.labelsize": 22}):
        axis = slice_figure(of(slice_result())).axes[0]
    assert axis.xaxis.label.get_fontsize() == 22 and not axis.xaxis.get_gridlines()[0].get_visible()
    assert slice_figure(of(slice_result())).axes[0].xaxis.label.get_fontsize() == 9
    with figure_style(style_file="ggplot"):
        assert slice_figure(of(slice_result())).axes
    file.write_text("axes.grdi: False\n")
    wrong: Any = ({"style_file": file}, {"style_file": "ggplo"}, {"settings": {"axes.grdi": 1}},
             {"width": "page"})  # fmt: skip
    for given in wrong:
        with pytest.raises(InvalidArgumentError), figure_style(**given):
            pass


@pytest.mark.parametrize("draw", [slice_figure, history_figure])
def test_runs_are_told_apart_without_colour(draw):
    runs = THREE_BY_THREE if draw is slice_figure else dict.fromkeys("abc", HISTORIES["sgd"])
    drawn = [line for line in draw(runs).axes[0].lines if line.get_marker() not in ("None", "")]
    marks = {(line.get_marker(), line.get_linestyle()) for line in drawn}
    assert len({mark for mark, _ in marks}) == 3


def test_text_stays_text_in_svg_and_pdf(tmp_path):
    svg, pdf = save_figure(curvature_figure(THREE_BY_THREE), tmp_path, "c", ["svg", "pdf"])
    assert ">top eigenvalue λmax</text>" in svg.read_text("utf-8")
    assert b"/TrueType" in pdf.read_bytes() or b"/CIDFontType2" in pdf.read_bytes()
    assert b"/Type3" not in pdf.read_bytes()


def test_formats_and_resolution_are_those_that_are_asked_for(tmp_path):
    found = save_figures(THREE_BY_THREE, tmp_path, ["pdf"], dpi=50)
    assert {path.suffix for path in found} == {".pdf"}
    wrongs: Any = ({"formats": ["jpg"]}, {"formats": "png"}, {"formats": []}, {"dpi": 0})
    for wrong in wrongs:
        with pytest.raises(InvalidArgumentError):
            save_figures(THREE_BY_THREE, tmp_path / "none", **wrong)
    assert not (tmp_path / "none").exists()


def test_a_notebook_shows_a_figure_where_pyplot_was_never_imported():
    figure: Any = slice_figure(of(slice_result()))
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_history_shows_training_and_test_of_every_run():
    figure = history_figure(HISTORIES)
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "loss", "accuracy (%)", "learning rate",
    ]  # fmt: skip
    losses = [ydata(line) for line in figure.axes[0].lines]
    assert len(losses) == 4
    assert np.allclose(losses[0], [2, 1, 2 / 3, 0.5, 0.4]) and np.allclose(losses[1][0], 2.2)
    assert ydata(figure.axes[1].lines[0])[-1] == pytest.approx(90.0)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "sgd", "gam", "train", "test",
    ]  # fmt: skip


def test_histories_may_hold_rows_as_the_trainer_keeps_them():
    from flatkit.training.history import EpochRow

    row = EpochRow(1, 0.1, 2.0, 0.5, 2.5, 0.25, gradients=23, seconds=0.5)
    axis = history_figure({"sgd": [row]}).axes[0]
    assert [ydata(line).tolist() for line in axis.lines] == [[2.0], [2.5]]


def test_the_top_eigenvalue_is_the_limit_in_round_balls_only():
    def figure_of(shape):
        flat = Result(
            "first_order_flatness",
            0.03,
            error_kind="lower_bound",
            settings={"rho": 0.1, "geometry": shape},
        )
        top = Result("top_eigenvalues", [3.0], [1e-4], "residual")
        return flatness_figure(alone(gam=Report([top, flat]))).axes[0]

    levels = {
        shape: [tuple(np.asarray(line.get_ydata())) for line in figure_of(shape).lines]
        for shape in ("l2", "filter")
    }
    assert (3.0, 3.0) in levels["l2"] and (3.0, 3.0) not in levels["filter"]
    assert figure_of("filter").get_xlabel() == "radius ρ, filter"


def test_what_rounding_hides_is_no_point_of_flatness():
    settings = [{"rho": rho} for rho in (1e-6, 0.1)]
    flat = [
        Result("zeroth_order_sharpness", value, None, "lower_bound", status=status, settings=own)
        for value, status, own in zip(
            (2.4e-7, 0.015), ("rounding", "budget"), settings, strict=True
        )
    ]
    figure = flatness_figure(alone(gam=Report(flat)))
    assert [xdata(line).tolist() for line in figure.axes[0].lines if len(xdata(line))] == [[0.1]]
    assert "rounding of the dtype hides it" in figure.get_supxlabel()


@pytest.mark.parametrize("name", ["cost$1 and $2", "c$\\foo$", "a$x_{$b"])
def test_a_name_with_dollars_is_no_formula(name, tmp_path):
    layers = {"layer": [name, "last"], "top": [2.0, 1.0], "trace": [4.0, 2.0]}
    error = {"top": [0.1, 0.1], "trace": [0.3, 0.2]}
    blocks = Result("layer_curvature", layers, error, "standard_error")
    named = {key: Report([*report().results, blocks]) for key in (name, "gam")}
    for path in save_figures(alone(**named), tmp_path, ["svg"]):
        assert name in path.read_text("utf-8")


def test_layers_of_many_runs_stay_on_a_page_that_can_be_drawn():
    numbers = dict.fromkeys(("top", "trace"), [1.0] * 100)
    value = {"layer": [f"layer{n}" for n in range(100)], **numbers}
    blocks = Result("layer_curvature", value, numbers, "standard_error")
    figure = layer_figure(alone(**{str(n): Report([blocks]) for n in range(12)}))
    assert figure.get_figwidth() * 160 < 2**16


@pytest.mark.parametrize("draw", [slice_figure, plane_figure, flatness_figure])
def test_a_figure_without_data_is_an_error_that_names_the_measure(draw):
    with pytest.raises(ResultError, match="`measures`"):
        draw(of(Result("loss", 0.5, 0.0)))
    with pytest.raises(InvalidArgumentError, match="histories"):
        history_figure({"sgd": []})


NAMES = {
    "slice": slice_figure,
    "plane": plane_figure,
    "flatness": flatness_figure,
    "curvature": curvature_figure,
    "history": lambda _: history_figure(HISTORIES),
}
LONG = alone(
    **{f"resnet-20 with gam and rho {rho / 10}": report(1.0 + rho, 0.9) for rho in range(6)}
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "comparison", [alone(gam=report()), THREE_BY_THREE, LONG], ids=["one", "3 x 3", "long names"]
)
def test_no_text_overlaps_another_or_leaves_the_figure(name, comparison):
    figure = NAMES[name](comparison)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.canvas.draw()
    texts = [figure._supxlabel] if getattr(figure, "_supxlabel", None) else []
    texts += [*figure.legends]
    for axis in figure.axes:
        texts += [axis.title, axis.xaxis.label, axis.yaxis.label]
        low, high = axis.get_xlim()
        ticks = zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)
        texts += [label for at, label in ticks if low <= at <= high and not label.get_rotation()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    boxes = [box for box in boxes if box.width > 1 and box.height > 1]
    for box in boxes:
        assert box.x0 >= -1 and box.y0 >= -1
        assert box.x1 <= figure.bbox.width + 1 and box.y1 <= figure.bbox.height + 1
    for one, other in combinations(boxes, 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert width <= 2 or height <= 2, (name, one, other)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "history"])
def test_every_figure_names_the_samples_that_it_holds_for(name):
    test = {"samples": 1000, "samples_available": 10_000}
    objective = {"samples": 500, "samples_available": 50_000, "test": test}
    runs = [replace(report(), objective={**objective, "samples": count}) for count in (500, 600)]
    text = NAMES[name](alone(sgd=runs[0], gam=runs[1]))._supxlabel.get_text().replace("\n", " ")
    assert "; over 500 of 50,000 training samples or 600 of 50,000 training samples" in text
    shows_accuracy = name == "curvature"
    assert ("samples and 1,000 of 10,000 test samples" in text) == shows_accuracy


def test_drawing_changes_no_setting_of_matplotlib_and_opens_no_window(tmp_path):
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "mine", "axes.labelsize": 33.0}):
        before = dict(matplotlib.rcParams)
        save_figures(alone(gam=report()), tmp_path)
        assert dict(matplotlib.rcParams) == before and pyplot.get_fignums() == []


def test_files_are_the_same_bytes_every_time_and_png_has_160_dots_an_inch(tmp_path):
    for folder in ("a", "b"):
        save_figure(flatness_figure(THREE_BY_THREE), tmp_path / folder, "flatness")
    for suffix in ("png", "svg"):
        one, other = ((tmp_path / f / f"flatness.{suffix}").read_bytes() for f in "ab")
        assert one == other
    png = (tmp_path / "a" / "flatness.png").read_bytes()
    width, height = struct.unpack(">II", png[16:24])
    inches = flatness_figure(THREE_BY_THREE).get_size_inches()
    assert (width, height) == pytest.approx(inches * 160, abs=1)
    svg = (tmp_path / "a" / "flatness.svg").read_text("utf-8")
    assert svg.startswith("<?xml") and "<dc:date>" not in svg


def test_every_figure_that_the_results_allow_is_written(tmp_path):
    def names(comparison, folder):
        return sorted({path.stem for path in save_figures(comparison, tmp_path / folder)})

    assert names(THREE_BY_THREE, "all") == ["curvature", "flatness", "plane", "slice"]
    assert names(alone(gam=report()), "one") == ["flatness", "plane", "slice"]
    assert names(alone(gam=report(landscape=False)), "less") == ["flatness"]
    assert names(of(Result("loss", 0.5, 0.0)), "none") == []
    # Both have an accuracy and a plane, and nothing of either can be drawn.
    bare = Report(
        [
            Result("accuracy", 0.9, 0.0, settings={"split": "train"}),
            plane_result([[math.inf, None]] * 2, [0.0, 1.0], [0.0, 1.0]),
        ]
    )
    assert names(alone(a=bare, b=bare), "bare") == []


def test_a_figure_that_cannot_be_imported_does_not_take_earlier_ones_along(tmp_path):
    broken = Measure("z_broken", "-", lambda session: [], figures={"broken": "no_such_module:draw"})
    MEASURES.register(broken)
    try:
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            save_figures(of_several(bowl(), Result("z_broken", 1.0)), tmp_path)
    finally:
        del MEASURES._homes["z_broken"]
    assert {path.stem for path in tmp_path.iterdir()} == {"plane"}


def test_an_optimizer_has_one_look_whoever_stands_beside_it():
    beside = [["gam"], ["sgd", "gam"], ["mine", "gam", "sgd"], ["gam", "sam", "yours", "mine"]]
    assert len({looks(names)["gam"] for names in beside}) == 1
    for names in (*beside, [f"run {n}" for n in range(30)]):
        assert len(set(looks(names).values())) == len(names)


def test_a_malformed_result_is_an_error_that_names_the_figure(tmp_path):
    with pytest.raises(ResultError, match="slice"):
        save_figures(of(Result("loss_slice", {"loss": [[1.0]]})), tmp_path)
    with pytest.raises(ResultError, match="plane"):
        save_figures(of(plane_result([[1.0, 2.0], [1.0]], [0.0, 1.0], [0.0, 1.0])), tmp_path)


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError):
        save_figures(THREE_BY_THREE, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_public_names_are_functions_and_not_hidden_by_modules():
    for name in flatkit.render.__all__:
        assert callable(getattr(flatkit.render, name)), name
    with pytest.raises(AttributeError, match="nonsense"):
        getattr(flatkit.render, "nonsense")  # noqa: B009


def _spectral_run(name, top):
    return Entry(
        name,
        name,
        Report(
            [
                Result("top_eigenvalues", [top], [1e-4], "residual"),
                Result(
                    "spectral_density",
                    {"eigenvalue": [0.0, 1.0, 2.0], "density": [0.5, 0.4, 0.1]},
                    {"density": [0.1, 0.0, 0.2]},
                    "standard_error",
                    settings={"bandwidth": 0.05, "mass": 1.0, "mean": 0.7, "mean_error": 0.1},
                ),
                Result(
                    "layer_curvature",
                    {"layer": ["first", "last"], "top": [top, 1.0], "trace": [4.0, 2.0]},
                    {"top": [0.1, 0.1], "trace": [0.3, 0.2]},
                    "standard_error",
                ),
            ]
        ),
    )


def _heights(axis):
    return [bar.get_height() for bar in axis.patches]


def test_a_figure_with_nothing_to_draw_is_an_error_of_its_own_and_is_left_out_of_a_folder(tmp_path):
    nothing = of(plane_result([[math.inf, None]] * 2, [0.0, 1.0], [0.0, 1.0]))
    with pytest.raises(NothingToDrawError):
        plane_figure(nothing)
    assert save_figures(nothing, tmp_path) == []


def test_the_tables_of_a_series_need_no_matplotlib():
    code = "import sys, flatkit.render.tables.series; assert 'matplotlib' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_density_and_layers_are_drawn_as_they_were_measured(tmp_path):
    comparison = Comparison([_spectral_run("sgd", 1.8), _spectral_run("gam", 1.2)])
    linear, log = density_figure(comparison).axes
    assert (linear.get_yscale(), log.get_yscale()) == ("linear", "log")
    lines = [np.asarray(line.get_data()) for line in linear.lines]  # [2, n] each
    curves = [list(line[1]) for line in lines if line.shape[1] == 3]
    assert curves == [[0.5, 0.4, 0.1]] * 2
    marks = sorted(line[0, 0] for line in lines if line.shape[1] == 2)
    assert marks == [1.2, 1.8]
    top, trace = layer_figure(comparison).axes
    assert _heights(top) == [1.8, 1.0, 1.2, 1.0]
    assert _heights(trace) == [4.0, 2.0, 4.0, 2.0]
    assert [label.get_text() for label in top.get_xticklabels()] == ["first", "last"]
    names = {path.name for path in save_figures(comparison, tmp_path)}
    assert {"density.png", "density.svg", "layers.png", "layers.svg"} <= names


def test_a_curvature_of_zero_and_an_error_without_a_bound_are_drawn(tmp_path):
    about = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "schedule": "none", "epochs": 3}

    def entry(epoch, top, error):
        found = Result("top_eigenvalues", [top], [error], "residual")
        checkpoint = {"path": f"gam/{epoch}.pt", "epoch": epoch, "training": about}
        return Entry(str(epoch), str(epoch), Report([found], checkpoint=checkpoint), epoch=epoch)

    for top, error in ((0.0, 0.0), (1.0, math.inf)):
        shown = Comparison([entry(epoch, top, error) for epoch in (1, 2)])
        names = {path.name for path in save_figures(shown, tmp_path, ["png"])}
        assert names == {"curvature.png", "track.png"}
