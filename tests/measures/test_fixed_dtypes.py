"""Models and losses that compute in a dtype of their own get what does not need another."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flatkit import Task
from flatkit.flatness.geometry import Geometry
from flatkit.hessian import HessianOperator
from flatkit.measures.precision import gradient_noise
from flatkit.measures.session import Session
from flatkit.measures.settings import AnalysisSettings

INPUTS = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(20) % 3


class Free(nn.Module):
    """Starts from a state in the dtype of the inputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.step, self.out = nn.Linear(6, 2), nn.Linear(2, 3)

    def start(self, x):
        return torch.zeros_like(x[:, :2])

    def forward(self, x):
        state = torch.cat([self.start(x), x], 1)
        return self.out(torch.tanh(self.step(state)))


class Fixed(Free):
    """Starts from a state in float32, and goes on in it."""

    def start(self, x):
        return torch.zeros(len(x), 2, dtype=torch.float32)

    def forward(self, x):
        return super().forward(x.float())


def fixed_loss(outputs, targets):
    return F.cross_entropy(outputs @ torch.eye(3, dtype=torch.float32), targets, reduction="none")


def free_loss(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def noise_of(model, loss):
    session = Session(Task(model, loss, (INPUTS, CLASSES)), AnalysisSettings(measures=["loss"]))
    return gradient_noise(session, Geometry("l2")), session


@pytest.mark.parametrize(("model", "loss"), [(Fixed, free_loss), (Free, fixed_loss)])
def test_rounding_is_found_also_where_float64_cannot_be_had(model, loss):
    noise, session = noise_of(model(), loss)
    expected, other = noise_of(Free(), free_loss)
    assert "rounded anew" in session.noise_from
    assert other.noise_from == "float32 against float64"
    assert 0.1 * expected < noise < 10 * expected
    vector = torch.ones(session.objective.num_parameters)
    products = [HessianOperator(each.objective) @ vector for each in (session, other)]
    assert torch.allclose(*products, atol=1e-5)  # pyright: ignore
