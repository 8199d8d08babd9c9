"""Points of lines and planes in 16 bits: the float64 truth lies within the bar of each."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flatkit
from benchmarks.bfloat16 import functions_of, make_case, objective_of
from flatkit import Objective, Task
from flatkit.flatness import m_sharpness
from flatkit.landscape import Surface, barriers, load_surface, measure_landscape, surface_numbers
from flatkit.landscape.evaluate import evaluator
from flatkit.landscape.job import LandscapeJob
from flatkit.landscape.refinement import Refinement
from flatkit.landscape.settings import Quantity
from flatkit.landscape.subspaces import Subspace
from flatkit.objective.noise import measure_noise
from flatkit.render.axes import explanation
from flatkit.render.figures.lines import curve_figure
from flatkit.render.figures.planes import plane_figure
from flatkit.render.figures.slices import slice_figure
from flatkit.results.comparison import Comparison, Entry
from flatkit.results.report import Report
from flatkit_cli.main import main

pytestmark = pytest.mark.long

STEPS = [[-0.8], [-0.2], [0.0], [0.3], [1.0]]
QUANTITIES: tuple[Quantity, ...] = ("loss", "accuracy", "gradient_norm")


def direction_of(theta: Tensor) -> Tensor:
    drawn = torch.randn(len(theta), generator=torch.Generator().manual_seed(5))
    return (drawn * (theta.norm() / drawn.norm()))[None]


def outside(
    objective: Objective,
    truths: dict[str, Callable[[Tensor], float]],
    theta: Tensor,
    **given: Any,
) -> list[tuple[str, float, float, float, float]]:
    """Return what of a line has its float64 truth outside of the bar."""
    line = direction_of(objective.theta)
    quantities: list[Quantity] = [name for name in QUANTITIES if name in truths]
    found = evaluator(objective, objective.theta, line, quantities=quantities, **given)
    missed: list[tuple[str, float, float, float, float]] = []
    for step, values in zip(STEPS, found.values(STEPS), strict=True):
        place = theta + step[0] * line[0].double()
        for name in quantities:
            true, off = truths[name](place), values[f"{name}_rounding"]
            assert 0 < off < 0.2 * max(1.0, abs(true))  # no bar that says nothing
            if not abs(values[name] - true) <= off:
                missed.append((name, step[0], values[name], true, off))
    return missed


def truths_of(
    loss: Callable[[Tensor], Tensor], right: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Callable[[Tensor], float]]:
    slope = torch.func.grad(loss)
    found: dict[str, Callable[[Tensor], float]] = {
        "loss": lambda place: float(loss(place)),
        "gradient_norm": lambda place: float(slope(place).norm()),
    }
    if right is not None:
        found["accuracy"] = lambda place: float(right(place).double().mean())
    return found


@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 12))]
)
def test_every_point_of_a_line_has_the_truth_within_its_bars(seed):
    case = make_case(seed)  # dense, convolutional and of attention; of tokens, classes, numbers
    outputs, loss, theta = functions_of(case)
    decides = case.loss == "cross_entropy"
    right = (lambda place: outputs(place).argmax(1) == case.data[1]) if decides else None
    objective = objective_of(case, torch.bfloat16)
    assert not outside(objective, truths_of(loss, right), theta)


def sums(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of the outputs of a sample, whose squared errors are added up."""
    return ((outputs - targets) ** 2).sum(1)


def of_weights(module: nn.Module, inputs: Tensor) -> Callable[[Tensor], Tensor]:
    """Return outputs as a function of the weights [P], in float64 and by torch.func alone."""
    model = {name: p.detach() for name, p in module.named_parameters()}
    buffers = {
        name: b.double() if b.is_floating_point() else b for name, b in module.named_buffers()
    }

    def outputs(point: Tensor) -> Tensor:
        pieces = point.split([p.numel() for p in model.values()])
        parts = {
            name: piece.view(p.shape)
            for (name, p), piece in zip(model.items(), pieces, strict=True)
        }
        return torch.func.functional_call(module, {**parts, **buffers}, (inputs.double(),))

    return outputs


@pytest.mark.parametrize("seed", range(3))
def test_losses_that_are_sums_over_outputs_have_their_bars_too(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 9), nn.GELU(), nn.Linear(9, 3))
    inputs = torch.randn(300, 5)
    data = inputs, 3 * inputs[:, :3].sin()
    objective = Objective(model, sums, data, dtype=torch.bfloat16, chunk_size=64)
    outputs = of_weights(model, inputs)
    truths = truths_of(lambda place: sums(outputs(place), data[1].double()).mean())
    assert not outside(objective, truths, objective.theta.double())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("statistics", ["fixed", "reestimate"])
