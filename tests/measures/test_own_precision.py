"""Models that compute in 16 bits by themselves: that is noticed, measured, and in every bar."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flatkit
from flatkit import Objective
from flatkit.errors import InvalidArgumentError
from flatkit.hessian import ENGINES, GaussNewtonOperator, HessianOperator
from flatkit.measures.settings import AnalysisSettings
from flatkit.objective.noise import measure_noise
from flatkit.results.status import Status

pytestmark = pytest.mark.long

BFLOAT, HALF = torch.bfloat16, torch.float16


def samples(*shape: int, count: int = 160) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))
    return inputs, inputs.flatten(1)[:, :4].argmax(1)


class Network(nn.Module):
    """A network that computes in a dtype where `narrow` says so; None is the truth."""

    def __init__(self, narrow: torch.dtype | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.narrow = narrow
        self.build()

    def build(self) -> None:
        self.inner = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Autocast(Network):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", self.narrow or BFLOAT, enabled=self.narrow is not None):
            return self.inner(x).to(x.dtype)


class Logits(Network):
    """Its outputs are in 16 bits, and in a dictionary, as of models of Hugging Face."""

    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", self.narrow or BFLOAT, enabled=self.narrow is not None):
            return {"logits": self.inner(x)}


class OneBlock(Network):
    """A convolution in 16 bits between others, with casts at its borders."""

    def build(self) -> None:
        self.first, self.block = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(3), nn.Linear(3 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.first(x)))
        dtype = self.narrow or x.dtype
        weight, bias = self.block.weight.to(dtype), self.block.bias.to(dtype)  # pyright: ignore
        x = torch.tanh(F.conv2d(x.to(dtype), weight, bias, padding=1)).to(x.dtype)
        return self.last(F.avg_pool2d(x, 2).flatten(1))


class InFunction(torch.autograd.Function):
    """A product in 16 bits within a function whose inputs and outputs have 32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x)
        return x.to(dtype).sin().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *given: Any) -> Any:
        (x,) = ctx.saved_tensors
        return given[0] * x.cos(), None


class Hidden(Network):
    def forward(self, x: Tensor) -> Tensor:
        return InFunction.apply(self.inner(x), self.narrow or x.dtype)  # pyright: ignore


class OfLoss:
    """A loss that casts scores to 16 bits."""

    def __init__(self, narrow: torch.dtype | None) -> None:
        self.narrow = narrow

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        scores = outputs.to(self.narrow or outputs.dtype)
        return F.cross_entropy(scores, targets, reduction="none").to(outputs.dtype)


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    scores = outputs["logits"] if isinstance(outputs, dict) else outputs
    return F.cross_entropy(scores, targets, reduction="none")


class Case(NamedTuple):
    model: Callable[[torch.dtype | None], nn.Module]
    loss: Callable[[torch.dtype | None], Any]
    narrow: torch.dtype
    data: tuple[Tensor, Tensor]


def usual(_: torch.dtype | None) -> Any:
    return cross_entropy


