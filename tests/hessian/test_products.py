"""Every engine and relative of the Hessian against dense float64 references."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev

from flatkit import HessianOperator, Objective
from flatkit.hessian import ENGINES, FisherOperator, GaussNewtonOperator
from flatkit.hessian.memory import measure_bytes
from flatkit.hessian.plan import kept_bytes
from flatkit.models import MODELS
from tests.cases import CASES, SineOnce, dense_hessian, draws, quadratic_task, random_symmetric

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_case
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_equals_the_dense_hessian(engine, case):
    objective = Objective(case.build(), case.loss, case.data(), chunk_size=12)  # and fewer at last
    hessian = HessianOperator(objective, engine=engine)
    if engine == "reverse_over_forward" and case.name == "dropout and layernorm":
        assert (hessian.choice.error or 0) > 0.01  # torch is wrong here, and the choice knows it
        return
    vectors = draws(hessian.size)
    exact = engine != "central_difference"
    tolerance = 1e-11 if exact else 2e-6  # the third derivative times the square of the step
    torch.testing.assert_close(
        hessian @ vectors, dense_hessian(case) @ vectors, rtol=0, atol=tolerance
    )


def test_a_residual_network_with_batchnorm_equals_double_backward():
    torch.manual_seed(0)
    model = MODELS.build("resnet20", in_shape=(3, 8, 8), classes=4, width=2).double()
    model.train()
    model(torch.randn(16, 3, 8, 8, dtype=torch.float64))
    data = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.randint(0, 4, (6,))
    objective = Objective(model, "cross_entropy", data)
    vectors = torch.randn(3, objective.num_parameters, dtype=torch.float64)
    layers, graph = (
        HessianOperator(objective, engine=name).matmat(vectors)
        for name in ("layers", "double_backward")
    )
    torch.testing.assert_close(layers, graph, rtol=1e-9, atol=1e-11)


class Odd(nn.Module):
    """A recurrent network: nothing that can be traced layer by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.Sequential(
        nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Flatten(), nn.Linear(12, 2)
    )


@pytest.mark.parametrize("build", [Odd, encoder], ids=["lstm", "transformer"])
def test_auto_works_where_layers_or_flash_kernels_fail_and_says_how_well(build):
    torch.manual_seed(0)
    model = build().double()
    data = torch.randn(5, 3, 3 if build is Odd else 4).double(), torch.randint(0, 2, (5,))
    hessian = HessianOperator(Objective(model, "cross_entropy", data))
    assert hessian.settings["engine_error"] < 1e-9
    vector = torch.randn(hessian.size, dtype=torch.float64)
    objective, h = hessian.objective, 1e-5
    ahead, behind = (objective.gradient(objective.theta + s * h * vector) for s in (1, -1))
    torch.testing.assert_close(hessian @ vector, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-7)


class Kernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        if float(x.sum()) > 1e9:  # torch.fx cannot follow this
            return x
        return self.second(SineOnce.apply(self.first(x)))


def test_auto_falls_back_to_differences_where_there_is_no_second_derivative():
    torch.manual_seed(0)
    data = torch.randn(9, 3, dtype=torch.float64), torch.randint(0, 2, (9,))
    model = Kernel().double()
    hessian = HessianOperator(Objective(model, "cross_entropy", data))
    assert hessian.choice.engine == "central_difference"
    assert {"layers", "double_backward"} <= set(hessian.choice.rejected)
    # torch answers twice differentiated with a silent zero instead of an error.
    assert "exceeds" in hessian.choice.rejected["double_backward"]
    assert "central differences" in hessian.choice.against
    smooth = nn.Sequential(model.first, Sine(), model.second)
    exact = HessianOperator(Objective(smooth, "cross_entropy", data))
    vector = torch.randn(hessian.size, dtype=torch.float64)
    torch.testing.assert_close(hessian @ vector, exact @ vector, rtol=1e-4, atol=1e-7)


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x)


