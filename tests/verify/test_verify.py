"""The verdict on quadratics, whose truth is known, and on networks that are no minimum."""

import copy
import io
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from rich.console import Console

import flatkit
from flatkit.errors import InvalidArgumentError, ResultError
from flatkit.measures.precision import Jump
from flatkit.render import series_figure, series_table
from flatkit.render.tables.verdict import verdict_table
from flatkit.results import Comparison, Entry
from flatkit.training import TrainingConfig, train
from flatkit.verify import verify, verify_series
from flatkit.verify.claims import Facts, Rung, _convexity, judge
from flatkit_cli.main import main
from tests.cases import CASES, quadratic_task, random_symmetric


def verdicts(report):
    return {claim["claim"]: claim["verdict"] for claim in report.result("verdict").value}


def rendered(table):
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


BRIEF = 20
"""Budget of the searches in tests of claims that rest on no search in a ball."""


def quadratic(values, linear=None):
    return flatkit.Task(*quadratic_task(random_symmetric(values), linear))


def test_at_the_minimum_of_a_quadratic_every_claim_holds():
    report = verify(quadratic([4.0, 2.0, 1.0]), tolerance=1e-8, search_budget=100)
    assert set(verdicts(report).values()) == {"holds"}, report.result("verdict").value


def test_a_short_search_is_held_against_the_same_quadratic_model_as_a_long_one():
    case = CASES[0]
    task = flatkit.Task(case.build(), case.loss, case.data())
    short, long = (
        verify(task, rho=[0.1], search_budget=budget).result("zeroth_order_sharpness")
        for budget in (5, 60)
    )
    assert short.settings["quadratic_model"] == long.settings["quadratic_model"] > 0


def test_a_saddle_and_a_slope_are_told():
    saddle = verdicts(verify(quadratic([4.0, 1.0, -2.0]), search_budget=BRIEF))
    assert saddle["no negative curvature"] == "fails"
    slope = torch.ones(3, dtype=torch.float64) * 100
    found = verdicts(verify(quadratic([4.0, 2.0, 1.0], slope), search_budget=BRIEF))
    assert found["gradient is negligible"] == "fails"
    assert found["R1/ρ² → λmax"] == "cannot tell"


@pytest.mark.parametrize(
    ("lowest", "residual", "expected"),
    [(0.1, 0.01, "holds"), (0.001, 0.5, "cannot tell"), (-0.005, 0.0, "holds"), (-1, 0, "fails")],
)
def test_convexity_is_claimed_only_as_far_as_the_residual_reaches(lowest, residual, expected):
    claim = _convexity(lowest, residual, slope=1.0)
    assert claim["verdict"] == expected and f"{lowest:.3g}" in claim["reason"]


def test_claims_hold_in_any_unit_of_the_loss_and_are_judged_beyond_rounding():
    still = Jump(size=0.0, distance=1e-4, explained=1e-9)
    for unit in (1e-3, 1.0, 1e3):
        facts = Facts(unit, 0.0, True, 0.5 * unit, 0.0, norm=0.0, blurred=1e-9, jump=still)
        half, straight = 0.5 * unit, unit * (1 + 5e-7)
        at_minimum = judge(facts, [Rung(0.1, half, unit, half, unit)])
        assert {claim["verdict"] for claim in at_minimum} == {"holds"}
        # Of a straight line both are ρ‖∇L‖, each rounded by itself.
        claims = judge(facts, [Rung(0.1, straight, unit, straight, unit)])
        assert {c["claim"]: c["verdict"] for c in claims}["R0 ≤ R1"] == "holds"


