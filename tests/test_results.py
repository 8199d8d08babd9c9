"""Results: JSON without loss, NaN refused, other schemas refused."""

import json
import math

import pytest

from flatkit.errors import OutputError, ResultError
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
    ],
)
def test_malformed_reports_are_refused(text, message):
    with pytest.raises(ResultError, match=message):
        Report.from_json(text)


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
