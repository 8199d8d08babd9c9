"""Analyses that are stopped anywhere: values that hold, budgets that repeat, nothing lost."""

import json
import math
import signal
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import flatkit
from flatkit.errors import (
    InterruptedAnalysis,
    InvalidArgumentError,
    NonFiniteError,
    NotSymmetricError,
    ResultError,
)
from flatkit.hessian import HessianOperator
from flatkit.landscape import LandscapeSettings, plan_landscapes
from flatkit.landscape.settings import Quantity
from flatkit.measures import AnalysisSettings
from flatkit.measures.forecast import landscape_forecast
from flatkit.measures.report import plan
from flatkit.measures.schedule import in_gradients
from flatkit.measures.watching import Silent
from flatkit.objective import Objective
from flatkit.render.live import Lines, live_table, plan_table
from flatkit.results import Report
from flatkit.results.status import Status
from flatkit.verify import verify
from flatkit_cli.main import main
from tests.cases import CASES, dense_hessian
from tests.processes import analyze_until_killed, analyze_with_journal, start

CASE = CASES[0]
QUICK = {"slice_points": 9, "slice_directions": 3, "plane_points": 5, "rho": [0.1]}
BUDGETS = (3.0, 11.0, 24.0, 60.0, 150.0)


def analyze(**more) -> Report:
    task = flatkit.Task(CASE.build(), CASE.loss, CASE.data(), name="tanh")
    return flatkit.analyze(task, **{**QUICK, **more})


@pytest.fixture(scope="module")
def reports() -> dict[float, Report]:
    return {budget: analyze(budget=budget) for budget in BUDGETS}


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return np.linalg.eigvalsh(dense_hessian(CASE).numpy())


def numbers(report: Report) -> dict[str, object]:
    """All that does not tell the time."""
    return {
        f"{result.measure} {result.settings.get('rho')} {result.settings.get('split')}": (
            result.value,
            result.error,
            result.status,
        )
        for result in report
    }


@pytest.mark.parametrize("budget", BUDGETS)
def test_values_hold_wherever_an_analysis_stops(reports, truth, budget):
    report = reports[budget]
    assert report.analysis["ended"] in ("budget", "done")
    assert report.analysis["gradients"] >= budget or report.analysis["ended"] == "done"
    top = report.find("top_eigenvalues")
    if top is not None:
        assert abs(top.value[0] - truth[-1]) <= top.error[0]
    trace = report.find("trace")
    if trace is not None and math.isfinite(trace.error):
        assert abs(trace.value - truth.sum()) <= 6 * trace.error
    final = reports[BUDGETS[-1]]
    for measure in ("zeroth_order_sharpness", "first_order_flatness"):
        found = report.find(measure)
        if found is not None:
            assert found.value <= final.result(measure).value * (1 + 1e-9)


def test_a_larger_budget_sharpens_what_a_smaller_one_found(reports):
    few, many = reports[24.0], reports[150.0]
    assert len(many.results) >= len(few.results)
    assert many.result("top_eigenvalues").error[0] <= few.result("top_eigenvalues").error[0]
    assert len(many.result("loss_slice").value["coordinate"]) >= 3
    assert set(numbers(few)) <= set(numbers(many))


def test_the_gradients_of_a_report_are_a_budget_that_repeats_it(equal_clock):
    first = analyze(budget=24.0)
    again = analyze(budget=first.analysis["gradients"])
    assert numbers(again) == numbers(first)


def test_what_the_measures_spent_is_what_was_spent(reports):
    report = reports[60.0]
    spent = sum(in_gradients(result.cost, 2.0) for result in report)
    assert spent == pytest.approx(report.analysis["gradients"], rel=0.1)


def test_all_of_a_small_network_is_done_by_default(reports):
    report = analyze(measures=["loss", "top_eigenvalues", "loss_slice", "loss_plane"])
    assert report.analysis["ended"] == "done" and not report.analysis["unfinished"]
    assert all(result.status == "converged" for result in report)


class FirstValues(Silent):
    """Notes at how many gradients each measure had its first value."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}

    def begin(self, schedule) -> None:
        self.expected = schedule.forecast.first

    def look(self, schedule) -> None:
        for process in schedule.processes:
            if process.results:
                self.at.setdefault(process.name, schedule.spent)


def test_33_gradients_of_a_large_network_give_every_measure_a_value_the_cheap_ones_first(
    monkeypatch,
):
    monkeypatch.setattr("flatkit.measures.session._LARGE", 0)
    seen, task = FirstValues(), flatkit.Task(CASE.build(), CASE.loss, CASE.data())
    report = flatkit.analyze(task, budget=33.0, chunk_size=3, progress=seen)
    assert list(seen.at) == sorted(seen.at, key=lambda name: seen.at[name])
    assert set(seen.at) == set(AnalysisSettings().measures)
    assert seen.expected == pytest.approx(max(seen.at.values()), abs=5)
    cheap = ("loss", "gradient_norm", "zeroth_order_sharpness", "first_order_flatness")
    assert all(seen.at[name] <= 5 for name in cheap)
    assert len(report.result("loss_slice").value["coordinate"]) == 5
    assert len(report.result("loss_slice").value["loss"]) == 2
    assert len(report.result("loss_plane").value["x"]) == 3


def test_searches_that_two_measures_share_are_told_by_both():
    report = analyze(measures=["first_order_flatness", "max_gradient_norm"], rho=[0.03, 0.1])
    for first, second in zip(
        report.all("first_order_flatness"), report.all("max_gradient_norm"), strict=True
    ):
        assert first.value == pytest.approx(first.settings["rho"] * second.value)


class StopAfter(Silent):
    """Presses Ctrl-C after so many pieces of work."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces

    def look(self, schedule) -> None:
        self.pieces -= 1
        if self.pieces == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("pieces", [1, 4, 9])