def test_the_quadratic_picture_says_how_far_it_reaches():
    still = Jump(size=0.0, distance=1e-4, explained=1e-9)
    facts = Facts(2.0, 0.0, True, 1.0, 0.0, norm=0.0, blurred=1e-9, jump=still)
    one, two, off = (Rung(0.1 * n, 1.0, r1, 1.0, 2.0) for n, r1 in ((1, 2.0), (2, 2.0), (4, 2.2)))
    for rungs, verdict, reason in (
        ([one, two, off], "holds", "within 5 % for ρ from 0.1 to 0.2"),
        ([off], "fails", "more than 5 % off at the smallest ρ"),
    ):
        picture = judge(facts, rungs)[-1]
        assert picture["claim"] == "quadratic picture" and picture["verdict"] == verdict
        assert reason in picture["reason"]


def test_an_untrained_network_is_no_minimum_and_float32_reports_its_rounding():
    case = CASES[0]
    task = flatkit.Task(case.build(), case.loss, case.data())
    report = verify(task, dtype="float32", search_budget=BRIEF)
    assert verdicts(report)["gradient is negligible"] == "fails"
    blurred = report.result("rounding_radius").value
    assert blurred > 1e-6
    below = verify(task, dtype="float32", rho=[blurred / 2])
    assert not below.all("first_order_flatness")
    assert verdicts(below)["R1/ρ² → λmax"] == "cannot tell"


def test_the_command_prints_claims_and_refuses_a_bad_radius(tmp_path, capsys):
    config = TrainingConfig(data="gaussians", epochs=2, device="cpu")
    checkpoint = str(train(config, tmp_path / "run").checkpoint)
    options = ["--dtype", "float64", "--search-budget", "5", "--figures", str(tmp_path / "f")]
    assert main(["verify", checkpoint, *options]) == 0
    assert "R0 ≤ R1" in capsys.readouterr().out and list((tmp_path / "f").glob("flatness.png"))
    assert main(["verify", checkpoint, "--rho", "0"]) == 2
    assert "rho" in capsys.readouterr().err


RESCALED = ["first_order_flatness", "zeroth_order_sharpness", "average_sharpness"]


@cache
def rescaled(geometry):
    """Measure a network of ReLU, and the same function after Dinh et al. (2017)."""
    case = CASES[1]
    other = case.build()
    assert isinstance(other, torch.nn.Sequential)
    with torch.no_grad():
        for layer, factor in ((0, 3.0), (2, 1 / 3.0)):
            other.get_parameter(f"{layer}.weight").mul_(factor)
        other.get_parameter("0.bias").mul_(3.0)
    tasks = [flatkit.Task(model, case.loss, case.data()) for model in (case.build(), other)]
    given = {"measures": RESCALED, "rho": [0.01], "search_budget": 300, "progress": False}
    return [flatkit.analyze(task, geometry=geometry, **given) for task in tasks]


@pytest.mark.long
@pytest.mark.parametrize("geometry", ["adaptive", "filter"])
def test_adaptive_measures_do_not_change_when_layers_are_rescaled(geometry):
    for measure in RESCALED:
        same, moved = (
            [report.result(measure).value for report in rescaled(shape)]
            for shape in (geometry, "l2")
        )
        assert same[0] == pytest.approx(same[1], rel=1e-3), measure
        assert moved[0] != pytest.approx(moved[1], rel=0.05), measure


def test_a_kink_at_the_checkpoint_is_told():
    torch.manual_seed(0)
    inputs = torch.randn(20, 3, dtype=torch.float64)
    inputs[:5] = 0.0  # with a bias of zero, their ReLUs are exactly at the kink
    layers = [torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)]
    model = torch.nn.Sequential(*layers).double()
    torch.nn.init.zeros_(layers[0].bias)  # type: ignore[arg-type]
    data = (inputs, torch.randint(2, (20,)))

    def outcome():
        report = verify(flatkit.Task(model, "cross_entropy", data), search_budget=BRIEF)
        claim = next(
            claim
            for claim in report.result("verdict").value
            if claim["claim"] == "smooth at the checkpoint"
        )
        r1 = flatkit.analyze(
            flatkit.Task(model, "cross_entropy", data), measures=["first_order_flatness"], rho=[0.1]
        ).result("first_order_flatness")
        return claim["verdict"], report.result("gradient_jump").value, r1

    verdict, jump, r1 = outcome()
    assert verdict == "fails"
    assert r1.status == "kinks" and r1.settings["gradient_jump"] > 0
    # By hand: half of the units of each of these samples switch, on random sides.
    assert 1e-3 < jump < 1.0
    torch.nn.init.constant_(layers[0].bias, 0.1)  # type: ignore[arg-type]
    verdict, jump, r1 = outcome()
    assert verdict == "holds" and jump < 1e-9
    assert r1.settings["gradient_jump"] is None


