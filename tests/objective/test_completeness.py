"""Nothing that a loss depends on is left out of θ, wherever functions hold it."""

# torch types what a module holds as Tensor | Module.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportUnusedExpression=false

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from flatkit import Objective, Task
from flatkit.errors import InvalidArgumentError, UserCodeError
from flatkit.hessian import GaussNewtonOperator, HessianOperator
from flatkit.landscape.evaluate import evaluator
from flatkit.objective.settings import ObjectiveSettings

INPUTS = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(10) % 3


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def dense(modules, mean_loss, at=0.0):
    """Return value, gradient and Hessian over the parameters of modules, in float64.

    Args:
        modules: of the user, copied.
        mean_loss: (functions that run them, their parameters by name) -> a number.
        at: how far θ is moved from that of the modules.
    """
    twins = [copy.deepcopy(module).double().eval() for module in modules]
    names = [list(dict(twin.named_parameters())) for twin in twins]
    every = [p.detach() for twin in twins for p in twin.parameters()]

    def value(theta):
        pieces = iter(theta.split([part.numel() for part in every]))
        shapes = iter(every)
        placed = [{n: next(pieces).view_as(next(shapes)) for n in own} for own in names]
        runs = [partial(_run, twin, tensors) for twin, tensors in zip(twins, placed, strict=True)]
        return mean_loss(runs, placed)

    theta = torch.cat([part.flatten() for part in every]) + at
    gradient = torch.autograd.functional.jacobian(value, theta)
    return value(theta).item(), gradient, torch.autograd.functional.hessian(value, theta)


def _run(twin, tensors, *inputs):
    return functional_call(twin, tensors, inputs)


def state(*modules):
    """Return all that a user could see of modules."""
    return [
        (
            {name: (id(t), t.clone()) for name, t in module.state_dict(keep_vars=True).items()},
            [(part.training, sorted(vars(part))) for part in module.modules()],
            [p.grad for p in module.parameters()],
        )
        for module in modules
    ]


def same(before, after):
    for (tensors, modes, grads), (others, other_modes, other_grads) in zip(
        before, after, strict=True
    ):
        assert modes == other_modes
        assert all(grad is None for grad in grads + other_grads)
        for name, (identity, tensor) in tensors.items():
            assert others[name][0] == identity
            assert torch.equal(others[name][1], tensor), name


def is_right(objective, reference, *users, at=0.0, engines=("auto", "forward_over_reverse")):
    """Compare value, gradient and products at a point with a reference; the user's stay."""
    value, gradient, hessian = reference
    before = state(*users)
    theta = objective.theta + at
    found_value, found = objective.loss_and_gradient(theta)
    assert found_value == pytest.approx(value, rel=1e-10)
    assert objective.loss(theta) == pytest.approx(value, rel=1e-10)
    assert torch.allclose(found, gradient, atol=1e-10)
    vector = torch.randn(len(gradient), generator=torch.Generator().manual_seed(2)).double()
    for engine in engines:
        product = HessianOperator(objective, theta, engine=engine) @ vector
        assert torch.allclose(product, hessian @ vector, atol=1e-7), engine
    same(before, state(*users))


PENALISED = mlp()
"""Held as a global by a loss below."""


def penalty_of(parameters):
    return 0.5 * sum(p.square().sum() for p in parameters)


def by_closure(model):
    return lambda o, t: F.cross_entropy(o, t) + penalty_of(model.parameters())


def by_list(model):
    held = list(model.parameters())
    return lambda o, t: F.cross_entropy(o, t) + penalty_of(held)


def by_default(model):
    def loss(o, t, held=model):
        return F.cross_entropy(o, t) + penalty_of(held.parameters())

    return loss


def by_partial(model):
    def loss(o, t, *, held):
        return F.cross_entropy(o, t) + penalty_of(held.parameters())

    return partial(loss, held=model)


class Penalty:
    def __init__(self, model):
        self.model = model

    def __call__(self, o, t):
        return F.cross_entropy(o, t) + penalty_of(self.model.parameters())

    def method(self, o, t):
        return self(o, t)


class PenaltyModule(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, o, t):
        return F.cross_entropy(o, t) + penalty_of(self.model.parameters())