def test_ctrl_c_leaves_a_report_of_what_was_there(pieces):
    with pytest.raises(InterruptedAnalysis) as caught:
        analyze(progress=StopAfter(pieces))
    report = caught.value.report
    assert report.analysis["ended"] == "interrupted" and report.result("loss").value > 0
    assert Report.from_json(report.to_json()) == report
    unfinished = [r for r in report if r.measure in report.analysis["unfinished"]]
    assert all(result.status is not Status.CONVERGED for result in unfinished)


def test_ctrl_c_on_the_command_line_shows_and_saves(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    torch.save(model.state_dict(), tmp_path / "ckpt.pt")
    (tmp_path / "task.py").write_text(
        "import torch, flatkit\nfrom torch import nn\n"
        "def build():\n"
        "    x = torch.linspace(-1, 1, 40).reshape(20, 2)\n"
        "    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))\n"
        "    return flatkit.Task(model, 'cross_entropy', (x, (x[:, 0] > 0).long()))\n"
    )
    seen = []
    monkeypatch.setattr(Lines, "look", lambda self, _: seen.append(0) or StopAfter(1).look(None))
    out = tmp_path / "report.json"
    given = ["analyze", str(tmp_path / "ckpt.pt"), "--task", f"{tmp_path / 'task.py'}:build"]
    assert main([*given, "--json", str(out)]) == 130
    assert json.loads(out.read_text())["analysis"]["ended"] == "interrupted"
    assert "train loss" in capsys.readouterr().out and len(seen) == 1


def test_a_killed_analysis_goes_on_and_gives_the_same_numbers(tmp_path, monkeypatch):
    path = tmp_path / "report.json.journal"
    process = start(analyze_until_killed, path, 5)
    process.join()
    assert process.exitcode == -signal.SIGKILL and path.exists()
    made, gradient = [], Objective.chunk_loss
    monkeypatch.setattr(
        Objective, "chunk_loss", lambda *given, **more: made.append(0) or gradient(*given, **more)
    )
    again = analyze_with_journal(path)
    resumed, made[:] = len(made), []
    whole = analyze_with_journal(None)
    assert again.result("top_eigenvalues").value == pytest.approx(
        whole.result("top_eigenvalues").value, rel=1e-5
    )
    assert [(r.measure, r.status) for r in again] == [(r.measure, r.status) for r in whole]
    assert again.analysis["gradients"] == whole.analysis["gradients"]
    assert resumed < len(made)


def test_a_journal_of_other_weights_or_settings_is_refused(tmp_path):
    path = tmp_path / "report.json.journal"
    with pytest.raises(InterruptedAnalysis):
        analyze_with_journal(path, StopAfter(3))
    with pytest.raises(ResultError, match=r"of another job .*seed: 0 there, 1 here"):
        analyze_with_journal(path, seed=1)
    assert analyze_with_journal(path, budget=60.0, measures=["trace"]).result("trace")


def test_searches_settle_unless_a_number_of_gradients_or_all_of_them_was_asked_for():
    given = {"measures": ["zeroth_order_sharpness", "first_order_flatness"], "rho": [0.03, 0.1]}
    usual, asked = analyze(**given), analyze(**given, search_budget=150)
    full = analyze(**given, full=True)
    spent = [report.analysis["gradients"] for report in (usual, asked, full)]
    assert spent[0] < 0.75 * spent[1] < spent[2]
    for found, best in zip(usual, full, strict=True):
        assert 0.99 * best.value <= found.value <= best.value * (1 + 1e-9)
    assert usual.analysis["ended"] == "done"


@pytest.mark.parametrize("seconds", [0.0, 1e6], ids=["dear", "quick"])
def test_a_journal_stays_after_a_budget_only_if_it_holds_a_dear_pass(
    tmp_path, monkeypatch, seconds
):
    monkeypatch.setattr("flatkit.objective.kept.LEAST_SECONDS", seconds)
    path = tmp_path / "report.json.journal"
    report = analyze(budget=20.0, journal=path)
    assert report.analysis["ended"] == "budget"
    assert path.exists() == (seconds == 0.0)


@pytest.mark.parametrize("dear", [False, True])
def test_a_failed_analysis_leaves_no_empty_journal(tmp_path, monkeypatch, dear):
    def fail(self, vector):
        raise NonFiniteError("for the test")

    monkeypatch.setattr("flatkit.objective.kept.LEAST_SECONDS", 0.0 if dear else 1e6)
    monkeypatch.setattr(HessianOperator, "matvec", fail)
    path = tmp_path / "report.json.journal"
    with pytest.raises(NonFiniteError):
        analyze(journal=path)
    assert path.exists() == dear
    assert [left.suffix for left in tmp_path.iterdir()] == [".journal"] * dear


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"budget": 0.5}, "budget must be at least 1"),
        ({"budget": -1.0}, "budget must be"),
        ({"time": "10"}, "90s or 10m"),
        ({"time": "0s"}, "90s or 10m"),
        ({"budget": 5.0, "time": "10m"}, "exclude each other"),
        ({"full": True, "time": "10m"}, "no limit of time"),
    ],
    ids=str,
)
def test_efforts_that_mean_nothing_are_refused(wrong, words):
    with pytest.raises(InvalidArgumentError, match=words):
        AnalysisSettings(**wrong)