def test_statistics_of_batchnorm_move_in_float32(statistics, seed):
    torch.manual_seed(seed)
    parts = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)
    model, inputs = nn.Sequential(*parts).train(), torch.randn(200, 5)
    targets = inputs[:, :3].argmax(1)
    for _ in range(5):
        model(inputs)  # so that the running statistics are those of no point
    model.eval()
    objective = Objective(model, "cross_entropy", (inputs, targets), dtype=torch.bfloat16)
    before = [buffer.clone() for buffer in objective.model.buffers()]
    outputs = of_weights(model, inputs)

    def again(point: Tensor) -> Tensor:
        sizes = [p.numel() for p in model.parameters()]
        w, b, scale, shift, top, base = point.split(sizes)
        hidden = inputs.double() @ w.view(8, 5).T + b
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0) + 1e-5).sqrt() * scale + shift
        return hidden.tanh() @ top.view(3, 8).T + base

    # The gradient is that with the statistics held: only loss and accuracy follow by `again`.
    of_point = outputs if statistics == "fixed" else again
    truths = truths_of(
        lambda place: F.cross_entropy(of_point(place), targets),
        lambda place: of_point(place).argmax(1) == targets,
    )
    if statistics == "reestimate":
        del truths["gradient_norm"]
    assert not outside(objective, truths, objective.theta.double(), statistics=statistics)
    for buffer, old in zip(objective.model.buffers(), before, strict=True):
        assert torch.equal(buffer, old)


def test_between_checkpoints_each_end_has_its_own_loss_within_the_bar():
    def trained(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        parts = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)
        model = nn.Sequential(*parts).train()
        for _ in range(20):
            model(inputs * (seed + 1))
        return model.eval()

    inputs = torch.randn(160, 5, generator=torch.Generator().manual_seed(1))
    data = inputs, inputs[:, :3].argmax(1)
    models = [trained(seed) for seed in range(2)]
    (line,) = measure_landscape(
        [Task(model, "cross_entropy", data, name=f"{n}") for n, model in enumerate(models)],
        directions="checkpoints",
        points=5,
        dtype="bfloat16",
    )
    assert line.header["statistics"] == "interpolate"
    for marker, model in zip(line.header["markers"], models, strict=True):
        at = int(numpy.abs(line.axes["t"] - marker["at"][0]).argmin())
        with torch.no_grad():
            true = float(F.cross_entropy(model.double()(inputs.double()), data[1]))
        off = line["loss_rounding"][at]
        assert 0 < off < 0.05 and abs(line["loss"][at] - true) <= off
    (barrier,) = barriers(line)
    assert 0 < barrier.rounding <= 3 * line["loss_rounding"].max()


def test_at_the_centre_the_bars_are_those_of_the_measures_there():
    objective = Objective(network(), "cross_entropy", samples(), dtype=torch.bfloat16)
    line = direction_of(objective.theta)
    (found,) = evaluator(objective, objective.theta, line, quantities=QUANTITIES).values([[0.0]])
    noise = measure_noise(objective)  # with what chunks of another size change
    assert noise.accuracy is not None
    assert found["loss_rounding"] == pytest.approx(noise.loss, rel=1e-9)
    assert found["accuracy_rounding"] == pytest.approx(noise.accuracy, rel=1e-9)
    assert found["gradient_norm_rounding"] == pytest.approx(noise.gradient, rel=1e-9)


def test_the_top_eigenvalue_of_every_point_is_within_its_residual():
    case = make_case(3)
    _, loss, theta = functions_of(case)
    objective = Objective(case.model, case.loss, case.data, dtype=torch.bfloat16)
    line = direction_of(objective.theta)
    found = evaluator(objective, objective.theta, line, quantities=("loss", "top_eigenvalue"))
    for step, values in zip(STEPS[1:4], found.values(STEPS[1:4]), strict=True):
        place = theta + step[0] * line[0].double()
        hessian = torch.func.jacrev(torch.func.grad(loss))(place)
        true = float(torch.linalg.eigvalsh((hessian + hessian.T) / 2)[-1])
        off = values["top_eigenvalue_residual"]
        assert abs(values["top_eigenvalue"] - true) <= off < 0.2 * abs(true)


class Half(nn.Module):
    """Computes in float16 by itself."""

    def __init__(self, *, narrow: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.narrow = nn.Linear(6, 4), narrow

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16, enabled=self.narrow):
            return self.inner(x).to(x.dtype)