FLAT, IMAGES = samples(6), samples(2, 4, 4, count=40)
CASES = {
    "autocast": Case(Autocast, usual, BFLOAT, FLAT),
    "autocast float16": Case(Autocast, usual, HALF, FLAT),
    "logits": Case(Logits, usual, BFLOAT, FLAT),
    "one block": Case(OneBlock, usual, BFLOAT, IMAGES),
    "one block float16": Case(OneBlock, usual, HALF, IMAGES),
    "in a function": Case(Hidden, usual, BFLOAT, FLAT),
    "loss": Case(Network, OfLoss, BFLOAT, FLAT),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


def own(name: str, **given: Any) -> Objective:
    """The function as the model computes it."""
    case = CASES[name]
    return Objective(case.model(case.narrow), case.loss(case.narrow), case.data, **given)


@cache
def truth(case: str) -> tuple[float, Tensor, Tensor]:
    """Loss, gradient and dense Hessian of the same weights in float64, by torch alone."""
    make, make_loss, _, (inputs, targets) = CASES[case]
    model, loss = make(None).eval().double(), make_loss(None)
    named = dict(model.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def mean_loss(theta: Tensor) -> Tensor:
        parts = zip(named.items(), theta.split(sizes), strict=True)
        weights = {name: part.view(p.shape) for (name, p), part in parts}
        outputs = torch.func.functional_call(model, weights, (inputs.double(),))
        return loss(outputs, targets).mean()

    theta = torch.cat([p.detach().reshape(-1) for p in named.values()])
    theta.requires_grad_()
    value = mean_loss(theta)
    (slope,) = torch.autograd.grad(value, theta, create_graph=True)
    rows = [torch.autograd.grad(part, theta, retain_graph=True)[0] for part in slope]
    return float(value.detach()), slope.detach(), torch.stack(rows)


def vector(size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(2))


def test_loss_and_gradient_are_off_by_no_more_than_the_noise(case):
    objective, (loss, slope, _) = own(case), truth(case)
    noise = measure_noise(objective)
    off = abs(objective.loss() - loss), float((objective.gradient().double() - slope).norm())
    assert off[1] > 1e-6 * float(slope.norm())  # it does compute in 16 bits
    assert off[0] <= noise.loss < 0.02 * loss
    assert off[1] <= noise.gradient < 0.2 * float(slope.norm())
    assert objective.exact is not None
    assert abs(objective.exact.loss() - loss) < 1e-6 * loss
    assert float((objective.exact.gradient() - slope).norm()) < 1e-5 * float(slope.norm())


def test_a_dtype_that_is_named_is_that_of_all_operations(case):
    loss, slope, hessian = truth(case)
    for dtype, near in ((torch.float32, 2e-5), (torch.float64, 1e-11)):
        objective = own(case, dtype=dtype)
        assert objective.narrow is None and objective.describe()["dtype"] == str(dtype)[6:]
        v = vector(objective.num_parameters).to(dtype)
        found = HessianOperator(objective) @ v
        assert abs(objective.loss() - loss) < near * loss
        assert float((objective.gradient() - slope).norm()) < near * float(slope.norm())
        expected = hessian @ v.double()
        assert float((found - expected).norm()) < 10 * near * float(expected.norm())


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "central_difference"])
def test_products_are_off_by_no_more_than_they_say(engine):
    case = "autocast"
    objective, (_, _, hessian) = own(case), truth(case)
    operator, v = HessianOperator(objective, engine=engine), vector(objective.num_parameters)
    expected = hessian @ v.double()
    off = float(((operator @ v).double() - expected).norm() / expected.norm())
    assert off < 2 * operator.rounding
    assert engine == "layers" or off > 1e-4  # of which no graph holds the autocast
    assert operator.noise > 0


def test_gauss_newton_is_off_by_no_more_than_it_says():
    case = "one block"
    exact = GaussNewtonOperator(own(case, dtype=torch.float64))
    ours = GaussNewtonOperator(own(case))
    v = vector(ours.size)
    expected = exact @ v.double()
    off = float(((ours @ v).double() - expected).norm() / expected.norm())
    assert off < 2 * ours.rounding and ours.noise == 2 * ours.rounding


MEASURES = ["loss", "accuracy", "gradient_norm", "top_eigenvalues", "trace"]


def test_an_analysis_has_the_truth_within_its_bars_and_says_how_it_was_computed(case):
    loss, slope, hessian = truth(case)
    top = float(torch.linalg.eigvalsh(hessian)[-1])
    make, make_loss, narrow, data = CASES[case]
    given: dict[str, Any] = {"measures": MEASURES, "progress": False}
    report = flatkit.analyze(make(narrow), make_loss(narrow), data, **given)
    expected = {"loss": loss, "gradient_norm": float(slope.norm()), "top_eigenvalues": top}
    for name, value in expected.items():
        result = report.result(name)
        found, error = result.value, result.error
        if name == "top_eigenvalues":
            found, error = found[0], error[0]
        else:
            assert result.error_kind == "rounding"
        assert abs(found - value) <= error, name
    trace = report.result("trace")
    assert abs(trace.value - float(hessian.trace())) <= 2.5 * trace.error
    words = f"{str(narrow)[6:]} by the model itself"
    assert all(words in result.settings["computed_in"] for result in report)
    assert words in report.objective["dtype"]


def test_balls_have_the_value_of_the_exact_function_at_their_points():
    case = "autocast"
    exact = own(case, dtype=torch.float64)

    def increase(point: Tensor) -> float:
        return exact.loss(point) - exact.loss()

    def slope(point: Tensor) -> float:
        return float(exact.gradient(point).norm())

    for search, value in (
        (flatkit.max_loss_increase, increase),
        (flatkit.max_gradient_norm, slope),
    ):
        found = search(own(case), rho=0.2, budget=40, generator=torch.Generator().manual_seed(0))
        there = value(exact.theta + found.displacement.double())
        assert found.value == pytest.approx(there, rel=1e-5)  # bfloat16 is off by 1e-3


