"""The order of points, interpolation between them, and journals."""

import json
import math
import sqlite3
import zlib
from itertools import pairwise

import numpy as np
import pytest
from scipy.interpolate import KroghInterpolator

from flatkit.errors import InvalidArgumentError, ResultError
from flatkit.files import Store
from flatkit.landscape import Journal, Refinement, axis_steps
from flatkit.landscape.grids import interpolate, levels, weights


def measure(function, axes, tolerance=None):
    """Run a refinement on a function of the steps; return it and its points in order."""
    job, order = Refinement(axes, tolerance=tolerance), []
    steps = list(axes.values())
    for points in job.levels():
        for point in points:
            place = [axis[i] for axis, i in zip(steps, reversed(point), strict=True)]
            job.put(point, {"loss": function(*place)})
            order.append(point)
    return job, order


def square(n):
    return {"x": np.linspace(-1, 1, n), "y": np.linspace(-1, 1, n)}


def test_checkpoints_are_steps_of_the_axis_and_the_ends_stay():
    steps = axis_steps(-0.25, 1.25, 31, exact=[0.0, 1.0])
    assert 0.0 in steps and 1.0 in steps and steps[0] == -0.25 and steps[-1] == 1.25
    assert len(steps) == 31 and (np.diff(steps) > 0).all()
    crowded = axis_steps(0, 10, 3, exact=[0.1, 4.9, 5.1])
    assert crowded.tolist() == [0.0, 0.1, 4.9, 5.1, 10.0]
    with pytest.raises(InvalidArgumentError, match="width"):
        axis_steps(1.0, 1.0, 5)


@pytest.mark.parametrize("count", [3, 4, 5, 20, 21, 31, 50, 101])
def test_levels_are_nested_and_hold_both_ends_and_the_centre(count):
    centre = count // 3
    found = [set(level.tolist()) for level in levels(count, centre=centre)]
    assert found[-1] == set(range(count))
    for coarse, fine in pairwise(found):
        assert coarse < fine
    for level in found:
        assert {0, centre, count - 1} <= level
    assert len(found[0]) <= 11


