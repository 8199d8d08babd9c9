"""Autocast and loss scaling: right gradients, skipped overflows, weights that come back."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD

from flatkit.errors import NonFiniteError
from flatkit.optim import GAM, SAM
from tests.optim.test_contract import (
    PASSES,
    WRAPPERS,
    bits,
    same,
)
from tests.optim.test_passes import own

HALF = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
LOW = [name for name in WRAPPERS if "differences" not in name]  # their step is below 16 bits


def network(device: str = "cpu") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).to(device)


def loss_of(model: nn.Module, *, half: torch.dtype | None = None) -> Tensor:
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(16, 3, generator=g), torch.randint(0, 2, (16,), generator=g)
    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None):
        return nn.functional.cross_entropy(model(x.to(device)), y.to(device))


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def built(wrapper: str, *, lr: float = 0.1) -> tuple[nn.Module, Any]:
    model = network()
    return model, WRAPPERS[wrapper](SGD(model.parameters(), lr=lr, momentum=0.9))


@HALF
@pytest.mark.parametrize("wrapper", LOW)
def test_autocast_finds_the_gradient_to_its_precision(wrapper, half):
    grads = []
    for precision in (half, None):
        model, optimizer = built(wrapper)
        optimizer.step(lambda model=model, precision=precision: loss_of(model, half=precision))
        grads.append(gradient(model))
        assert grads[-1].dtype is torch.float32
    assert not torch.equal(*grads)
    allowed = 0.1 if half is torch.bfloat16 else 0.02
    assert (grads[0] - grads[1]).norm() < allowed * grads[1].norm()


@pytest.mark.parametrize("style", ["closure", "loop"])
@pytest.mark.parametrize("wrapper", LOW)
def test_autocast_around_the_whole_step_does_not_keep_the_casts_of_the_last_point(wrapper, style):
    """Autocast serves one cast of a weight until its context ends, even if the weight moved."""
    ends = []
    for around in (True, False):
        model, optimizer = built(wrapper)
        # Not enabled=False: that nests too, and the cache lives until the outermost ends.
        with torch.autocast("cpu", torch.bfloat16) if around else nullcontext():
            for _ in range(2):
                if style == "closure":
                    optimizer.step(lambda model=model: loss_of(model, half=torch.bfloat16))
                else:
                    for gradient_pass in optimizer.gradient_passes():
                        gradient_pass.backward(loss_of(model, half=torch.bfloat16))
                    optimizer.step()
        ends.append(bits(model))
    assert same(*ends)


@pytest.mark.parametrize(
    ("wrapper", "style"),
    [
        (wrapper, style)
        for wrapper in WRAPPERS
        for style in ("returned", "backward", "loop", "scaled in the loop")
        if wrapper != "exact gam" or style in ("returned", "loop")  # differentiated twice
    ],
)
@pytest.mark.parametrize("scale", [1024.0, 1.0])
def test_scaling_by_a_power_of_two_changes_no_bit(wrapper, style, scale):
    plain, first = built(wrapper)
    model, optimizer = built(wrapper)
    scaler = GradScaler("cpu", init_scale=scale, enabled=scale != 1)
    for _ in range(3):
        first.step(lambda: loss_of(plain))
        if "loop" in style:
            for gradient_pass in optimizer.gradient_passes(scaler):
                loss = loss_of(model)
                scaler.scale(loss).backward() if "scaled" in style else gradient_pass.backward(loss)
            assert torch.equal(gradient(model), gradient(plain))  # unscaled, ready for clipping
            scaler.step(optimizer)
        else:

            def closure() -> Tensor:
                loss = loss_of(model)
                if style == "backward":
                    scaler.scale(loss).backward()
                return loss

            optimizer.step(closure, scaler=scaler)
            assert torch.equal(gradient(model), gradient(plain))
        scaler.update()
    assert same(bits(plain), bits(model))


@pytest.mark.parametrize("style", ["closure", "loop"])
@pytest.mark.parametrize(
    ("wrapper", "number"), [(name, k) for name, passes in PASSES.items() for k in range(passes)]
)
def test_an_overflow_in_any_pass_skips_the_step_and_halves_the_scale(wrapper, number, style):
    model, optimizer = built(wrapper)
    scaler = GradScaler("cpu", init_scale=1024.0)
    step(optimizer, model, scaler, style)
    before, momentum = bits(model), [s["momentum_buffer"].clone() for s in optimizer.state.values()]

    step(optimizer, model, scaler, style, broken=number)
    assert scaler.get_scale() == 512.0
    assert same(before, bits(model))
    assert all(parameter.grad is None for parameter in model.parameters())
    now = [s["momentum_buffer"] for s in optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(momentum, now, strict=True))

    step(optimizer, model, scaler, style)  # and the next step is a good one
    assert scaler.get_scale() == 512.0
    assert not same(before, bits(model))


def step(
    optimizer: Any, model: nn.Module, scaler: GradScaler, style: str, broken: int | None = None
) -> None:
    def loss() -> Tensor:
        overflow = optimizer.gradient_pass == broken
        return loss_of(model) * (1e38 if overflow else 1.0)  # times the scale: infinite

    if style == "closure":
        optimizer.step(loss, scaler=scaler)
    else:
        for gradient_pass in optimizer.gradient_passes(scaler):
            gradient_pass.backward(loss())
        scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("wrapper", LOW)
def test_float16_that_overflows_at_a_high_scale_settles_and_trains(wrapper):
    """Real overflow: activations and gradients in float16, a scale of 2²⁴, no help from outside."""
    model, optimizer = built(wrapper)
    scaler = GradScaler("cpu", init_scale=2.0**24)
    losses, skipped = [], 0
    for _ in range(40):
        before = bits(model)
        for gradient_pass in optimizer.gradient_passes(scaler):
            loss = loss_of(model, half=torch.float16)
            gradient_pass.backward(loss)
            losses += [loss.item()] if gradient_pass.number == 0 else []
        scaler.step(optimizer)
        scaler.update()
        skipped += same(before, bits(model))
    assert skipped > 0 and scaler.get_scale() < 2.0**24
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize("max_norm", [None, 1e-2])
def test_clipping_sees_the_unscaled_combined_gradient(max_norm):
    ends = []
    for scaled in (True, False):
        model = network()
        optimizer = GAM(SGD(model.parameters(), lr=0.1), max_norm=max_norm, **own("gam"))
        scaler = GradScaler("cpu", init_scale=4096.0, enabled=scaled)
        for _ in range(2):
            for gradient_pass in optimizer.gradient_passes(scaler):
                gradient_pass.backward(loss_of(model))
            if max_norm is None:
                length = nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
                assert 1e-2 < length < 10
            assert gradient(model).norm() == pytest.approx(1e-2, rel=1e-3)
            scaler.step(optimizer)
            scaler.update()
        ends.append(bits(model))
    assert same(*ends)


def test_parts_of_a_batch_are_scaled_like_the_whole():
    ends = []
    for scaled in (True, False):
        model, optimizer = built("gam")
        scaler = GradScaler("cpu", init_scale=256.0, enabled=scaled)
        for gradient_pass in optimizer.gradient_passes(scaler):
            for share in (0.25, 0.75):
                gradient_pass.backward(share * loss_of(model))
        scaler.step(optimizer)
        ends.append(bits(model))
    assert same(*ends)


def test_a_second_step_before_the_update_of_the_scale_is_refused_by_torch():
    model, optimizer = built("sam")
    scaler = GradScaler("cpu")
    optimizer.step(lambda: loss_of(model), scaler=scaler)
    before = bits(model)
    with pytest.raises(RuntimeError, match=r"after step\(\)"):
        optimizer.step(lambda: loss_of(model), scaler=scaler)
    assert same(before, bits(model))


def test_without_a_scaler_an_overflow_is_an_error():
    model, optimizer = built("sam")
    with pytest.raises(NonFiniteError, match="in pass 1"):
        optimizer.step(lambda: loss_of(model) * (1e39 if optimizer.gradient_pass == 1 else 1.0))


@pytest.mark.gpu
@HALF
@pytest.mark.parametrize("wrapper", LOW)
def test_cuda_trains_with_autocast_a_scaler_and_fused_steps(wrapper, half):
    model = network("cuda")
    optimizer = WRAPPERS[wrapper](torch.optim.AdamW(model.parameters(), lr=0.01, fused=True))
    scaler = GradScaler("cuda", init_scale=2.0**20, enabled=half is torch.float16)
    losses = []
    for _ in range(40):
        losses.append(optimizer.step(lambda: loss_of(model, half=half), scaler=scaler))
        scaler.update()
    assert float(losses[-1]) < 0.75 * float(losses[0])


def test_the_radius_does_not_depend_on_the_scale():
    seen = []
    for scale in (1.0, 1024.0):
        model = network()
        start = torch.cat([p.flatten() for p in bits(model)])
        optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.3)
        scaler = GradScaler("cpu", init_scale=scale, enabled=scale != 1)
        for gradient_pass in optimizer.gradient_passes(scaler):
            now = torch.cat([p.flatten() for p in bits(model)])
            seen.append((now - start).norm().item())
            gradient_pass.backward(loss_of(model))
    assert seen == pytest.approx([0.0, 0.3, 0.0, 0.3], rel=1e-5)