def trained_tanh(dtype=torch.float64):
    """Return a network and data at a minimum, found by L-BFGS."""
    torch.manual_seed(3)
    inputs = torch.randn(60, 3, dtype=torch.float64)
    targets = torch.sin(inputs @ torch.randn(3, 2, dtype=torch.float64))
    targets = targets + 0.3 * torch.randn(60, 2, dtype=torch.float64)
    layers = [torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2)]
    model = torch.nn.Sequential(*layers).double()
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=400,
        tolerance_grad=1e-9,
        tolerance_change=0.0,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    return model.to(dtype), (inputs.to(dtype), targets.to(dtype))


def twin(model, data):
    """Return the same network, loss and data in float64."""
    return copy.deepcopy(model).double(), "mse", (data[0].double(), data[1].double())


def test_on_a_trained_network_both_limits_hold_to_one_percent():
    model, data = trained_tanh()
    report = verify(flatkit.Task(model, "mse", data), search_budget=150)
    assert report.result("gradient_norm").value < 1e-6
    assert set(verdicts(report).values()) == {"holds"}, report.result("verdict").value
    flat = dict(model.named_parameters())
    names = list(flat)

    def loss(*values):
        outputs = torch.func.functional_call(model, dict(zip(names, values, strict=True)), data[0])
        return torch.nn.functional.mse_loss(outputs, data[1])

    blocks = torch.autograd.functional.hessian(loss, tuple(flat.values()))
    rows = [
        torch.cat([part.reshape(own.numel(), -1) for part in row], dim=1)
        for row, own in zip(blocks, flat.values(), strict=True)
    ]
    exact = float(torch.linalg.eigvalsh(torch.cat(rows))[-1])
    smallest = min(report.all("first_order_flatness"), key=lambda r: r.settings["rho"])
    rho = smallest.settings["rho"]
    assert smallest.value / rho**2 == pytest.approx(exact, rel=0.01)
    zeroth = report.result("zeroth_order_sharpness", rho=rho)
    assert 2 * zeroth.value / rho**2 == pytest.approx(exact, rel=0.01)


@pytest.mark.long
def test_in_float32_rounding_is_reported_and_not_printed_as_a_result(equal_clock):
    model, data = trained_tanh(torch.float32)
    task = flatkit.Task(model, "mse", data)
    blurred = verify(task, rho=[0.1], search_budget=BRIEF).result("rounding_radius").value
    assert 1e-6 < blurred < 1e-1
    report = flatkit.analyze(
        task,
        measures=["first_order_flatness"],
        rho=[blurred / 3, blurred * 3],
        search_budget=150,  # all of it: a search that settles for its value says `budget`
    )
    found = [result.status for result in report.all("first_order_flatness")]
    assert found == ["rounding", "converged"]
    # The bound is honest: with a tenth of its margin the value is off by less than a tenth.
    exact = verify(flatkit.Task(*twin(model, data)), rho=[blurred])
    value, truth = (
        found.result("first_order_flatness", rho=blurred).value
        for found in (verify(task, rho=[blurred]), exact)
    )
    assert value == pytest.approx(truth, rel=0.01)


