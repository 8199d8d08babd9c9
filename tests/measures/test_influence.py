"""What blocks of the samples contribute, held against dense Hessians and gradients of these."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from flatkit import Task, analyze
from flatkit.comparison.readings import readings
from flatkit.measures.schedule import Limit, Schedule
from flatkit.measures.session import Session
from flatkit.measures.settings import AnalysisSettings
from flatkit.objective import Objective
from flatkit.objective.blocks import blocks_of

MEASURES = (
    *("loss", "accuracy", "gradient_norm", "top_eigenvalues", "bottom_eigenvalues", "trace"),
    *("zeroth_order_sharpness", "first_order_flatness", "max_gradient_norm"),
    *("frobenius_norm", "rounding"),
)


def task(loss="cross_entropy", samples=50):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    inputs = torch.randn(samples, 3, dtype=torch.float64)
    targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long()
    return model, loss, (inputs, targets)


def report(**more):
    model, loss, data = task()
    given = {"measures": MEASURES, "rho": [0.3], "search_budget": 60, **more}
    return analyze(model, loss, data, test_data=data, progress=False, **given)


@pytest.fixture(scope="module")
def measured():
    return report(num_eigenvalues=2)


def dense(rows, at=None):
    """Return loss, gradient and Hessian of some samples by torch alone."""
    model, _, (inputs, targets) = task()
    shapes = {name: p.shape for name, p in model.named_parameters()}
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(point):
        parts = point.split([math.prod(shape) for shape in shapes.values()])
        named = {n: p.view(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}
        outputs = functional_call(model, named, (inputs[rows],))
        return nn.functional.cross_entropy(outputs, targets[rows])

    point = (theta if at is None else theta + at).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point), point)
    hessian = torch.autograd.functional.hessian(loss, point.detach())
    assert isinstance(hessian, torch.Tensor)
    return loss(point).item(), gradient, hessian


def blocks():
    found = blocks_of(Objective(*task()))
    assert not isinstance(found, str)  # a reason
    return found.rows


def values(result):
    return result.settings["influence"]["values"]


def test_every_number_is_the_mean_of_what_its_blocks_contribute(measured):
    for result in measured:
        found = values(result)
        several = isinstance(found[0], list)
        numbers, rows = (result.value, found) if several else ([result.value], [found])
        for value, each in zip(numbers, rows, strict=True):
            assert len(each) == 25
            assert sum(each) / 25 == pytest.approx(value, rel=1e-9)


def test_eigenvalues_move_by_the_curvature_of_a_block_along_their_vectors(measured):
    whole = torch.linalg.eigh(dense(torch.arange(50))[2])
    order = {"top_eigenvalues": [-1, -2], "bottom_eigenvalues": [0, 1]}
    for measure, columns in order.items():
        for number, column in enumerate(columns):
            v = whole.eigenvectors[:, column]
            wanted = [float(v @ dense(rows)[2] @ v) for rows in blocks()]
            assert values(measured.result(measure))[number] == pytest.approx(
                wanted, rel=1e-3, abs=1e-4
            )


def test_the_bias_of_few_samples_is_that_of_second_order_perturbation():
    torch.manual_seed(1)
    inputs = torch.randn(50, 4, dtype=torch.float64)
    found = analyze(
        nn.Linear(4, 1, bias=False).double(),
        "mse",
        (inputs, torch.zeros(50, 1, dtype=torch.float64)),
        measures=["top_eigenvalues"],
        progress=False,
    ).result("top_eigenvalues")
    eigenvalues, vectors = torch.linalg.eigh(2 * inputs.T @ inputs / 50)
    v = vectors[:, -1]
    noise = torch.stack([inputs[rows].T @ (inputs[rows] @ v) for rows in blocks()])
    covariance = vectors.T @ torch.cov(noise.T) @ vectors / len(noise)
    wanted = sum(covariance[j, j] / (eigenvalues[-1] - eigenvalues[j]) for j in range(3))
    assert found.settings["sampling_bias"][0] == pytest.approx(float(wanted), rel=1e-6)


def test_losses_gradients_and_accuracies_of_the_blocks(measured):
    parts = [dense(rows) for rows in blocks()]
    gradient = dense(torch.arange(50))[1]
    assert values(measured.result("loss", split="train")) == pytest.approx([p[0] for p in parts])
    wanted = [float(p[1] @ gradient / gradient.norm()) for p in parts]
    assert values(measured.result("gradient_norm")) == pytest.approx(wanted)
    singles = torch.tensor([dense(torch.tensor([n]))[0] for n in range(50)])
    error = measured.result("loss", split="test").settings["sampling_error"]
    assert error == pytest.approx(float(singles.std() / math.sqrt(50)))
    assert values(measured.result("accuracy", split="test")) == pytest.approx(
        [25 * v / 25 for v in values(measured.result("accuracy", split="train"))]
    )


def test_the_trace_moves_by_that_of_a_block_and_its_error_is_not_too_small(measured):
    exact = torch.tensor([float(dense(rows)[2].trace()) for rows in blocks()])
    found = torch.tensor(values(measured.result("trace")))
    assert torch.corrcoef(torch.stack([exact, found]))[0, 1] > 0.3  # of two samples each
    assert 0.8 < float(found.std() / exact.std()) < 2.5


def test_the_frobenius_norm_moves_by_the_product_with_it_and_its_error_is_not_too_small(measured):
    whole = dense(torch.arange(50))[2]
    parts = [dense(rows)[2] for rows in blocks()]
    exact = torch.tensor([float((whole * part).sum() / whole.norm()) for part in parts])
    result = measured.result("frobenius_norm")
    found = torch.tensor(values(result))
    assert torch.corrcoef(torch.stack([exact, found]))[0, 1] > 0.9  # of two samples each
    assert 0.8 < float(found.std() / exact.std()) < 1.5
    # The noise of the Hessian, across it, lengthens it.
    noise = torch.stack([(part - whole).flatten() for part in parts]) / 25
    along = noise @ (whole / whole.norm()).flatten()
    across = float((noise.square().sum() - along.square().sum()) * 25 / 24)
    wanted = across / (2 * float(whole.norm()))
    assert result.settings["sampling_bias"] == pytest.approx(wanted, rel=0.5)


def test_the_norm_of_a_network_as_small_as_its_krylov_space_moves_exactly():
    torch.manual_seed(1)
    inputs = torch.randn(50, 4, dtype=torch.float64)
    model, data = nn.Linear(4, 1, bias=False).double(), (inputs, inputs[:, :1])
    found = analyze(model, "mse", data, measures=["frobenius_norm"], progress=False)
    result = found.result("frobenius_norm")
    whole = 2 * inputs.T @ inputs / 50
    parts = [2 * inputs[rows].T @ inputs[rows] / 2 for rows in blocks()]
    assert values(result) == pytest.approx([float((whole * p).sum() / whole.norm()) for p in parts])
    noise = torch.stack([part - whole for part in parts]).flatten(1) / 25
    along = noise @ (whole / whole.norm()).flatten()
    across = float((noise.square().sum() - along.square().sum()) * 25 / 24)
    bias = across / (2 * float(whole.norm()))
    assert result.settings["sampling_bias"] == pytest.approx(bias)


def test_the_mean_of_the_density_moves_as_the_trace_does(measured):
    found = report(measures=["trace", "spectral_density"])
    density, trace = found.result("spectral_density"), found.result("trace")
    size = 31
    shift = density.settings["mean"] - trace.value / size
    assert values(density) == pytest.approx([v / size + shift for v in values(trace)])
    assert "of the curve not known" in density.settings["sampling_error_is"]
    assert readings(density)[0].sampling_error == pytest.approx(
        trace.settings["sampling_error"] / size
    )
    cost = density.cost.matvecs + trace.cost.matvecs
    apart = [report(measures=[name]).results[0] for name in ("trace", "spectral_density")]
    assert sum(one.cost.matvecs for one in apart) - cost >= 4  # their probes are the same


def test_m_sharpness_is_a_mean_over_batches_that_are_samples_themselves():
    found = report(measures=["loss"], m_sharpness=5).result("m_sharpness")
    each = torch.tensor(values(found), dtype=torch.float64)
    assert len(each) == 10
    assert found.value == pytest.approx(float(each.mean()))
    assert found.settings["sampling_error"] == pytest.approx(float(each.std()) / math.sqrt(10))
    (reading,) = readings(found)
    assert reading.key == "m_sharpness[m=5][rho=0.3]"
    assert reading.influence == tuple(each.tolist())


def test_rounding_moves_by_what_the_blocks_do_at_the_rounded_weights(measured):
    model = task()[0]
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    parts = []
    for p in model.parameters():
        step = p.detach().abs().max() / 7  # 4 bits
        parts.append(
            (torch.round(p.detach() / step) * step if p.ndim > 1 else p.detach()).flatten()
        )
    at = torch.cat(parts) - theta
    wanted = [dense(rows, at)[0] - dense(rows)[0] for rows in blocks()]
    assert values(measured.result("rounding", bits=4)) == pytest.approx(wanted)


def test_r0_and_r1_move_by_what_the_blocks_do_at_the_point_found(measured):
    model, loss, data = task()
    chosen = AnalysisSettings(measures=MEASURES, rho=[0.3], search_budget=60, num_eigenvalues=2)
    schedule = Schedule(Session(Task(model, loss, data, test_data=data), chosen), Limit())
    schedule.run(lambda _: None)
    ball = schedule.session.ball
    at = {name: ball.answer(name, 0.3).found.displacement for name in ("loss", "gradient_norm")}
    far = [dense(rows, at["loss"])[0] - dense(rows)[0] for rows in blocks()]
    assert values(measured.result("zeroth_order_sharpness")) == pytest.approx(far)
    whole = dense(torch.arange(50), at["gradient_norm"])[1]
    along = [
        0.3 * float(dense(rows, at["gradient_norm"])[1] @ whole / whole.norm()) for rows in blocks()
    ]
    assert values(measured.result("first_order_flatness")) == pytest.approx(along)


def test_nothing_else_changes_by_it_and_it_is_counted(measured, monkeypatch):
    monkeypatch.setattr(Schedule, "_add_influences", lambda self, look: None)
    without = report(num_eigenvalues=2)
    for one, other in zip(measured, without, strict=True):
        assert (one.value, one.error, one.status) == (other.value, other.error, other.status)
    assert measured.analysis["gradients"] > without.analysis["gradients"]
    cost = measured.result("trace").cost.matvecs - without.result("trace").cost.matvecs
    assert cost == 4


def test_where_nothing_is_left_of_the_budget_it_is_not_asked_and_that_is_said():
    whole = report(measures=["loss", "trace"])
    spent = sum(r.cost.matvecs for r in whole) - 4
    less = report(measures=["loss", "trace"], budget=2.0 * spent + 0.5)
    assert less.result("trace").value == whole.result("trace").value
    assert "nothing was left" in less.result("trace").settings["sampling_error_is"]
    again = report(measures=["loss", "trace"], budget=whole.analysis["gradients"])
    assert again.result("trace").settings == whole.result("trace").settings


def test_samples_that_count_differently_contribute_by_their_weight():
    model, _, (inputs, targets) = task()
    weights = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
    loss = nn.CrossEntropyLoss(weight=weights)
    found = analyze(model, loss, (inputs, targets), measures=["loss"], progress=False)
    result = found.result("loss")
    # The delta method for a ratio of means, sample by sample.
    each = nn.functional.cross_entropy(model(inputs), targets, reduction="none").detach()
    w = weights[targets]
    value = float((w * each).sum() / w.sum())
    error = float((w * (each - value)).std()) * math.sqrt(50) / float(w.sum())
    assert result.value == pytest.approx(value)
    assert result.settings["sampling_error"] == pytest.approx(error, rel=1e-6)
    assert sum(values(result)) / 25 == pytest.approx(value)


def test_what_has_no_parts_says_why():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    data = torch.randn(40, 3), torch.arange(40) % 3
    model(data[0])
    shared = {"measures": ["loss", "top_eigenvalues"], "progress": False}
    batches = analyze(
        model, "cross_entropy", data, batchnorm="train", chunk_size=20, **shared
    ).result("top_eigenvalues")
    few = analyze(model, "cross_entropy", (data[0][:5], data[1][:5]), **shared).result("loss")
    assert "depend on each other" in batches.settings["sampling_error_is"]
    assert "5 samples are too few" in few.settings["sampling_error_is"]
    assert "influence" not in batches.settings and "influence" not in few.settings


def test_an_accuracy_of_all_samples_is_not_taken_for_certain():
    model = nn.Linear(1, 2).double()
    with torch.no_grad():
        model.weight[:] = torch.tensor([[-9.0], [9.0]])
        model.bias[:] = 0
    x = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
    found = analyze(
        model, "cross_entropy", (x, (x[:, 0] > 0).long()), measures=["accuracy"], progress=False
    ).result("accuracy")
    p = 42 / 44
    assert found.value == 1
    assert found.settings["sampling_error"] == pytest.approx(math.sqrt(p * (1 - p) / 44))
