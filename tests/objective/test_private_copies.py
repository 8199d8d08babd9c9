"""Copies of models that are hard to copy, and complex ones, against dense float64 references."""

# torch types what a module holds as Tensor | Module.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportUnusedExpression=false

import argparse
import copy
import io
import logging
import sys
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import prune

from flatkit import Objective, analyze
from flatkit.errors import FlatkitError, InvalidArgumentError
from flatkit.hessian import HessianOperator
from flatkit.landscape.evaluate import MovableModel
from flatkit.objective.model.copier import duplicate
from flatkit.objective.parameters import ParameterSpace

INPUTS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(12) % 3
DATA = (INPUTS, CLASSES)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Circulant(nn.Module):
    """Multiplies Fourier coefficients by complex weights, at an odd place of θ."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.scale = nn.Parameter(torch.tensor([1.5]))
        self.weight = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.register_buffer("turn", torch.polar(torch.ones(3), torch.tensor([0.7, 2.1, 0.3])))
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        spectrum = torch.fft.rfft(x * self.scale) * self.weight * self.turn
        return self.out(torch.tanh(torch.fft.irfft(spectrum, n=4)))


def wide(model):
    """Return a float64 copy by torch alone."""
    twin = copy.deepcopy(model)

    def widened(tensor):
        kinds = {torch.float32: torch.float64, torch.complex64: torch.complex128}
        return tensor.to(kinds.get(tensor.dtype, tensor.dtype))

    return twin._apply(widened)


def dense(model, loss, data):
    """Return value, gradient and Hessian in float64; a complex entry counts as two reals."""
    model = wide(model)
    parts = {name: p.detach() for name, p in model.named_parameters()}
    reals = {n: torch.view_as_real(p) if p.is_complex() else p for n, p in parts.items()}

    def value(theta):
        pieces = theta.split([part.numel() for part in reals.values()])
        placed = {}
        for (name, part), piece in zip(reals.items(), pieces, strict=True):
            piece = piece.view_as(part)
            pairs = parts[name].is_complex()
            placed[name] = torch.complex(piece[..., 0], piece[..., 1]) if pairs else piece
        return loss(functional_call(model, placed, (data[0].double(),)), data[1])

    theta = torch.cat([part.flatten() for part in reals.values()])
    gradient = torch.autograd.functional.jacobian(value, theta)
    return value(theta), gradient, torch.autograd.functional.hessian(value, theta)


def multiply(objective, hessian, **settings):
    """Return the relative error of one product."""
    vector = torch.randn(len(hessian), generator=torch.Generator().manual_seed(3)).double()
    product = HessianOperator(objective, **settings) @ vector.to(objective.dtype)
    return float((product.double() - hessian @ vector).norm() / (hessian @ vector).norm())


def is_right(model, reference):
    """Compare value, gradient and a product with those of another model of the same θ."""
    value, gradient, hessian = dense(reference, F.cross_entropy, DATA)
    objective = Objective(model, "cross_entropy", DATA, dtype=torch.float64)
    found_value, found_gradient = objective.loss_and_gradient()
    assert found_value == pytest.approx(float(value), rel=1e-10)
    assert torch.allclose(found_gradient, gradient, atol=1e-10)
    # Hook-based normalisations have no second derivative by autograd, and are differenced.
    assert multiply(objective, hessian) < 1e-5


@pytest.mark.parametrize(
    "held",
    [
        threading.Lock,
        threading.Condition,
        threading.local,
        lambda: sys.__stderr__,
        lambda: (number for number in range(3)),
        lambda: logging.getLogger("a"),
        lambda: argparse.Namespace(lock=threading.Lock(), tensor=INPUTS, out=sys.stdout),
        lambda: {"kept": [nn.Linear(4, 3)(INPUTS)]},
        lambda: nn.Linear(4, 3)(INPUTS).grad_fn,
        lambda: io,
        lambda: torch.Generator(),
    ],
    ids=[
        "lock",
        "condition",
        "local",
        "file",
        "generator",
        "logger",
        "namespace",
        "activation",
        "graph",
        "module",
        "random generator",
    ],
)
def test_what_cannot_be_copied_is_shared_and_the_model_is_measured(held):
    model = Plain()
    model.held = held()
    objective = Objective(model, "cross_entropy", DATA)
    assert objective.loss() == Objective(Plain(), "cross_entropy", DATA).loss()
    assert objective.model.first.weight is not model.first.weight


class Refusing:
    """Can be asked for its state, but not be made again."""

    def __init__(self, needed):
        self.needed = needed

    def __setstate__(self, state):
        raise ValueError("not again")


def test_an_object_that_cannot_be_made_again_is_shared():
    model = Plain()
    model.held = Refusing(1)
    assert Objective(model, "cross_entropy", DATA).model.held is model.held


def test_a_kept_activation_stays_the_users():
    model = Plain()
    model.second.register_forward_hook(lambda module, _, output: setattr(module, "last", output))
    model(INPUTS)
    kept = model.second.last
    Objective(model, "cross_entropy", DATA).gradient()
    assert model.second.last is kept
    assert kept.grad_fn is not None


class Normalised(Plain):
    """The first layer's weight is g v / |v|, written out."""

    def __init__(self, model):
        super().__init__()
        first = model.first
        self.first = nn.Module()
        self.first.bias, self.first.weight_g, self.first.weight_v = (
            nn.Parameter(p.detach().clone()) for p in (first.bias, first.weight_g, first.weight_v)
        )

    def forward(self, x):
        v = self.first.weight_v
        weight = self.first.weight_g * v / v.norm(dim=1, keepdim=True)
        return self.second(torch.tanh(F.linear(x, weight, self.first.bias)))


