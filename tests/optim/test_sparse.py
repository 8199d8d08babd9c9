"""Sparse gradients: the arithmetic of dense ones, and sparse again for the base."""

import torch
from torch import Tensor, nn
from torch.optim import SGD, SparseAdam

from tests.optim.test_contract import WRAPPERS, backward_wrapper


def embedding(sparse: bool) -> nn.Embedding:
    weight = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2)
    return nn.Embedding.from_pretrained(weight.clone(), freeze=False, sparse=sparse)


def loss_of(layer: nn.Embedding, words: Tensor) -> Tensor:
    return (layer(words) ** 4).sum() + layer(words).sin().sum()


@backward_wrapper
def test_sparse_gradients_step_like_dense_ones(wrapper):
    ends = []
    for sparse in (True, False):
        layer = embedding(sparse)
        optimizer = WRAPPERS[wrapper](SGD(layer.parameters(), lr=0.01))
        for number in range(3):
            words = torch.tensor([1, number, 4, 1])
            optimizer.step(lambda layer=layer, words=words: loss_of(layer, words))
        ends.append(layer.weight.detach())
        assert layer.weight.grad is not None and layer.weight.grad.is_sparse is sparse
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


@backward_wrapper
def test_the_rows_are_those_that_occurred_in_any_pass(wrapper):
    layer = embedding(True)
    optimizer = WRAPPERS[wrapper](SparseAdam(layer.parameters(), lr=0.01))
    before = layer.weight.detach().clone()

    def closure() -> Tensor:
        return loss_of(layer, torch.tensor([1, 4] if optimizer.gradient_pass == 0 else [2]))

    optimizer.step(closure)
    assert layer.weight.grad is not None
    assert layer.weight.grad.coalesce().indices().tolist() == [[1, 2, 4]]
    still = (layer.weight == before).all(dim=1)
    assert still[[0, 3, 5]].all()  # an optimizer of sparse gradients leaves the others alone


def test_one_dense_gradient_makes_all_dense():
    layer = embedding(True)
    optimizer = WRAPPERS["sam"](SGD(layer.parameters(), lr=0.01))
    optimizer.step(
        lambda: (
            loss_of(layer, torch.tensor([1]))
            if optimizer.gradient_pass == 0
            else layer.weight.square().sum()
        )
    )
    assert layer.weight.grad is not None and not layer.weight.grad.is_sparse
