"""Which engine multiplies: judged on all kinds of samples, the most accurate where none is good."""

import io

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import flatkit
from flatkit import HessianOperator, Objective
from flatkit.hessian.probes import samples_of_probe
from flatkit.hessian.products import FORMULAS
from flatkit.hessian.reference import Reference
from flatkit.objective.proofs.spread import spread_rows
from flatkit.render.tables.report import report_table
from flatkit.spectrum import lanczos, lobpcg, power_iteration
from tests.cases import Case, SineOnce, classes, dense_hessian, seeded


def network(width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


CASE = Case("relu", seeded(network), classes(40, 4))


def single() -> Objective:
    x, y = CASE.data()
    return Objective(CASE.build().float(), "cross_entropy", (x.float(), y))


def rounded_truth() -> Tensor:
    """Return the dense Hessian of the float32 weights and data, in float64."""
    x, y = CASE.data()
    held = Case("held", lambda: CASE.build().float().double(), lambda: (x.float().double(), y))
    return dense_hessian(held)


def test_where_no_engine_meets_the_tolerance_the_most_accurate_of_all_multiplies():
    hessian = HessianOperator(single(), tolerance=1e-12)
    choice, truth = hessian.choice, rounded_truth()
    assert choice.engine != "central_difference" and choice.error is not None
    assert choice.tolerance < choice.error < 1e-6
    assert "that of" in choice.rejected["central_difference"]
    vector = torch.randn(hessian.size, generator=torch.Generator().manual_seed(1))
    exact = truth @ vector.double()
    assert float(((hessian @ vector).double() - exact).norm() / exact.norm()) < 1e-6


class Masked(nn.Module):
    """Masks where an entry is large, with a number that float32 alone holds."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = CASE.build()

    def forward(self, x: Tensor) -> Tensor:
        if bool((x[:, 0] > 1.5).any()):
            x = x.where(x > -2, torch.full((1,), torch.finfo(x.dtype).min, dtype=torch.float32))
        return self.inner(x)


def masked(first: int) -> Objective:
    """Return the function of samples of which the third in the given order is masked."""
    x, y = CASE.data()
    order = torch.cat([(x[:, 0] <= 1.5).nonzero()[:2], (x[:, 0] > 1.5).nonzero()]).flatten()
    order = order[: 2 + first].repeat(4)
    data = (x[order].float(), y[order])
    return Objective(Masked().float(), "cross_entropy", data, chunk_size=1)


@pytest.mark.parametrize("first", [1, 0])
def test_one_sample_that_cannot_be_computed_in_float64_leaves_products_in_float32(first):
    objective = masked(first)
    hessian = HessianOperator(objective)
    assert ("(float64: RuntimeError)" in str(hessian.choice.settings())) == bool(first)
    x, y = objective.samples.inputs, objective.samples.targets
    held = Case("held", lambda: CASE.build().float().double(), lambda: (x.double(), y))
    vector = torch.randn(hessian.size, generator=torch.Generator().manual_seed(1))
    exact = dense_hessian(held) @ vector.double()
    assert float(((hessian @ vector).double() - exact).norm() / exact.norm()) < 1e-5


def test_a_reference_in_float64_says_nothing_of_samples_that_float32_alone_takes():
    objective = masked(1)
    vectors = torch.ones(1, objective.num_parameters)
    for rows, known in ((slice(0, 2), True), (slice(2, 3), False)):
        reference = Reference(FORMULAS["double_backward"], "double backward")
        found = reference.products(objective, objective.theta, [objective.rows(rows)], vectors)
        assert (found is not None) == known


def at_a_kink() -> Objective:
    """A network at whose kink one sample lies, which float32 and float64 see on different sides.

    The sample is among those that engines are tried on first, and not among the second ones.
    """
    count, looked = 5000, 256
    other = set(spread_rows(count, looked, 1).tolist())
    (row, *_) = [n for n in spread_rows(count, looked).tolist() if n not in other]
    draws = torch.Generator().manual_seed(0)
    model = CASE.build().float()
    x, y = torch.randn(count, 4, generator=draws), torch.randint(0, 3, (count,), generator=draws)
    layer = next(model.children())
    assert isinstance(layer, nn.Linear)
    for _ in range(1000):
        x[row] = 0.1 * torch.randn(4, generator=draws)
        with torch.no_grad():
            layer.bias[0] -= layer(x[row][None])[0, 0]
            seen = layer(x[row][None])[0, 0]
        exact = layer.weight[0].double() @ x[row].double() + layer.bias[0].double()
        if seen <= 0 < exact and layer(x)[row, 0] <= 0:
            return Objective(model, "cross_entropy", (x, y), examine=False)
    raise AssertionError("no sample was found")


@pytest.mark.parametrize("near", [True, False])
def test_an_error_of_a_single_sample_is_settled_by_others_if_it_is_near_the_tolerance(near):
    choice = HessianOperator(at_a_kink(), tolerance=1e-3 if near else 1e-4).choice
    assert choice.error is not None and choice.error > choice.tolerance
    if near:
        assert choice.engine in ("layers", "double_backward")
        assert choice.elsewhere is not None and choice.elsewhere <= choice.tolerance
        assert "on others, as next to a kink" in choice.remark
    else:
        assert choice.elsewhere is None and "most accurate engine" in choice.remark


@pytest.mark.parametrize("engine", ["auto", "central_difference"])
@pytest.mark.parametrize("method", [lanczos, lobpcg, power_iteration])
def test_errors_of_products_are_measured_along_eigenvectors_and_stand_in_the_bars(method, engine):
    truth = rounded_truth()
    hessian = HessianOperator(single(), engine=engine)
    found = method(hessian, k=2, generator=torch.Generator().manual_seed(0))
    vectors = found.vectors.double()
    products = hessian.matmat(found.vectors).double()
    off = (products - vectors @ truth).norm(dim=1)
    stated = hessian.product_errors(found.vectors, found.value, scale=float(found.value[0]))
    assert bool((off <= stated).all())
    assert float(stated.max()) <= 20 * float(off.max()) + 1e-6 * float(found.value[0])
    assert bool((stated <= found.error + 1e-12).all())
    exact = torch.linalg.eigvalsh(truth).flip(0)[:2]
    assert bool(((found.value - exact).abs() <= found.error).all())


class OnlyDifferences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert float(x.sum()) < 1e9  # torch.fx, which sees the sine inside, cannot follow this
        return self.second(SineOnce.apply(self.first(x)))  # pyright: ignore


def test_a_report_says_where_products_are_less_exact_than_they_should_be(monkeypatch):
    # Differences are right to about 1e-4, on either side of the usual tolerance by processor.
    monkeypatch.setitem(HessianOperator.__init__.__kwdefaults__, "tolerance", 1e-5)
    torch.manual_seed(0)
    x, y = CASE.data()
    model, measures = OnlyDifferences(), ["top_eigenvalues", "trace"]
    report = flatkit.analyze(model, "cross_entropy", (x.float(), y), measures=measures)
    top, trace = report.results
    error = top.settings["engine_error"]
    assert top.settings["engine"] == "central_difference" and error > 1e-5
    assert f"right to {error:.1e}" in top.settings["engine_remark"]
    assert trace.error >= error * abs(trace.value)
    console = Console(record=True, width=400, file=io.StringIO())
    console.print(report_table(report))
    assert console.export_text().count(top.settings["engine_remark"]) == 1
    exact = flatkit.analyze(single().model, "cross_entropy", (x.float(), y), measures=measures)
    assert "engine_remark" not in exact.results[0].settings


class Quartic(torch.autograd.Function):
    """x⁴ where x > 0, else x: the gradient is right, its derivative is not."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x > 0, x**4, x)

    @staticmethod
    def backward(ctx, g):  # pyright: ignore
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, g * 4 * x.detach() ** 3, g)