def test_models_that_compute_in_float16_by_themselves_have_the_same_bars():
    inputs = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    targets = inputs[:, :4].argmax(1)
    objective = Objective(Half(), F.cross_entropy, (inputs, targets))
    assert objective.by_itself and objective.narrow == torch.float16
    outputs = of_weights(Half(narrow=False), inputs)
    truths = truths_of(
        lambda place: F.cross_entropy(outputs(place), targets),
        lambda place: outputs(place).argmax(1) == targets,
    )
    assert not outside(objective, truths, objective.theta.double())


def test_beyond_the_range_of_16_bits_nothing_is_said_to_be_known():
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    objective = Objective(Half(), "mse", (inputs, torch.zeros(64, 4)))
    line = torch.full((1, objective.num_parameters), 1e5)  # float16 ends at 65504
    found = evaluator(objective, objective.theta, line, quantities=("loss", "gradient_norm"))
    near, far = found.values([[0.0], [1.0]])
    assert math.isfinite(near["loss"]) and near["loss_rounding"] < 0.01
    assert not math.isfinite(far["loss"])
    assert far["loss_rounding"] == far["gradient_norm_rounding"] == math.inf


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))


def samples(count: int = 200) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(1))
    return inputs, inputs[:, :4].argmax(1)


def test_slices_and_planes_of_an_analysis_state_the_rounding():
    asked: dict[str, Any] = {"slice_points": 5, "slice_directions": 2, "plane_points": 3}
    wide, report = (
        flatkit.analyze(
            network(),
            "cross_entropy",
            samples(),
            dtype=dtype,
            measures=["loss_slice", "loss_plane"],
            progress=False,
            **asked,
        )
        for dtype in ("float64", "bfloat16")
    )
    report = Report.from_dict(json.loads(json.dumps(report.to_dict())))
    line, true = report.result("loss_slice"), wide.result("loss_slice").value
    for name in QUANTITIES:
        value, off = (numpy.array(line.value[key]) for key in (name, f"{name}_rounding"))
        assert (numpy.abs(value - numpy.array(true[name])) <= off).all() and (off > 0).all()
        spread = value.std(0, ddof=1) / math.sqrt(2)
        assert line.error[name] == pytest.approx(numpy.hypot(spread, off.mean(0)).tolist())
    plane, true = report.result("loss_plane"), wide.result("loss_plane").value
    assert plane.error_kind == "rounding" and set(plane.error) == {"loss", "accuracy"}
    for name, off in plane.error.items():
        assert (numpy.abs(numpy.subtract(plane.value[name], true[name])) <= numpy.array(off)).all()
    shown = Comparison([Entry("sgd", "sgd", report)])
    for draw in (slice_figure, plane_figure):
        words = " ".join(text.get_text() for text in draw(shown).texts)
        assert "rounding to 16 bits" in " ".join(words.split())


