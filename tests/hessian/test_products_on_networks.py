"""Engines on recurrent and attention networks, 16-bit weights, training BatchNorm and odd losses.

The references are dense: torch's own nested differentiation of the loss as it is written here.
"""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from flatkit import HessianOperator, Objective
from flatkit.errors import NonDeterministicError, NonFiniteError
from flatkit.hessian import ENGINES
from flatkit.spectrum import lanczos
from flatkit.spectrum.operators import check_symmetric
from tests.cases import CASES, Case, SineOnce, classes, dense_hessian, draws, quadratic_task, seeded


class Recurrent(nn.Module):
    """The last state of a recurrent layer, and a head."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Encoder(nn.Module):
    """A layer of `nn.TransformerEncoder`, pooled."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 3, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


NETWORKS = [
    Case("lstm", seeded(lambda: Recurrent(nn.LSTM(3, 2, batch_first=True))), classes(7, 4, 3)),
    Case("gru", seeded(lambda: Recurrent(nn.GRU(3, 2, batch_first=True))), classes(7, 4, 3)),
    Case("multi-head attention", seeded(SelfAttention), classes(7, 4, 4)),
    Case("transformer encoder", seeded(Encoder), classes(7, 4, 4)),
]
every_network = pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)


class BiasAlone(nn.Module):
    """A first layer of which the bias is trained and the weight is not."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        first.weight.requires_grad_(False)
        self.first, self.head = first, nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x)).flatten(2).mean(2))


FIRST_LAYERS = [
    Case("one dimension", seeded(lambda: BiasAlone(nn.Conv1d(1, 2, 2))), classes(7, 1, 4)),
    Case("two dimensions", seeded(lambda: BiasAlone(nn.Conv2d(1, 2, 2))), classes(7, 1, 4, 4)),
]


@pytest.mark.parametrize("case", FIRST_LAYERS, ids=lambda case: case.name)
def test_a_first_layer_of_which_the_bias_alone_is_trained_equals_the_dense_hessian(case):
    objective = Objective(case.build(), case.loss, case.data(), chunk_size=4)
    found = (
        HessianOperator(objective, engine="layers") @ torch.eye(objective.theta.numel()).double()
    )
    torch.testing.assert_close(found, dense_hessian(case), rtol=0, atol=1e-12)


@every_network
@pytest.mark.parametrize("engine", ["auto", "double_backward", "central_difference"])
def test_recurrent_and_attention_networks_equal_the_dense_hessian(case, engine):
    objective = Objective(case.build(), case.loss, case.data(), chunk_size=4)
    hessian = HessianOperator(objective, engine=engine)
    vectors = draws(hessian.size)
    tolerance = 1e-6 if engine == "central_difference" else 1e-10
    torch.testing.assert_close(
        hessian @ vectors, dense_hessian(case) @ vectors, rtol=0, atol=tolerance
    )


@every_network
def test_every_other_engine_is_right_or_says_that_it_cannot(case):
    objective = Objective(case.build(), case.loss, case.data())
    vectors = draws(objective.num_parameters)
    truth = dense_hessian(case) @ vectors
    for engine in set(ENGINES) - {"double_backward", "central_difference"}:
        try:
            hessian = HessianOperator(objective, engine=engine)
            error = hessian.choice.error
        except Exception as refusal:
            assert "no engine can multiply" in str(refusal), engine
            continue
        off = float((hessian @ vectors - truth).norm() / truth.norm())
        assert off <= 1e-9 or (error or 0) > 1e-4, (engine, off, error)


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_16_bit_weights_are_accumulated_in_float32(engine):
    case = CASES[0]
    model = case.build().to(torch.bfloat16)
    objective = Objective(model, case.loss, case.data())
    assert objective.dtype == torch.float32
    rounded = Case("rounded", lambda: copy.deepcopy(model).double(), _single(case.data), case.loss)
    hessian = HessianOperator(objective, engine=engine)
    vectors, truth = draws(hessian.size).float(), dense_hessian(rounded)
    off = (hessian @ vectors).double() - truth @ vectors.double()
    tolerance = 3e-3 if engine == "central_difference" else 2e-6
    assert float(off.norm() / (truth @ vectors.double()).norm()) <= tolerance
    assert hessian.choice.error is not None and hessian.choice.error <= tolerance
    top = lanczos(hessian, generator=torch.Generator().manual_seed(0))
    exact = float(torch.linalg.eigvalsh(truth)[-1])
    slack = tolerance * exact if engine == "central_difference" else 0.0
    assert abs(float(top.value[0]) - exact) <= float(top.error[0]) + slack


def _single(data):
    """The data as float32 holds them."""

    def make():
        x, y = data()
        return x.float().double(), y

    return make


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_batchnorm_with_the_statistics_of_each_chunk_equals_the_dense_hessian(engine):
    case = next(case for case in CASES if "batchnorm" in case.name)
    model, (x, y) = case.build(), case.data()
    free = dict(model.named_parameters())
    sizes, shapes = [p.numel() for p in free.values()], [p.shape for p in free.values()]
    reference = copy.deepcopy(model).train()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):  # batch statistics; nothing is remembered
            module.running_mean = module.running_var = None
            module.track_running_stats = False

    def loss(flat: Tensor) -> Tensor:
        parts = [p.view(s) for p, s in zip(flat.split(sizes), shapes, strict=True)]
        named = dict(zip(free, parts, strict=True))
        total = torch.zeros((), dtype=torch.float64)
        for begin in range(0, len(x), 8):
            outputs = functional_call(reference, named, (x[begin : begin + 8],))
            total = total + F.cross_entropy(outputs, y[begin : begin + 8], reduction="sum")
        return total / len(x)

    theta = torch.cat([p.detach().flatten() for p in free.values()])
    truth = torch.autograd.functional.hessian(loss, theta)
    assert isinstance(truth, Tensor)
    objective = Objective(model, case.loss, (x, y), batchnorm="train", chunk_size=8)
    hessian = HessianOperator(objective, engine=engine)
    if engine == "reverse_over_forward":
        assert (hessian.choice.error or 0) > 0.01  # torch is wrong here, and the choice knows it
        return
    vectors = draws(hessian.size)
    tolerance = 1e-5 if engine == "central_difference" else 1e-10
    torch.testing.assert_close(hessian @ vectors, truth @ vectors, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "loss",
    [
        lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"),
        lambda outputs, targets: F.cross_entropy(outputs, targets),
        nn.CrossEntropyLoss(reduction="none"),
    ],
    ids=["per sample", "mean", "module"],
)
@pytest.mark.parametrize("engine", ["layers", "double_backward", "forward_over_reverse"])
def test_losses_of_every_kind_give_the_same_products(loss, engine):
    case = CASES[0]
    hessian = HessianOperator(
        Objective(case.build(), loss, case.data(), chunk_size=5), engine=engine
    )
    vectors = draws(hessian.size)
    torch.testing.assert_close(hessian @ vectors, dense_hessian(case) @ vectors, rtol=0, atol=1e-11)


def test_differences_are_as_exact_for_long_vectors_as_for_short_ones():
    case = CASES[0]
    objective = Objective(case.build().float(), case.loss, case.data())
    hessian = HessianOperator(objective, engine="central_difference")
    vector = torch.randn(hessian.size, generator=torch.Generator().manual_seed(0))
    truth = dense_hessian(case) @ vector.double()
    for scale in (1e-6, 1.0, 1e6):
        found = (hessian @ (scale * vector)).double() / scale
        assert float((found - truth).norm() / truth.norm()) <= 2e-3


class OnlyOnce(SineOnce):
    """One that refuses float64 too."""

    @staticmethod
    def forward(ctx, x):
        if x.dtype == torch.float64:
            raise RuntimeError("float32 only")
        return SineOnce.forward(ctx, x)


class Kernel(nn.Module):
    def __init__(self, sine) -> None:
        super().__init__()
        self.first, self.second, self.sine = nn.Linear(3, 4), nn.Linear(4, 2), sine

    def forward(self, x):
        return self.second(self.sine(self.first(x)))


def test_differences_state_their_own_error_where_there_is_nothing_to_compare_with():
    torch.manual_seed(0)
    data = torch.randn(9, 3), torch.randint(0, 2, (9,))
    model = Kernel(OnlyOnce.apply)
    hessian = HessianOperator(Objective(model, "cross_entropy", data), engine="central_difference")
    choice = hessian.choice
    assert "twice the step" in choice.against and choice.error is not None
    smooth = copy.deepcopy(model)
    smooth.sine = torch.sin
    exact = HessianOperator(Objective(smooth.double(), "cross_entropy", data))
    errors = []
    for seed in range(20):
        vector = torch.randn(hessian.size, generator=torch.Generator().manual_seed(seed))
        truth = exact @ vector.double()
        errors.append(float(((hessian @ vector).double() - truth).norm() / truth.norm()))
    assert choice.error <= 1e-2 and max(errors) <= 5 * choice.error


def test_a_nan_in_the_loss_is_an_error_for_every_engine():
    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none") + float("nan") * outputs[:, 0]

    case = CASES[0]
    objective = Objective(case.build(), loss, case.data())
    for engine in ("auto", *ENGINES):
        with pytest.raises(NonFiniteError, match="NaN or infinite"):
            HessianOperator(objective, engine=engine).matvec(objective.theta)


def test_dropout_that_is_on_is_refused_before_any_product():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return F.dropout(self.layer(x), 0.5, training=True)

    with pytest.raises(NonDeterministicError, match="draws random numbers"):
        Objective(Noisy(), "cross_entropy", CASES[0].data())


def test_products_with_a_network_are_symmetric_with_every_engine():
    case = CASES[0]
    for engine in ENGINES:
        hessian = HessianOperator(Objective(case.build(), case.loss, case.data()), engine=engine)
        check_symmetric(hessian, generator=torch.Generator().manual_seed(0), tolerance=1e-6)


def test_nothing_of_the_users_model_changes_by_products():
    case = CASES[0]
    model = case.build().train()
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for engine in ENGINES:
            objective = Objective(model, case.loss, case.data())
            HessianOperator(objective, engine=engine).matvec(objective.theta)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_matrix_of_zeros_has_exact_answers_everywhere():
    from flatkit.spectrum import frobenius_norm, lobpcg, power_iteration, spectral_density, trace

    objective = Objective(*quadratic_task(torch.zeros(5, 5, dtype=torch.float64)))
    hessian = HessianOperator(objective)
    for method in (lanczos, lobpcg, power_iteration):
        found = method(hessian, k=2, generator=torch.Generator().manual_seed(0))
        assert found.converged and found.value.tolist() == [0.0, 0.0]
        assert float(found.error.max()) <= 1e-12
    for estimate in (trace, frobenius_norm):
        found = estimate(hessian, generator=torch.Generator().manual_seed(0))
        assert found.converged and (float(found.value), float(found.error)) == (0.0, 0.0)
    density = spectral_density(hessian, generator=torch.Generator().manual_seed(0))
    assert (density.mean, set(density.nodes.tolist())) == (0.0, {0.0})