@pytest.mark.long
def test_where_rounding_hides_r0_no_claim_is_made_of_it():
    model, data = trained_tanh(torch.float32)

    def loss(outputs, targets):  # beside so large a loss small increases vanish
        return ((outputs - targets) ** 2).mean(dim=1) + 1e4

    report = verify(flatkit.Task(model, loss, data), search_budget=100)
    hidden = [r for r in report.all("zeroth_order_sharpness") if r.status == "rounding"]
    shown = rendered(verdict_table("net", report))
    assert hidden and shown.count(" rounding ") >= len(hidden)
    smallest = min(r.settings["rho"] for r in hidden)
    claim = next(c for c in report.result("verdict").value if c["claim"] == "2 R0/ρ² → λmax")
    assert f"ρ = {smallest:.3g}" not in claim["reason"]


@pytest.mark.long
def test_a_series_is_measured_at_the_radii_of_its_last_checkpoint(tmp_path, capsys):
    config = TrainingConfig(data="gaussians", epochs=2, save_every=1, device="cpu")
    train(config, tmp_path / "run")
    paths = sorted((tmp_path / "run").glob("epoch-*.pt"))
    assert len(paths) == 2
    reports = list(verify_series(paths, dtype="float64", search_budget=5))
    radii = [
        {result.settings["rho"] for result in report.all("first_order_flatness")}
        for report in reports
    ]
    assert radii[0] == radii[1] and len(radii[0]) == 9
    assert [report.checkpoint["epoch"] for report in reports] == [1, 2]
    entries = [Entry(str(r.checkpoint["epoch"]), "run", r) for r in reports]
    shown = rendered(series_table(Comparison(entries)))
    for report in reports:
        assert f"{report.result('gradient_norm').value:.4g}"[:5] in shown
    figure = series_figure(Comparison(entries))
    upper, lower = figure.axes
    assert lower.get_xlabel() == "epoch" and "λmax" in upper.get_ylabel()
    assert lower.get_yscale() == "log"
    # A loss of zero has no place on a logarithmic axis: its point was not drawn.
    first = reports[0].results
    nothing = [replace(r, value=0.0) if r.measure == "loss" else r for r in first]
    fitted = [Entry("1", "run", replace(reports[0], results=nothing)), entries[1]]
    assert series_figure(Comparison(fitted)).axes[1].get_yscale() == "linear"
    drawn = [tuple(np.asarray(line.get_ydata())) for line in upper.lines]
    assert tuple(r.result("top_eigenvalues").value[0] for r in reports) in drawn
    with pytest.raises(ResultError, match="two epochs"):
        series_figure(Comparison(entries[:1]))
    with pytest.raises(InvalidArgumentError, match="at least one"):
        list(verify_series([]))


def test_what_is_no_checkpoint_or_named_twice_is_refused_before_the_work(tmp_path, capsys):
    train(TrainingConfig(data="gaussians", epochs=1, device="cpu"), tmp_path)
    last = str(tmp_path / "ckpt.pt")
    assert main(["verify", last, str(tmp_path / "typo.pt")]) == 1
    assert main(["verify", last, last]) == 2
    said = capsys.readouterr().err
    assert "there is no such file" in said and "is given twice" in said
    assert "plan" not in said


def test_of_a_series_that_fails_what_is_verified_is_kept(tmp_path, capsys):
    config = TrainingConfig(data="gaussians", epochs=3, save_every=1, device="cpu")
    train(config, tmp_path)
    files = [tmp_path / f"epoch-000{n}.pt" for n in (1, 2, 3)]
    broken = torch.load(files[1], weights_only=False)
    broken["state_dict"] = {name: t * torch.nan for name, t in broken["state_dict"].items()}
    torch.save(broken, files[1])
    options = ["--rho", "0.1", "--search-budget", str(BRIEF), "--json", str(tmp_path / "v.json")]
    assert main(["verify", *map(str, files), *options]) == 1
    assert "NaN" in capsys.readouterr().err
    assert [e.name for e in flatkit.load_results(tmp_path / "v.json").entries] == [str(files[0])]
