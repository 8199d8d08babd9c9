"""GAM, both algorithms, against their formulas in NumPy and against a dense Hessian."""

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from flatkit.errors import InvalidArgumentError
from flatkit.optim import GAM
from flatkit.optim.autograd import Passes
from flatkit.optim.perturb import PerturbedPoint
from tests.optim.step_reference import (
    BASES,
    FUNCTIONS,
    Array,
    accelerated_gam,
    exact_gam,
    four_gradients,
    joined,
    orthogonal_part,
    reference_trajectory,
    sam,
    split,
    trajectory,
    vector,
)

T = TypeVar("T")
SETTINGS: dict[str, Any] = {
    "rho": 0.2,
    "rho_prime": 0.05,
    "alpha": 0.7,
    "beta": 0.4,
    "gamma": 0.3,
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)
every_base = pytest.mark.parametrize("base", BASES)


def sgd() -> SGD:
    return SGD([torch.ones(1, requires_grad=True)], lr=0.1)


def gradient_after(optimizer: GAM, function, parameters: list[Tensor]) -> Array:
    optimizer.step(lambda: function.loss(parameters))
    return joined([parameter.grad for parameter in parameters if parameter.grad is not None])


@every_function
def test_an_accelerated_step_leaves_the_gradient_of_algorithm_2(name):
    function = FUNCTIONS[name]
    theta = vector(function.size, seed=20)
    parameters = split(theta)
    gradient = gradient_after(GAM(SGD(parameters, lr=0.1), **SETTINGS), function, parameters)
    expected = accelerated_gam(function.gradient, theta, **SETTINGS)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)
    np.testing.assert_allclose(joined(parameters), theta - 0.1 * expected, rtol=1e-12)


@every_function
def test_an_exact_step_leaves_the_gradient_of_algorithm_1(name):
    function = FUNCTIONS[name]
    theta = vector(function.size, seed=21)
    parameters = split(theta)
    optimizer = GAM(SGD(parameters, lr=0.1), mode="exact", rho=0.3, alpha=1.5)
    gradient = gradient_after(optimizer, function, parameters)
    expected = exact_gam(function.gradient, function.hessian, theta, rho=0.3, alpha=1.5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)
    np.testing.assert_allclose(joined(parameters), theta - 0.1 * expected, rtol=1e-12)


@every_function
@every_base
def test_fifty_accelerated_steps_follow_algorithm_2(name, base):
    function = FUNCTIONS[name]
    theta = vector(function.size, seed=22)

    def combined(point: Array) -> Array:
        return accelerated_gam(function.gradient, point, **SETTINGS)

    expected = reference_trajectory(theta, BASES[base], combined, 50)
    got = trajectory(function, GAM(BASES[base](split(theta)), **SETTINGS), 50)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@every_function
@every_base
def test_fifty_exact_steps_follow_algorithm_1(name, base):
    function = FUNCTIONS[name]
    theta = vector(function.size, seed=23)

    def combined(point: Array) -> Array:
        return exact_gam(function.gradient, function.hessian, point, rho=0.2, alpha=0.5)

    expected = reference_trajectory(theta, BASES[base], combined, 50)
    got = trajectory(function, GAM(BASES[base](split(theta)), mode="exact", rho=0.2, alpha=0.5), 50)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("option", SETTINGS)
def test_each_option_may_differ_between_groups_of_the_accelerated_mode(option):
    function = FUNCTIONS["quartic"]
    theta = vector(function.size, seed=24)
    own = SETTINGS[option] / 2
    arrays = SETTINGS | {option: np.array([own, own, SETTINGS[option], SETTINGS[option]])}
    first, second = parameters = split(theta)
    base = SGD([{"params": [first], option: own}, {"params": [second]}], lr=0.1)
    gradient = gradient_after(GAM(base, **SETTINGS), function, parameters)
    expected = accelerated_gam(function.gradient, theta, **arrays)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)