class Spectral(Plain):
    """The first layer's weight is W / uᵀWv, written out."""

    def __init__(self, model):
        super().__init__()
        self.first = nn.Module()
        for name in ("bias", "weight_orig"):
            setattr(self.first, name, nn.Parameter(getattr(model.first, name).detach().clone()))
        self.u, self.v = model.first.weight_u.double(), model.first.weight_v.double()

    def forward(self, x):
        weight = self.first.weight_orig
        weight = weight / (self.u @ weight @ self.v)
        return self.second(torch.tanh(F.linear(x, weight, self.first.bias)))


class Masked(Plain):
    """The first layer's weight is W times a mask, written out."""

    def __init__(self, model):
        super().__init__()
        self.first = nn.Module()
        for name in ("bias", "weight_orig"):
            setattr(self.first, name, nn.Parameter(getattr(model.first, name).detach().clone()))
        self.mask = model.first.weight_mask.double()

    def forward(self, x):
        weight = self.first.weight_orig * self.mask
        return self.second(torch.tanh(F.linear(x, weight, self.first.bias)))


@pytest.mark.parametrize(
    ("change", "reference"),
    [
        (nn.utils.weight_norm, Normalised),
        (nn.utils.spectral_norm, Spectral),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), Masked),
    ],
    ids=["weight_norm", "spectral_norm", "pruned"],
)
@pytest.mark.parametrize("ran", [False, True])
def test_weights_that_hooks_compute_are_measured_as_written_out(change, reference, ran):
    model = Plain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the hook-based weight_norm is deprecated
        change(model.first)
    if ran:
        model(INPUTS)
    is_right(model.eval(), reference(model))


def test_lazy_layers_that_ran_are_plain_ones():
    model = nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(3))
    model(INPUTS)
    is_right(model, model)


class Constants(Plain):
    """Holds tensors that are no buffers."""

    def __init__(self):
        super().__init__()
        self.mixed, self.shift = torch.rand(5, 5), {"by": [torch.rand(5)]}

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)) @ self.mixed + self.shift["by"][0])


class Taught(Plain):
    """Holds a frozen module that is not registered."""

    def __init__(self):
        super().__init__()
        self.teacher = [nn.Linear(4, 3).requires_grad_(False)]

    def forward(self, x):
        return super().forward(x) + self.teacher[0](x)


def test_constants_that_are_no_buffers_get_the_dtype_too():
    model = Constants()
    first, second = wide(model.first), wide(model.second)
    hidden = torch.tanh(first(INPUTS.double())) @ model.mixed.double()
    value = F.cross_entropy(second(hidden + model.shift["by"][0].double()), CLASSES).detach()
    objective = Objective(model, "cross_entropy", DATA, dtype=torch.float64)
    assert objective.loss() == pytest.approx(float(value), rel=1e-12)
    vector = torch.ones(objective.num_parameters, dtype=torch.float64)
    by_layers, by_graph = (
        HessianOperator(objective, engine=engine) @ vector
        for engine in ("layers", "double_backward")
    )
    assert torch.allclose(by_layers, by_graph)
    assert model.mixed.dtype == torch.float32


