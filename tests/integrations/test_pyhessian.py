"""PyHessian as a second opinion, and the analysis of layers and blocks."""

import importlib

import numpy as np
import pytest
import torch

import flatkit
from flatkit.errors import InvalidArgumentError
from flatkit.integrations.pyhessian import pyhessian_eigenvalues
from tests.cases import CASES, Case, dense_hessian, quadratic_task, random_symmetric

SMALL = {"rho": [0.05], "slice_points": 3, "plane_points": 3}


def task(case: Case = CASES[0]) -> flatkit.Task:
    return flatkit.Task(case.build(), case.loss, case.data())


def test_the_cross_check_agrees_or_explains():
    result = flatkit.analyze(task(), measures=["cross_check"], num_eigenvalues=2).result(
        "cross_check"
    )
    truth = np.linalg.eigvalsh(dense_hessian(CASES[0]).numpy())[::-1][:2]
    np.testing.assert_allclose(result.value["flatkit"], truth, rtol=1e-5)
    gap = np.abs(np.array(result.value["pyhessian"]) - truth) / truth
    assert (gap < 0.1).all() and result.settings["explanation"]


@pytest.mark.parametrize(
    ("spectrum", "ours", "reason"),
    [([1.0, 0.5, -3.0, 0.2], 1.0, "negative end"), ([1.0, 0.5, -1.02, 0.2], 1.0, "PyHessian")],
    ids=["negative end", "nearly a tie"],
)
def test_a_disagreement_is_explained(spectrum, ours, reason):
    model, loss, data = quadratic_task(random_symmetric(spectrum))
    with torch.no_grad():
        next(model.parameters()).fill_(1.0)
    result = flatkit.analyze(
        flatkit.Task(model, loss, data), measures=["cross_check"], num_eigenvalues=1
    ).result("cross_check")
    assert result.value["flatkit"][0] == pytest.approx(ours, rel=1e-6)
    assert abs(result.value["pyhessian"][0] - ours) > 0.05
    assert result.status == "disagreement" and reason in result.settings["explanation"][0]


def test_what_pyhessian_computes_is_counted(monkeypatch):
    module = importlib.import_module("pyhessian.hessian")  # the package hides it behind a class
    calls, product = [], module.hessian_vector_product

    def counted(*args):
        calls.append(args)
        return product(*args)

    monkeypatch.setattr(module, "hessian_vector_product", counted)
    result = flatkit.analyze(
        task(), measures=["top_eigenvalues"], method="pyhessian", num_eigenvalues=2
    ).result("top_eigenvalues")
    objective = flatkit.Objective(CASES[0].build(), CASES[0].loss, CASES[0].data())
    before, count = objective.cost, len(calls)
    found = pyhessian_eigenvalues(objective, k=2)
    spent, theirs = objective.cost - before, len(calls) - count
    assert theirs >= 4  # an eigenvalue takes two products at least
    assert (spent.gradients, spent.matvecs) == (1, theirs + 2)  # ours: a residual for each
    assert found.matvecs == theirs + 2 and 0 < spent.seconds < 60
    assert result.cost.matvecs >= count + 2


def test_more_eigenvalues_than_parameters_are_refused():
    with pytest.raises(InvalidArgumentError, match="k must be at most"):
        flatkit.analyze(
            task(), measures=["top_eigenvalues"], method="pyhessian", num_eigenvalues=10**4
        )


def test_layers_and_params_are_blocks_of_the_hessian():
    report = flatkit.analyze(
        task(), measures=["layer_curvature", "top_eigenvalues", "trace"], params=["0.*"]
    )
    block = dense_hessian(CASES[0])[:25, :25]
    top = float(torch.linalg.eigvalsh(block)[-1])
    assert report.result("top_eigenvalues").value[0] == pytest.approx(top, rel=1e-5)
    layers = report.result("layer_curvature").value
    assert layers["layer"] == ["0"] and layers["top"][0] == pytest.approx(top, rel=1e-5)
    found = report.result("trace")
    assert abs(found.value - float(block.trace())) <= 5 * found.error + 1e-9


def test_draws_report_the_sampling_error():
    result = flatkit.analyze(task(), measures=["top_eigenvalues"], samples=10, draws=4).result(
        "top_eigenvalues"
    )
    assert len(set(result.settings["draw_values"])) == 4
    assert result.settings["sampling_error"] == pytest.approx(
        np.std(result.settings["draw_values"], ddof=1)
    )


def test_the_density_integrates_to_one_and_its_mean_is_that_of_the_trace():
    result = flatkit.analyze(task(), measures=["spectral_density"]).result("spectral_density")
    assert result.settings["mass"] == pytest.approx(1, abs=5e-3)
    truth = float(dense_hessian(CASES[0]).trace())
    assert abs(result.settings["trace"] - truth) <= 5 * result.settings["trace_error"]