@pytest.mark.parametrize("option", ["rho", "alpha"])
def test_each_option_may_differ_between_groups_of_the_exact_mode(option):
    function = FUNCTIONS["quartic"]
    theta = vector(function.size, seed=25)
    settings: dict[str, Any] = {"rho": 0.3, "alpha": 0.8}
    arrays = settings | {option: np.array([0.1, 0.1, settings[option], settings[option]])}
    first, second = parameters = split(theta)
    base = SGD([{"params": [first], option: 0.1}, {"params": [second]}], lr=0.1)
    gradient = gradient_after(GAM(base, mode="exact", **settings), function, parameters)
    expected = exact_gam(function.gradient, function.hessian, theta, **arrays)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.3, 1.0])
def test_the_released_rule_is_reproduced(beta):
    function = FUNCTIONS["quartic"]
    theta = vector(function.size, seed=26)
    parameters = split(theta)
    released = SETTINGS | {"beta": beta}
    optimizer = GAM.from_released_code(SGD(parameters, lr=0.1), **released)
    gradient = gradient_after(optimizer, function, parameters)

    radii = {"rho": SETTINGS["rho"], "rho_prime": SETTINGS["rho_prime"]}
    g0, g1, g2, g3 = four_gradients(function.gradient, theta, **radii)
    h_plus = SETTINGS["alpha"] * g1 + (1 - SETTINGS["alpha"]) * g3
    h_minus = g0 + abs(1 - beta) * g2
    expected = h_plus - SETTINGS["gamma"] * orthogonal_part(h_minus, h_plus)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)


@pytest.mark.parametrize("wrong", [{"beta": 1.5}, {"beta": -0.1}, {"gamma": -1.0}, {"alpha": 2.0}])
def test_released_settings_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(InvalidArgumentError, match=name):
        GAM.from_released_code(sgd(), **(SETTINGS | wrong))


