import json
import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

from flatkit.data.dataset import Split
from flatkit.devices import resolve_device
from flatkit.errors import InvalidArgumentError, ResultError
from flatkit.objective.losses import CrossEntropy
from flatkit.training.batches import epoch_batches
from flatkit.training.evaluation import evaluate, gradient_norm
from flatkit.training.history import EpochRow, read_history, write_history

ROW = EpochRow(1, 0.1, 2.0, 0.5, 2.5, 0.25, gradients=23, seconds=0.5)


@pytest.mark.parametrize(("samples", "batch_size"), [(10, 3), (10, 10), (10, 1), (7, 7)])
def test_an_epoch_shows_each_sample_once(samples, batch_size):
    batches = epoch_batches(samples=samples, batch_size=batch_size, seed=1, epoch=2)
    assert sorted(torch.cat(list(batches)).tolist()) == list(range(samples))
    assert len(batches) == math.ceil(samples / batch_size)
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    def order(seed: int, epoch: int) -> list[int]:
        return epoch_batches(samples=50, batch_size=50, seed=seed, epoch=epoch)[0].tolist()

    first = order(0, 1)
    torch.manual_seed(99)
    assert order(0, 1) == first
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(1, 4)}) == 9


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_evaluation_is_the_mean_over_samples_for_every_chunk(chunk):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()
    inputs, targets = torch.randn(7, 4, dtype=torch.float64), torch.arange(7) % 3
    model(inputs)  # moves the running statistics
    model.train()
    result = evaluate(model, CrossEntropy(), Split(inputs, targets), chunk=chunk)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    z = inputs.numpy() @ state["0.weight"].T + state["0.bias"]
    z = (z - state["1.running_mean"]) / np.sqrt(state["1.running_var"] + 1e-5)
    losses = -log_softmax(z, axis=1)[np.arange(7), targets.numpy()]
    assert result.loss == pytest.approx(losses.mean(), rel=1e-10)
    assert result.accuracy == pytest.approx((z.argmax(1) == targets.numpy()).mean())
    assert model.training


def test_an_absent_device_is_refused_with_those_present():
    absent = next((d for d in ("cuda", "mps") if str(resolve_device("auto")) != d), None)
    with pytest.raises(InvalidArgumentError, match=f"device {absent} is not available here.*cpu"):
        resolve_device(absent or "")


def test_a_history_round_trips_and_says_its_schema(tmp_path):
    file = write_history(tmp_path / "history.json", [ROW, ROW])
    assert read_history(file) == (ROW, ROW)
    assert json.loads(file.read_text())["schema"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a history"),
        ("[]", "not a history of schema 1"),
        ('{"schema": 2, "rows": []}', "not a history of schema 1"),
        ('{"schema": 1, "rows": [{"epoch": 1}]}', "no number for lr, train_loss"),
        (None, "cannot read"),
    ],
)
def test_files_that_are_no_history_are_refused(tmp_path, text, message):
    file = tmp_path / "history.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ResultError, match=message):
        read_history(file)


def test_the_norm_of_a_gradient_of_complex_weights_is_that_of_its_reals():
    class Waves(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.complex64))

        def forward(self, x):
            return (x.to(self.weight.dtype) @ self.weight).abs()

    torch.manual_seed(0)
    model, x, y = Waves(), torch.randn(9, 4), torch.arange(9) % 3
    real = torch.view_as_real(model.weight.detach()).clone().requires_grad_()
    outputs = torch.func.functional_call(model, {"weight": torch.view_as_complex(real)}, (x,))
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(outputs, y), real)
    found = gradient_norm(model, CrossEntropy(), Split(x, y), chunk=4)
    assert found == pytest.approx(float(slope.norm()), rel=1e-5)


@pytest.mark.parametrize("content", ["5", '{"schema": 1, "rows": 5}', '{"schema": 1, "rows": [5]}'])
def test_a_history_of_another_form_is_refused_in_a_line(tmp_path, content):
    path = tmp_path / "history.json"
    path.write_text(content)
    with pytest.raises(ResultError, match="history"):
        read_history(path)