def test_modules_that_are_not_registered_get_the_dtype_too():
    model = Taught()
    (teacher,) = model.teacher
    outputs = wide(Plain())(INPUTS.double()) + wide(teacher)(INPUTS.double())
    objective = Objective(model, "cross_entropy", DATA, dtype=torch.float64)
    expected = F.cross_entropy(outputs, CLASSES).detach()
    assert objective.loss() == pytest.approx(float(expected), rel=1e-12)
    assert teacher.weight.dtype == torch.float32


class Averaged(nn.Module):
    """As averages of weights in other packages: the model is `module`, and there is no forward."""

    def __init__(self, model):
        super().__init__()
        self.module = copy.deepcopy(model)


class Compiled(nn.Module):
    """As what torch.compile returns: the model is `_orig_mod`, and calling it runs other code."""

    def __init__(self, model):
        super().__init__()
        self._orig_mod = model

    def forward(self, x):
        raise AssertionError("the compiled code was run")


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # the import of the compiler
@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        Compiled,
        pytest.param(torch.compile, marks=pytest.mark.slow),  # its import takes seconds
        torch.optim.swa_utils.AveragedModel,
        Averaged,
        lambda model: torch.optim.swa_utils.AveragedModel(nn.DataParallel(model)),
    ],
)
def test_wrapped_models_are_measured_as_what_they_wrap(wrap):
    objective = Objective(wrap(Plain()), "cross_entropy", DATA)
    plain = Objective(Plain(), "cross_entropy", DATA)
    assert objective.space == plain.space
    assert torch.equal(objective.gradient(), plain.gradient())


def test_compiled_and_parallel_parts_of_a_model_are_measured():
    torch.manual_seed(1)
    first = nn.Linear(4, 5)
    plain = nn.Sequential(first, nn.Tanh(), nn.Linear(5, 3))
    hessian = dense(plain, F.cross_entropy, DATA)[2]
    for part in (Compiled(first), nn.DataParallel(first)):
        model = nn.Sequential(part, *plain[1:])  # pyright: ignore
        objective = Objective(model, "cross_entropy", DATA, dtype=torch.float64)
        assert multiply(objective, hessian) < 1e-8


