"""Traces layer by layer, against dense matrices and against the exact trace of a ReLU network."""

import numpy as np
import pytest
import torch
from torch.func import functional_call, jacrev, vmap

from flatkit import HessianOperator, Objective
from flatkit.models import MODELS
from flatkit.spectrum import trace
from flatkit.spectrum.operators import DenseOperator, SymmetricOperator
from flatkit.spectrum.stratified_trace import StratifiedProbes, probed_trace

SIZES = (40, 80, 30)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Parted(SymmetricOperator):
    """A matrix in three parts."""

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, matrix, sizes=SIZES):
        self.matrix, self.size, self.products = matrix, len(matrix), 0
        self.sizes = sizes

    @property
    def parts(self):
        return self.sizes

    def matvec(self, vector):
        self.products += 1
        return self.matrix @ vector


def coupled(scales, coupling, sizes=SIZES):
    """Return a matrix with positive blocks of some scales, and random ones beside them."""
    draws = np.random.default_rng(0)
    matrix = coupling * draws.standard_normal((sum(sizes), sum(sizes)))
    matrix = (matrix + matrix.T) / 2
    begin = 0
    for size, scale in zip(sizes, scales, strict=True):
        part, factor = slice(begin, begin + size), draws.standard_normal((size, size))
        matrix[part, part] = scale * factor @ factor.T / size
        begin += size
    return torch.from_numpy(matrix)


def test_a_part_alone_has_no_variance_from_the_blocks_beside_the_diagonal():
    matrix = coupled([1.0, 0.0, 0.0], 1.0)
    matrix[:40, :40] = torch.diag(torch.arange(40.0).double())
    probes = StratifiedProbes(DenseOperator(matrix), SIZES, seeded())
    for _ in range(20):
        probes.draw_each()
    found = probes.by_part()
    assert found.value == pytest.approx(float(matrix.trace()), rel=1e-12)
    assert found.error < 0.1  # not 0: that 20 draws agree may be chance
    assert probes.pooled().error > 10 and probes.products == 60


def test_the_next_draw_goes_to_the_part_that_varies_most():
    probes = StratifiedProbes(DenseOperator(coupled([0.1, 5.0, 0.1], 1.0)), SIZES, seeded())
    for _ in range(5):
        probes.draw_each()
    for _ in range(20):
        probes.draw_best()
    assert [len(own) for own in probes._own] == [5, 25, 5]


def test_standard_errors_by_part_cover_the_truth_as_often_as_they_should():
    matrix = coupled([1.0, 0.3, 0.1], 1.0)
    covered, products, truth = 0, [], float(matrix.trace())
    for seed in range(150):
        value, error, _, spent, by_part, _ = probed_trace(
            DenseOperator(matrix),
            parts=SIZES,
            tolerance=0.02,
            budget=10_000,
            generator=seeded(seed),
        )
        assert by_part and error <= 0.02 * abs(value)
        covered += abs(value - truth) <= 2 * error
        products.append(spent)
    assert 132 <= covered <= 149  # stopping on the error makes it a little optimistic
    beside = matrix - torch.diag(matrix.diagonal())
    plain = 2 * float(beside.square().sum()) / (0.02 * truth) ** 2  # Hutchinson's variance
    assert np.mean(products) < plain / 20


def test_parts_of_two_coordinates_are_exact():
    draws = np.random.default_rng(1)
    matrix = torch.eye(48, dtype=torch.float64)
    corner = 3 * torch.from_numpy(draws.standard_normal((8, 8)))
    matrix[:8, :8] = corner + corner.T
    matrix.diagonal().fill_(1.0)
    chosen = 0
    for seed in range(20):
        value, error, _, spent, by_part, _ = probed_trace(
            DenseOperator(matrix),
            parts=(2, 2, 2, 2, 40),
            tolerance=0.01,
            budget=1000,
            generator=seeded(seed),
        )
        chosen += by_part
        assert abs(value - 48) <= 4 * error + 1e-12 and spent <= 1000
    assert chosen >= 5


