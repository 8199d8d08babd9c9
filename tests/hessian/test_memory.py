"""Bytes: counted as the allocator gives them out, planned so that no chunk goes beyond them."""

import gc
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.profiler import ProfilerActivity, profile

from flatkit import HessianOperator, Objective
from flatkit.errors import InvalidArgumentError
from flatkit.hessian.memory import largest_chunk, measure_bytes
from flatkit.models import MODELS
from tests.versions import before


def allocated(function: Callable[[], object], folder: Path) -> int:
    """Return the peak of the bytes that torch's allocator gave out, by the profiler's trace."""
    function()  # what is made once
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        holder = function()
    del holder
    path = folder / "trace.json"
    record.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    memory = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    live = peak = 0
    for event in memory:
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return peak


def convolution_passes(
    dtype: torch.dtype, *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a convolution [8, 16, 16, 16] -> 32 channels forwards, and its gradients."""
    torch.manual_seed(0)
    x = torch.randn(8, 16, 16, 16, dtype=dtype)
    w = torch.randn(32, 16 // groups, 3, 3, dtype=dtype)

    def forwards() -> Tensor:
        return F.conv2d(x, w, None, stride, padding, dilation, groups)

    y, pairs = forwards(), ([stride] * 2, [padding] * 2, [dilation] * 2)

    def backwards() -> object:
        return torch.ops.aten.convolution_backward(
            y, x, w, [0], *pairs, False, [0, 0], groups, [True, True, False]
        )

    return forwards, backwards


def resnet(dtype: torch.dtype = torch.float32, *, blocks: int = 3) -> Objective:
    """A residual network of so many blocks a stage."""
    torch.manual_seed(0)
    model = MODELS.build("resnet20", in_shape=(3, 8, 8), classes=3, width=4).eval().to(dtype)
    for stage in ("layer1", "layer2", "layer3"):
        model.add_module(stage, model.get_submodule(stage)[:blocks])  # pyright: ignore[reportIndexIssue]
    data = torch.randn(120, 3, 8, 8, dtype=dtype), torch.randint(0, 3, (120,))
    return Objective(model, "cross_entropy", data)


def test_the_patches_of_a_convolution_in_float64_are_counted():
    x, w = torch.randn(4, 6, 9, 9).double(), torch.randn(5, 6, 3, 3).double()
    peak, left, y = measure_bytes(lambda: F.conv2d(x, w, padding=1, stride=2))
    assert left == y.nbytes
    assert peak == y.nbytes + F.unfold(x, 3, padding=1, stride=2).nbytes


@pytest.mark.parametrize("turn", [0, 1], ids=["forwards", "backwards"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "settings",
    [{"padding": 1}, {"stride": 2}, {"padding": 2, "dilation": 2}, {"padding": 1, "groups": 4}],
    ids=str,
)
def test_a_convolution_takes_what_is_counted(turn, dtype, settings, tmp_path):
    run = convolution_passes(dtype, **settings)[turn]
    true, (counted, left, _) = allocated(run, tmp_path), measure_bytes(run)
    assert true >= 1.2 * left  # there is scratch space at all
    assert 0.98 * true <= counted <= 2 * true


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_transposed_convolution_takes_what_is_counted(dtype, tmp_path):
    torch.manual_seed(0)
    x, w = torch.randn(8, 16, 8, 8, dtype=dtype), torch.randn(16, 32, 3, 3, dtype=dtype)

    def run() -> Tensor:
        return F.conv_transpose2d(x, w, stride=2)

    true, (counted, left, _) = allocated(run, tmp_path), measure_bytes(run)
    assert true >= 1.2 * left  # there is scratch space at all
    assert 0.98 * true <= counted <= 2 * true


def test_images_with_channels_last_are_not_copied(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(8, 16, 16, 16).to(memory_format=torch.channels_last)
    w = torch.randn(32, 16, 3, 3)
    true, (counted, left, _) = (
        allocated(lambda: F.conv2d(x, w), tmp_path),
        measure_bytes(lambda: F.conv2d(x, w)),
    )
    assert 0.95 * true <= counted <= left + 0.5 * x.nbytes


def test_an_lstm_takes_what_is_counted(tmp_path):
    torch.manual_seed(0)
    model, x = nn.LSTM(16, 64, batch_first=True).requires_grad_(False), torch.randn(32, 20, 16)
    true, (counted, _, _) = allocated(lambda: model(x), tmp_path), measure_bytes(lambda: model(x))
    least = 0.7 if before(torch, 2, 5) else 0.95  # which takes twice the scratch space
    assert least * true <= counted <= 2 * true


@pytest.mark.parametrize("engine", ["layers", "double_backward", "central_difference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_product_takes_what_is_counted(engine, dtype, tmp_path):
    hessian = HessianOperator(resnet(dtype), engine=engine)
    vector = torch.randn(hessian.size, dtype=dtype)
    assert hessian.settings["chunks_kept"] in (0, 1)

    def run() -> Tensor:
        product = hessian @ vector
        hessian._kept.clear()
        return product

    true, (counted, _, _) = allocated(run, tmp_path), measure_bytes(run)
    assert 0.97 * true <= counted <= 1.15 * true


def chunk_of(stages: Callable[[int], list[int]]) -> tuple[Callable[[int], object], list[int]]:
    """Return a chunk that takes so many bytes one after the other, and the peaks of all made."""
    peaks: list[int] = []

    def prepare(size: int) -> None:
        peaks.append(max(stages(size)))
        for count in stages(size):
            torch.zeros(count, dtype=torch.uint8)

    return prepare, peaks


def test_a_stage_that_small_chunks_hide_is_foreseen():
    prepare, peaks = chunk_of(lambda size: [10_000, 100 * size, 50 * size + 4000])
    found = largest_chunk(prepare, samples=1000, budget=12_000)
    assert (found.size, found.peak) == (120, 12_000)
    assert max(peaks) == 12_000


@pytest.mark.parametrize("budget", [2500, 5000])
def test_where_few_samples_hardly_fit_nothing_larger_is_tried(budget):
    prepare, peaks = chunk_of(lambda size: [1000 * size])
    assert largest_chunk(prepare, samples=1000, budget=budget).size == budget // 1000
    assert max(peaks) <= budget


def test_bytes_that_are_no_line_end_within_the_budget_too():
    prepare, peaks = chunk_of(lambda size: [size * size])
    found = largest_chunk(prepare, samples=1000, budget=10_000)
    assert 70 <= found.size <= 100
    assert len(peaks) < 8


def test_chunks_of_different_operations_end_within_the_budget_too():
    prepare, _ = chunk_of(lambda size: [size] * size)
    found = largest_chunk(prepare, samples=1000, budget=100)
    assert 97 <= found.size <= 100


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_few_samples_are_one_chunk(samples):
    prepare, _ = chunk_of(lambda size: [1000 * size])
    assert largest_chunk(prepare, samples=samples, budget=10_000).size == samples


@pytest.mark.parametrize("engine", ["layers", "double_backward", "central_difference"])
@pytest.mark.parametrize("budget", [600_000, 1_000_000])
def test_planning_takes_no_more_than_the_budget_and_most_of_it(engine, budget):
    objective = resnet(blocks=1)
    hessian = HessianOperator(objective, engine=engine, memory=budget)
    assert hessian.choice  # the probe is not part of it
    vector = torch.randn(hessian.size)
    peak = measure_bytes(partial(hessian.matvec, vector))[0]  # plans first
    assert 1 < hessian.settings["product_chunk_size"] < objective.num_samples
    assert 0.8 * budget <= peak <= budget


def test_a_block_takes_no_more_than_its_results_beyond_the_budget():
    torch.manual_seed(0)
    model = MODELS.build("mlp", in_shape=(20,), classes=3, hidden=(64, 64))
    data = torch.randn(1000, 20), torch.randint(0, 3, (1000,))
    objective, budget = Objective(model, "cross_entropy", data), 500_000
    hessian = HessianOperator(objective, memory=budget)
    vectors = torch.randn(6, hessian.size)
    assert hessian.choice and hessian.settings["product_chunk_size"] < 1000
    peak, _, found = measure_bytes(lambda: hessian.matmat(vectors))
    assert peak <= budget + 2.75 * vectors.nbytes  # 1.75 while they are looked at
    truth = HessianOperator(objective, engine="double_backward").matmat(vectors)
    torch.testing.assert_close(found, truth, rtol=1e-3, atol=1e-5)


def test_a_budget_that_is_too_small_says_what_would_do():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 3))
    data = torch.randn(50, 20), torch.randint(0, 3, (50,))
    objective = Objective(model, "cross_entropy", data)
    small = HessianOperator(objective, engine="layers", memory=5000)
    with pytest.raises(InvalidArgumentError, match="memory must be at least") as caught:
        small.settings  # noqa: B018
    (least,) = re.findall(r"at least ([\d,]+) bytes", str(caught.value))
    enough = HessianOperator(objective, engine="layers", memory=int(least.replace(",", "")))
    assert enough.settings["product_chunk_size"] == 1


def test_with_batchnorm_in_training_mode_the_chunks_stay_or_the_budget_is_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    data = torch.randn(60, 4), torch.randint(0, 3, (60,))
    objective = Objective(model, "cross_entropy", data, batchnorm="train", chunk_size=20)
    free = HessianOperator(objective)
    vector = torch.randn(free.size)
    roomy = HessianOperator(objective, memory=10**8)
    assert roomy.settings["product_chunk_size"] == 20
    for _ in range(2):  # the second time from what was kept
        torch.testing.assert_close(roomy @ vector, free @ vector)
    with pytest.raises(InvalidArgumentError, match="with 20, the objective's chunk_size"):
        HessianOperator(objective, memory=5000).settings  # noqa: B018


def test_a_chunk_that_is_kept_holds_nothing_of_a_product_that_is_over():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten())
    model.append(nn.Linear(8, 3))
    data = (torch.randn(6, 1, 4, 4), torch.randint(3, (6,)))
    hessian = HessianOperator(Objective(model.eval(), "cross_entropy", data), engine="layers")
    first = torch.ones(hessian.size)
    product = hessian @ first
    vector = first.clone()
    memory = StorageWeakRef(vector.untyped_storage())
    _, left, again = measure_bytes(partial(hessian.matvec, vector))
    del vector
    assert hessian.plan.kept == 1 and torch.equal(again, product)
    assert memory.expired() and left == again.nbytes