class Square(torch.autograd.Function):
    """Is given the parameter where no call of torch is."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad


def by_global(model):
    PENALISED.load_state_dict(model.state_dict())
    return lambda o, t: F.cross_entropy(o, t) + penalty_of(PENALISED.parameters())


@pytest.mark.parametrize("at", [0.0, 0.1])
@pytest.mark.parametrize(
    "make",
    [
        by_closure,
        by_list,
        by_default,
        by_partial,
        Penalty,
        lambda model: Penalty(model).method,
        PenaltyModule,
        lambda model: PenaltyModule(model).forward,
        by_global,
    ],
)
def test_a_penalty_on_the_users_own_model_is_part_of_the_loss(make, at):
    model = PENALISED if make is by_global else mlp()

    def mean_loss(runs, placed):
        fit = F.cross_entropy(runs[0](INPUTS.double()), CLASSES)
        return fit + penalty_of(placed[0].values())

    objective = Objective(model, make(model), (INPUTS, CLASSES), dtype=torch.float64)
    is_right(objective, dense([model], mean_loss, at), model, at=at)


def test_what_depends_on_theta_beside_the_outputs_is_no_gauss_newton_product():
    model = mlp()
    objective = Objective(model, by_closure(model), (INPUTS, CLASSES))
    with pytest.raises(InvalidArgumentError, match="only through the outputs"):
        GaussNewtonOperator(objective) @ objective.theta
    assert "enter beside" in HessianOperator(objective).choice.rejected["layers"]


class Head(nn.Module):
    """Its forward pass is a lambda that was made in `__init__`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)
        self.norm, self.drop = nn.BatchNorm1d(5), nn.Dropout(0.5)
        self.run = lambda hidden: self.b(self.drop(torch.tanh(self.norm(hidden))))

    def forward(self, x):
        return self.run(self.a(x))


class PlainHead(Head):
    def forward(self, x):
        return self.b(torch.tanh(self.norm(self.a(x))))


@pytest.mark.parametrize("at", [0.0, 0.1])
def test_a_lambda_that_was_made_in_the_constructor_runs_at_theta(at):
    model, plain = Head(), PlainHead()
    objective = Objective(model, "cross_entropy", (INPUTS, CLASSES), dtype=torch.float64)
    reference = dense(
        [plain], lambda runs, _: F.cross_entropy(runs[0](INPUTS.double()), CLASSES), at
    )
    is_right(objective, reference, model, at=at)
    assert GaussNewtonOperator(objective) @ objective.theta is not None


class Hooked(nn.Module):
    """Two linear layers with a gate that reads the first one's bias, as the hooks below do."""

    def __init__(self, model):
        super().__init__()
        self.a, self.b = copy.deepcopy(model[0]), copy.deepcopy(model[2])

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)) * self.a.bias)


@pytest.mark.parametrize("at", [0.0, 0.1])
def test_hooks_read_the_weights_of_the_point(at):
    model = mlp()
    reference = dense(
        [Hooked(model)], lambda runs, _: F.cross_entropy(runs[0](INPUTS.double()), CLASSES), at
    )
    model[1].register_forward_hook(lambda _, inputs, output: output * model[0].bias)
    objective = Objective(model, "cross_entropy", (INPUTS, CLASSES), dtype=torch.float64)
    is_right(objective, reference, model, at=at)


def test_a_residual_of_the_captured_network_is_that_of_the_point():
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)), torch.rand(8, 1)

    def residual(run, x):
        x = x.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(run(x).sum(), x, create_graph=True)
        return (slope - run(x)).square().mean(1)

    reference = dense([model], lambda runs, _: residual(runs[0], x.double()).mean(), 0.1)
    objective = Objective(model, lambda _, t: residual(model, t), (x, x), dtype=torch.float64)
    is_right(objective, reference, model, at=0.1, engines=["auto"])


