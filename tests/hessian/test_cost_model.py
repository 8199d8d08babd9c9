"""The cost model of docs/scaling.md: within 25 % of what runs hold and send."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scaling import Size, of_activations, of_weights
from flatkit.hessian.work import Work
from flatkit.spectrum.krylov import KEPT_BYTES


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_that_of_the_model(dtype):
    for row in of_weights(200, dtype):
        assert 0.8 < row.ratio < 1.25, row


def test_activations_grow_with_the_samples_at_once():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10)),
    ).eval()
    for row in of_activations(model, (3, 16, 16), "convolutions"):
        assert 0.8 < row.ratio < 1.25, row


def test_what_ranks_share_of_the_basis_and_send():
    alone, four = Size(10**6), Size(10**6, ranks=4)
    assert four.basis == alone.basis / 4
    assert alone.sent == 0 and four.sent == 2 * 3 / 4 * 4e6
    large = Size(10**9)
    assert 2 * 21 * large.vector > KEPT_BYTES and large.basis == 21 * large.vector


def test_the_work_of_a_multiplication_is_what_torch_counts():
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 4, 4, generator=draws, requires_grad=True)
    kernel = torch.randn(5, 3, 2, 2, generator=draws, requires_grad=True)
    found, square = F.conv2d(images, kernel), images.detach()[0, 0]
    runs = {
        "a product": lambda: square @ square,
        "of a batch": lambda: torch.bmm(images[0], images[1]),
        "a convolution": lambda: F.conv2d(images, kernel, stride=2),
        "its derivatives": lambda: torch.autograd.grad(found, [images, kernel], found.detach()),
    }
    for name, run in runs.items():
        with FlopCounterMode(display=False) as known, Work() as work:
            run()
        assert work.count == known.get_total_flops() > 0, name
    with Work() as work:  # as the same that makes a new matrix, of which alone torch knows
        square.addmm_(square, square)
    assert work.count == 2 * len(square) ** 3
