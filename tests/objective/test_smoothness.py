"""A kink exactly at the measured point is found and said; what is 0 on both sides is none."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from flatkit import Objective, Task, analyze
from flatkit.verify.ladder import verify


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


X, Y = numbers(24, 6), torch.arange(24) % 3
BLANK = X * (Y == 0)[:, None]  # two samples of three are all 0
IMAGES = F.pad(numbers(24, 1, 3, 3).abs(), (2, 3, 2, 3))


def net(bend, *, bias=None, width=8) -> Any:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, width), bend, nn.Linear(width, 3))
    if bias is not None:
        nn.init.constant_(model[0].bias, bias)
    return model


def zeros(bend) -> Any:
    model = net(bend)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


class Residual(nn.Module):
    """A block whose branch starts at 0, as of residual networks, with a ReLU after the sum or not.

    Where the ReLU before is off, the sum is exactly 0 and moves with the branch.
    """

    def __init__(self, last):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.branch, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.scale, self.last = nn.Parameter(torch.zeros(8)), last

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.head(self.last(x + self.scale * torch.tanh(self.branch(x))))


class Adapted(nn.Module):
    """A ReLU network with an adapter of low rank whose second factor is 0."""

    net: Any

    def __init__(self):
        super().__init__()
        self.net = net(nn.ReLU()).requires_grad_(False)
        self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 8, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.net[2](torch.relu(self.net[0](x) + self.up(self.down(x))))


class Twins(nn.Module):
    """The larger of two equal functions with weights of their own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Linear(6, 3)
        self.other = nn.Linear(6, 3)
        self.other.load_state_dict(self.one.state_dict())

    def forward(self, x):
        return torch.maximum(self.one(x), self.other(x))


class Penalised(nn.Module):
    """Outputs and the lengths of all weights, of which some are pruned to 0."""

    def __init__(self, order):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.order = nn.Linear(6, 3), order
        with torch.no_grad():
            self.layer.weight[0, :3] = 0

    def forward(self, x):
        lengths = self.layer.weight.abs().pow(self.order).sum()
        return self.layer(x) + 0.1 * lengths


class Masked(nn.Module):
    """Words of which those of padding do not reach the outputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.mix, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        with torch.no_grad():
            self.table.weight[0] = 0
            self.mix.bias.zero_()

    def forward(self, words):
        kept = (words != 0).to(self.head.weight)[..., None]
        return self.head((torch.relu(self.mix(self.table(words))) * kept).sum(1))


def pooled():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 3))


def without_biases():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(256, 3))


def pruned():
    model = net(nn.ReLU())
    prune.ln_structured(model[0], "weight", amount=0.5, n=2, dim=0)
    prune.l1_unstructured(model[0], "bias", amount=0.5)
    return model


def sure():
    model = net(nn.ReLU())
    with torch.no_grad():
        model[2].weight *= 1e3
    return model


def last_zero(bend):
    model = net(bend)
    nn.init.zeros_(model[2].weight)
    return model


CE, MSE = "cross_entropy", "mse"
WORDS = torch.randint(0, 9, (24, 5), generator=torch.Generator().manual_seed(0))
KINKS = {  # name -> model, loss, inputs, derivatives that there are, the weights
    "ReLU at 0": (lambda: net(nn.ReLU(), bias=0.0), CE, BLANK, 0, "0.bias"),
    "leaky ReLU at 0": (lambda: net(nn.LeakyReLU(0.2), bias=0.0), CE, BLANK, 0, "0.bias"),
    "a threshold at 1": (lambda: net(nn.Hardtanh(), bias=1.0), CE, BLANK, 0, "0.bias"),
    "a branch of 0 before a ReLU": (lambda: Residual(nn.ReLU()), CE, X, 0, "scale"),
    "equal maxima": (Twins, CE, X, 0, "one.weight"),
    "an absolute penalty at 0": (lambda: Penalised(1), "l1", X, 0, "layer.weight"),
    "an exact fit in absolute values": (lambda: zeros(nn.Identity()), "l1", X, 0, "2.bias"),
    "ELU at 0": (lambda: net(nn.ELU(), bias=0.0), CE, BLANK, 1, "0.bias"),
    "a squared ReLU at 0": (
        lambda: net(nn.Sequential(nn.ReLU(), Square()), bias=0.0),
        CE,
        BLANK,
        1,
        "0.bias",
    ),
    "ReLU layers of nothing but 0": (lambda: zeros(nn.ReLU()), CE, X, 1, "0.bias"),
}
SMOOTH = {
    "units that are off": (lambda: net(nn.ReLU(), bias=-50.0), CE, X),
    "a last layer of 0": (lambda: last_zero(nn.ReLU()), CE, X),
    "an adapter of 0": (Adapted, CE, X),
    "a branch of 0 after all ReLUs": (lambda: Residual(nn.Identity()), CE, X),
    "margins without a bias": (without_biases, CE, IMAGES),
    "maxima of constant images": (pooled, CE, IMAGES * 0 + 0.5),
    "maxima of blank images": (pooled, CE, IMAGES * 0),
    "padding": (Masked, CE, WORDS),
    "pruned by a mask": (pruned, CE, X),
    "a quadratic penalty at 0": (lambda: Penalised(2), MSE, X),
    "absolute values away from 0": (lambda: net(nn.Identity()), "l1", X),
    "GELU at 0": (lambda: net(nn.GELU(), bias=0.0), CE, BLANK),
    "zeros before a tanh": (lambda: zeros(nn.Tanh()), CE, X),
    "far from any doubt": (sure, CE, X),
    "a linear loss": (lambda: net(nn.Identity()), lambda out, _: out.sum(1), X),
    "many ReLUs": (lambda: net(nn.ReLU(), width=4096), CE, X),
}


class Square(nn.Module):
    def forward(self, x):
        return x.square()


def targets(loss):
    return Y if loss == CE else torch.zeros(24, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", KINKS)
def test_a_kink_at_the_point_is_found_and_named(name, dtype):
    make, loss, inputs, derivatives, weights = KINKS[name]
    loss = nn.L1Loss() if loss == "l1" else loss
    found = Objective(make(), loss, (inputs, targets(loss)), dtype=dtype).examination
    assert found.derivatives == derivatives, found["smooth"]
    assert weights in found["smooth"].how and "lies on a kink" in found["smooth"].how


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SMOOTH)
def test_what_is_zero_on_both_sides_is_no_kink(name, dtype):
    make, loss, inputs = SMOOTH[name]
    loss = nn.L1Loss() if loss == "l1" else loss
    found = Objective(make(), loss, (inputs, targets(loss)), dtype=dtype).examination
    assert found["smooth"].passed, found["smooth"]


def test_the_size_of_a_jump_is_that_of_the_gradient():
    """|w| x at w = 0: on one side the gradient is x, on the other -x; autograd says 0."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    data = torch.full((4, 1), 3.0), torch.zeros(4, 1)
    found = Objective(model, nn.L1Loss(), data).examination["smooth"]
    assert found.passed is False and found.error == pytest.approx(1.0)