def tanh_network(theta: Tensor) -> Tensor:
    """Return the cross-entropy of a 3-4-2 network on nine samples; θ has 26 entries."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(9, 3, generator=g, dtype=torch.float64)
    y = torch.randint(0, 2, (9,), generator=g)
    w1, b1, w2, b2 = theta.split([12, 4, 8, 2])
    logits = torch.tanh(x @ w1.view(3, 4) + b1) @ w2.view(4, 2) + b2
    return torch.nn.functional.cross_entropy(logits, y)


def dense(theta: Array) -> tuple[Array, Array]:
    point = torch.from_numpy(theta)
    gradient = torch.autograd.functional.jacobian(tanh_network, point)
    hessian = torch.autograd.functional.hessian(tanh_network, point)
    assert isinstance(gradient, Tensor) and isinstance(hessian, Tensor)
    return gradient.numpy(), hessian.numpy()


def test_the_gradient_of_the_gradient_norm_equals_the_dense_hessian_and_differences():
    theta = vector(26, seed=27)
    parameters = [p.clone().requires_grad_() for p in torch.from_numpy(theta).split([12, 4, 8, 2])]
    point = PerturbedPoint([{"params": parameters}], eps=1e-12)
    got_gradient, got_norm_gradient = result(
        point.gradient_and_norm_gradient(), lambda: tanh_network(torch.cat(parameters))
    )
    gradient, hessian = dense(theta)
    norm_gradient = joined(got_norm_gradient[0])
    np.testing.assert_allclose(joined(got_gradient[0]), gradient, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(
        norm_gradient, hessian @ gradient / np.linalg.norm(gradient), rtol=1e-10, atol=1e-14
    )
    direction, step = vector(26, seed=28), 1e-5
    ahead, behind = dense(theta + step * direction)[0], dense(theta - step * direction)[0]
    slope = (np.linalg.norm(ahead) - np.linalg.norm(behind)) / (2 * step)
    assert norm_gradient @ direction == pytest.approx(slope, rel=1e-6)


def test_an_exact_step_on_a_network_equals_the_dense_hessian():
    theta = vector(26, seed=29)
    parameters = [p.clone().requires_grad_() for p in torch.from_numpy(theta).split([12, 4, 8, 2])]
    optimizer = GAM(SGD(parameters, lr=0.1), mode="exact", rho=0.4, alpha=2.0)
    optimizer.step(lambda: tanh_network(torch.cat(parameters)))
    got = joined([parameter.grad for parameter in parameters if parameter.grad is not None])
    expected = exact_gam(lambda t: dense(t)[0], lambda t: dense(t)[1], theta, rho=0.4, alpha=2.0)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-14)


def result(passes: Passes[T], loss: Callable[[], Tensor]) -> T:
    """Return what a rule returns, with the loss at each of its points."""
    while True:
        try:
            gradient_pass = next(passes)
        except StopIteration as stop:
            return stop.value
        gradient_pass.backward(loss())


def valley_end(settings: dict[str, Any]) -> float:
    """Return b after 400 steps on (ab)²/2, zero where a = 0, with the curvature b² across."""
    a = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    optimizer = GAM(SGD([a, b], lr=0.05), **settings)
    for _ in range(400):
        optimizer.step(lambda: (a * b).square().sum() / 2)
    return b.item()


def test_both_modes_slide_along_a_valley_to_small_curvature_where_sgd_stands_still():
    assert valley_end({"mode": "exact", "alpha": 0.0}) > 1.49
    assert 0 < valley_end({"mode": "exact", "rho": 0.1, "alpha": 1.0}) < 1.1
    assert 0 < valley_end({"rho": 0.2, "rho_prime": 0.1}) < 0.7


def test_a_loss_that_is_linear_has_no_norm_gradient_to_step_along():
    theta = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    slope = torch.tensor([3.0, 4.0], dtype=torch.float64)
    GAM(SGD([theta], lr=0.1), mode="exact").step(lambda: slope @ theta)
    assert theta.grad is not None and theta.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("style", ["plain", "retaining the graph", "clearing the gradient"])
def test_the_exact_mode_refuses_a_closure_that_calls_backward(style):
    theta = torch.tensor([2.0], requires_grad=True)
    optimizer = GAM(SGD([theta], lr=0.1), mode="exact")

    def closure() -> Tensor:
        loss = theta.square().sum()
        loss.backward(retain_graph=style == "retaining the graph")
        if style == "clearing the gradient":
            theta.grad = None
        return loss

    with pytest.raises(InvalidArgumentError, match=r"closure (must not call|called) backward"):
        optimizer.step(closure)
    assert theta.item() == 2.0 and theta.grad is None


class _OnceOnly(torch.autograd.Function):
    """Stands for kernels without a second derivative, whose words torch uses too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _NoBackward.apply(gradients[0])  # pyright: ignore[reportReturnType]


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise RuntimeError("derivative for aten::once_only_backward is not implemented")


def test_a_loss_without_second_derivative_names_the_way_out():
    theta = torch.tensor([2.0], requires_grad=True)

    def closure() -> Tensor:
        return (_OnceOnly.apply(theta) ** 2).sum()  # pyright: ignore[reportOperatorIssue, reportOptionalOperand]

    with pytest.raises(InvalidArgumentError, match="use the accelerated mode"):
        GAM(SGD([theta], lr=0.1), mode="exact").step(closure)
    assert theta.item() == 2.0


def test_the_accelerated_mode_holds_three_vectors_beside_the_parameters():
    theta = torch.ones(7919, requires_grad=True)  # no other tensor has this size
    live: list[int] = []

    def closure() -> Tensor:
        live.append(sum(is_vector(thing) for thing in gc.get_objects()))
        return theta.square().sum() + theta.sin().sum()

    GAM(SGD([theta], lr=0.1)).step(closure)
    assert live == [1, 3, 4, 4]  # θ; then its copy and g0; then also g1; then h₋ and h₊


def is_vector(thing: object) -> bool:
    return type(thing) is Tensor and thing.shape == (7919,)