def test_interpolation_is_the_cubic_through_four_neighbours():
    known, wanted = np.array([0.0, 1.0, 1.5, 3.0, 4.0, 6.0]), np.linspace(0, 6, 41)
    values = np.random.default_rng(0).standard_normal(6)
    found = weights(known, wanted) @ values
    starts = [min(max(np.searchsorted(known, x) - 2, 0), 2) for x in wanted]
    expected = [
        float(KroghInterpolator(known[s : s + 4], values[s : s + 4])(x))
        for s, x in zip(starts, wanted, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_infinities_spread_only_where_everything_is_infinite():
    matrix = weights(np.arange(8.0), np.arange(0, 7.5, 0.5))
    values = np.array([1.0, 1, 1, 1, np.inf, np.inf, np.inf, np.inf])
    found = interpolate(values, [matrix])
    assert np.isfinite(found[:4]).all() and np.isinf(found[-1]) and np.isnan(found[7])
    assert found[8] == math.inf  # a point that is known


@pytest.mark.parametrize("n", [21, 24])
def test_every_point_is_measured_once_and_the_first_cover_the_whole(n):
    job, order = measure(lambda x, y: x * y, square(n))
    assert len(order) == len(set(order)) == n * n and job.measured.all()
    early = np.array(order[: n * n // 8])
    assert early.min() == 0 and early.max() == n - 1  # all four corners


def test_refinement_takes_few_points_where_the_surface_is_smooth():
    smooth, order = measure(lambda x, y: 1 + x**2 + 3 * y**3, square(33), tolerance=0.01)
    assert len(order) == 81  # two levels, whole
    x = np.linspace(-1, 1, 33)
    np.testing.assert_allclose(smooth.filled("loss"), 1 + x**2 + 3 * x[:, None] ** 3, atol=1e-12)


def test_refinement_measures_every_point_near_an_edge_and_stays_near_its_tolerance():
    def step(x, y):
        return 1.0 + 4.0 / (1 + np.exp(-40 * (x - 0.3)))

    job, order = measure(step, square(65), tolerance=0.02)
    x = np.linspace(-1, 1, 65)
    expected = step(x, 0.0) * np.ones((65, 1))
    assert np.abs(job.filled("loss") / expected - 1).max() < 0.04  # an estimate, no bound
    assert len(order) < 0.4 * 65**2
    assert job.measured[:, np.abs(x - 0.3) < 0.03].all()


def test_the_edge_of_what_is_infinite_is_found_and_kept():
    def cliff(x, y):
        return math.inf if x > 0.4 else 1 + x * x

    job, order = measure(cliff, square(33), tolerance=0.02)
    filled, x = job.filled("loss"), np.linspace(-1, 1, 33)
    assert np.isinf(filled[:, x > 0.4]).all() and np.isfinite(filled[:, x <= 0.4]).all()
    assert len(order) < 33**2


def test_an_infinite_value_between_finite_ones_is_no_interpolation():
    """One point of the second level meets it; all around it, then, has to be measured."""
    steps = np.linspace(-1, 1, 161)
    peak = {float(t): math.inf if abs(t + 0.6) < 0.1 else 1 + float(t) ** 2 for t in steps}
    job, _ = measure(lambda t: peak[float(t)], {"t": steps}, 0.02)
    assert np.array_equal(np.isinf(job.filled("loss")), np.isinf(list(peak.values())))
    assert job.measured.mean() < 0.7


def test_a_preview_shows_the_whole_after_the_first_level():
    axes = square(21)
    job = Refinement(axes)
    for points in job.levels():
        for j, i in points:
            job.put((j, i), {"loss": axes["x"][i] ** 2 + axes["y"][j]})
        filled = job.filled("loss")
        expected = axes["x"] ** 2 + axes["y"][:, None]
        np.testing.assert_allclose(filled, expected, atol=1e-12)


def journal(path, **job):
    return Journal(path, {"seed": 0, **job})


def test_a_journal_gives_back_the_same_bits_also_infinities(tmp_path):
    values = [{"loss": 0.1 + 0.2}, {"loss": math.inf}, {"loss": math.nan}]
    points = [(0, 0), (0, 1), (2, 1)]
    with journal(tmp_path / "a") as kept:
        assert kept.find(points) is None
        kept.add(points, values)
    with journal(tmp_path / "a") as kept:
        found = kept.find(points)
        assert kept.find(points[:2]) is None
    assert found is not None and found[0] == values[0] and found[1] == values[1]
    assert math.isnan(found[2]["loss"])


def lines_of_0_1(path, count=3, **job):
    """Write a journal as flatkit 0.1.0 did: a checksum and JSON a line."""
    contents = [{"job": {"seed": 0, **job}}]
    contents += [{"points": [[i]], "values": [{"loss": float(i)}]} for i in range(count)]
    texts = [json.dumps(content).encode() for content in contents]
    path.write_bytes(b"".join(b"%08x %s\n" % (zlib.crc32(text), text) for text in texts))


def known(path, count=4):
    with journal(path) as kept:
        return [kept.find([(i,)]) for i in range(count)]


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_a_line_of_0_1_that_was_cut_short_is_dropped_and_the_rest_goes_on(tmp_path, cut):
    path = tmp_path / "a"
    lines_of_0_1(path)
    path.write_bytes(path.read_bytes()[:-cut])
    with journal(path) as kept:
        assert kept.find([(1,)]) == [{"loss": 1.0}] and kept.find([(2,)]) is None
        kept.add([(2,)], [{"loss": 9.0}])
    assert known(path) == [[{"loss": 0.0}], [{"loss": 1.0}], [{"loss": 9.0}], None]
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_damaged_line_of_0_1_ends_what_is_believed(tmp_path):
    path = tmp_path / "a"
    lines_of_0_1(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"1.0", b"7.0")
    path.write_bytes(b"".join(lines))
    assert known(path) == [[{"loss": 0.0}], None, None, None]


def test_the_journal_of_another_job_of_0_1_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "a"
    lines_of_0_1(path, samples=10)
    before = path.read_bytes()
    with (
        pytest.raises(ResultError, match=r"samples: 10 there, 20 here.*`overwrite`"),
        journal(path, samples=20),
    ):
        pass
    assert path.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("size", [0, 3, 12, 20])
def test_a_first_line_of_0_1_that_was_cut_short_holds_nothing(tmp_path, size):
    path = tmp_path / "a"
    lines_of_0_1(path)
    path.write_bytes(path.read_bytes()[:size])
    if size == 0:
        assert known(path) == [None] * 4
        return
    with pytest.raises(ResultError, match="no journal of flatkit; move it away"), journal(path):
        pass


def test_a_full_disk_is_told_once_and_ends_nothing(tmp_path, monkeypatch):
    told = []
    with Journal(tmp_path / "a", {}, told.append) as kept:
        kept.add([(0,)], [{"loss": 0.0}])
        monkeypatch.setattr(Store, "_insert", full)
        for i in (1, 2):
            kept.add([(i,)], [{"loss": 1.0}])
        monkeypatch.undo()
        kept.add([(3,)], [{"loss": 1.0}])
        assert [kept.find([(i,)]) is None for i in range(4)] == [False, True, True, True]
    assert len(told) == 1 and "disk is full" in told[0] and "is measured" in told[0]


def full(*_):
    raise sqlite3.OperationalError("database or disk is full")


def test_the_journal_of_another_job_is_refused_with_the_difference(tmp_path):
    with journal(tmp_path / "a", samples=10):
        pass
    with (
        pytest.raises(ResultError, match="samples: 10 there, 20 here"),
        journal(tmp_path / "a", samples=20),
    ):
        pass
    (tmp_path / "b").write_text("something else\n")
    with pytest.raises(ResultError, match="no journal"), journal(tmp_path / "b"):
        pass
    assert (tmp_path / "b").read_text() == "something else\n"