@pytest.mark.parametrize("held", ["module", "list"])
def test_a_custom_function_of_the_users_weights_is_right_or_refused(held):
    model = mlp()
    weight = model[0].weight

    def loss(outputs, targets):
        own = model[0].weight if held == "module" else weight
        return F.cross_entropy(outputs, targets) + Square.apply(own).sum()

    def mean_loss(runs, placed):
        fit = F.cross_entropy(runs[0](INPUTS.double()), CLASSES)
        return fit + placed[0]["0.weight"].square().sum()

    if held == "list":
        with pytest.raises(InvalidArgumentError, match=r"holds 0.weight of your own model"):
            Objective(model, loss, (INPUTS, CLASSES))
        return
    objective = Objective(model, loss, (INPUTS, CLASSES), dtype=torch.float64)
    value, gradient, _ = dense([model], mean_loss, 0.1)
    found = objective.loss_and_gradient(objective.theta + 0.1)
    assert found[0] == pytest.approx(value, rel=1e-10)
    assert torch.allclose(found[1], gradient, atol=1e-10)


def test_a_value_that_was_computed_beforehand_is_refused():
    model = mlp()
    outputs = model(INPUTS)
    with pytest.raises(InvalidArgumentError, match="outputs, which was computed from weights"):
        Objective(model, lambda o, t: (o - outputs[: len(o)]).square().mean(), (INPUTS, CLASSES))


class Arc(nn.Module):
    """A head that lives in the loss, with a buffer that moves."""

    def __init__(self, classes=3):
        super().__init__()
        torch.manual_seed(4)
        self.weight = nn.Parameter(torch.randn(classes, 3))
        self.norm = nn.BatchNorm1d(3, affine=False)

    def forward(self, outputs, targets):
        if len(outputs) > 1:
            self.norm(outputs.detach())
        logits = F.linear(F.normalize(outputs), F.normalize(self.weight))
        return F.cross_entropy(4 * logits, targets, reduction="none")


def arc_loss(runs, _):
    weight = _[1]["weight"]
    logits = F.linear(F.normalize(runs[0](INPUTS.double())), F.normalize(weight))
    return F.cross_entropy(4 * logits, CLASSES)


@pytest.mark.parametrize("at", [0.0, 0.1])
@pytest.mark.parametrize(
    "held", [lambda arc: arc, lambda arc: lambda o, t: arc(o, t), lambda arc: arc.forward]
)
def test_parameters_of_the_loss_are_part_of_theta_if_asked_for(held, at):
    model, arc = mlp(), Arc()
    loss, data = held(arc), (INPUTS, CLASSES)
    with pytest.raises(InvalidArgumentError, match=r"the loss has parameters.*weight.*loss_param"):
        Objective(model, loss, data)
    objective = Objective(model, loss, data, dtype=torch.float64, loss_parameters=True)
    assert objective.space.names[-1].startswith("loss.")
    assert objective.num_parameters == 43 + 9
    is_right(objective, dense([model, arc], arc_loss, at), model, arc, at=at, engines=["auto"])
    part = objective.block("loss.*")
    hessian = dense([model, arc], arc_loss)[2][43:, 43:]
    product = HessianOperator(part) @ torch.ones(9, dtype=torch.float64)
    assert torch.allclose(product, hessian.sum(1), atol=1e-8)
    rest = objective.block("[0-9]*")
    hessian = dense([model, arc], arc_loss)[2][:43, :43]
    product = HessianOperator(rest) @ torch.ones(43, dtype=torch.float64)
    assert torch.allclose(product, hessian.sum(1), atol=1e-8)


def test_learned_task_weights_are_part_of_theta_or_named():
    model, log_vars = mlp(), nn.Parameter(torch.zeros(2))

    def loss(outputs, targets):
        tasks = torch.stack([F.cross_entropy(outputs, targets), outputs.square().mean()])
        return (tasks * torch.exp(-log_vars) + log_vars).sum()

    with pytest.raises(InvalidArgumentError, match="log_vars"):
        Objective(model, loss, (INPUTS, CLASSES))
    objective = Objective(model, loss, (INPUTS, CLASSES), loss_parameters=True)
    assert objective.space.names[-1] == "loss.log_vars"
    _, gradient = objective.loss_and_gradient()
    outputs = model(INPUTS).detach()
    tasks = torch.stack([F.cross_entropy(outputs, CLASSES), outputs.square().mean()])
    assert torch.allclose(gradient[-2:], 1 - tasks, atol=1e-6)
    assert log_vars.grad is None
    assert torch.equal(log_vars, torch.zeros(2))