# Central differences of a quartic: the third derivative times the square of the step, 5e-7.
engines = pytest.mark.parametrize(
    ("engine", "precision"), [("double_backward", 1e-12), ("central_difference", 1e-7)]
)


@every_function
@every_base
@engines
@pytest.mark.parametrize("oracle", ["loss", "sam"])
def test_fifty_exact_steps_follow_algorithm_1_by_either_engine_and_over_sam(
    name, base, engine, precision, oracle
):
    function = FUNCTIONS[name]
    theta = vector(function.size, seed=30)
    own: dict[str, Any] = {"rho_sam": 0.3} if oracle == "sam" else {}

    def combined(point: Array) -> Array:
        if oracle == "loss":
            return exact_gam(function.gradient, function.hessian, point, rho=0.2, alpha=0.5)
        norm_gradient = exact_gam(function.gradient, function.hessian, point, rho=0.2, alpha=0.5)
        return sam(function.gradient, point, rho=0.3) + norm_gradient - function.gradient(point)

    optimizer = GAM(
        BASES[base](split(theta)),
        mode="exact",
        engine=engine,
        oracle=oracle,
        rho=0.2,
        alpha=0.5,
        **own,
    )
    expected = reference_trajectory(theta, BASES[base], combined, 50)
    got = trajectory(function, optimizer, 50)
    if engine == "central_difference" and function.quartic:
        precision = 1e-5
    np.testing.assert_allclose(got, expected, rtol=precision, atol=precision)


@every_function
@every_base
def test_fifty_accelerated_steps_over_sam_put_its_gradient_in_the_place_of_g1(name, base):
    function = FUNCTIONS[name]
    theta = vector(function.size, seed=31)

    def combined(point: Array) -> Array:
        radii = {"rho": SETTINGS["rho"], "rho_prime": SETTINGS["rho_prime"]}
        g0, _, g2, g3 = four_gradients(function.gradient, point, **radii)
        over = sam(function.gradient, point, rho=0.3)
        h_plus = SETTINGS["alpha"] * over + (1 - SETTINGS["alpha"]) * g3
        h_minus = SETTINGS["beta"] * g0 + (1 - SETTINGS["beta"]) * g2
        return h_plus - SETTINGS["gamma"] * orthogonal_part(h_minus, h_plus)

    expected = reference_trajectory(theta, BASES[base], combined, 50)
    optimizer = GAM(BASES[base](split(theta)), oracle="sam", rho_sam=0.3, **SETTINGS)
    got = trajectory(function, optimizer, 50)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_the_oracle_of_sam_with_the_radius_of_the_ascent_is_algorithm_2_itself():
    ends = []
    over: dict[str, Any] = {"oracle": "sam", "rho_sam": SETTINGS["rho_prime"]}
    for own in ({}, over):
        parameters = split(vector(4, seed=32))
        optimizer = GAM(SGD(parameters, lr=0.1), **SETTINGS, **own)
        ends.append(trajectory(FUNCTIONS["quartic"], optimizer, 5)[-1])
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-14)


@pytest.mark.parametrize("mode", ["accelerated", "exact"])
def test_adaptive_gam_is_gam_in_the_scaled_coordinates(mode):
    """With θ = Tu, T held, GAM steps through u; its gradient there is T times the one in θ."""
    function = FUNCTIONS["quartic"]
    theta = vector(function.size, seed=33)
    scale = np.abs(theta) + 0.05
    parameters = split(theta)
    settings: dict[str, Any] = SETTINGS | {"gamma": 0.0}  # the projection is in θ
    if mode == "exact":
        settings = {"rho": 0.2, "alpha": 0.5}
    optimizer = GAM(SGD(parameters, lr=0.1), mode=mode, adaptive=True, eta=0.05, **settings)
    gradient = gradient_after(optimizer, function, parameters)

    def scaled_gradient(u: Array) -> Array:
        return scale * function.gradient(scale * u)

    def scaled_hessian(u: Array) -> Array:
        return scale[:, None] * function.hessian(scale * u) * scale

    start = theta / scale
    if mode == "exact":
        expected = exact_gam(scaled_gradient, scaled_hessian, start, **settings)
    else:
        expected = accelerated_gam(scaled_gradient, start, **settings)
    np.testing.assert_allclose(scale * gradient, expected, rtol=1e-11)


