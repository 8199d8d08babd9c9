"""Claims in 16 bits: the noise is part of what they allow for, or they cannot be told."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatkit
from benchmarks.bfloat16 import functions_of, make_case, verified
from flatkit.flatness.quadratic_model import QuadraticModel
from flatkit.measures.precision import Jump
from flatkit.measures.session import Session
from flatkit.measures.settings import AnalysisSettings
from flatkit.spectrum.operators import DenseOperator
from flatkit.verify import verify
from flatkit.verify.claims import Facts, Rung, judge

pytestmark = pytest.mark.long

CALM = Jump(0.0, 1e-3, 1e-3)
FACTS = Facts(4.0, 1e-3, True, 1.0, 1e-3, 1e-6, 1e-6, CALM)
RUNGS = [Rung(rho, 2.0, 4.0, 2.0, 4.0) for rho in (0.01, 0.1)]
TOP, R0 = "R1/ρ² → λmax", "2 R0/ρ² → λmax"


def verdict(claim: str, rungs: list[Rung] | None = None, **changes: Any) -> tuple[str, str]:
    """Return verdict and reason of a claim, of facts in bfloat16 but for what is changed."""
    facts = dataclasses.replace(FACTS, **{"narrow": "dtype bfloat16", **changes})
    (found,) = (c for c in judge(facts, rungs or RUNGS) if c["claim"] == claim)
    return found["verdict"], found["reason"]


def test_without_noise_all_holds_in_16_bits_as_in_32():
    for narrow in ("", "dtype bfloat16"):
        found = judge(dataclasses.replace(FACTS, narrow=narrow), RUNGS)
        assert {claim["verdict"] for claim in found} == {"holds"}, found


@pytest.mark.parametrize("claim", [TOP, R0])
@pytest.mark.parametrize(
    ("error", "off", "expected"),
    [
        (0.001, 0.02, "fails"),  # beyond 1 %, and there is no noise
        (0.08, 0.02, "holds"),  # 2 % of λmax may be the noise
        (0.08, 0.04, "fails"),  # whatever the noise is
        (0.4, 0.0, "cannot tell"),  # a tenth of λmax is not known
    ],
)
def test_the_noise_of_the_eigenvalue_is_in_the_tolerance(claim, error, off, expected):
    rungs = [Rung(r.rho, 2 * (1 + off), 4 * (1 + off), 2.0, 4.0) for r in RUNGS]
    found, reason = verdict(claim, rungs, top_error=error)
    assert found == expected, reason
    assert "dtype bfloat16" in reason and ("float32 helps" in reason) == (expected == "cannot tell")
    # In 32 bits an eigenvalue of which 1 % is not known decides nothing.
    wide = {0.001: "fails"}.get(error, "cannot tell")
    assert verdict(claim, rungs, top_error=error, narrow="")[0] == wide


@pytest.mark.parametrize(
    ("norm", "error", "expected"),
    [(1e-4, 1e-4, "holds"), (0.02, 0.01, "fails"), (0.005, 0.004, "cannot tell")],
)
def test_whether_the_gradient_is_negligible_is_told_as_far_as_it_is_known(norm, error, expected):
    # It is at most 4·0.1·1 % = 0.004 at the largest radius.
    found, reason = verdict("gradient is negligible", norm=norm, norm_error=error)
    assert found == expected, reason
    assert "±" in reason


@pytest.mark.parametrize(
    ("lowest", "error", "expected"),
    [
        (0.1, 0.01, "holds"),
        (-0.1, 0.2, "cannot tell"),  # of which all may be noise
        (-0.3, 0.1, "fails"),
        (0.001, 0.5, "cannot tell"),
    ],
)
def test_negative_curvature_is_told_beyond_the_noise(lowest, error, expected):
    found, reason = verdict("no negative curvature", lowest=lowest, lowest_error=error)
    assert found == expected, reason


def test_curvature_that_may_be_all_noise_is_none_that_was_measured():
    assert verdict("curvature was measured", top=0.01, lowest=0.0, top_error=0.02)[0] == (
        "cannot tell"
    )
    assert verdict("curvature was measured", top=0.01, lowest=0.0, top_error=0.002)[0] == "holds"


def test_the_picture_is_that_of_a_model_with_its_noise():
    far = [Rung(r.rho, 2.0, 4.3, 2.0, 4.0, 0.0, 0.15) for r in RUNGS]  # 7.5 %: 5, and 3.75 of noise
    found, reason = verdict("quadratic picture", far)
    assert found == "holds" and "3.8%" in reason
    far = [dataclasses.replace(rung, model1_off=0.0) for rung in far]
    assert verdict("quadratic picture", far)[0] == "cannot tell"  # at smaller ones it may hold
    assert verdict("quadratic picture", far, narrow="")[0] == "fails"
    noisy = [dataclasses.replace(rung, model1_off=0.4) for rung in far]
    found, reason = verdict("quadratic picture", noisy)
    assert found == "cannot tell" and "± 10.0%" in reason


def test_a_search_that_16_bits_led_astray_disproves_nothing():
    missed = [Rung(r.rho, 4.1, 4.0, 2.0, 4.0) for r in RUNGS]
    assert verdict("R0 ≤ R1", missed)[0] == "cannot tell"
    assert verdict("R0 ≤ R1", missed, narrow="")[0] == "fails"


def verdicts(report: flatkit.Report) -> dict[str, str]:
    return {claim["claim"]: claim["verdict"] for claim in report.result("verdict").value}


@pytest.mark.parametrize("seed", [1, 3])
def test_no_verdict_contradicts_that_of_float64(seed):
    wide, narrow = verified(make_case(seed), search_budget=20, rho=[0.02, 0.15, 0.3])
    ours, theirs = verdicts(narrow), verdicts(wide)
    assert {name for name in ours if {ours[name], theirs[name]} == {"holds", "fails"}} == set()
    assert "holds" in ours.values()
    assert narrow.objective["dtype"] == "bfloat16"


@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.slow), 1, 2, 3])
def test_the_quadratic_model_of_the_truth_lies_within_its_error(seed):
    case, rho = make_case(seed), 0.2
    _, loss, theta = functions_of(case)
    slope = torch.func.grad(loss)
    gradient, hessian = slope(theta), torch.func.jacrev(slope)(theta)
    truth = QuadraticModel(DenseOperator((hessian + hessian.T) / 2), gradient, max_basis=len(theta))
    given: dict[str, Any] = {"dtype": "bfloat16", "chunk_size": case.chunk_size, "rho": (rho,)}
    session = Session(
        flatkit.Task(case.model, case.loss, case.data),
        AnalysisSettings(measures=("quadratic_model_maximum",), **given),
    )
    for which in ("loss", "gradient_norm"):
        found = session.ball.model_maximum(which, rho)
        true = truth.maximum(which, rho=rho).value  # of the whole space: exact
        off = session.ball.model_rounding(which, found)
        assert -off <= true - found.value <= off + found.shortfall
        assert 0 < off < 0.05 * true


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x).to(x.dtype)


def test_models_that_compute_in_16_bits_by_themselves_are_judged_by_their_noise():
    inputs = torch.randn(100, 6, generator=torch.Generator().manual_seed(1))
    task = flatkit.Task(Autocast(), "cross_entropy", (inputs, inputs[:, :4].argmax(1)))
    report = verify(task, search_budget=10, rho=[0.5])
    said = {claim["claim"]: claim["reason"] for claim in report.result("verdict").value}
    assert "bfloat16 in which the model itself computes" in said["quadratic picture"]
    assert "±" in said["gradient is negligible"]
