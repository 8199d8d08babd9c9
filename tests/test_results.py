"""Results: JSON without loss, NaN refused, other schemas refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flatkit.errors import (
    MissingDependencyError,
    NothingToDrawError,
    OutputError,
    ResultError,
)
from flatkit.results import Comparison, Cost, Entry, Report, Result, load_results

SLICE = Result(
    "loss_slice",
    {"coordinate": [-1.0, 0.0, 1.0], "loss": [[math.inf, 0.1, None]]},
    {"loss": [0.1, 0.0, None]},
    error_kind="standard_error",
    settings={"seed": 0},
    cost=Cost(gradients=3, matvecs=2, seconds=0.1, losses=9),
)
REPORT = Report(
    [Result("loss", 0.1 + 0.2, 0.0, settings={"split": "train"}), SLICE],
    checkpoint={"path": "a.pt", "name": "sgd"},
    objective={"samples": 10},
    command=["analyze", "a.pt"],
)


def test_a_report_survives_json_bit_for_bit():
    again = Report.from_json(REPORT.to_json())
    assert again == REPORT
    assert again.results[0].value == 0.1 + 0.2
    assert again.results[1].value["loss"][0][0] == math.inf


def test_the_json_is_standard():
    def refuse(text):
        raise AssertionError(text)

    data = json.loads(REPORT.to_json(), parse_constant=refuse)
    assert data["schema"] == 1 and data["results"][1]["value"]["loss"] == [["Infinity", 0.1, None]]
    assert set(data["results"][0]) == {
        "measure", "value", "error", "error_kind", "status", "settings", "cost",
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"value": math.nan},
        {"value": [[1.0, math.nan]]},
        {"value": 1.0, "error": math.nan},
        {"value": 1.0, "settings": {"x": {"y": math.nan}}},
    ],
)
def test_nan_is_never_a_result(wrong):
    with pytest.raises(ResultError, match="NaN"):
        Result("loss", **wrong)


def test_an_unknown_kind_of_error_is_refused():
    with pytest.raises(ResultError, match="error_kind"):
        Result("loss", 1.0, error_kind="guess")  # type: ignore[arg-type]


def test_numbers_of_other_libraries_become_plain_and_the_rest_is_refused_by_its_place():
    given = {"a": np.float32(0.5), "b": np.arange(2), "c": torch.ones(()), "d": (np.int64(1),)}
    result = Result("mine", np.float32(1.5), torch.tensor(0.25), settings=given)
    assert result.value == 1.5 and result.error == 0.25
    plain = {"a": 0.5, "b": [0, 1], "c": 1.0, "d": [1]}
    assert json.loads(Report([result]).to_json())["results"][0]["settings"] == plain
    with pytest.raises(ResultError, match="settings of mine, where holds a PosixPath"):
        Result("mine", 1.0, settings={"where": Path("/tmp")})


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("results",), 5),
        (("results", 0), "loss"),
        (("results", 0, "measure"), None),
        (("results", 0, "status"), []),
        (("results", 0, "settings"), "text"),
        (("results", 0, "cost", "seconds"), [1.0]),
        (("command",), None),
        (("objective", "examination"), {}),
        (("objective", "examination", 0), {"name": "additive", "seconds": 0.1}),
        (("objective", "examination", 0, "seconds"), "long"),
    ],
)
def test_parts_of_another_form_are_refused_by_name(place, value):
    data: Any = REPORT.to_dict()
    data["objective"]["examination"] = [{"name": "additive", "passed": True, "seconds": 0.1}]
    assert Report.from_dict(data)
    *way, last = place
    part = data
    for key in way:
        part = part[key]
    part[last] = value
    with pytest.raises(ResultError):
        Report.from_dict(data)


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(TypeError):
        REPORT.results[0].settings["split"] = "test"  # type: ignore[index]


def test_results_are_found_by_measure_and_settings():
    report = Report(
        [
            Result("loss", 1.0, settings={"split": "train"}),
            Result("loss", 2.0, settings={"split": "test"}),
        ]
    )
    found = report.find("loss", split="test")
    assert found is not None and found.value == 2.0
    assert report.find("loss", split="other") is None and report.find("trace") is None
    assert report.result("loss", split="test") is found
    with pytest.raises(ResultError, match="no result trace, seed=1; it has loss"):
        report.result("trace", seed=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "malformed JSON"),
        ("[]", "missing"),
        ('{"schema": 1}', "missing"),
        ('{"schema": 2, "results": []}', "schema 2"),
        ('{"schema": 1, "results": [{"measure": "loss"}]}', "malformed result"),
        ("[" * 100_000, "malformed"),
        ('{"schema": 1, "results": [], "checkpoint": []}', "checkpoint of a report must be dict"),
        (
            '{"schema": 1, "results": [], "checkpoint": {"training": "x"}}',
            "training of a report must be dict",
        ),
    ],
)
def test_malformed_reports_are_refused(text, message):
    with pytest.raises(ResultError, match=message):
        Report.from_json(text)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [("name", 5, "name of a run"), ("group", None, "group of a run"), ("epoch", "e", "epoch of a")],
)
def test_malformed_runs_are_refused(part, value, message):
    data = Entry("a", "sgd", REPORT).to_dict()
    text = json.dumps({"schema": 1, "comparison": [{**data, part: value}]})
    with pytest.raises(ResultError, match=message):
        Comparison.from_json(text)
    numbered = json.dumps({"schema": 1, "comparison": [{**data, "seed": 5}]})
    assert Comparison.from_json(numbered).entries[0].seed == "5"


def test_files_that_were_cut_off_are_named(tmp_path):
    path = tmp_path / "cut.json"
    path.write_text(REPORT.to_json()[:50])
    for load in (load_results, Report.load):
        with pytest.raises(ResultError, match=r"^/.*cut.json is malformed JSON"):
            load(path)


def test_comparisons_and_lone_reports_load_from_files(tmp_path):
    comparison = Comparison([Entry("a", "sgd", REPORT), Entry("b", "sgd", REPORT)])
    assert load_results(comparison.save(tmp_path / "both.json")) == comparison
    lone = load_results(REPORT.save(tmp_path / "one.json"))
    assert [entry.name for entry in lone.entries] == ["sgd"]
    assert comparison.groups == ["sgd"] and len(comparison.in_group("sgd")) == 2


def test_two_runs_of_one_name_are_refused():
    with pytest.raises(ResultError, match="'a'"):
        Comparison([Entry("a", "x", REPORT), Entry("a", "y", REPORT)])


def test_a_file_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ResultError, match=r"image\.png"):
        load_results(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    from flatkit.files import write_atomically

    path = tmp_path / "a.json"
    path.write_text("old")

    def fail(stream):
        stream.write(b"half")
        raise RuntimeError("full")

    with pytest.raises(RuntimeError):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_output_that_is_a_folder_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="folder"):
        REPORT.save(tmp_path)


LOSSES = [Result("loss", value, 0.0, settings={"split": s}) for s, value in
          (("train", 0.5), ("test", 0.7))]  # fmt: skip
FLAT = [
    Result("first_order_flatness", rho, None, "lower_bound", settings={"rho": rho})
    for rho in (0.01, 0.05)
]
MANY = Report([*LOSSES, Result("trace", 8.0, 0.5, "standard_error"), *FLAT, SLICE])


@pytest.mark.parametrize(
    "shown", [MANY, SLICE, FLAT[0], Comparison([Entry("a", "x", MANY)]), Report([]), Comparison([])]
)
def test_objects_show_themselves_in_a_line_and_in_html(shown):
    line = repr(shown)
    assert "\n" not in line and len(line) < 200
    assert type(shown).__name__ in line
    html = shown._repr_html_()
    assert html.startswith("<") and len(html) < 6000
    assert "color:" not in html  # the page's own, light or dark


def test_names_in_html_are_escaped():
    odd = Report([Result("trace", 8.0)], checkpoint={"name": "<script>x</script>"})
    for shown in (odd, Comparison([Entry("<script>x</script>", "<script>", odd)])):
        assert "<script>" not in shown._repr_html_()


def test_a_report_is_like_a_dict_of_its_results():
    assert MANY["loss"] is LOSSES[0] and MANY["loss[split=test]"] is LOSSES[1]
    assert MANY["first_order_flatness[rho=0.05]"] is FLAT[1]
    assert list(MANY) == list(MANY.results) == MANY.values()  # as ever
    assert dict(MANY) == dict(MANY.items()) and len(dict(MANY)) == len(MANY.results)
    assert "trace" in MANY and "first_order_flatness" in MANY and FLAT[0] in MANY
    assert "trase" not in MANY
    with pytest.raises(KeyError, match="did you mean 'trace'"):
        MANY["trase"]
    with pytest.raises(ResultError, match=r"2 results: first_order_flatness\[rho=0\.01\]"):
        MANY["first_order_flatness"]


def test_results_that_nothing_tells_apart_keep_a_name_each():
    twice = Report([Result("trace", 1.0), Result("trace", 2.0)])
    assert [result.value for _, result in twice.items()] == [1.0, 2.0]
    assert len(dict(twice)) == 2


def test_a_comparison_is_like_a_dict_of_its_reports():
    runs = Comparison([Entry("gam, seed 0", "gam", MANY), Entry("sgd, seed 0", "sgd", REPORT)])
    assert list(runs) == runs.keys() == ["gam, seed 0", "sgd, seed 0"]
    assert runs["sgd, seed 0"] is REPORT and dict(runs) == dict(runs.items())
    assert len(runs) == 2 and "gam, seed 0" in runs and "gam" not in runs and bool(Comparison([]))
    with pytest.raises(KeyError, match="did you mean 'gam, seed 0'"):
        runs["gam, sed 0"]
    with pytest.raises(KeyError, match="group of the runs gam, seed 0"):
        runs["gam"]


def test_data_frames_are_tidy_and_grids_have_a_row_for_each_point():
    frame = Comparison([Entry("a", "x", MANY, seed="3", epoch=2)]).to_dataframe()
    assert len(frame) == 2 + 1 + 2 * 2
    assert set(frame["run"]) == {"a"} and set(frame["seed"]) == {"3"} and set(frame["epoch"]) == {2}
    flat = frame[frame.measure == "first_order_flatness"]
    assert flat["rho"].tolist() == flat["value"].tolist() == [0.01, 0.05]
    assert frame[frame.split == "test"]["value"].tolist() == [0.7]
    curve = SLICE.to_dataframe()
    assert curve["coordinate"].tolist() == [-1.0, 0.0, 1.0] and curve["loss"][1] == 0.1
    plane = Result("loss_plane", {"x": [0.0, 1.0, 2.0], "y": [5.0, 6.0],
                                  "loss": [[1, 2, 3], [4, 5, 6]]}).to_dataframe()  # fmt: skip
    assert plane[(plane.x == 2.0) & (plane.y == 6.0)]["loss"].tolist() == [6.0]


def test_without_pandas_the_answer_is_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'flatkit\[frames\]'"):
        MANY.to_dataframe()


def test_plots_are_listed_before_matplotlib_is_loaded_and_drawn_when_called():
    runs = Comparison([Entry(name, name, MANY) for name in "ab"])
    found = dir(runs.plot)  # sorted by `dir`
    assert found == ["curvature", "flatness", "series", "slice", "track"]
    assert "curvature" in repr(runs.plot)
    assert runs.plot.curvature().axes and runs.plot().axes
    assert MANY.plot.slice(log_scale=False).axes and MANY["loss_slice"].plot().axes
    with pytest.raises(AttributeError, match="did you mean 'slice'"):
        _ = MANY.plot.slise
    with pytest.raises(NothingToDrawError, match="figures need"):
        LOSSES[0].plot()


def test_surfaces_show_themselves_by_name_and_in_xarray():
    from flatkit.landscape import Surface

    plane = Surface(
        {"x": [0.0, 1.0, 2.0], "y": [5.0, 6.0]}, {"loss": [[1, 2, 3], [4, 5, math.inf]]}
    )
    assert repr(plane) == "<Surface surface: loss on 3 × 2 points>"
    assert plane["loss"][1, 0] == 4 and plane.keys() == list(plane) == ["loss"]
    assert "loss" in plane._repr_html_() and "not finite" not in plane._repr_html_()
    with pytest.raises(KeyError, match="did you mean 'loss'"):
        plane["los"]
    data = plane.to_xarray()
    assert data["loss"].sel(x=2.0, y=5.0).item() == 3.0 and data["loss"].dims == ("y", "x")
    assert dir(plane.plot) == ["contour", "heat", "surface_3d"] and plane.plot().axes
    frame = plane.to_dataframe()
    assert frame[(frame.x == 1.0) & (frame.y == 6.0)]["loss"].tolist() == [5.0]