def test_differences_find_the_products_that_double_backward_finds_in_single_precision():
    grads = []
    for engine in ("double_backward", "central_difference"):
        parts = torch.from_numpy(vector(26, seed=34)).float().split([12, 4, 8, 2])
        parameters = [part.clone().requires_grad_() for part in parts]
        optimizer = GAM(SGD(parameters, lr=0.0), mode="exact", engine=engine, alpha=3.0)
        optimizer.step(lambda p=parameters: tanh_network(torch.cat(p).double()))
        grads.append(joined([p.grad.double() for p in parameters if p.grad is not None]))
    np.testing.assert_allclose(grads[0], grads[1], rtol=5e-3, atol=1e-4)
    assert np.abs(grads[0] - grads[1]).max() > 0


@pytest.mark.parametrize("mode", ["accelerated", "exact"])
def test_unknown_and_misplaced_options_are_refused(mode):
    with pytest.raises(InvalidArgumentError, match="rho must be"):
        GAM(sgd(), mode=mode, rho=-1.0)
    with pytest.raises(InvalidArgumentError, match="alpha must be"):
        GAM(sgd(), mode=mode, alpha=-0.1)
    with pytest.raises(InvalidArgumentError, match="did you mean 'exact'"):
        GAM(sgd(), mode="exakt")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["rho_prime", "beta", "gamma"])
def test_options_of_the_accelerated_mode_do_not_pass_in_the_exact_one(name):
    with pytest.raises(InvalidArgumentError, match=f"{name} does not apply"):
        own: dict[str, Any] = {name: 0.1}
        GAM(sgd(), mode="exact", **own)
    base = SGD([{"params": [torch.ones(1, requires_grad=True)], name: 0.1}], lr=0.1)
    with pytest.raises(InvalidArgumentError, match=f"{name} does not apply"):
        GAM(base, mode="exact")


def test_an_engine_or_radius_that_does_not_apply_is_refused():
    with pytest.raises(InvalidArgumentError, match='engine does not apply to mode="accelerated"'):
        GAM(sgd(), engine="double_backward")
    with pytest.raises(InvalidArgumentError, match='rho_sam does not apply to oracle="loss"'):
        GAM(sgd(), rho_sam=0.1)
    with pytest.raises(InvalidArgumentError, match="did you mean 'sam'"):
        GAM(sgd(), oracle="samm")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidArgumentError, match="rho_sam must be"):
        GAM(sgd(), oracle="sam", rho_sam=-0.1)


@pytest.mark.parametrize(
    "wrong",
    [{"alpha": 1.1}, {"beta": -0.1}, {"beta": 1.1}, {"gamma": -0.1}, {"rho_prime": -0.1}],
)
def test_weights_of_the_accelerated_mode_have_ranges(wrong):
    (name,) = wrong
    with pytest.raises(InvalidArgumentError, match=f"{name} must be"):
        GAM(sgd(), **wrong)


def test_the_exact_mode_takes_any_weight_that_is_not_negative():
    assert GAM(sgd(), mode="exact", alpha=5.0).param_groups[0]["alpha"] == 5.0


def test_defaults_are_the_published_ones():
    group = GAM(sgd()).param_groups[0]
    got = [group[name] for name in ("rho", "rho_prime", "beta", "alpha", "gamma")]
    assert got == [0.2, 0.02, 0.5, 0.6, 0.03]
    assert GAM(sgd()).passes == 4
    assert GAM(sgd(), mode="exact").passes == 2


def test_an_accelerated_state_does_not_load_into_the_exact_mode():
    exact = GAM(sgd(), mode="exact")
    with pytest.raises(InvalidArgumentError, match="rho_prime does not apply"):
        exact.load_state_dict(GAM(sgd()).state_dict())