def test_numbers_of_second_derivatives_say_that_there_are_none():
    task = Task(net(nn.ReLU(), bias=0.0), CE, (BLANK, Y))
    names = ("loss", "gradient_norm", "top_eigenvalues", "trace", "frobenius_norm")
    report = analyze(task, measures=names, max_matvecs=40)
    found = {result.measure: str(result.status) for result in report}
    assert found.pop("loss") == "converged" and set(found.values()) == {"not_smooth"}
    assert "not smooth" in report.table() and "0.bias" in str(report.to_dict()["objective"])


def test_of_weights_beside_a_kink_the_second_derivatives_are_whole():
    """The last layer alone makes a smooth loss, whose Hessian autograd has densely."""
    model = net(nn.ReLU(), bias=0.0)
    task = Task(model, CE, (BLANK, Y))
    report = analyze(task, measures=("gradient_norm", "top_eigenvalues"), params=["2.*"])
    top = report.result("top_eigenvalues")
    hidden = torch.relu(model[0](BLANK)).detach().double()

    def loss(theta):
        return F.cross_entropy(hidden @ theta[:24].view(3, 8).T + theta[24:], Y)

    theta = torch.cat([model[2].weight.detach().flatten(), model[2].bias.detach()]).double()
    dense = torch.autograd.functional.hessian(loss, theta)
    assert isinstance(dense, torch.Tensor)
    assert top.status == "converged"
    assert abs(top.value[0] - float(torch.linalg.eigvalsh(dense)[-1])) <= top.error[0]
    assert report.result("gradient_norm").status == "not_smooth"


def test_no_claim_about_curvature_holds_on_a_kink():
    report = verify(Task(net(nn.ELU(), bias=0.0), CE, (BLANK, Y)), dtype="float64", rho=[0.01])
    claims = {c["claim"]: c["verdict"] for c in report.result("verdict").value}
    assert claims["smooth at the checkpoint"] == "fails"
    assert claims["no negative curvature"] == claims["R1/ρ² → λmax"] == "cannot tell"


class Single(nn.Module):
    """Computes in 32 bits, whatever its weights are."""

    net: Any

    def __init__(self):
        super().__init__()
        self.net = net(nn.ReLU(), bias=0.0)

    def forward(self, x):
        x = self.net[0](x).float()
        return self.net[2](torch.relu(x).to(self.net[2].weight))


def test_nothing_is_said_of_kinks_in_32_bits():
    assert Objective(Single(), CE, (BLANK, Y)).examination["smooth"].passed is None


@pytest.mark.parametrize("seed", range(8))
def test_where_residuals_vanish_rounding_is_no_kink(seed):
    draws = torch.Generator().manual_seed(seed)
    inputs = torch.randn(6, 1 + seed % 3, dtype=torch.float64, generator=draws)
    model = nn.Linear(1 + seed % 3, 1, bias=False).double()
    with torch.no_grad():  # a fit without any error
        objective = Objective(model, "mse", (inputs, model(inputs)), dtype=torch.float64)
    check = next(check for check in objective.examination.checks if check.name == "smooth")
    assert check.passed, check.how