@every_case
def test_gauss_newton_and_fisher_equal_their_formulas(case):
    model, (x, y) = case.build().eval(), case.data()
    free = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def outputs(parameters):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return functional_call(model, parameters, (x,))

    jacobian = torch.cat([j.flatten(2) for j in jacrev(outputs)(free).values()], dim=2)  # [N,C,P]
    z = outputs(free).detach()
    if case.loss == "mse":
        inner = torch.eye(z.shape[1]).double().expand(len(z), -1, -1) * 2 / z.shape[1]
        slope = 2 * (z - y) / z.shape[1]
    else:
        p = z.softmax(1)
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        slope = p - F.one_hot(y, z.shape[1])
    newton = torch.einsum("ncp,ncd,ndq->pq", jacobian, inner, jacobian) / len(z)
    rows = torch.einsum("nc,ncp->np", slope, jacobian)
    objective = Objective(model, case.loss, (x, y), chunk_size=8)
    eye = torch.eye(objective.num_parameters, dtype=torch.float64)
    for operator, truth in (
        (GaussNewtonOperator(objective), newton),
        (FisherOperator(objective), rows.T @ rows / len(z)),
    ):
        torch.testing.assert_close(operator @ eye, truth, rtol=0, atol=1e-12)


def test_a_block_of_parameters_is_the_block_of_the_matrix():
    case = CASES[0]
    objective = Objective(case.build(), case.loss, case.data())
    block = HessianOperator(objective.block("2.*"))
    found = block @ torch.eye(block.size, dtype=torch.float64)
    torch.testing.assert_close(found, dense_hessian(case)[-18:, -18:], rtol=0, atol=1e-13)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_product_of_a_block_keeps_no_graph_to_the_parameters_that_are_fixed(engine):
    case = CASES[0]
    objective = Objective(case.build(), case.loss, case.data()).block("*weight")
    hessian = HessianOperator(objective, engine=engine)
    assert torch.is_grad_enabled()
    found = hessian.matmat(torch.eye(hessian.size, dtype=torch.float64)[:2])
    assert not found.requires_grad
    exact = HessianOperator(objective, engine="double_backward")
    expected = exact.matmat(torch.eye(hessian.size, dtype=torch.float64)[:2])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_a_memory_budget_is_kept_and_changes_no_product():
    torch.manual_seed(0)
    model = MODELS.build("mlp", in_shape=(20,), classes=3, hidden=(64, 64))
    data = torch.randn(4000, 20), torch.randint(0, 3, (4000,))
    objective = Objective(model, "cross_entropy", data)
    vector = torch.randn(objective.num_parameters)
    free = HessianOperator(objective) @ vector
    budget = 1_500_000
    tight = HessianOperator(objective, memory=budget)
    assert tight.settings["product_chunk_size"] < 4000
    peak, _, found = measure_bytes(lambda: tight @ vector)
    assert 0.6 * budget <= peak <= 1.05 * budget
    torch.testing.assert_close(found, free, rtol=1e-3, atol=1e-5)


def test_as_many_chunks_are_kept_by_default_as_fit_and_change_no_product(monkeypatch):
    case = CASES[0]
    kept: list[int] = []
    for free in (1000, 8000, 24_000, 10**12):  # of the second a fifth of the samples
        objective = Objective(case.build(), case.loss, case.data(), chunk_size=2)
        monkeypatch.setattr("flatkit.hessian.plan.free_bytes", lambda device, free=free: free)
        hessian = HessianOperator(objective)
        kept.append(hessian.settings["chunks_kept"])
        for _ in range(2):  # the second time from what was kept
            found = hessian @ torch.eye(hessian.size, dtype=torch.float64)
            torch.testing.assert_close(found, dense_hessian(case), rtol=0, atol=1e-11)
    assert kept[:2] == [0, 0] and 0 < kept[2] < kept[3] == objective.num_chunks


def test_what_is_kept_by_default_leaves_room_on_a_cpu(monkeypatch):
    monkeypatch.setattr("flatkit.hessian.plan.free_bytes", lambda device: 2**40)
    assert kept_bytes(torch.device("cpu")) == 2**30
    assert kept_bytes(torch.device("cuda")) == 2**38  # a share of what the device has


def test_small_chunks_do_not_fool_the_budget_and_nothing_waits_for_the_collector():
    torch.manual_seed(0)
    model = MODELS.build("resnet20", in_shape=(3, 8, 8), classes=3, width=4).eval()
    data = torch.randn(120, 3, 8, 8), torch.randint(0, 3, (120,))
    budget = 4_000_000
    hessian = HessianOperator(Objective(model, "cross_entropy", data), memory=budget)
    assert 1 < hessian.settings["product_chunk_size"] < 60
    gc.collect()
    gc.disable()
    try:
        peak = measure_bytes(lambda: hessian @ torch.ones(hessian.size))[0]
    finally:
        gc.enable()
    assert 0.5 * budget <= peak <= 1.05 * budget


