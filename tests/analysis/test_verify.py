"""The verdict on quadratics, whose truth is known, and on networks that are no minimum."""

import pytest
import torch

import flatkit
from flatkit.analysis.verify import _convexity, verify
from flatkit.training import TrainingConfig, train
from flatkit_cli.main import main
from tests.cases import CASES, quadratic_task, random_symmetric


def verdicts(report):
    return {claim["claim"]: claim["verdict"] for claim in report.result("verdict").value}


def quadratic(values, linear=None):
    return flatkit.Task(*quadratic_task(random_symmetric(values), linear))


def test_at_the_minimum_of_a_quadratic_every_claim_holds():
    report = verify(quadratic([4.0, 2.0, 1.0]), tolerance=1e-8)
    assert set(verdicts(report).values()) == {"holds"}, report.result("verdict").value


def test_a_saddle_and_a_slope_are_told():
    saddle = verdicts(verify(quadratic([4.0, 1.0, -2.0])))
    assert saddle["no negative curvature"] == "fails"
    slope = torch.ones(3, dtype=torch.float64) * 100
    found = verdicts(verify(quadratic([4.0, 2.0, 1.0], slope)))
    assert found["gradient is negligible"] == "fails"
    assert found["R1/ρ² → λmax"] == "cannot tell"


@pytest.mark.parametrize(
    ("lowest", "residual", "expected"),
    [(0.1, 0.01, "holds"), (0.001, 0.5, "cannot tell"), (-0.005, 0.0, "holds"), (-1, 0, "fails")],
)
def test_convexity_is_claimed_only_as_far_as_the_residual_reaches(lowest, residual, expected):
    claim = _convexity(lowest, residual, slope=1.0)
    assert claim["verdict"] == expected and f"{lowest:.3g}" in claim["reason"]


def test_an_untrained_network_is_no_minimum_and_float32_reports_its_rounding():
    case = CASES[0]
    report = verify(flatkit.Task(case.build(), case.loss, case.data()), dtype="float32")
    assert verdicts(report)["gradient is negligible"] == "fails"
    blurred = report.result("rounding_radius").value
    assert blurred > 1e-6
    below = verify(
        flatkit.Task(case.build(), case.loss, case.data()), dtype="float32", rho=[blurred / 2]
    )
    assert not below.all("first_order_flatness")
    assert verdicts(below)["R1/ρ² → λmax"] == "cannot tell"


def test_the_command_prints_claims_and_refuses_a_bad_radius(tmp_path, capsys):
    config = TrainingConfig(data="gaussians", epochs=2, device="cpu")
    checkpoint = str(train(config, tmp_path / "run").checkpoint)
    assert main(["verify", checkpoint, "--dtype", "float64", "--figures", str(tmp_path / "f")]) == 0
    assert "R0 ≤ R1" in capsys.readouterr().out and list((tmp_path / "f").glob("flatness.png"))
    assert main(["verify", checkpoint, "--rho", "0"]) == 2
    assert "rho" in capsys.readouterr().err


@pytest.mark.parametrize("geometry", ["adaptive", "filter"])
def test_adaptive_measures_do_not_change_when_layers_are_rescaled(geometry):
    case = CASES[1]
    other = case.build()
    assert isinstance(other, torch.nn.Sequential)
    with torch.no_grad():  # Dinh et al. (2017): the same function of a ReLU network
        for layer, factor in ((0, 3.0), (2, 1 / 3.0)):
            other.get_parameter(f"{layer}.weight").mul_(factor)
        other.get_parameter("0.bias").mul_(3.0)
    measures = ["first_order_flatness", "zeroth_order_sharpness", "average_sharpness"]
    tasks = [flatkit.Task(model, case.loss, case.data()) for model in (case.build(), other)]
    found = {
        shape: [
            flatkit.analyze(task, measures=measures, rho=[0.01], geometry=shape, budget=2000)
            for task in tasks
        ]
        for shape in (geometry, "l2")
    }
    for measure in measures:
        same, moved = ([r.result(measure).value for r in found[shape]] for shape in found)
        assert same[0] == pytest.approx(same[1], rel=1e-3), measure
        assert moved[0] != pytest.approx(moved[1], rel=0.05), measure
