"""Images with their channels last in memory: where, and that nothing but the speed changes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flatkit
from flatkit import HessianOperator, Objective


def network(groups: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=groups),
        nn.Flatten(),
        nn.Linear(8 * 16, 3),
    ).eval()


def images(n: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 6, 6, generator=generator), torch.arange(n) % 3


def test_a_convolutional_network_on_a_cpu_takes_channels_last_and_gives_the_same_numbers():
    model, (x, y) = network(), images()
    before = copy.deepcopy(model.state_dict())
    objective = Objective(model, "cross_entropy", (x, y), chunk_size=3)
    assert objective.memory_format == "channels_last" == objective.describe()["memory_format"]
    for rows in (slice(0, 3), torch.tensor([1, 4, 5])):
        inputs = objective.rows(rows).inputs
        assert inputs.is_contiguous(memory_format=torch.channels_last)
    reference = copy.deepcopy(model).double()
    value = F.cross_entropy(reference(x.double()), y)
    slopes = torch.autograd.grad(value, list(reference.parameters()), create_graph=True)
    slope = torch.cat([part.reshape(-1) for part in slopes])  # θ's order is that of the weights
    loss, found = objective.loss_and_gradient()
    assert loss == pytest.approx(float(value.detach()), rel=1e-6)
    torch.testing.assert_close(found.double(), slope.detach(), rtol=1e-4, atol=1e-6)
    vector = torch.randn(len(slope), generator=torch.Generator().manual_seed(2)).double()
    exact = torch.autograd.grad(slope, list(reference.parameters()), vector)
    product = HessianOperator(objective) @ vector.float()
    truth = torch.cat([part.reshape(-1) for part in exact])
    torch.testing.assert_close(product.double(), truth, rtol=1e-3, atol=1e-5)
    assert x.is_contiguous() and all(p.is_contiguous() for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Viewing(nn.Module):
    """Views its images as vectors, which torch refuses where the channels are last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).view(len(x), -1))


class Striding(Viewing):
    """Reads memory in the order in which it lies: another function where the channels are last."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head(torch.as_strided(y, (len(x), 8 * 36), (8 * 36, 1)))


class Checking(Viewing):
    """Refuses images whose channels are last, and in its own words."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.is_contiguous(), "images must be contiguous"
        return self.head(self.conv(x).flatten(1))


class Counting(Viewing):
    """Does not take the few images with which the layouts are compared."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 2:
            raise ValueError("a pair of images is no batch")
        return self.head(self.conv(x).flatten(1))


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (Viewing(), {}),
        (Checking(), {}),
        (Counting(), {}),
        (Striding(), {}),
        (network(groups=4), {}),
        (network(), {"dtype": torch.float64}),
        (nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), {}),
    ],
    ids=["views", "checks", "counts", "reads memory", "few groups", "float64", "no convolution"],
)
def test_where_it_does_not_pay_or_fit_images_lie_as_usual(model, settings):
    x, y = images()
    given = x.contiguous(memory_format=torch.channels_last)
    objective = Objective(model, "cross_entropy", (given, y), **settings)
    assert objective.memory_format == "contiguous" and objective.samples.inputs.is_contiguous()
    expected = float(F.cross_entropy(model(x), y).detach())
    assert objective.loss() == pytest.approx(expected, rel=1e-6)


def test_a_report_says_how_images_lie_and_two_runs_find_the_same_bits():
    first, second = (
        flatkit.analyze(network(), "cross_entropy", images(), measures=["loss", "gradient_norm"])
        for _ in range(2)
    )
    assert first.objective["memory_format"] == "channels_last"
    assert [r.value for r in first.results] == [r.value for r in second.results]