def test_at_a_kink_autograd_is_believed_and_the_choice_says_so():
    torch.manual_seed(0)
    inputs = torch.randn(20, 3, dtype=torch.float64)
    inputs[:5] = 0.0  # with a bias of zero, their ReLUs are exactly at the kink
    layers = [nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)]
    model = nn.Sequential(*layers).double()
    nn.init.zeros_(model.get_parameter("0.bias"))
    objective = Objective(model, "cross_entropy", (inputs, torch.randint(2, (20,))))
    hessian = HessianOperator(objective)
    assert "kink" in hessian.choice.against and hessian.choice.engine != "central_difference"
    u, v = torch.randn(2, hessian.size, dtype=torch.float64)
    assert float(u @ (hessian @ v)) == pytest.approx(float(v @ (hessian @ u)), rel=1e-10)


def test_a_zero_hessian_is_zero_and_linear_losses_have_no_curvature():
    objective = Objective(*quadratic_task(random_symmetric([0.0, 0.0])))
    for engine in ("auto", "double_backward", "central_difference"):
        product = HessianOperator(objective, engine=engine) @ torch.ones(2).double()
        assert float(product.abs().max()) <= 1e-9


class Spectral(nn.Module):
    """Reads pairs of a real weight as complex numbers, which torch does at even places alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.weight = nn.Linear(4, 3), nn.Parameter(torch.randn(3, 2))

    def forward(self, inputs):
        filtered = torch.fft.rfft(inputs) * torch.view_as_complex(self.weight)
        return self.head(torch.fft.irfft(filtered, n=4))


class Mixed(nn.Module):
    """Multiplies with a sparse matrix, of which torch counts no bytes."""

    def __init__(self, *, registered):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        matrix = torch.diag(torch.tensor([1.0, 2.0, 0.0, 1.0], dtype=torch.float64)).to_sparse()
        if registered:
            self.register_buffer("matrix", matrix)
        else:
            self.matrix = matrix

    def forward(self, inputs):
        return self.layer(torch.sparse.mm(self.matrix, inputs.T).T)


def _dense(model, inputs, targets):
    names, parts = zip(*[(n, p.detach()) for n, p in model.named_parameters()], strict=True)

    def value(theta):
        pieces = theta.split([p.numel() for p in parts])
        placed = {
            n: v.reshape(p.shape).clone() for n, v, p in zip(names, pieces, parts, strict=True)
        }
        return F.cross_entropy(functional_call(model, placed, (inputs,)), targets)

    theta = torch.cat([p.flatten() for p in parts])

    def slope(at):
        at.requires_grad_()
        return torch.autograd.grad(value(at), at)[0]

    steps = 1e-5 * torch.eye(len(theta), dtype=theta.dtype)
    return torch.stack([(slope(theta + h) - slope(theta - h)) / 2e-5 for h in steps])


@pytest.mark.parametrize("engine", ["auto", *sorted(set(ENGINES) - {"layers"})])
def test_weights_that_are_read_as_complex_numbers_at_an_odd_place(engine):
    model = Spectral().double()
    inputs, targets = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3
    objective = Objective(model, "cross_entropy", (inputs, targets))
    hessian = HessianOperator(objective, engine=engine)
    rows = torch.eye(hessian.size, dtype=torch.float64)  # every other begins at an odd place
    found = torch.stack([hessian.matvec(row) for row in rows])
    torch.testing.assert_close(found, _dense(model, inputs, targets), rtol=0, atol=1e-7)


@pytest.mark.parametrize("registered", [True, False])
def test_models_that_hold_a_sparse_matrix(registered):
    model = Mixed(registered=registered).double()
    inputs, targets = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3
    hessian = HessianOperator(Objective(model, "cross_entropy", (inputs, targets)))
    found = hessian @ torch.eye(hessian.size, dtype=torch.float64)
    torch.testing.assert_close(found, _dense(model, inputs, targets), rtol=0, atol=1e-7)
