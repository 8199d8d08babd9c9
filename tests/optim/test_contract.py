"""What a torch optimizer promises, held by SAM, GAM and their relatives over any base."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, Optimizer, RMSprop, lr_scheduler

from flatkit.errors import InvalidArgumentError, NonFiniteError
from flatkit.optim import ASAM, GAM, GSAM, SAM, PerturbedOptimizer
from flatkit.optim.blockwise import Blockwise
from tests.optim.step_reference import BASES

WRAPPERS: dict[str, Callable[[Optimizer], PerturbedOptimizer]] = {
    "sam": lambda base: SAM(base, rho=0.1),
    "gam": lambda base: GAM(base, rho=0.1, rho_prime=0.05),
    "exact gam": lambda base: GAM(base, mode="exact", rho=0.1),
    "asam": lambda base: ASAM(base, rho=0.1),
    "gsam": lambda base: GSAM(base, rho=0.1),
    "gam over sam": lambda base: GAM(base, oracle="sam", rho=0.1, rho_prime=0.05),
    "differences over sam": lambda base: GAM(
        base, mode="exact", oracle="sam", engine="central_difference", rho=0.1
    ),
    "single tensor gam": lambda base: GAM(base, rho=0.1, foreach=False, adaptive=True),
}
PASSES = dict(zip(WRAPPERS, (2, 4, 2, 2, 2, 5, 7, 4), strict=True))
TORCH_BASES = [
    *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax"),
    *("ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
]

every_wrapper = pytest.mark.parametrize("wrapper", WRAPPERS)
backward_wrapper = pytest.mark.parametrize("wrapper", [n for n in WRAPPERS if n != "exact gam"])
every_base = pytest.mark.parametrize("base", BASES)
every_pass = pytest.mark.parametrize(
    ("wrapper", "number"),
    [(name, k) for name, passes in PASSES.items() for k in range(passes)],
)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def loss_of(model: nn.Module, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(11, 3, generator=g, dtype=torch.float64)
    y = torch.randint(0, 2, (11,), generator=g)
    return nn.functional.cross_entropy(model(x), y)


def run(model: nn.Module, optimizer: Optimizer, steps: int, start: int = 0) -> None:
    step: Any = optimizer.step
    for number in range(start, start + steps):
        step(lambda number=number: loss_of(model, seed=number))


def bits(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def built(wrapper: str, base: str = "sgd") -> tuple[nn.Module, PerturbedOptimizer]:
    model = network()
    return model, WRAPPERS[wrapper](BASES[base](model.parameters()))


@every_wrapper
@pytest.mark.parametrize("name", TORCH_BASES)
def test_every_base_steps_with_the_combined_gradient_and_its_own_options(wrapper, name):
    make = getattr(torch.optim, name, None)
    if make is None:
        pytest.skip(f"this torch has no {name}")
    model, twin = network(), network()
    optimizer, plain = WRAPPERS[wrapper](make(model.parameters())), make(twin.parameters())
    for number in range(3):
        run(model, optimizer, 1, start=number)
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            assert ours.grad is not None
            theirs.grad = ours.grad.clone()
        plain.step()
    assert same(bits(model), bits(twin))
    for key, value in plain.param_groups[0].items():
        assert key == "params" or optimizer.param_groups[0][key] == value


def test_an_option_whose_name_the_base_owns_gets_a_prefix():
    theta = torch.ones(1, requires_grad=True)
    group = SAM(torch.optim.Adadelta([theta], rho=0.9), rho=0.05).param_groups[0]
    assert (group["rho"], group["sam_rho"]) == (0.9, 0.05)
    group = GAM(RMSprop([theta], alpha=0.99), alpha=0.6).param_groups[0]
    assert (group["alpha"], group["gam_alpha"], group["rho"]) == (0.99, 0.6, 0.2)


@every_wrapper
def test_groups_state_and_defaults_are_those_of_the_base_always(wrapper):
    model, optimizer = built(wrapper)

    def shared() -> bool:
        names = ("param_groups", "state", "defaults")
        return all(getattr(optimizer, n) is getattr(optimizer.base, n) for n in names)

    assert isinstance(optimizer, Optimizer) and shared()
    run(model, optimizer, 2)
    assert shared() and len(optimizer.state) == 4
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert shared() and len(optimizer.state) == 4
    optimizer.base.load_state_dict(copy.deepcopy(optimizer.base.state_dict()))
    assert shared() and len(optimizer.state) == 4
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2).double())]})
    assert shared() and len(optimizer.param_groups) == 2


@every_wrapper
def test_an_added_group_gets_the_options_and_takes_part(wrapper):
    model, optimizer = built(wrapper)
    extra = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [extra], "lr": 0.3})
    assert optimizer.param_groups[1]["rho"] == 0.1 and optimizer.param_groups[1]["lr"] == 0.3
    optimizer.step(lambda: loss_of(model) + extra.square().sum())
    assert (extra < 1).all()
    with pytest.raises(InvalidArgumentError, match="rho must be"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "rho": -1.0})
    assert len(optimizer.param_groups) == 2


@every_wrapper
@every_base
def test_training_continues_bit_for_bit_from_a_saved_state(wrapper, base):
    model, optimizer = built(wrapper, base)
    run(model, optimizer, 5)
    optimizer.param_groups[0]["rho"] = 0.07
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    run(model, optimizer, 5, start=5)

    again, resumed = built(wrapper, base)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.param_groups[0]["rho"] == 0.07
    run(again, resumed, 5, start=5)
    assert same(bits(model), bits(again))


@every_wrapper
def test_the_state_of_a_plain_base_loads_and_leaves_the_own_options(wrapper):
    model, optimizer = built(wrapper)
    optimizer.param_groups[0]["rho"] = 0.03
    plain = BASES["sgd"](model.parameters())
    loss_of(model).backward()
    plain.step()
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.param_groups[0]["rho"] == 0.03
    first = next(model.parameters())
    assert torch.equal(
        optimizer.state[first]["momentum_buffer"], plain.state[first]["momentum_buffer"]
    )


def test_a_loaded_option_out_of_range_is_refused_and_nothing_changes():
    _, optimizer = built("sam")
    state = optimizer.state_dict()
    state["param_groups"][0] |= {"rho": -1.0, "lr": 9.0}
    with pytest.raises(InvalidArgumentError, match="rho must be"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.05


@every_pass
def test_an_error_in_any_pass_puts_the_weights_back_and_takes_no_step(wrapper, number):
    model, optimizer = built(wrapper, "adamw")
    run(model, optimizer, 2)
    before, moments = bits(model), copy.deepcopy(optimizer.state_dict()["state"])
    moved = []

    def closure() -> Tensor:
        moved.append(not same(before, bits(model)))
        loss = loss_of(model)
        if optimizer.gradient_pass == number:
            raise KeyboardInterrupt
        return loss

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert moved == [k > 0 for k in range(number + 1)]
    assert same(before, bits(model))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert optimizer.gradient_pass == 0
    for index, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(state[key], moments[index][key]) for key in state)
    run(model, optimizer, 1)
    assert not same(before, bits(model))


@every_pass
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_without_a_finite_norm_stops_before_the_base(wrapper, number, bad):
    model, optimizer = built(wrapper)
    before = bits(model)

    def closure() -> Tensor:
        factor = bad if optimizer.gradient_pass == number else 1.0
        return loss_of(model) * factor

    with pytest.raises(NonFiniteError, match=f"in pass {number}"):
        optimizer.step(closure)
    assert same(before, bits(model))
    assert not optimizer.state


@every_wrapper
def test_gradient_pass_counts_within_a_step_and_gradients_are_enabled(wrapper):
    model, optimizer = built(wrapper)
    seen: list[tuple[int, bool]] = []

    def closure() -> Tensor:
        seen.append((optimizer.gradient_pass, torch.is_grad_enabled()))
        return loss_of(model)

    with torch.no_grad():
        optimizer.step(closure)
    assert seen == [(number, True) for number in range(optimizer.passes)]
    assert optimizer.gradient_pass == 0


@backward_wrapper
def test_backward_by_the_closure_or_by_the_optimizer_is_the_same(wrapper):
    ends = []
    for style in ("left", "called", "called twice", "called, returns a float"):
        model, optimizer = built(wrapper)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 7.0)  # must not leak into the step

        def closure(model: nn.Module = model, style: str = style) -> Any:
            loss = loss_of(model)
            if style == "called twice":
                (0.25 * loss).backward(retain_graph=True)
                (0.75 * loss).backward()
            elif style != "left":
                loss.backward()
            return loss.item() if "float" in style else loss

        losses = [float(optimizer.step(closure)) for _ in range(3)]
        ends.append((losses, torch.cat([p.flatten() for p in bits(model)])))
    for losses, end in ends:
        assert losses == pytest.approx(ends[0][0], rel=1e-14)
        # Differences multiply the rounding of two backward passes by the inverse of their step.
        precision = 1e-10 if "differences" in wrapper else 1e-14
        torch.testing.assert_close(end, ends[0][1], rtol=precision, atol=precision)


@backward_wrapper
@pytest.mark.parametrize("only_in", [0, 1])
def test_a_parameter_used_in_one_pass_only_is_put_back_and_counts_as_zero_elsewhere(
    wrapper, only_in
):
    always = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    sometimes = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    optimizer = WRAPPERS[wrapper](SGD([always, sometimes], lr=0.0))

    def closure(zero: bool) -> Tensor:
        loss = always.square().sum()
        if optimizer.gradient_pass == only_in:
            return loss + sometimes.square().sum()
        return loss + 0 * sometimes.sum() if zero else loss

    gradients = []
    for zero in (False, True):
        optimizer.step(lambda zero=zero: closure(zero))
        assert always.tolist() == [1.0, 2.0] and sometimes.item() == 3.0
        assert always.grad is not None and sometimes.grad is not None
        gradients.append(torch.cat([always.grad, sometimes.grad]))
    assert torch.equal(*gradients)


@every_wrapper
def test_frozen_and_unused_parameters_are_left_to_the_base_without_gradient(wrapper):
    used, unused, frozen = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(3))
    frozen.requires_grad_(False)
    frozen.grad = torch.ones_like(frozen)  # stale: from before it was frozen
    optimizer = WRAPPERS[wrapper](SGD([used, unused, frozen], lr=0.1, weight_decay=0.5))
    optimizer.step(lambda: (used * frozen).square().sum())
    assert unused.grad is None and frozen.grad is None
    assert unused.tolist() == [1.0, 1.0] and frozen.tolist() == [1.0, 1.0]
    assert used[0] < 1


@every_wrapper
def test_tied_weights_step_like_one_weight_used_twice(wrapper):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3, bias=False).double()
            self.second = nn.Linear(3, 3, bias=False).double()
            self.first.weight.data = torch.eye(3, dtype=torch.float64) * 0.5
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x)))

    model, weight = Tied(), torch.eye(3, dtype=torch.float64).mul(0.5).requires_grad_()
    x = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    tied = WRAPPERS[wrapper](SGD(model.parameters(), lr=0.1))
    plain = WRAPPERS[wrapper](SGD([weight], lr=0.1))
    for _ in range(3):
        tied.step(lambda: model(x).square().mean())
        plain.step(lambda: (torch.tanh(x @ weight.T) @ weight.T).square().mean())
    torch.testing.assert_close(model.first.weight.detach(), weight.detach(), rtol=1e-13, atol=0)
    assert model.second.weight is model.first.weight


@every_wrapper
def test_a_zero_gradient_makes_no_nan_and_leaves_the_step_to_the_base(wrapper):
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = WRAPPERS[wrapper](SGD([theta], lr=0.1, weight_decay=0.1))
    optimizer.step(lambda: theta.square().sum() / 2)
    assert theta.grad is not None and theta.grad.abs().max() == 0
    assert theta.tolist() == [0.0] * 3


@every_wrapper
@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=7),
        lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    ],
)
def test_schedulers_take_the_wrapper_without_a_warning(wrapper, schedule):
    rates = []
    for wrap in (WRAPPERS[wrapper], lambda base: base):
        model = network()
        optimizer = wrap(SGD(model.parameters(), lr=0.1, momentum=0.9))
        scheduler = schedule(optimizer)
        rates.append([])
        for number in range(6):
            step: Any = optimizer.step

            def closure(model=model, number=number, optimizer=optimizer) -> Tensor:
                loss = loss_of(model, seed=number)
                if isinstance(optimizer, SGD):
                    optimizer.zero_grad()
                    loss.backward()
                return loss

            step(closure)
            plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*([1.0] if plateau else []))
            rates[-1].append(optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1


# Tensors of torch 2.4 unpickle by a call of their own that torch warns of.
@pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")
@every_wrapper
@every_base
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_continues_alone_and_bit_for_bit(wrapper, base, duplicate):
    model, optimizer = built(wrapper, base)
    lr_scheduler.StepLR(optimizer, 100)  # wraps `step` in a function that cannot be pickled
    run(model, optimizer, 3)
    twin_model, twin = duplicate((model, optimizer))
    before = bits(model)
    run(twin_model, twin, 3, start=3)
    assert same(before, bits(model))
    run(model, optimizer, 3, start=3)
    assert same(bits(model), bits(twin_model))
    assert twin.param_groups is twin.base.param_groups and twin.passes == optimizer.passes


@every_wrapper
def test_hooks_fire_once_a_step_and_around_states(wrapper):
    model, optimizer = built(wrapper)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.base.register_step_pre_hook(lambda *_: calls.append("base"))
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("save"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "note": 1})
    optimizer.register_load_state_dict_pre_hook(lambda _, state: calls.append("load"))
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("loaded"))
    run(model, optimizer, 1)
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    assert calls == ["before", "base", "after", "save", "load", "loaded"]
    assert state["note"] == 1


@every_wrapper
def test_zero_grad_clears_the_gradients(wrapper):
    model, optimizer = built(wrapper)
    run(model, optimizer, 1)
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


@every_wrapper
def test_memory_of_the_parameters_is_never_rebound(wrapper):
    flat = torch.linspace(-1, 1, 5, dtype=torch.float64)
    parts = [nn.Parameter(flat[:2]), nn.Parameter(flat[2:])]
    optimizer = WRAPPERS[wrapper](SGD(parts, lr=0.1))
    optimizer.step(lambda: sum((part**4).sum() for part in parts))
    assert torch.equal(flat, torch.cat([part.detach() for part in parts]))
    assert flat[0] != -1


@every_wrapper
def test_dtypes_may_be_mixed_and_share_one_norm(wrapper):
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    parts = [nn.Parameter(torch.full((2,), 0.5, dtype=dtype)) for dtype in dtypes]
    wide = nn.Parameter(torch.full((6,), 0.5, dtype=torch.float64))
    optimizer = WRAPPERS[wrapper](SGD(parts, lr=0.0))
    optimizer.step(lambda: torch.stack([(part.double() ** 4).sum() for part in parts]).sum())
    WRAPPERS[wrapper](SGD([wide], lr=0.0)).step(lambda: (wide**4).sum())
    assert wide.grad is not None
    assert [part.tolist() for part in parts] == [[0.5, 0.5]] * 3
    for part, precision in zip(parts, (2e-3, 2e-3, 2e-2), strict=True):
        assert part.grad is not None and part.grad.dtype == part.dtype
        torch.testing.assert_close(part.grad.double(), wide.grad[:2], rtol=precision, atol=1e-6)


def test_large_half_precision_gradients_still_have_a_norm():
    theta = nn.Parameter(torch.ones(16, dtype=torch.float16))
    seen = []

    def closure() -> Tensor:
        seen.append(theta.tolist())
        return 3e4 * theta.float().sum()  # a gradient of norm 1.2e5; float16 ends at 65504

    SAM(SGD([theta], lr=0.0), rho=1.0).step(closure)
    assert seen == [[1.0] * 16, [1.25] * 16]


def test_small_half_precision_vectors_are_projected():
    x = [[torch.tensor([1e-4, 1e-4], dtype=torch.float16)]]  # 1e-8 is zero in float16
    Blockwise().project_out_(x, [[torch.tensor([1e-4, 0.0], dtype=torch.float16)]])
    assert x[0][0].tolist() == pytest.approx([0.0, 1e-4], rel=1e-2, abs=1e-7)


@every_wrapper
def test_empty_parameters_do_no_harm(wrapper):
    empty, theta = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.ones(2))
    WRAPPERS[wrapper](SGD([empty, theta], lr=0.1)).step(lambda: theta.square().sum() + empty.sum())
    assert theta[0] < 1


@every_wrapper
def test_the_copy_of_a_gradient_does_not_depend_on_what_holds_it(wrapper):
    """Autograd hands out one tensor for several parameters here, and views without memory."""
    a, b = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    WRAPPERS[wrapper](SGD([a, b], lr=0.1)).step(lambda: (a + b).sum())
    assert a.grad is not None and b.grad is not None
    assert a.grad.data_ptr() != b.grad.data_ptr()
    assert torch.equal(a.detach(), torch.full((3,), 0.9, dtype=torch.float64))
    assert torch.equal(a, b)


@pytest.mark.parametrize("make", [SAM, GSAM])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_one_gradient_that_autograd_leaves_to_two_parameters_is_changed_once(make, scale):
    """Of a sum of views: clipped or unscaled in place, it would be shortened twice."""

    def stepped(*, alone: bool) -> tuple[list[Tensor], bool]:
        a, b = (nn.Parameter(torch.tensor(values)) for values in ([1.0, -2.0], [0.5, 3.0]))
        optimizer = make(SGD([a, b], lr=0.1), rho=0.5, max_norm=0.7)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1)
        shared = False

        def closure() -> Tensor:
            nonlocal shared
            loss = (a.view(2, 1) + b.view(2, 1)).pow(4).sum()
            scaler.scale(loss).backward()
            assert a.grad is not None and b.grad is not None
            shared = a.grad.data_ptr() == b.grad.data_ptr()
            if alone:
                a.grad, b.grad = a.grad.clone(), b.grad.clone()
            return loss

        optimizer.step(closure, scaler=scaler)
        assert a.grad is not None and b.grad is not None
        length = torch.cat([a.grad, b.grad]).norm().item()
        assert length == pytest.approx(0.7, rel=1e-6)
        return [a, b], shared

    left, shared = stepped(alone=False)
    assert shared  # or this test shows nothing
    assert same(left, stepped(alone=True)[0])


@backward_wrapper
def test_the_gradient_that_is_left_has_no_graph(wrapper):
    """Also where the closure made one, which would keep every step alive."""
    theta = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))

    def closure() -> Tensor:
        loss = theta.pow(4).sum()
        (theta.grad,) = torch.autograd.grad(loss, theta, create_graph=True)
        return loss

    WRAPPERS[wrapper](SGD([theta], lr=0.01)).step(closure)
    assert theta.grad is not None
    assert not theta.grad.requires_grad


@backward_wrapper
def test_gradients_that_a_backend_writes_into_its_own_memory_are_safe(wrapper):
    """Data-parallel buckets keep one buffer for `.grad` and overwrite it in each pass."""
    theta, twin = (nn.Parameter(torch.tensor([1.0, -2.0]).double()) for _ in range(2))
    bucket = torch.zeros(2, dtype=torch.float64)

    def closure() -> Tensor:
        loss = (theta**4).sum()
        (gradient,) = torch.autograd.grad(loss, theta)
        theta.grad = bucket.copy_(gradient)
        return loss

    WRAPPERS[wrapper](SGD([theta], lr=0.01)).step(closure)
    WRAPPERS[wrapper](SGD([twin], lr=0.01)).step(lambda: (twin**4).sum())
    assert torch.equal(theta, twin)


def sgd() -> SGD:
    return SGD([torch.ones(2, requires_grad=True)], lr=0.1)


@pytest.mark.parametrize("make", [SAM, GAM])
def test_what_is_not_a_base_is_refused(make):
    with pytest.raises(InvalidArgumentError, match=r"class SGD; build it first"):
        make(SGD)
    with pytest.raises(InvalidArgumentError, match=r"torch\.optim\.Optimizer"):
        make([torch.ones(1, requires_grad=True)])
    with pytest.raises(InvalidArgumentError, match=r"plain optimizer, got SAM"):
        make(SAM(sgd()))
    with pytest.raises(InvalidArgumentError, match="LBFGS calls the closure itself"):
        make(LBFGS([torch.ones(1, requires_grad=True)]))
    with pytest.raises(InvalidArgumentError, match="must be real"):
        make(SGD([torch.ones(1, dtype=torch.complex64, requires_grad=True)], lr=0.1))


def test_a_base_in_use_is_refused_but_one_of_a_failed_call_is_not():
    base = sgd()
    with pytest.raises(InvalidArgumentError, match="rho must be"):
        SAM(base, rho=-1.0)
    assert "rho" not in base.param_groups[0] and "rho" not in base.defaults
    assert SAM(base, rho=0.3).param_groups[0]["rho"] == 0.3
    with pytest.raises(InvalidArgumentError, match="already wrapped by SAM"):
        GAM(base)


@every_wrapper
def test_a_radius_that_a_schedule_spoils_is_refused_at_the_step(wrapper):
    model, optimizer = built(wrapper)
    before = bits(model)
    optimizer.param_groups[0]["rho"] = math.nan
    with pytest.raises(InvalidArgumentError, match="rho must be a finite number >= 0, got nan"):
        run(model, optimizer, 1)
    assert same(before, bits(model))


def test_a_group_with_a_bad_radius_is_refused():
    base = SGD([{"params": [torch.ones(1, requires_grad=True)], "rho": -0.5}], lr=0.1)
    with pytest.raises(InvalidArgumentError, match=r"rho must be .* got -0\.5"):
        SAM(base)


@every_wrapper
def test_a_step_without_closure_says_what_to_pass(wrapper):
    with pytest.raises(InvalidArgumentError, match="needs a closure that returns the loss"):
        WRAPPERS[wrapper](sgd()).step()


@every_wrapper
@pytest.mark.parametrize(
    ("closure", "words"),
    [
        (lambda theta: None, "got None"),
        (lambda theta: 1.5, "got float and no gradient"),
        (lambda theta: theta.square(), r"shape \[2\]; take its mean"),
        (lambda theta: theta.detach().sum(), "does not depend on any free parameter"),
    ],
)
def test_a_closure_without_a_usable_loss_is_named(wrapper, closure, words):
    theta = torch.ones(2, requires_grad=True)
    with pytest.raises(InvalidArgumentError, match=words):
        WRAPPERS[wrapper](SGD([theta], lr=0.1)).step(lambda: closure(theta))


def test_a_closure_that_clears_its_gradients_is_named():
    theta = torch.ones(2, requires_grad=True)

    def closure() -> Tensor:
        loss = theta.square().sum()
        loss.backward()
        theta.grad = None
        return loss

    with pytest.raises(InvalidArgumentError, match="called backward"):
        SAM(SGD([theta], lr=0.1)).step(closure)


def test_errors_of_the_closure_pass_unchanged():
    def closure() -> Tensor:
        raise RuntimeError("out of cheese")

    with pytest.raises(RuntimeError, match="out of cheese"):
        SAM(sgd()).step(closure)


def test_it_names_itself_and_its_base():
    assert repr(SAM(Adam([torch.ones(1, requires_grad=True)]))).startswith("SAM over Adam (")
