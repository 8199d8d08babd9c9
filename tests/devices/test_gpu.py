"""On a CUDA device: the numbers of the CPU, its own random state untouched, one wait a step."""

import warnings

import pytest
import torch
from torch import nn

import flatkit
from benchmarks.bfloat16 import compare, make_case
from flatkit import Objective
from flatkit.devices import resolve_device
from flatkit.hessian import ENGINES, HessianOperator
from flatkit.hessian.gauss_newton import GaussNewtonOperator
from flatkit.objective.settings import ObjectiveSettings
from flatkit.objective.vocabulary import MANY_CLASSES, cross_entropy
from flatkit.spectrum.krylov import KrylovBasis

pytestmark = pytest.mark.gpu

EXACT = ("loss", "accuracy", "gradient_norm", "top_eigenvalues", "bottom_eigenvalues")
SEARCHED = (
    *("zeroth_order_sharpness", "first_order_flatness", "max_gradient_norm"),
    *("quadratic_model_maximum", "m_sharpness", "rounding"),
)
DRAWN = ("trace", "frobenius_norm", "average_sharpness")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.Tanh()),
        *(nn.Conv2d(6, 6, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(96, 4)),
    ).eval()


def samples(count: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    return inputs, inputs.flatten(1)[:, :4].argmax(1)


def on(device: str, **given) -> Objective:
    return Objective(network(), "cross_entropy", samples(), device=device, **given)


@pytest.mark.parametrize("measure", (*EXACT, *SEARCHED, *DRAWN))
def test_every_measure_is_that_of_the_cpu(measure):
    given = {"measures": [measure], "dtype": "float64", "rho": [0.05], "progress": False}
    given |= {"m_sharpness": 16} if measure == "m_sharpness" else {}
    here, there = (
        flatkit.analyze(network(), "cross_entropy", samples(), device=device, **given).results
        for device in ("cpu", "cuda")
    )
    for one, other in zip(here, there, strict=True):
        ours, theirs = (torch.tensor(r.value, dtype=torch.float64) for r in (one, other))
        tolerance = 1e-9 if measure in EXACT[:3] else 1e-3
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=1e-12)


@pytest.mark.parametrize("tf32", [False, True])
def test_float32_is_float32_whatever_the_caller_allows(tf32):
    exact = on("cpu", dtype=torch.float64)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        own = on("cuda")
        gradient, vector = own.gradient().cpu().double(), torch.randn(own.num_parameters)
        product = HessianOperator(own) @ vector.cuda()
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    truth = exact.gradient()
    assert float((gradient - truth).norm() / truth.norm()) < 1e-5
    curved = HessianOperator(exact) @ vector.double()
    assert float((product.cpu().double() - curved).norm() / curved.norm()) < 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_multiplies(engine):
    vector = torch.randn(on("cpu").num_parameters, dtype=torch.float64)
    here, there = (
        HessianOperator(on(device, dtype=torch.float64), engine=engine) @ vector.to(device)
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(here, there.cpu(), rtol=1e-5, atol=1e-8)
    gauss = [
        GaussNewtonOperator(on(device, dtype=torch.float64)) @ vector.to(device)
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(gauss[0], gauss[1].cpu(), rtol=1e-9, atol=1e-12)


def test_a_gpu_is_the_device_where_nobody_names_one():
    assert ObjectiveSettings().device is None and resolve_device(None).type == "cuda"
    report = flatkit.analyze(
        network(), "cross_entropy", samples(), measures=["loss"], progress=False
    )
    assert report.objective["device"].startswith("cuda")


def test_the_random_state_of_cuda_is_untouched():
    torch.manual_seed(7)
    before = torch.cuda.get_rng_state()
    given = {"device": "cuda", "slice_points": 3, "slice_directions": 2, "search_budget": 20}
    flatkit.analyze(network(), "cross_entropy", samples(), progress=False, rho=[0.05], **given)
    assert torch.equal(before, torch.cuda.get_rng_state())


def test_a_step_of_lanczos_waits_once_and_a_gradient_does():
    own = on("cuda", chunk_size=96)
    basis = KrylovBasis(HessianOperator(own), 20, torch.Generator(), keep_images=True)
    basis.expand()
    own.loss_and_gradient()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        for work in (basis.expand, own.loss_and_gradient):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                work()
            waits = [one for one in caught if "synchroniz" in str(one.message)]
            # Indices of the samples may come over, a piece a chunk.
            assert len(waits) <= 2, [str(one.message) for one in waits]
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_many_classes_hold_two_tensors_of_the_outputs():
    scores = torch.randn(4096, 2 * MANY_CLASSES, device="cuda", requires_grad=True)
    classes = torch.randint(2 * MANY_CLASSES, (4096,), device="cuda")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    (slope,) = torch.autograd.grad(cross_entropy(scores, classes).sum(), scores, create_graph=True)
    torch.autograd.grad(slope, scores, slope.detach())
    assert torch.cuda.max_memory_allocated() - before < 2.2 * scores.nbytes


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bfloat16_holds_its_bars_there_too(seed):
    for one in compare(make_case(seed), device="cuda"):
        assert one.bars <= 1.5, one
