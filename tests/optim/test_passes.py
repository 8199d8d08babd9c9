"""The loop without a closure: the same steps, and parameters that are restored whatever happens."""

import copy
import gc
import math

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from flatkit.errors import InvalidArgumentError, NonFiniteError
from flatkit.optim import GAM, SAM
from tests.optim.test_contract import (
    PASSES,
    WRAPPERS,
    backward_wrapper,
    bits,
    built,
    every_wrapper,
    loss_of,
    run,
    same,
)


@every_wrapper
@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_a_loop_steps_like_a_closure(wrapper, base):
    model, optimizer = built(wrapper, base)
    twin, other = built(wrapper, base)
    run(model, optimizer, 3)
    for number in range(3):
        numbers = []
        for gradient_pass in other.gradient_passes():
            gradient_pass.backward(loss_of(twin, seed=number))
            numbers.append(gradient_pass.number)
        assert numbers == list(range(PASSES[wrapper]))
        assert other.step().item() == loss_of_before(model, number, wrapper, base)
    assert same(bits(model), bits(twin))


def loss_of_before(model: nn.Module, number: int, wrapper: str, base: str) -> float:
    again, optimizer = built(wrapper, base)
    run(again, optimizer, number)
    return loss_of(again, seed=number).item()


@backward_wrapper
def test_a_plain_backward_in_the_loop_is_as_good(wrapper):
    ends = []
    for plain in (True, False):
        model, optimizer = built(wrapper)
        for gradient_pass in optimizer.gradient_passes():
            loss = loss_of(model)
            loss.backward() if plain else gradient_pass.backward(loss)
        optimizer.step()
        ends.append(bits(model))
    assert same(*ends)