class Decorated(nn.Module):
    """Calls functions that torch.compile made, and takes no other."""

    def __init__(self, plain, backend):
        super().__init__()
        self.plain = plain
        self.bend = torch.compile(lambda h: torch.tanh(h) * 2, fullgraph=True, backend=backend)

    def forward(self, x):
        return self.bend(self.plain(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # the import of the compiler
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="of torch 2.6")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_functions_run_as_they_were_written_and_compile_again_afterwards(backend):
    """Against what is not compiled; of aot_eager nothing has second derivatives."""

    def each(outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none")

    loss = torch.compile(each, fullgraph=True, backend=backend)
    model = Decorated(Plain().double(), backend)
    plain = nn.Sequential(Plain().double(), nn.Tanh())
    hessian = dense(plain, lambda out, y: F.cross_entropy(2 * out, y), DATA)[2]
    objective = Objective(model, loss, DATA, dtype=torch.float64)
    assert multiply(objective, hessian) < 1e-8
    counted = torch._dynamo.testing.CompileCounter()
    torch.compile(lambda h: h + 1, fullgraph=True, backend=counted)(torch.ones(2))
    assert counted.frame_count == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_models_without_values_or_code_are_refused_by_name():
    lazy = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 3))
    half = Plain()
    half.register_buffer("mask", torch.ones(1, device="meta"))
    scripted = torch.jit.script(nn.Linear(4, 3))
    sparse = Plain()
    sparse.second.table = nn.Parameter(torch.eye(3).to_sparse())
    for model, words in (
        (sparse, r"second\.table is a sparse parameter.*its values be the parameter"),
        (lazy, "0.weight belongs to a lazy layer that never ran"),
        (Plain().to("meta"), "first.weight is on the meta device.*to_empty"),
        (half, "mask is on the meta device"),
        (scripted, "TorchScript module .Linear.*give the module that was scripted"),
        (torch.jit.trace(Plain(), INPUTS), "TorchScript"),
        (nn.Sequential(scripted), "^0 is a TorchScript module"),
        (nn.DataParallel(scripted), "TorchScript"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            Objective(model, "cross_entropy", DATA)


class Scaled(Plain):
    """As libraries do for µP, it reads what is noted on a parameter."""

    def __init__(self, *, noted=True):
        super().__init__()
        self.noted = noted
        if noted:
            self.second.weight.width = argparse.Namespace(ratio=2.0)

    def forward(self, x):
        ratio = self.second.weight.width.ratio if self.noted else 2.0
        return super().forward(x) / ratio


@pytest.mark.parametrize("engine", ["auto", "layers", "double_backward"])
def test_what_is_noted_on_a_parameter_can_be_read_wherever_it_stands(engine):
    value, gradient, hessian = dense(Scaled(noted=False), F.cross_entropy, DATA)
    objective = Objective(Scaled(), "cross_entropy", DATA, dtype=torch.float64)
    assert objective.loss() == pytest.approx(float(value), rel=1e-12)
    torch.testing.assert_close(objective.gradient(), gradient)
    found = HessianOperator(objective, engine=engine).matmat(torch.eye(len(gradient)).double())
    torch.testing.assert_close(found, hessian, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("engine", ["auto", "layers"])
def test_complex_weights_count_as_two_reals(engine):
    model = Circulant()
    value, gradient, hessian = dense(model, F.cross_entropy, DATA)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        objective = Objective(model, "cross_entropy", DATA, dtype=dtype)
        assert objective.num_parameters == 1 + 6 + 15
        assert objective.loss() == pytest.approx(float(value), rel=tolerance)
        found = objective.gradient().double()
        assert torch.allclose(found, gradient, atol=tolerance)
        if engine == "auto":
            assert multiply(objective, hessian) < tolerance
    if engine == "layers":
        with pytest.raises(Exception, match="complex"):
            multiply(objective, hessian, engine=engine)


def test_complex_outputs_are_held_against_complex_targets_by_the_modulus():
    model = nn.Linear(4, 3, dtype=torch.complex64)
    inputs, targets = (torch.randn(12, size, dtype=torch.complex64) for size in (4, 3))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.view_as_real(outputs - targets).square().sum() / targets.numel()

    twin = wide(model)
    expected = loss(twin(inputs.to(torch.complex128)), targets.to(torch.complex128)).item()
    objective = Objective(model, "mse", (inputs, targets), dtype=torch.float64)
    assert objective.loss() == pytest.approx(expected, rel=1e-10)
    with pytest.raises(FlatkitError, match="real"):
        Objective(model, lambda a, b: (a - b).square().mean(1), (inputs, targets))


def test_a_complex_model_moves_along_a_line():
    objective = Objective(Circulant(), "cross_entropy", DATA, dtype=torch.float64)
    movable, step = MovableModel(objective, apart=True), torch.ones(1, 22).double()
    movable.move(objective.theta, step, [0.5])
    chunk = next(objective.chunks())
    with torch.no_grad():
        found = float(objective.share(movable.outputs(chunk), chunk))
    assert found == pytest.approx(objective.loss(objective.theta + 0.5), rel=1e-12)


def test_a_space_of_complex_parameters_goes_forth_and_back():
    tensors = {"a": torch.ones(1), "w": torch.randn(2, 3, dtype=torch.complex64)}
    tensors["b"] = torch.tensor([3 + 4j, 0j]).conj()
    space = ParameterSpace.of(tensors)
    theta = space.flatten(tensors)
    assert space.size == 1 + 12 + 4
    assert all(torch.equal(part, tensors[n]) for n, part in space.unflatten(theta).items())
    shapes = {name: tuple(rows.shape) for name, rows in space.filters(theta).items()}
    assert shapes == {"a": (1, 1), "w": (2, 6), "b": (1, 4)}
    assert space.filter_norms(theta)[-4:].tolist() == [5, 5, 0, 0]  # |3 - 4i| twice
    with pytest.raises(InvalidArgumentError, match="w must be complex, got real"):
        space.flatten({**tensors, "w": torch.ones(2, 3)})


def test_a_copy_is_made_once_of_what_two_share():
    first = nn.Linear(2, 2)
    model = nn.Sequential(first, first)
    model.list = [first.weight, first]
    twin = duplicate(model, torch.float64)
    assert twin[0] is twin[1] is twin.list[1]
    assert twin.list[0] is twin[0].weight
    assert twin[0].weight.dtype == torch.float64


def test_parameters_in_one_memory_are_refused_by_name():
    """An optimizer that moves one moves the other: neither is a coordinate of θ."""
    tied, views, gaps = Plain(), Plain(), Plain()
    tied.second = nn.Linear(4, 5)
    tied.second.weight.data = tied.first.weight.data
    memory = torch.randn(40)
    views.first.weight.data = memory[:20].view(5, 4)
    views.second.weight.data = memory[15:30].view(3, 5)
    gaps.first.weight.data = memory[:40:2].view(5, 4)
    gaps.first.bias.data = memory[1:11:2]  # between entries of the weight, and those below on it
    gaps.second.weight.data = memory[10:40:2].view(3, 5)
    for model in (tied, views, gaps):
        with pytest.raises(InvalidArgumentError, match=r"first\.weight and second\.weight.*clone"):
            Objective(model, "cross_entropy", DATA)


def test_parameters_that_share_a_storage_and_no_entry_are_measured():
    apart, woven = Plain(), Plain()
    memory = torch.cat([woven.first.weight.data.flatten(), torch.zeros(20)]).view(2, 20)
    memory[1, :15] = woven.second.weight.data.flatten()
    memory = memory.T.contiguous()  # the entries of one lie between those of the other
    woven.first.weight.data = memory[:, 0].view(5, 4)
    woven.second.weight.data = memory[:15, 1].view(3, 5)
    found = [Objective(model, "cross_entropy", DATA).gradient() for model in (apart, woven)]
    torch.testing.assert_close(*found)


class Ensemble(nn.Module):
    """Runs a skeleton without values, into which it puts its weights by name."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.weight, self.bias = nn.Parameter(torch.randn(2, 3, 4)), nn.Parameter(torch.zeros(2, 3))
        self.skeleton = [nn.Linear(4, 3, device="meta")]

    def forward(self, x):
        def run(weight, bias):
            return functional_call(self.skeleton[0], {"weight": weight, "bias": bias}, (x,))

        return torch.vmap(run)(self.weight, self.bias).mean(0)


def test_a_skeleton_without_values_stays_one():
    is_right(Ensemble(), Ensemble())


def test_complex_weights_and_weights_without_entries_have_influences_and_slices():
    class Odd(Circulant):
        def __init__(self):
            super().__init__()
            self.nothing = nn.Parameter(torch.empty(0, 5))

    measures = ["loss", "gradient_norm", "top_eigenvalues", "loss_slice"]
    found = analyze(Odd(), "cross_entropy", DATA, measures=measures, progress=False)
    assert found.result("gradient_norm").settings["influence"]["blocks"] > 1
    assert found.result("loss_slice").value


class OwnTensor(torch.Tensor):
    """A tensor class of the user's own."""


def test_a_free_parameter_of_an_own_tensor_class_is_named():
    layer = nn.Linear(2, 1)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(OwnTensor))
    data = (torch.randn(6, 2), torch.randn(6, 1))
    with pytest.raises(InvalidArgumentError, match=r"weight is a parameter of .* OwnTensor"):
        Objective(layer, "mse", data)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(torch.Tensor))
    assert Objective(layer, "mse", data).num_parameters == 3


class Noise(nn.Module):
    """Adds the same noise in every call, from a generator that it makes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden, generator = self.into(inputs), torch.Generator().manual_seed(3)
        noise = torch.randn(hidden.shape, generator=generator, dtype=hidden.dtype)
        return self.out(torch.tanh(hidden + hidden.exp() * noise))


def test_a_generator_made_in_the_forward_pass_is_measured():
    model, inputs, targets = Noise(), torch.randn(12, 4).double(), torch.arange(12) % 3
    parameters = list(model.parameters())
    loss = F.cross_entropy(model(inputs), targets)
    slopes = torch.autograd.grad(loss, parameters, create_graph=True)
    parts = torch.autograd.grad(slopes, parameters, [torch.ones_like(p) for p in parameters])
    expected = torch.cat([part.flatten() for part in parts])
    operator = HessianOperator(Objective(model, "cross_entropy", (inputs, targets)))
    assert torch.allclose(operator @ torch.ones_like(expected), expected, rtol=1e-10)


class NoisyInputs(nn.Module):
    """Adds noise before the first layer, which several points at once would compute once."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        noise = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(3))
        return self.layers(inputs + noise)


def test_a_landscape_over_noise_of_a_generator_is_that_of_one_function():
    model, inputs, targets = NoisyInputs(), torch.randn(12, 4), torch.arange(12) % 3
    task = model, "cross_entropy", (inputs, targets)
    report = analyze(*task, measures=["loss_plane"], plane_points=3, extent=0.5)
    loss = F.cross_entropy(model(inputs), targets).item()
    assert report["loss_plane"].value["loss"][1][1] == pytest.approx(loss, rel=1e-6)
