"""The measures end to end on small tasks, against dense references."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import flatkit
from flatkit.errors import InvalidArgumentError, NonFiniteError
from flatkit.measures import MEASURES, AnalysisSettings
from flatkit.measures.session import Session
from flatkit.results import Report
from tests.cases import CASES, dense_hessian, quadratic_task, random_symmetric, reference_function

SMALL: dict[str, Any] = {"slice_points": 5, "slice_directions": 3, "plane_points": 5}


def task_of(case, **more) -> flatkit.Task:
    return flatkit.Task(case.build(), case.loss, case.data(), **more)


@pytest.fixture(scope="module")
def report() -> Report:
    case = CASES[0]
    x, y = case.data()
    task = task_of(case, test_data=(x[:7] + 0.5, y[:7]), name="tanh")
    return flatkit.analyze(
        task, measures=list(MEASURES), rho=[0.3, 0.1], seed=3, m_sharpness=5, **SMALL
    )


def value(report: Report, measure: str, **settings):
    return report.result(measure, **settings).value


def test_every_measure_is_reported_and_the_report_survives_json(report):
    assert {result.measure for result in report} == set(MEASURES)
    assert Report.from_json(report.to_json()) == report
    assert report.checkpoint == {"name": "tanh"}
    assert report.objective["dtype"] == "float64" and report.objective["samples"] == 23


def test_loss_accuracy_and_gradient_norm_equal_the_reference(report):
    case = CASES[0]
    function, theta = reference_function(case)
    point = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(point), point)
    assert value(report, "loss", split="train") == pytest.approx(float(function(theta)), rel=1e-12)
    assert value(report, "gradient_norm") == pytest.approx(float(gradient.norm()), rel=1e-12)
    model, (x, y) = case.build(), case.data()
    with torch.no_grad():
        right = (model(x[:7] + 0.5).argmax(1) == y[:7]).double().mean()
    assert value(report, "accuracy", split="test") == float(right)


def test_a_subset_of_the_test_data_is_measured_and_said():
    x, y = CASES[0].data()
    task = task_of(CASES[0], test_data=(x[:7] + 0.5, y[:7]))
    found = flatkit.analyze(task, measures=["loss"], samples=9, test_samples=4)
    assert [result.settings["samples"] for result in found.all("loss")] == [9, 4]
    said = found.objective["test"]
    assert (said["samples"], said["samples_available"], said["drawn"]) == (4, 7, "random")
    rows = [int(row) for part in said["indices"].split(",") for row in [part.partition("-")[0]]]
    assert set(rows) <= set(range(7))


def test_curvature_equals_the_dense_one_within_its_error(report):
    truth = np.linalg.eigvalsh(dense_hessian(CASES[0]).numpy())
    top, trace = report.result("top_eigenvalues"), report.result("trace")
    assert top.status == "converged" and top.error_kind == "residual"
    assert abs(top.value[0] - truth[-1]) <= top.error[0]
    assert abs(trace.value - truth.sum()) <= 4 * trace.error
    assert trace.error <= 0.02 * trace.value or trace.status == "budget"


def test_flatness_is_a_lower_bound_that_grows_with_the_radius(report):
    assert [r.settings["rho"] for r in report.all("first_order_flatness")] == [0.1, 0.3]
    for measure in ("zeroth_order_sharpness", "first_order_flatness", "max_gradient_norm"):
        results = report.all(measure)
        assert all(r.error_kind == "lower_bound" and r.error is None for r in results)
        assert results[0].value < results[1].value
    for rho in (0.1, 0.3):
        r1 = report.result("first_order_flatness", rho=rho)
        assert value(report, "zeroth_order_sharpness", rho=rho) <= r1.value
        assert r1.value == rho * value(report, "max_gradient_norm", rho=rho)
        assert r1.settings["one_step"] <= r1.value
        assert r1.settings["value_over_rho_squared"] == pytest.approx(r1.value / rho**2)
        assert r1.settings["ratio_to_top_eigenvalue"] == pytest.approx(
            r1.value / rho**2 / value(report, "top_eigenvalues")[0]
        )


def test_the_centre_of_slice_and_plane_is_the_checkpoint(report):
    loss, gradient = value(report, "loss", split="train"), value(report, "gradient_norm")
    line, plane = value(report, "loss_slice"), value(report, "loss_plane")
    assert all(row[2] == loss for row in line["loss"]) and plane["loss"][2][2] == loss
    assert all(row[2] == pytest.approx(gradient) for row in line["gradient_norm"])
    assert report.result("loss_slice").error["loss"][2] == 0.0
    spread = np.std([row[0] for row in line["loss"]], ddof=1) / math.sqrt(3)
    assert report.result("loss_slice").error["loss"][0] == pytest.approx(spread)


def test_a_quadratic_at_its_minimum_fulfils_the_identities():
    matrix = random_symmetric([6.0, 3.0, 1.0, 0.5, 0.1])
    report = flatkit.analyze(
        flatkit.Task(*quadratic_task(matrix)),
        measures=["top_eigenvalues", "zeroth_order_sharpness", "first_order_flatness"],
        rho=[1e-3, 0.1, 5.0],
        tolerance=1e-10,
    )
    assert value(report, "top_eigenvalues")[0] == pytest.approx(6.0, rel=1e-9)
    for rho in (1e-3, 0.1, 5.0):
        r1 = report.result("first_order_flatness", rho=rho)
        assert r1.settings["ratio_to_top_eigenvalue"] == pytest.approx(1.0, rel=1e-6)
        assert r1.value <= r1.settings["upper_estimate"] * (1 + 1e-9)
        assert value(report, "zeroth_order_sharpness", rho=rho) / rho**2 == pytest.approx(
            3.0, rel=1e-6
        )


def test_scaling_the_loss_scales_every_measure():
    case = CASES[0]

    def scaled(outputs, targets):
        return 10 * nn.functional.cross_entropy(outputs, targets, reduction="none")

    measures = ["top_eigenvalues", "trace", "zeroth_order_sharpness", "first_order_flatness"]
    one, ten = (
        flatkit.analyze(flatkit.Task(case.build(), loss, case.data()), measures=measures, rho=[0.1])
        for loss in ("cross_entropy", scaled)
    )
    for measure in measures:
        np.testing.assert_allclose(value(ten, measure), 10 * np.array(value(one, measure)), 1e-6)


def test_the_same_seed_gives_the_same_report_whatever_else_is_measured(equal_clock):
    case = CASES[1]
    alone, beside = (
        flatkit.analyze(task_of(case), measures=measures, seed=5, **SMALL)
        for measures in (["loss_plane", "trace"], ["trace", "loss_slice", "loss_plane"])
    )
    for measure in ("loss_plane", "trace"):
        assert value(alone, measure) == value(beside, measure)
    other = flatkit.analyze(task_of(case), measures=["loss_plane"], seed=6, **SMALL)
    assert value(other, "loss_plane") != value(alone, "loss_plane")


def test_power_and_lanczos_agree():
    case = CASES[0]
    power, lanczos = (
        value(
            flatkit.analyze(task_of(case), measures=["top_eigenvalues"], method=method),
            "top_eigenvalues",
        )
        for method in ("power", "lanczos")
    )
    assert power[0] == pytest.approx(lanczos[0], rel=1e-3)


def test_float32_says_when_rounding_hides_the_loss_increase():
    report = flatkit.analyze(
        task_of(CASES[0]), measures=["zeroth_order_sharpness"], rho=[1e-6], dtype="float32"
    )
    assert report.result("zeroth_order_sharpness").status == "rounding"


def test_costs_are_counted():
    report = flatkit.analyze(task_of(CASES[0]), measures=["trace", "loss_plane"], **SMALL)
    trace, plane = report.result("trace"), report.result("loss_plane")
    assert trace.cost.matvecs >= max(1, 2 * trace.settings["sketch"])
    assert plane.cost.losses == 25 and plane.cost.seconds > 0


def test_weights_or_losses_that_are_not_finite_are_refused():
    case = CASES[0]
    model = case.build()
    with torch.no_grad():
        next(model.parameters())[0, 0] = math.inf
    with pytest.raises(NonFiniteError, match="diverged"):
        flatkit.analyze(flatkit.Task(model, case.loss, case.data()))


def test_a_root_of_zero_is_no_divergence():
    model, x = nn.Linear(2, 1), torch.randn(5, 2)
    fitted = (x, model(x).detach())
    with pytest.raises(NonFiniteError, match=r"loss is 0 .* no derivative there \(a square root"):
        flatkit.analyze(model, lambda out, y: (out - y).square().sum(1).sqrt(), fitted)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("dtype", "most"), [("float32", 2e-6), ("float64", 1e-14)])
def test_a_loss_that_is_constant_has_no_curvature_beyond_its_rounding(dtype, most, seed):
    def whole(outputs, targets):
        return outputs.softmax(1).sum(1)

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    measures = ["top_eigenvalues", "bottom_eigenvalues", "trace", "frobenius_norm"]
    data = torch.randn(14, 4), torch.zeros(14)
    for result in flatkit.analyze(model, whole, data, measures=measures, dtype=dtype):
        (size,), (error,) = np.atleast_1d(result.value), np.atleast_1d(result.error)
        assert abs(size) <= error < most and result.status == "rounding"


def test_the_table_of_progress_leaves_pythons_random_state_alone():
    code = (
        "import random; random.seed(1); before = random.getstate();"
        "from flatkit.measures.watching import watcher_of; watcher_of(None);"
        "import sys; assert 'rich.style' in sys.modules;"
        "assert random.getstate() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"rho": [-0.1]}, "rho"),
        ({"rho": [0.0]}, "rho"),
        ({"rho": [math.nan]}, "rho"),
        ({"rho": []}, "rho"),
        ({"measures": ["trac"]}, "did you mean 'trace'"),
        ({"measures": []}, "measures"),
        ({"method": "arnoldi"}, "method"),
        ({"samples": 24}, "samples"),
        ({"samples": 0}, "samples"),
        ({"plane_points": 4}, "plane_points"),
        ({"extent": 0.0}, "extent"),
        ({"num_eigenvalues": 10_000}, "k must be at most"),
        ({"dtype": "float16"}, "dtype"),
        ({"batchnorm": "train"}, "chunk_size"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(wrong, name):
    with pytest.raises(InvalidArgumentError, match=name):
        flatkit.analyze(task_of(CASES[0]), **wrong)


def test_compare_takes_tasks_and_reports_under_names(report):
    comparison = flatkit.compare(
        {"old": report, "new": task_of(CASES[0])}, groups={"old": "sgd"}, measures=["loss"]
    )
    assert [(e.name, e.group) for e in comparison.entries] == [("old", "sgd"), ("new", "new")]
    with pytest.raises(InvalidArgumentError):
        flatkit.compare([])


def test_progress_is_told():
    seen = []
    flatkit.analyze(
        task_of(CASES[0]),
        measures=["loss", "loss_plane"],
        progress=lambda *x: seen.append(x),
        **SMALL,
    )
    assert ("loss_plane", 25, 25) in seen and seen[-1] == ("analysis", 2, 2)


def test_defaults_leave_out_what_is_derived_or_costly():
    assert set(MEASURES) - set(AnalysisSettings().measures) == {
        "bottom_eigenvalues",
        "cross_check",
        "frobenius_norm",
        "layer_curvature",
        "m_sharpness",
        "max_gradient_norm",
        "rounding",
        "spectral_density",
    }


@pytest.mark.parametrize("of", ["one weight", "biases alone"])
def test_slices_and_planes_of_models_without_two_directions_stop_nothing(of):
    model = nn.Linear(1, 1, bias=of == "biases alone")
    model.weight.requires_grad_(of == "one weight")
    task = flatkit.Task(model, "mse", (torch.ones(2, 1), torch.zeros(2, 1)))
    report = flatkit.analyze(task, measures=["loss_slice", "loss_plane"], **SMALL)
    plane = report.result("loss_plane")
    if of == "one weight":
        assert abs(plane.settings["cosine"]) == pytest.approx(1.0)
    else:  # which random directions leave where they are
        assert plane.settings["cosine"] is None
        losses = np.array(plane.value["loss"])
        assert np.ptp(losses) == 0 and report.result("loss_slice").error["loss"] == [0.0] * 5


def test_a_layer_without_entries_has_no_block_and_stops_nothing():
    case = CASES[0]
    model = case.build()
    model.register_parameter("unused", nn.Parameter(torch.empty(0, 3).double()))
    task = flatkit.Task(model, case.loss, case.data())
    found = flatkit.analyze(task, measures=["layer_curvature"]).result("layer_curvature").value
    plain = flatkit.analyze(task_of(case), measures=["layer_curvature"]).result("layer_curvature")
    assert found == plain.value and "" not in found["layer"]


def test_the_quadratic_model_and_the_krylov_space_share_their_memory():
    case = CASES[0]
    task = flatkit.Task(case.build(), case.loss, case.data())
    session = Session(task, AnalysisSettings(measures=["trace", "first_order_flatness"]))
    before = session.space
    hessian = dense_hessian(case).to(before.vectors)
    model, after = session.ball.model, session.space
    assert after.vectors.data_ptr() == model.basis.data_ptr()
    assert torch.equal(after.vectors, before.vectors) and after.size < len(model.basis)
    assert torch.allclose(after.images, after.vectors @ hessian, atol=1e-8)