def test_a_pair_of_coordinates_that_decides_leaves_the_error_honest():
    matrix = coupled([0.0] * 4, 2.0, sizes=(20,) * 4)
    for begin in range(0, 80, 20):
        matrix[begin, begin + 1] = matrix[begin + 1, begin] = 5.0
    matrix.diagonal().fill_(1.0)
    missed = 0
    for seed in range(60):
        value, error, _, _, by_part, _ = probed_trace(
            DenseOperator(matrix),
            parts=(20,) * 4,
            tolerance=0.02,
            budget=120,  # too few for every entry of the diagonal
            generator=seeded(seed),
        )
        assert by_part
        missed += abs(value - 80) > 3 * error
    assert missed <= 3  # few draws of a part that are all the same missed in a fifth


def test_parts_are_not_tried_where_few_probes_of_the_whole_are_enough():
    value, error, _, spent, by_part, _ = probed_trace(
        DenseOperator(coupled([1.0, 1.0, 1.0], 0.001)),
        parts=SIZES,
        tolerance=0.05,
        budget=1000,
        generator=seeded(),
    )
    assert not by_part and spent < 30 and error <= 0.05 * value


@pytest.mark.parametrize("budget", [16, 20, 40, 70, 290])
def test_a_budget_is_kept_and_the_error_holds_all_the_same(budget):
    matrix = coupled([1.0, 0.3, 0.1], 1.0, sizes=(80, 160, 60))
    operator = Parted(matrix, (80, 160, 60))
    found = trace(operator, tolerance=1e-6, max_matvecs=budget, generator=seeded())
    assert found.matvecs == operator.products <= budget and found.status == "budget"
    assert found.notes["by_part"] == (budget > 100)
    assert abs(float(found.value) - float(matrix.trace())) <= 4 * float(found.error) < np.inf


def test_a_budget_of_more_than_every_coordinate_leaves_no_sampling_error():
    matrix = coupled([1.0, 0.3, 0.1], 1.0)
    operator = Parted(matrix)
    found = trace(operator, tolerance=1e-6, max_matvecs=300, generator=seeded())
    assert found.matvecs == operator.products <= 300 and found.converged
    assert abs(float(found.value) - float(matrix.trace())) <= float(found.error) < 1e-11


def exact_trace(model, inputs):
    """Return the trace of the Hessian of the cross-entropy of a ReLU network.

    Its outputs are linear in the weights of any one layer, near a point without kinks, so that the
    diagonal is that of the Gauss-Newton matrix: Σ over samples of tr(B J Jᵀ), B of the softmax.
    """
    weights = {name: p.detach().double() for name, p in model.named_parameters()}

    def outputs(values, sample):
        return functional_call(model, values, (sample[None],))[0]

    jacobians = vmap(jacrev(outputs), (None, 0))(weights, inputs.double())
    shares = torch.softmax(functional_call(model, weights, (inputs.double(),)), dim=1)
    bend = torch.diag_embed(shares) - shares[:, :, None] * shares[:, None, :]
    products = sum(
        torch.einsum("ncx,ndx->ncd", j.flatten(2), j.flatten(2)) for j in jacobians.values()
    )
    return float((bend * products).sum() / len(inputs))


def test_the_trace_of_an_untrained_relu_network_takes_few_products_and_is_right():
    torch.manual_seed(0)
    model = MODELS.build("mlp", in_shape=(20,), classes=4, hidden=(32, 32), activation="relu")
    inputs, targets = torch.randn(64, 20), torch.arange(64) % 4
    hessian = HessianOperator(Objective(model, "cross_entropy", (inputs, targets)))
    truth = exact_trace(model, inputs)
    layered, plain = (
        trace(hessian, method=method, tolerance=0.02, max_matvecs=budget, generator=seeded())  # pyright: ignore
        for method, budget in (("auto", 20_000), ("hutchinson", 400))
    )
    assert layered.converged and layered.notes["by_part"]
    assert abs(float(layered.value) - truth) <= 3.5 * float(layered.error)
    needed = plain.matvecs * (float(plain.error) / (0.02 * float(plain.value))) ** 2
    assert plain.status == "budget" and layered.matvecs < needed / 3