def test_a_search_of_eigenvalues_stops_at_the_noise_of_the_model():
    found = flatkit.analyze(
        OneBlock(BFLOAT), cross_entropy, IMAGES, measures=["top_eigenvalues"], progress=False
    )
    wide = flatkit.analyze(
        OneBlock(None), cross_entropy, IMAGES, measures=["top_eigenvalues"], progress=False
    )
    assert wide.results[0].status is Status.CONVERGED
    assert found.results[0].status is Status.ROUNDING


def test_models_in_32_bits_are_left_alone_and_masks_in_16_are_no_rounding():
    class Masked(Network):
        def forward(self, x: Tensor) -> Tensor:
            mask = torch.zeros(4, dtype=BFLOAT).masked_fill(torch.arange(4) > 5, float("-inf"))
            return self.inner(x) + mask

    for model in (Network(None), Masked(None)):
        objective = Objective(model, cross_entropy, FLAT)
        assert objective.narrow is None and objective.exact is None
        assert objective.describe()["dtype"] == "float32"
        with objective.placed():  # no mode costs anything
            assert torch._C._len_torch_dispatch_stack() == 0


class Cast(Network):
    """Holds a layer in 16 bits, with casts at its borders."""

    def build(self) -> None:
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 4).to(self.narrow)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)).to(self.narrow)).to(x.dtype)


@pytest.mark.parametrize("narrow", [BFLOAT, HALF])
def test_weights_of_16_bits_are_measured_in_float32_whatever_is_cast_to_their_dtype(narrow):
    objective, model = Objective(Cast(narrow), cross_entropy, FLAT), Cast(narrow).double()
    model.narrow = torch.float64
    exact = cross_entropy(model(FLAT[0].double()), FLAT[1]).mean()
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(exact, [*model.parameters()])])
    assert objective.narrow is None
    assert abs(objective.loss() - float(exact.detach())) < 1e-6
    assert float((objective.gradient() - slope).norm()) < 1e-5 * float(slope.norm())


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
@pytest.mark.parametrize("narrow", [BFLOAT, HALF])
def test_products_of_weights_of_16_bits_are_those_of_the_function_in_float64(narrow, engine):
    hessian = HessianOperator(Objective(Cast(narrow), cross_entropy, FLAT), engine=engine)
    model = Cast(narrow).double()
    model.narrow = torch.float64
    weights = [*model.parameters()]
    v = torch.randn(hessian.size, generator=torch.Generator().manual_seed(2)).double()
    loss = cross_entropy(model(FLAT[0].double()), FLAT[1]).mean()
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, create_graph=True)])
    truth = torch.cat([g.flatten() for g in torch.autograd.grad(slope @ v, weights)])
    near = 2e-3 if engine == "central_difference" else 1e-5
    assert float(((hessian @ v.float()).double() - truth).norm()) < near * float(truth.norm())


class Insists(Network):
    """Looks at the bits of its numbers, which are 16."""

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x).to(BFLOAT)
        bits = found.detach().view(torch.int16)
        return found.float() + 0 * bits.float().reshape(len(x), 4)


def analyzed(**given: Any) -> Any:
    return flatkit.analyze(Autocast(BFLOAT), cross_entropy, FLAT, progress=False, **given)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: analyzed(measures=["average_sharpness"]),
            "average_sharpness cannot say how wrong the bfloat16",
        ),
        (lambda: analyzed(method="power"), "method power cannot say how wrong the bfloat16"),
        (
            lambda: Objective(Insists(BFLOAT), cross_entropy, FLAT),
            "computes in bfloat16 by itself and does not run without",
        ),
    ],
)
def test_what_has_no_bar_is_refused_with_the_way_out(call, said):
    with pytest.raises(InvalidArgumentError, match=re.escape(said)) as raised:
        call()
    assert "float32" in str(raised.value) or "follow the dtype" in str(raised.value)


def test_the_usual_measures_without_a_bar_are_left_out_and_come_with_float32():
    usual = analyzed(
        measures=AnalysisSettings().measures, budget=40, slice_points=5, plane_points=3
    )
    assert "average_sharpness" in usual.analysis["not_in_bfloat16"]
    assert "average_sharpness" not in {result.measure for result in usual}
    wide = analyzed(measures=["average_sharpness", "loss"], budget=40, dtype="float32")
    loss, _, _ = truth("autocast")
    assert wide.result("loss").error_kind == "exact"
    assert abs(wide.result("loss").value - loss) < 1e-6
