"""What a loader makes of the samples of a batch is part of what is measured, or is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset

from flatkit import Objective
from flatkit.errors import FlatkitError, NonDeterministicError

RAGGED: Any = [(torch.randn(2 + 5 * n % 7, 3), torch.tensor(n % 3)) for n in range(20)]


def centred(items: list[Any]) -> tuple[Tensor, Tensor]:
    inputs = torch.stack([x for x, _ in items])
    return inputs - inputs.mean(0), torch.stack([y for _, y in items])


def filled_up(items: list[Any]) -> tuple[Tensor, Tensor]:
    return pad_sequence([x for x, _ in items], batch_first=True), torch.stack([y for _, y in items])


class Last(nn.Module):
    """Reads a sequence up to its end, be that padding."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.rnn(inputs)[0][:, -1])


class Summed(nn.Module):
    """Sees no padding: zeros add nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.head = nn.Linear(3, 4, bias=False), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.into(inputs)).sum(1))


class Twice(Dataset[Any]):
    """Gives a loader all samples of a batch at once, and then others than one by one."""

    def __init__(self, *, centred: bool = False) -> None:
        self.inputs, self.targets, self.centred = torch.randn(20, 3), torch.arange(20) % 3, centred

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return self.inputs[index], self.targets[index]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        inputs = 2 * self.inputs[indices]
        inputs = inputs - inputs.mean(0) if self.centred else inputs
        return list(zip(inputs, self.targets[indices], strict=True))


PAIRS = [(torch.randn(3), torch.tensor(n % 3)) for n in range(20)]
BATCHES = {
    "rows that are centred over their batch": (nn.Linear(3, 3), PAIRS, centred),
    "rows that are filled up, and a model that sees it": (Last(), RAGGED, filled_up),
    "samples that are given all at once": (nn.Linear(3, 3), Twice(), None),
    "samples that are centred where given at once": (nn.Linear(3, 3), Twice(centred=True), None),
}


@pytest.mark.parametrize("name", BATCHES)
def test_what_a_loader_makes_of_a_batch_is_what_is_measured(name):
    model, data, collate = BATCHES[name]
    loader = DataLoader(data, batch_size=5, collate_fn=collate)
    objective = Objective(model, "cross_entropy", loader)
    losses = [nn.functional.cross_entropy(model(x), y) for x, y in loader]
    loss = torch.stack(losses).mean()  # all batches are of five
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert objective.samples.count == 20
    assert objective.loss() == pytest.approx(loss.item(), rel=1e-6)
    assert torch.allclose(objective.gradient(), gradient, atol=1e-6)


def test_padding_that_a_model_leaves_out_is_no_matter():
    model = Summed()
    loader = DataLoader(RAGGED, batch_size=5, shuffle=True, collate_fn=filled_up)
    objective = Objective(model, "cross_entropy", loader)
    losses = [nn.functional.cross_entropy(model(x[None]), y[None]) for x, y in RAGGED]
    assert objective.samples.counts is None, "each sample is a row"
    assert objective.loss() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rows that are centred over their batch", "mixed anew on every pass; give shuffle=False"),
        ("samples that are centred where given at once", "depends on the others of its batch"),
        ("rows that are filled up, and a model that sees it", "the model sees the padding"),
    ],
)
def test_batches_that_are_mixed_anew_are_no_part_of_a_loss(name, words):
    model, data, collate = BATCHES[name]
    with pytest.raises(FlatkitError, match=words):
        Objective(
            model, "cross_entropy", DataLoader(data, batch_size=5, shuffle=True, collate_fn=collate)
        )


class Flipping(Dataset[Any]):
    """Turns one sample in ten around, or by a generator of its own every other."""

    def __init__(self, *, own: bool) -> None:
        self.inputs = torch.randn(20, 3)
        self.generator = torch.Generator().manual_seed(0) if own else None

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        turned = torch.rand((), generator=self.generator) < (0.5 if self.generator else 0.1)
        found = self.inputs[index]
        return (found.flip(0) if turned else found), index % 3


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_augmentation_of_a_few_samples_is_refused(own, seed):
    torch.manual_seed(seed)
    with pytest.raises(NonDeterministicError, match="random augmentation"):
        Objective(nn.Linear(3, 3), "cross_entropy", Flipping(own=own))


def test_samples_with_missing_numbers_are_the_same_when_asked_again():
    data = [(torch.randn(3), torch.tensor([1.0, torch.nan])) for _ in range(6)]

    def known(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets)[:, :1].square().mean()

    model = nn.Linear(3, 2)
    expected = known(model(torch.stack([x for x, _ in data])), torch.stack([y for _, y in data]))
    assert Objective(model, known, data).loss() == pytest.approx(expected.item(), rel=1e-6)


class Stream(IterableDataset[Any]):
    """Sequences of several lengths, one after the other."""

    def __iter__(self) -> Any:
        return iter(RAGGED)


def test_batches_of_several_lengths_from_a_stream_are_measured_as_they_are():
    model, loader = Last(), DataLoader(Stream(), batch_size=5, collate_fn=filled_up)
    objective = Objective(model, "cross_entropy", loader)
    losses = [nn.functional.cross_entropy(model(x), y) for x, y in loader]
    assert objective.loss() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-6)