def part_of(model: nn.Module, rows: slice) -> Tensor:
    """Return the share of 11 samples that some of them have in their mean loss."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(11, 3, generator=g, dtype=torch.float64)
    y = torch.randint(0, 2, (11,), generator=g)
    return nn.functional.cross_entropy(model(x[rows]), y[rows], reduction="sum") / 11


@every_wrapper
def test_parts_of_a_batch_share_one_perturbation_like_the_whole(wrapper):
    whole, first = built(wrapper)
    run(whole, first, 1, start=1)
    parts, second = built(wrapper)
    for gradient_pass in second.gradient_passes():
        for rows in (slice(0, 4), slice(4, 5), slice(5, 11)):
            gradient_pass.backward(part_of(parts, rows))
    second.step()
    for ours, theirs in zip(bits(whole), bits(parts), strict=True):
        precision = 1e-9 if "differences" in wrapper else 1e-12
        torch.testing.assert_close(ours, theirs, rtol=precision, atol=precision)


@every_wrapper
@pytest.mark.parametrize("way", ["break", "raise", "abandoned", "kept"])
def test_a_loop_that_is_left_restores_the_parameters(wrapper, way):
    model, optimizer = built(wrapper)
    before = bits(model)

    def leave(passes) -> None:
        for gradient_pass in passes:
            if gradient_pass.number == 1:
                assert not same(before, bits(model))
                if way == "raise":
                    raise KeyboardInterrupt
                break
            gradient_pass.backward(loss_of(model))

    gc.disable()  # what happens must not depend on the collector
    try:
        if way == "raise":
            with pytest.raises(KeyboardInterrupt):
                leave(optimizer.gradient_passes())
        elif way == "break":
            leave(optimizer.gradient_passes())
        elif way == "abandoned":
            passes = optimizer.gradient_passes()
            leave(passes)
            del passes
        else:  # somebody holds the generator: the next step ends it
            passes = optimizer.gradient_passes()
            leave(passes)
            assert not same(before, bits(model))
            run(model, optimizer, 1)
            twin, other = built(wrapper)
            run(twin, other, 1)
            assert same(bits(model), bits(twin))
            return
    finally:
        gc.enable()
    assert same(before, bits(model))
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(InvalidArgumentError, match=r"loop over gradient_passes\(\)"):
        optimizer.step()


def test_the_first_name_of_the_loop_still_works():
    ends = []
    for name in ("gradient_passes", "phases"):
        model, optimizer = built("gam")
        for visit in getattr(optimizer, name)(None):
            visit.backward(loss_of(model))
        optimizer.step()
        ends.append(bits(model))
    assert same(*ends) and not same(ends[0], bits(built("gam")[0]))


def test_one_completed_loop_allows_one_step():
    model, optimizer = built("gam")
    for gradient_pass in optimizer.gradient_passes():
        gradient_pass.backward(loss_of(model))
    optimizer.step()
    with pytest.raises(InvalidArgumentError, match="needs a closure"):
        optimizer.step()


def test_a_round_without_a_gradient_is_named():
    model, optimizer = built("sam")
    before = bits(model)
    with pytest.raises(InvalidArgumentError, match="pass 1 ended without a gradient"):
        for gradient_pass in optimizer.gradient_passes():
            if gradient_pass.number == 0:
                gradient_pass.backward(loss_of(model))
    assert same(before, bits(model))


def test_a_backward_of_the_loop_is_refused_where_the_loss_is_differentiated_twice():
    model, optimizer = built("exact gam")
    with pytest.raises(InvalidArgumentError, match=r"gradient_pass\.backward\(loss\)"):
        for _ in optimizer.gradient_passes():
            loss_of(model).backward()


def test_a_gradient_that_is_not_finite_ends_the_loop():
    model, optimizer = built("gam")
    before = bits(model)
    with pytest.raises(NonFiniteError, match="in pass 2"):
        for gradient_pass in optimizer.gradient_passes():
            gradient_pass.backward(
                loss_of(model) * (math.nan if gradient_pass.number == 2 else 1.0)
            )
    assert same(before, bits(model)) and not optimizer.state


def test_gradients_are_on_in_the_loop_and_as_before_after_it():
    model, optimizer = built("gam")
    for gradient_pass in optimizer.gradient_passes():
        assert torch.is_grad_enabled()
        with torch.inference_mode(False):
            gradient_pass.backward(loss_of(model))
    assert torch.is_grad_enabled()


def test_gradients_may_be_clipped_between_the_loop_and_the_step():
    model, optimizer = built("gam")
    twin = WRAPPERS["gam"](SGD(model.parameters(), lr=0.0))
    twin.step(lambda: loss_of(model))
    combined = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    for gradient_pass in optimizer.gradient_passes():
        gradient_pass.backward(loss_of(model))
    length = nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    before = bits(model)
    optimizer.step()
    for old, new, gradient in zip(before, bits(model), combined, strict=True):
        # A first step of momentum SGD: its own weight decay is not clipped.
        expected = old - 0.05 * (gradient * (1e-3 / (length + 1e-6)) + 0.01 * old)
        torch.testing.assert_close(new, expected, rtol=1e-12, atol=1e-15)


@every_wrapper
def test_max_norm_clips_the_combined_gradient_right_before_the_base(wrapper):
    model, optimizer = built(wrapper)
    run(model, optimizer, 1)
    combined = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    for allowed in (0.5, 2.0):
        twin, _ = built(wrapper)
        clipped = type(optimizer)(
            SGD(twin.parameters(), lr=0.0),
            max_norm=allowed * combined.norm().item(),
            **own(wrapper),
        )
        clipped.step(lambda twin=twin: loss_of(twin, seed=0))
        got = torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None])
        torch.testing.assert_close(got, combined * min(allowed, 1.0), rtol=1e-9, atol=1e-12)


def own(wrapper: str) -> dict:
    return {
        "sam": {"rho": 0.1},
        "asam": {"rho": 0.1},
        "gsam": {"rho": 0.1},
        "gam": {"rho": 0.1, "rho_prime": 0.05},
        "exact gam": {"mode": "exact", "rho": 0.1},
        "gam over sam": {"oracle": "sam", "rho": 0.1, "rho_prime": 0.05},
        "differences over sam": {
            "mode": "exact",
            "oracle": "sam",
            "engine": "central_difference",
            "rho": 0.1,
        },
        "single tensor gam": {"rho": 0.1, "foreach": False, "adaptive": True},
    }[wrapper]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_only_each_kth_step_is_perturbed_and_the_count_is_saved(every):
    model, optimizer = gam_every(every)
    passes = []
    for number in range(7):
        count = 0
        for gradient_pass in optimizer.gradient_passes():
            gradient_pass.backward(loss_of(model, seed=number))
            count += 1
        optimizer.step()
        passes.append(count)
        again, resumed = gam_every(every)
        again.load_state_dict(model.state_dict())
        resumed.load_state_dict(optimizer.state_dict())
        model, optimizer = again, resumed
    assert passes == [4 if number % every == 0 else 1 for number in range(7)]
    assert optimizer.mean_passes == pytest.approx((4 + every - 1) / every)


def gam_every(every: int) -> tuple[nn.Module, GAM]:
    model, _ = built("sam")
    return model, GAM(SGD(model.parameters(), lr=0.05, momentum=0.9), every=every)


def test_the_steps_between_are_the_base_bit_for_bit():
    model, _ = built("sam")
    optimizer = SAM(SGD(model.parameters(), lr=0.05, momentum=0.9), every=5)
    run(model, optimizer, 1)
    twin, _ = built("sam")
    plain = SGD(twin.parameters(), lr=0.05, momentum=0.9)
    twin.load_state_dict(model.state_dict())
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(model, optimizer, 4, start=1)
    for number in range(1, 5):
        plain.zero_grad()
        loss_of(twin, seed=number).backward()
        plain.step()
    assert same(bits(model), bits(twin))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"every": 0}, "every must be a whole number"),
        ({"max_norm": 0.0}, "max_norm must be"),
        ({"eta": -1.0}, "eta must be"),
        ({"batch": "globl"}, "did you mean 'global'"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, words):
    with pytest.raises(InvalidArgumentError, match=words):
        SAM(SGD([torch.ones(1, requires_grad=True)], lr=0.1), **wrong)
    with pytest.raises(TypeError, match="nesterow"):
        SAM(SGD([torch.ones(1, requires_grad=True)], lr=0.1), nesterow=True)  # type: ignore[call-arg]
