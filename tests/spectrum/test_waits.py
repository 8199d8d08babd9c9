"""How often a solver waits for its device: once a step of Lanczos, once a gradient."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from flatkit import Objective
from flatkit.errors import NonFiniteError
from flatkit.hessian import HessianOperator
from flatkit.spectrum import gram_schmidt, krylov
from flatkit.spectrum.gram_schmidt import orthogonalise_at_once
from flatkit.spectrum.krylov import KrylovBasis
from flatkit.spectrum.operators import DenseOperator


class Waits(TorchDispatchMode):
    """Counts numbers that go from tensors of 32 bits or truth values to the host.

    Those of float64 are the weights of the samples, which are on the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counted = Counter[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs: Any = None):
        if func is torch.ops.aten._local_scalar_dense.default:
            kind = str(args[0].dtype)
            self.counted[kind] += kind != "torch.float64"
        return func(*args, **(kwargs or {}))


def objective(**given) -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.LayerNorm(40), nn.Linear(40, 5))
    data = (torch.randn(64, 12), torch.randint(5, (64,)))
    return Objective(model, "cross_entropy", data, **given)


@pytest.mark.parametrize("engine", ["layers", "double_backward", "forward_over_reverse"])
@pytest.mark.parametrize("chunk_size", [64, 16])
def test_a_step_of_lanczos_waits_once(engine, chunk_size, monkeypatch):
    told = Counter[str]()

    def counted(*args):
        told["told"] += 1
        return orthogonalise_at_once(*args)

    monkeypatch.setattr(krylov, "orthogonalise_at_once", counted)
    hessian = HessianOperator(objective(chunk_size=chunk_size), engine=engine)
    basis = KrylovBasis(hessian, 20, torch.Generator(), keep_images=True, at_once=True)
    basis.expand()  # the probe of the engine, and the plan
    told.clear()
    with Waits() as waits:
        for _ in range(5):
            basis.expand()
    assert not +waits.counted
    assert told["told"] == 5


def test_gram_schmidt_asks_for_its_numbers_once():
    asked = Counter[str]()

    class Asked(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs: Any = None):
            name = getattr(func, "__name__", "")
            asked[name] += name in ("tolist", "item", "cpu", "numpy", "__float__", "__bool__")
            return func(*args, **(kwargs or {}))

    with Asked():
        gram_schmidt.orthogonalise_at_once(torch.eye(3, 40), torch.randn(40))
    assert +asked == Counter({"tolist": 1})


@pytest.mark.parametrize("chunks", [1, 4])
def test_a_gradient_waits_once(chunks):
    own = objective(chunk_size=64 // chunks)
    own.loss_and_gradient()
    with Waits() as waits:
        own.loss_and_gradient()
    assert not +waits.counted


def test_both_ways_find_the_same_space():
    matrix = torch.randn(60, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    operator = DenseOperator(matrix + matrix.T)
    one, other = (
        KrylovBasis(operator, 60, torch.Generator().manual_seed(1), at_once=way)
        for way in (True, False)
    )
    for basis in (one, other):
        for _ in range(60):
            basis.expand()
        vectors, _ = basis.span()
        gram = vectors @ vectors.T - torch.eye(60, dtype=torch.float64)
        assert float(gram.abs().max()) < 1e-13
        truth = torch.linalg.eigvalsh(operator.matrix)
        torch.testing.assert_close(torch.from_numpy(basis.ritz()[0]), truth, rtol=0, atol=1e-11)


def test_what_is_not_finite_is_still_refused_by_name():
    own = objective()
    hessian = HessianOperator(own, engine="double_backward")
    basis = KrylovBasis(hessian, 5, torch.Generator(), at_once=True)
    basis.expand()
    hessian.theta.fill_(float("nan"))
    fresh = HessianOperator(own, hessian.theta, engine="double_backward")
    fresh.choice = hessian.choice
    other = KrylovBasis(fresh, 5, torch.Generator(), at_once=True)
    with pytest.raises(NonFiniteError, match="Hessian-vector product has NaN"):
        other.expand()
