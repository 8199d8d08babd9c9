"""Surfaces in files and as numbers, against closed forms and readers of other programs."""

import math

import numpy as np
import pandas
import pytest

from flatkit.errors import InvalidArgumentError, ResultError
from flatkit.landscape import Surface, barriers, export_surface, load_surface, surface_numbers
from flatkit.landscape.numbers import barrier_height, basin, roughness


def plane() -> Surface:
    x, y = np.linspace(-1, 1, 5), np.linspace(-0.5, 0.5, 3)
    loss = 1 + x**2 + 10 * y[:, None]
    loss[0, 0], loss[2, 4] = np.inf, np.nan
    return Surface({"x": x, "y": y}, {"loss": loss}, {"name": "gam"})


def test_a_saved_surface_reads_back_with_infinities_and_gaps(tmp_path):
    surface = load_surface(plane().save(tmp_path / "plane.npz"))
    np.testing.assert_array_equal(surface.quantities["loss"], plane().quantities["loss"])
    assert surface.name == "gam" and surface.shape == (3, 5)


def test_a_file_cut_short_or_of_another_kind_is_a_named_error(tmp_path):
    path = plane().save(tmp_path / "plane.npz")
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-30], b"", b"hello"):
        path.write_bytes(content)
        with pytest.raises(ResultError, match="no whole surface file"):
            load_surface(path)
    np.savez(path, a=np.zeros(2))
    with pytest.raises(ResultError, match="no surface of flatkit"):
        load_surface(path)
    with pytest.raises(ResultError, match="no such file"):
        load_surface(tmp_path / "missing.npz")


def test_a_pickle_in_the_file_is_not_read(tmp_path):
    path = tmp_path / "evil.npz"
    np.savez(path, header=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ResultError):
        load_surface(path)


def test_shapes_that_do_not_fit_the_axes_are_refused():
    with pytest.raises(ResultError, match="shape"):
        Surface({"x": [0, 1, 2], "y": [0, 1]}, {"loss": np.zeros((3, 2))})


def test_pandas_reads_the_csv_in_one_line_with_every_point_in_its_place(tmp_path):
    table = pandas.read_csv(export_surface(plane(), tmp_path / "a.csv", "csv"))
    assert list(table) == ["x", "y", "loss", "measured"] and len(table) == 15
    row = table[(table.x == 0.5) & (table.y == 0.5)].iloc[0]
    assert row.loss == 1 + 0.25 + 5.0
    assert math.isinf(table.loss[0]) and math.isnan(table.loss[14])


def test_the_vtk_file_holds_axes_and_values_with_x_running_fastest(tmp_path):
    data = export_surface(plane(), tmp_path / "a.vtk", "vtk").read_bytes()
    assert data.startswith(b"# vtk DataFile Version 3.0\ngam\nBINARY\nDATASET RECTILINEAR_GRID\n")
    assert b"DIMENSIONS 5 3 1\n" in data and b"POINT_DATA 15\n" in data
    start = data.index(b"SCALARS loss double 1\nLOOKUP_TABLE default\n") + 43
    values = np.frombuffer(data[start : start + 15 * 8], ">f8").reshape(3, 5)
    np.testing.assert_array_equal(values, plane().quantities["loss"])
    # The rest are fields: a reader takes only the first of several SCALARS by itself.
    fields = [*list(plane().quantities)[1:], "measured"]
    assert data.count(b"SCALARS") == 1 and b"FIELD FieldData %d\n" % len(fields) in data
    for name in fields:
        label = b"\n%s 1 15 double\n" % name.encode()
        start = data.index(label) + len(label)
        values = np.frombuffer(data[start : start + 15 * 8], ">f8").reshape(3, 5)
        expected = plane().measured if name == "measured" else plane().quantities[name]
        np.testing.assert_array_equal(values, expected)


def test_xarray_reads_the_h5_with_its_dimensions(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    path = export_surface(plane(), tmp_path / "a.h5", "h5")
    with xarray.open_dataset(path, engine="h5netcdf") as data:
        assert float(data.loss.sel(x=0.5, y=0.5)) == 6.25


def test_the_numbers_of_a_parabola_are_its_own():
    t = np.linspace(-2, 2, 4001)
    width, asymmetry = basin(t, 3 * t**2, level=0.75)  # crosses at ±0.5
    assert width == pytest.approx(1.0, rel=1e-6) and asymmetry == pytest.approx(0.0, abs=1e-6)
    lopsided = np.where(t < 0, 4 * t**2, t**2)  # −0.5 and 1 at level 1
    width, asymmetry = basin(t, lopsided, level=1.0)
    assert width == pytest.approx(1.5, rel=1e-6) and asymmetry == pytest.approx(1 / 3, rel=1e-5)


def test_a_basin_that_reaches_the_edge_has_no_width():
    t = np.linspace(-1, 1, 21)
    assert basin(t, t**2, level=5.0) == (None, None)
    assert basin(t, np.where(t > 0.55, np.inf, t**2), level=0.5)[0] == pytest.approx(
        0.6 + math.sqrt(0.5), abs=2e-2
    )
    with pytest.raises(InvalidArgumentError, match="level"):
        basin(t, t**2, level=0.0)


def test_barrier_and_roughness_in_closed_form():
    t = np.linspace(0, 1, 101)
    assert barrier_height(t, 2 + t + 3 * np.sin(np.pi * t)) == pytest.approx(3.0)
    assert barrier_height(t, t**2) == 0.0
    assert barrier_height(t, np.where(t == 0.5, np.inf, t)) == math.inf
    wave = 1 - np.cos(2 * np.pi * np.linspace(-1.5, 1.5, 301))  # 2, 0, 2, 0, 2, 0, 2
    assert roughness(wave[:101]) == pytest.approx(0.0)
    assert roughness(wave) == pytest.approx(2.0)


def test_barriers_of_a_plane_run_straight_between_checkpoints_that_lie_in_it():
    loss = np.zeros((3, 5))  # [ny, nx]
    loss[1, 2] = 3.0  # a summit at x = 2, y = 1
    loss[0, 4] = 1.0  # and an end that lies higher
    places = {"a": [0.0, 0.0], "b": [4.0, 2.0], "c": [4.0, 0.0], "off": [1.0, 1.0]}
    markers = [
        {"name": name, "at": at, "off_plane": 0.5 if name == "off" else 0.0}
        for name, at in places.items()
    ]
    axes = {"x": np.arange(5.0), "y": np.arange(3.0)}
    found = barriers(Surface(axes, {"loss": loss}, {"markers": markers}))
    heights = {(b.first, b.second): b.height for b in found}
    assert heights == {("a", "b"): 3.0, ("a", "c"): 0.0, ("b", "c"): 0.0}


def test_lengths_of_directions_make_widths_real_displacements():
    t = np.linspace(-1, 1, 201)
    line = Surface({"t": t}, {"loss": t**2}, {"directions": {"norms": [12.0]}})
    width = surface_numbers(line, level=0.25)[0].width
    assert width == pytest.approx(12.0, rel=1e-3)