def test_a_time_without_room_for_the_first_numbers_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"time must be at least \d+s here"):
        analyze(time="0.001s")


def test_a_time_ends_an_analysis():
    report = analyze(time="0.6s", search_budget=100_000, measures=["first_order_flatness"])
    assert report.analysis["ended"] in ("time", "done") and report.analysis["seconds"] < 10


def test_a_plan_says_what_each_measure_takes():
    task = flatkit.Task(CASE.build(), CASE.loss, CASE.data())
    schedule = plan(task, measures=["loss", "trace"], budget=10.0)
    text = shown(plan_table(schedule))
    assert "10 gradients in about" in text and "trace" in text
    assert schedule.forecast.gradient > 0 and schedule.forecast.memory > 0


def test_the_live_table_shows_values_as_they_close_in():
    seen = []

    class Watching(Silent):
        def look(self, schedule) -> None:
            seen.append(shown(live_table(schedule)))

    analyze(progress=Watching(), measures=["loss", "top_eigenvalues"])
    assert "…" in seen[0] and "train loss" in seen[0]
    assert "λmax" in seen[-1] and "2 of 2 measures done" in seen[-1]


def test_lines_tell_the_plan_and_what_is_new(capsys, monkeypatch):
    monkeypatch.setattr("flatkit.render.live._WORTH_TELLING", 0.0)
    analyze(progress=Lines(), measures=["loss", "trace"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("plan: ") and any("trace tr H" in line for line in lines)


def test_a_landscape_is_forecast_by_its_points_and_quantities():
    task = flatkit.Task(CASE.build(), CASE.loss, CASE.data())
    asked: list[tuple[list[Quantity], float]] = [
        (["loss"], 1 / 3),
        (["loss", "gradient_norm"], 1.0),
    ]
    for quantities, each in asked:
        settings = LandscapeSettings(dimensions=1, points=7, quantities=quantities)
        (job,) = plan_landscapes([task], settings)
        assert landscape_forecast(job).gradients == pytest.approx(7 * each)


def test_verify_tells_its_plan_before_the_first_pass():
    told = []
    task = flatkit.Task(CASE.build(), CASE.loss, CASE.data())
    report = verify(task, rho=[0.1], search_budget=20, plan=told.append)
    spent = sum(in_gradients(result.cost, 2.0) for result in report)
    assert len(told) == 1 and 0.2 * spent < told[0].gradients < 5 * spent


class StopAtFirstValue(Silent):
    """Presses Ctrl-C as soon as a measure of several pieces has a value."""

    def look(self, schedule) -> None:
        for process in schedule.processes:
            process.ask()
            if process.results:
                raise KeyboardInterrupt


def test_layers_are_told_one_by_one():
    most = analyze(measures=["layer_curvature"]).result("layer_curvature")
    assert most.status == "converged" and len(most.value["layer"]) > 1
    with pytest.raises(InterruptedAnalysis) as caught:
        analyze(measures=["layer_curvature"], progress=StopAtFirstValue())
    some = caught.value.report.result("layer_curvature")
    assert len(some.value["layer"]) == 1 and some.status == "interrupted"
    assert some.value["top"] == most.value["top"][:1]
    assert some.cost.matvecs < most.cost.matvecs


def shown(renderable) -> str:
    text = StringIO()
    Console(file=text, width=120).print(renderable)
    return " ".join(text.getvalue().split())


@pytest.mark.parametrize(
    "given",
    [
        {"measures": ["top_eigenvalues"]},
        {"measures": ["top_eigenvalues"], "method": "power"},
        {"measures": ["bottom_eigenvalues"]},
        {"measures": ["trace"], "params": ["0.*"]},
        {"measures": ["zeroth_order_sharpness"], "geometry": "adaptive"},
    ],
    ids=str,
)
def test_products_that_are_not_symmetric_are_refused_by_whoever_multiplies(given, monkeypatch):
    right = HessianOperator.unchecked
    monkeypatch.setattr(
        HessianOperator, "unchecked", lambda self, vector: right(self, vector) + vector.roll(1)
    )
    with pytest.raises(NotSymmetricError):
        analyze(**given)
