"""The cost model of docs/scaling.md: within 25 % of what runs hold and send."""

import pytest
import torch
from torch import nn

from benchmarks.scaling import Size, of_activations, of_weights
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