class Branches(nn.Module):
    """A layer whose outputs take two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 1)
        with torch.no_grad():
            self.out.weight.copy_(torch.tensor([[1.0, 0.5, 0.2]]))
            self.out.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return Quartic.apply(self.out(x))  # pyright: ignore


ORDERS = {
    "positive first": lambda x: x.sum(1).argsort(descending=True),
    "positive last": lambda x: x.sum(1).argsort(),
    "shuffled": lambda x: torch.randperm(len(x), generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rare", [2, 100])
def test_samples_that_take_another_way_are_seen_in_any_order(order, rare):
    torch.manual_seed(0)
    x = -(torch.rand(200, 3, dtype=torch.float64) + 0.2)
    x[:rare] *= -1
    x, y = x[ORDERS[order](x)], torch.zeros(200, 1, dtype=torch.float64)
    model = Branches().double()
    hessian = HessianOperator(Objective(model, "mse", (x, y)))
    assert hessian.choice.engine == "central_difference"
    assert "autograd contradicts them" in hessian.choice.against

    def value(theta: Tensor) -> Tensor:
        z = F.linear(x, theta[None, :3], theta[3:])
        return torch.where(z > 0, z**4, z).square().mean()

    theta = torch.tensor([1.0, 0.5, 0.2, 0.0], dtype=torch.float64)
    truth = torch.autograd.functional.hessian(value, theta)
    found = hessian @ torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-6)


def test_the_engine_and_its_cost_are_counted_and_so_the_same_in_every_run():
    x, y = torch.randn(9, 2, 6, 6), torch.randint(2, (9,))
    model = nn.Sequential(nn.Conv2d(2, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 64))
    found = [HessianOperator(Objective(model, "cross_entropy", (x, y))).choice for _ in range(2)]
    assert found[0].engine == found[1].engine == "layers"
    assert found[0].cost == found[1].cost
    # A sample's multiplications: the gradient takes x ∗ W, g x* twice, and g W in the upper layer;
    # the product twice as many of each, but what its kept first pass has done already.
    lower, upper = 64 * 16 * 18, 1024 * 64
    expected = (2 * lower + 6 * upper) / (2 * lower + 3 * upper)
    assert found[0].cost == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("width", "chunks"), [(3, 1), (2**21, 3)])
def test_a_probe_is_cut_as_the_memory_of_a_sample_asks(width, chunks):
    """A sample of the wide network makes 8 MiB, so that 32 fit at once, and 8 twice derived."""
    model = nn.Sequential(nn.Linear(1, width).requires_grad_(False), nn.Linear(width, 1))
    model[1].weight.requires_grad_(False)
    draws = torch.Generator().manual_seed(0)
    data = (torch.randn(20, 1, generator=draws), torch.randn(20, 1, generator=draws))
    objective = Objective(model, "mse", data, examine=False)
    probe = samples_of_probe(objective, most=20)
    assert objective.chunk_size == 20 and len(probe) == chunks


@pytest.mark.parametrize(("width", "sizes"), [(3, [5, 5, 5, 5]), (2**21, [1] * 20)])
def test_a_probe_of_a_small_network_is_cut_as_the_objective_is(width, sizes):
    """A sample of the wide one makes 8 MiB: of 5 samples at once, one is taken for care."""
    model = nn.Sequential(nn.Linear(1, width).requires_grad_(False), nn.Linear(width, 1))
    model[1].weight.requires_grad_(False)
    data = (torch.linspace(-1, 1, 20)[:, None], torch.zeros(20, 1))
    objective = Objective(model, "mse", data, examine=False, chunk_size=5)
    assert [chunk.size for chunk in samples_of_probe(objective, most=20)] == sizes