def test_a_line_is_drawn_with_its_bars_and_its_numbers_say_theirs(tmp_path, capsys):
    config = flatkit.training.TrainingConfig(data="gaussians", epochs=1, device="cpu")
    path = str(flatkit.training.train(config, tmp_path / "run").checkpoint)
    asked = ["landscape", path, "--line", "--points", "7", "--dtype", "bfloat16"]
    assert main([*asked, "--out", str(tmp_path / "out"), "--no-figures"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "±: what computing in 16 bits may have put off" in out
    (file,) = (tmp_path / "out").glob("*.npz")
    line = load_surface(file)
    off = float(line["loss_rounding"].max())
    assert 0 < off < 0.05
    assert "rounding to 16 bits at most: loss ± " in explanation([line])
    (axis, *_) = curve_figure([line]).axes
    (band,) = axis.collections
    heights = numpy.asarray(band.get_paths()[0].vertices)[:, 1]
    assert heights.max() >= line["loss"].max()
    # The same command again takes what is there; a job in float32 is another one.
    assert main([*asked, "--out", str(tmp_path / "out"), "--no-figures"]) == 0
    assert numpy.array_equal(load_surface(file)["loss"], line["loss"])


def test_numbers_of_a_line_hold_for_all_losses_within_the_bars():
    t = numpy.linspace(-2.0, 2.0, 21)
    loss, draw = 0.3 * t**2 + 0.05 * t + 0.1 * numpy.cos(6 * t), numpy.random.default_rng(0)
    off = 0.01 + 0.01 * numpy.abs(t)
    markers = [{"name": "a", "at": [0.6]}, {"name": "b", "at": [1.4]}]
    header = {"markers": markers}
    line = Surface({"t": t}, {"loss": loss, "loss_rounding": off}, header)
    (own,), (between,) = surface_numbers(line, level=0.2), barriers(line)
    assert own.width is not None and own.asymmetry is not None
    seen = numpy.zeros(4)
    for number in range(300):
        signs = draw.choice([-1.0, 1.0], len(t)) if number % 2 else draw.uniform(-1, 1, len(t))
        moved = Surface({"t": t}, {"loss": loss + signs * off}, header)
        (other,), (height,) = surface_numbers(moved, level=0.2), barriers(moved)
        assert other.width is not None and other.asymmetry is not None
        assert other.width_rounding == other.roughness_rounding == height.rounding == 0
        shares = (
            abs(other.width - own.width) / own.width_rounding,
            abs(other.asymmetry - own.asymmetry) / own.asymmetry_rounding,
            abs(other.roughness - own.roughness) / own.roughness_rounding,
            abs(height.height - between.height) / between.rounding,
        )
        seen = numpy.maximum(seen, shares)
    assert (seen <= 1 + 1e-9).all() and (seen > (0.5, 0.5, 0.02, 0.5)).all()


def test_a_basin_that_may_reach_the_edge_has_no_certain_width():
    t = numpy.linspace(-1.0, 1.0, 5)
    line = Surface({"t": t}, {"loss": t**2, "loss_rounding": numpy.full(5, 0.1)})
    (found,) = surface_numbers(line, level=0.9)
    assert found.width is not None and found.width_rounding == math.inf


def test_refinement_does_not_follow_the_rounding():
    t = numpy.linspace(-1.0, 1.0, 257)
    rough = 1 + t**2 + 0.05 * numpy.random.default_rng(0).uniform(-1, 1, len(t))

    def measured(**errors: float) -> int:
        job = Refinement({"t": t}, tolerance=0.005)
        for points in job.levels():
            for (i,) in points:
                job.put((i,), {"loss": rough[i], **errors})
        return int(job.measured.sum())

    assert measured() > 200
    assert measured(loss_rounding=0.05) < 60


def test_a_job_gives_the_same_bits_again_and_as_one_of_its_journal(tmp_path):
    objective = Objective(network(), "cross_entropy", samples(), dtype=torch.bfloat16)
    subspace = Subspace("given", objective.theta, direction_of(objective.theta))
    axes = {"t": numpy.linspace(-1.0, 1.0, 5)}
    jobs = [
        LandscapeJob({"train": objective}, subspace, axes, quantities=QUANTITIES) for _ in range(2)
    ]
    first, second = jobs[0].measure(), jobs[1].measure(journal=tmp_path / "a.journal")
    third = jobs[0].measure(journal=tmp_path / "a.journal")
    for name, values in first.quantities.items():
        assert numpy.array_equal(values, second[name]) and numpy.array_equal(values, third[name])


def test_m_sharpness_states_increases_in_float32():
    torch.manual_seed(3)
    model, inputs = nn.Linear(6, 1, bias=False), torch.randn(40, 6)
    targets, rho = torch.randn(40, 1), 0.3
    objective = Objective(model, "mse", (inputs, targets), dtype=torch.bfloat16)
    found = m_sharpness(
        objective, rho=rho, m=1, max_batches=40, generator=torch.Generator().manual_seed(0)
    )
    # (x·w − y)² rises most within the ball by a step of ρ along ±x.
    x, w = inputs.double(), objective.theta.double()
    miss = (x @ w - targets[:, 0].double()).abs()
    truth = (miss + rho * x.norm(dim=1)) ** 2 - miss**2
    assert found.value == pytest.approx(float(truth.mean()), rel=2e-4)
    # A lower bound, at points that 16 bits found: off only as far as these are.
    assert sorted(found.values)[-1] <= float(truth.max()) * (1 + 1e-5)
    assert found.one_step == pytest.approx(float(truth.mean()), rel=2e-4)
    assert abs(objective.loss() - float((miss**2).mean())) > 1e-4  # as 16 bits have it


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_m_sharpness_finds_nearly_what_float64_finds(seed):
    case = make_case(seed)
    wide, narrow = (
        m_sharpness(
            Objective(case.model, case.loss, case.data, dtype=dtype),
            rho=0.2,
            m=6,
            max_batches=5,
            generator=torch.Generator().manual_seed(0),
        )
        for dtype in (torch.float64, torch.bfloat16)
    )
    assert narrow.batches == wide.batches
    assert 0.98 * wide.value < narrow.value < 1.001 * wide.value
    assert narrow.one_step == pytest.approx(wide.one_step, rel=0.02)


def test_m_sharpness_is_measured_in_bfloat16_by_an_analysis():
    report = flatkit.analyze(
        network(),
        "cross_entropy",
        samples(),
        dtype="bfloat16",
        measures=["m_sharpness"],
        m_sharpness=16,
        rho=[0.1],
        progress=False,
    )
    (result,) = report.all("m_sharpness")
    assert 0 < result.error < result.value