def test_a_teacher_is_a_constant_if_it_is_frozen_and_told_by_name_if_not():
    model, teacher = mlp(), nn.Linear(4, 3)
    data = ({"input": INPUTS, "y": CLASSES}, INPUTS)

    def loss(outputs, targets):
        return (outputs - teacher(targets)).square().mean(1)

    with pytest.raises(InvalidArgumentError, match=r"teacher.weight.*requires_grad_\(False\)"):
        Objective(model, loss, (INPUTS, INPUTS))
    teacher.requires_grad_(False)
    objective = Objective(model, loss, (INPUTS, INPUTS), dtype=torch.float64)
    goal = F.linear(INPUTS.double(), teacher.weight.double(), teacher.bias.double())
    expected = (copy.deepcopy(model).double()(INPUTS.double()) - goal).square().mean()
    assert objective.loss() == pytest.approx(expected.item(), rel=1e-12)
    assert teacher.weight.dtype == torch.float32
    assert not data[0]["input"].requires_grad


def test_tensors_of_the_model_that_are_not_registered_are_named():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rest = nn.Linear(4, 3), [nn.Linear(3, 3)]

        def forward(self, x):
            return self.rest[0](self.first(x))

    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.raw = nn.Parameter(torch.randn(3, 4))
            self.double = self.raw * 2

        def forward(self, x):
            return F.linear(x, self.double + self.raw)

    for model, words in (
        (Listed(), r"not among its parameters: rest.0.weight"),
        (Computed(), "depends on double, which was computed from weights beforehand"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            Objective(model, "cross_entropy", (INPUTS, CLASSES))


def test_leaves_that_every_pass_makes_are_no_parameters():
    model = mlp()

    def loss(outputs, targets):
        fresh = torch.zeros(1, requires_grad=True)
        return F.cross_entropy(outputs + fresh, targets)

    value = Objective(model, loss, (INPUTS, CLASSES)).loss()
    assert value == pytest.approx(F.cross_entropy(model(INPUTS), CLASSES).item(), rel=1e-6)


def test_the_users_modules_are_as_before_also_after_an_error():
    model, loss_module = Head(), Arc()

    def loss(outputs, targets):
        model(INPUTS)
        model.last, loss_module.calls = outputs, 1
        if len(targets) == 10 and armed:
            raise KeyError("mine")
        return loss_module(outputs, targets) + penalty_of(model.parameters())

    armed: list[int] = []
    before = state(model, loss_module)
    objective = Objective(model, loss, (INPUTS, CLASSES), loss_parameters=True)
    objective.gradient()
    armed.append(1)
    with pytest.raises(UserCodeError, match="mine"):
        objective.gradient()
    same(before, state(model, loss_module))


def test_constants_that_a_loss_holds_have_the_dtype_of_the_computation():
    model, weights = mlp(), torch.tensor([1.0, 2.0, 3.0])
    costs = nn.Module()
    costs.register_buffer("table", torch.rand(3, 3))

    def loss(outputs, targets):
        priced = (outputs.softmax(1) @ costs.table)[torch.arange(len(targets)), targets]
        return F.cross_entropy(outputs, targets, weight=weights, reduction="none") + priced

    twin = copy.deepcopy(model).double()
    outputs = twin(INPUTS.double())
    expected = F.cross_entropy(outputs, CLASSES, weight=weights.double(), reduction="none")
    priced = (outputs.softmax(1) @ costs.table.double())[torch.arange(10), CLASSES]
    objective = Objective(model, loss, (INPUTS, CLASSES), dtype=torch.float64)
    assert objective.loss() == pytest.approx((expected + priced).mean().item(), rel=1e-12)
    assert weights.dtype == costs.table.dtype == torch.float32


def test_tasks_and_settings_ask_for_parameters_of_the_loss():
    data = (INPUTS, CLASSES)
    task = Task(mlp(), Arc(), data, loss_parameters=True)
    assert task.objective(ObjectiveSettings()).num_parameters == 52
    other = Task(mlp(), Arc(), data)
    assert other.objective(ObjectiveSettings(loss_parameters=True)).num_parameters == 52
    described = task.objective(ObjectiveSettings()).describe()
    assert described["loss_parameters"] == ["loss.weight"]


class Scaled(nn.Module):
    """Holds the user's model and a parameter of its own."""

    def __init__(self, model):
        super().__init__()
        self.model, self.scale = model, nn.Parameter(torch.tensor([1.5]))

    def forward(self, outputs, targets):
        return F.cross_entropy(outputs * self.scale, targets) + penalty_of(self.model.parameters())


def test_a_loss_with_the_model_and_a_parameter_of_its_own_is_right_along_a_line():
    model = mlp()
    objective = Objective(
        model, Scaled(model), (INPUTS, CLASSES), dtype=torch.float64, loss_parameters=True
    )
    assert objective.space.names == ("0.weight", "0.bias", "2.weight", "2.bias", "loss.scale")
    theta, step = objective.theta, torch.ones(44, dtype=torch.float64)
    quantities = ("loss", "gradient_norm", "top_eigenvalue")
    found = evaluator(objective, theta, step[None], quantities=quantities).values([[0.0], [0.1]])
    for values, at in zip(found, (0.0, 0.1), strict=True):

        def mean_loss(runs, placed):
            outputs = runs[0](INPUTS.double()) * placed[1]["scale"]
            return F.cross_entropy(outputs, CLASSES) + penalty_of(placed[0].values())

        holder = nn.Module()
        holder.scale = nn.Parameter(torch.tensor([1.5]))
        value, gradient, hessian = dense([model, holder], mean_loss, at)
        assert values["loss"] == pytest.approx(value, rel=1e-10)
        assert values["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-10)
        top = float(torch.linalg.eigvalsh(hessian)[-1])
        assert values["top_eigenvalue"] == pytest.approx(top, rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_loss_is_called_in_a_copy():
    loss = torch.jit.script(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])))
    weight = torch.tensor([1.0, 2.0, 3.0])
    expected = F.cross_entropy(mlp()(INPUTS[:3]), CLASSES[:3], weight=weight).item()
    found = Objective(mlp(), loss, (INPUTS[:3], CLASSES[:3]), examine=False).loss()
    assert found == pytest.approx(expected, rel=1e-6)
    assert loss.weight.dtype == torch.float32


def test_parameters_of_losses_keep_the_order_in_which_they_are_held():
    held = [torch.zeros(1, requires_grad=True) for _ in range(3)]

    def loss(outputs, targets):
        return held[2] * F.cross_entropy(outputs, targets) + (held[0] - held[1]).square()

    objective = Objective(
        mlp(), lambda o, t: loss(o, t).sum(), (INPUTS, CLASSES), loss_parameters=True
    )
    assert objective.space.names[4:] == tuple(f"loss.held.{n}" for n in range(3))


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.rnn, self.state = nn.GRU(4, 3, batch_first=True), None

    def forward(self, inputs):
        known = (
            self.state if self.state is not None and self.state.shape[1] == len(inputs) else None
        )
        hidden, self.state = self.rnn(inputs[:, None], known)
        return hidden[:, -1]


def test_what_is_kept_of_an_earlier_pass_with_its_graph_is_named_as_that():
    with pytest.raises(InvalidArgumentError, match=r"keeps between calls.*`detach\(\)`"):
        Objective(Stateful(), "cross_entropy", (INPUTS, CLASSES))


class Equation(nn.Module):
    """Takes derivatives in its own inputs, which it lets require gradients in place."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.inner = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, inputs):
        inputs.requires_grad_()
        (slope,) = torch.autograd.grad(self.inner(inputs).sum(), inputs, create_graph=True)
        return slope


def test_inputs_that_the_model_lets_require_gradients_are_no_weights():
    inputs = INPUTS.double()
    objective = Objective(Equation().double(), "mse", (inputs, INPUTS.double()))

    def mean_loss(runs, _):
        return F.mse_loss(runs[0](INPUTS.double()), INPUTS.double())

    value, gradient, hessian = dense([Equation()], mean_loss)
    assert objective.loss() == pytest.approx(value)
    torch.testing.assert_close(objective.gradient(), gradient)
    rows = torch.eye(len(gradient), dtype=torch.float64)
    torch.testing.assert_close(HessianOperator(objective) @ rows, hessian, rtol=0, atol=1e-9)
    assert not inputs.requires_grad
