"""Every form of data gives the objective of the plain tensors, and says which samples it took."""

from collections import UserDict
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from flatkit import Objective
from flatkit.errors import InvalidArgumentError, NonDeterministicError
from flatkit.objective.reading.samples import collect
from tests.cases import CASES

CASE = CASES[0]  # an MLP that takes 4 numbers
X, Y = CASE.data()
N = len(X)


class Pairs(Dataset):
    """A map-style data set that counts which samples are asked for."""

    def __init__(self):
        self.asked = []

    def __len__(self):
        return N

    def __getitem__(self, index):
        self.asked.append(index)
        return X[index], int(Y[index])


class Records(Pairs):
    """Samples as dictionaries, with what no model takes."""

    def __getitem__(self, index):  # type: ignore[override]
        self.asked.append(index)
        return {"input": X[index].tolist(), "label": int(Y[index]), "text": f"sample {index}"}


class Stream(IterableDataset):
    def __iter__(self):
        return iter((x, int(y)) for x, y in zip(X, Y, strict=True))


class ByName(nn.Module):
    """Takes its input by name, and returns several things."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, input):
        logits = self.net(input)
        return {"logits": logits, "norm": logits.norm()}


class InParts(nn.Module):
    """Takes two inputs by position."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, first, second):
        return self.net(torch.cat([first, second], dim=1))


def shuffled(batch):
    return torch.stack([x for x, _ in batch]), torch.tensor([y for _, y in batch])


FORMS = {
    "two tensors": (lambda: (X, Y), None),
    "a list of pairs": (lambda: list(zip(X, Y, strict=True)), None),
    "a map-style data set": (Pairs, None),
    "a data set of dictionaries": (Records, ByName),
    "a dictionary of tensors": (lambda: {"input": X, "labels": Y}, ByName),
    "two inputs": (lambda: (X[:, :1], X[:, 1:], Y), InParts),
    "a data set of two inputs": (lambda: TensorDataset(X[:, :1], X[:, 1:], Y), InParts),
    "an iterable data set": (Stream, None),
    "a loader": (lambda: DataLoader(Pairs(), batch_size=5, shuffle=True), None),
    "a loader of dictionaries": (lambda: DataLoader(Records(), batch_size=5), ByName),
    "a loader with its own collation": (
        lambda: DataLoader(Pairs(), batch_size=5, collate_fn=shuffled),
        None,
    ),
    "a loader over an iterable": (lambda: DataLoader(Stream(), batch_size=5), None),
    "a loader over an iterable, one by one": (lambda: DataLoader(Stream(), batch_size=None), None),
}


@pytest.mark.parametrize(("form", "wrap"), FORMS.values(), ids=FORMS.keys())
def test_every_form_of_data_gives_the_loss_and_gradient_of_the_tensors(form, wrap):
    model = CASE.build()
    expected = Objective(model, "cross_entropy", (X, Y), chunk_size=7)
    found = Objective(wrap(model) if wrap else model, "cross_entropy", form(), chunk_size=7)
    assert found.num_samples == N
    # A data set of plain numbers holds them in float32.
    assert found.loss() == pytest.approx(expected.loss(), rel=1e-6)
    torch.testing.assert_close(found.gradient(), expected.gradient(), rtol=1e-5, atol=1e-7)
    assert found.accuracy() == expected.accuracy()


@pytest.mark.parametrize("name", [n for n in FORMS if "iterable" not in n])
def test_a_draw_of_samples_is_the_same_in_every_form(name):
    drawn = collect(FORMS[name][0](), samples=6, seed=3)
    assert drawn.drawn == "random" and drawn.available == N and len(drawn) == 6
    assert drawn.indices.tolist() == collect((X, Y), samples=6, seed=3).indices.tolist()
    assert torch.equal(drawn.targets, Y[drawn.indices])


def test_only_the_samples_that_were_drawn_are_read():
    data = Pairs()
    drawn = collect(data, samples=5, seed=0)
    assert sorted(set(data.asked)) == drawn.indices.tolist()


def test_of_an_iterable_the_first_samples_are_taken_and_said():
    for data in (Stream(), DataLoader(Stream(), batch_size=5)):
        drawn = collect(data, samples=7, seed=0)
        assert (drawn.drawn, drawn.available, drawn.numbers()) == ("first", None, "0-6")
        assert torch.equal(drawn.targets, Y[:7])


def test_the_description_holds_the_exact_numbers_of_the_samples():
    objective = Objective(CASE.build(), "cross_entropy", (X, Y), samples=9, seed=1)
    described = objective.describe()
    numbers = []
    for part in described["indices"].split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    assert numbers == objective.indices.tolist()
    again = Objective(CASE.build(), "cross_entropy", (X[numbers], Y[numbers]))
    assert again.loss() == pytest.approx(objective.loss(), rel=1e-12)


def test_a_subset_and_the_sampler_of_one_give_the_same_samples():
    rows = [3, 8, 1]
    subset = collect(Subset(Pairs(), rows), samples=None, seed=0)
    sampler = SubsetRandomSampler(rows)
    sampled = collect(DataLoader(Pairs(), batch_size=2, sampler=sampler), samples=None, seed=0)
    assert sampled.indices.tolist() == [1, 3, 8]
    assert sorted(subset.targets.tolist()) == sorted(sampled.targets.tolist())


def test_a_mapping_that_is_no_dict_goes_by_name():
    found = collect([UserDict({"input": X[i], "label": Y[i]}) for i in range(3)], samples=2, seed=0)
    assert found.inputs.keys() == {"input", "label"}


class Noisy(Pairs):
    def __getitem__(self, index):
        return torch.randn(4), 0


class Ragged(Pairs):
    def __getitem__(self, index):
        return torch.zeros(index + 1), 0


class Endless(IterableDataset):
    def __iter__(self):
        return ((torch.zeros(4), 0) for _ in count())


REFUSED = {
    "an iterator": (lambda: iter([(X, Y)]), "can be read only once"),
    "a text": (lambda: "digits", "got str"),
    "nothing": (list, "no samples"),
    "an empty loader": (lambda: DataLoader(TensorDataset(X[:0], Y[:0])), "no samples"),
    "one tensor": (lambda: X, r"got Tensor; for inputs alone give a dictionary.*\{'x': x\}"),
    "arrays": (lambda: (X.numpy(), Y.numpy()), "a tuple of ndarray; make tensors.*from_numpy"),
    "named arrays": (lambda: {"x": X.numpy()}, "got dict; make tensors.*from_numpy"),
    "no end": (Endless, "32 samples or more, or no end; say by `samples`"),
    "batches without end": (lambda: DataLoader(Endless(), 4), "no end; say by `samples`"),
    "samples of several lengths": (Ragged, "cannot be stacked"),
    "a sampler that repeats": (
        lambda: DataLoader(Pairs(), sampler=WeightedRandomSampler([1.0] * N, N)),
        "WeightedRandomSampler",
    ),
    "numbers": (lambda: [1, 2, 3], "a list of int"),
    "texts alone": (lambda: [("a", "b")], "tensors"),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_measured_is_refused_with_the_reason(data, message, monkeypatch):
    monkeypatch.setattr("flatkit.objective.reading.samples._ENDLESS", 32)
    with pytest.raises(InvalidArgumentError, match=message):
        collect(data(), samples=None, seed=0)


def test_random_augmentation_is_refused():
    with pytest.raises(NonDeterministicError, match="augmentation"):
        collect(Noisy(), samples=None, seed=0)


def mixed(items):
    inputs, targets = default_collate(items)
    share = torch.rand(1)
    return share * inputs + (1 - share) * inputs.flip(0), targets


def test_batches_that_are_mixed_at_random_are_refused():
    with pytest.raises(NonDeterministicError, match=r"collate_fn .* another batch .*mixup"):
        collect(DataLoader(Pairs(), 4, collate_fn=mixed), samples=None, seed=0)


@pytest.mark.parametrize("data", [Pairs, Stream, lambda: DataLoader(Stream(), batch_size=4)])
def test_more_samples_than_there_are_is_an_error(data):
    with pytest.raises(InvalidArgumentError, match=f"samples must be at most {N}"):
        collect(data(), samples=N + 1, seed=0)


def test_a_batch_of_names_that_the_model_does_not_take_is_an_error():
    with pytest.raises(InvalidArgumentError, match="has pixels, label, but the model takes input"):
        Objective(ByName(CASE.build()), "cross_entropy", {"pixels": X, "label": Y})


def test_a_model_of_several_outputs_needs_logits_or_a_loss_of_its_own():
    class Two(InParts):
        def forward(self, first, second):
            logits = super().forward(first, second)
            return logits, logits.square()

    data = (X[:, :1], X[:, 1:], Y)
    with pytest.raises(InvalidArgumentError, match="without logits"):
        Objective(Two(CASE.build()), "cross_entropy", data)

    def both(outputs, targets):
        logits, squares = outputs
        return F.cross_entropy(logits, targets, reduction="none") + squares.mean(1)

    logits = CASE.build()(X)
    expected = F.cross_entropy(logits, Y) + logits.square().mean()
    found = Objective(Two(CASE.build()), both, data, chunk_size=4).loss()
    assert found == pytest.approx(float(expected.detach()), rel=1e-12)


def test_several_targets_reach_the_loss_as_they_are():
    targets = {"class": Y, "norm": X.norm(dim=1)}
    data = [(X[i], {"class": Y[i], "norm": X[i].norm()}) for i in range(N)]

    def loss(outputs, wanted):
        return F.cross_entropy(outputs, wanted["class"], reduction="none") + wanted["norm"]

    outputs = CASE.build()(X)
    expected = F.cross_entropy(outputs, Y) + targets["norm"].mean()
    found = Objective(CASE.build(), loss, data, chunk_size=6).loss()
    assert found == pytest.approx(float(expected.detach()), rel=1e-6)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.SmoothL1Loss(), nn.L1Loss(), nn.HuberLoss()])
def test_regression_losses_of_torch_are_means_over_samples(loss):
    targets = torch.randn(N, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = float(loss(CASE.build()(X), targets).detach())
    found = Objective(CASE.build(), loss, (X, targets), chunk_size=4)
    assert found.loss() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (torch.Tensor.to_sparse, "sparse_coo"),
        (lambda x: x.to("meta"), "meta tensor, which has no values"),
        (lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged), "jagged"),
    ],
)
def test_tensors_of_which_no_samples_can_be_taken_are_named(made, words):
    with pytest.raises(InvalidArgumentError, match=f"{words}.*to_dense"):
        Objective(nn.Linear(4, 3), "cross_entropy", (made(X.float()), Y))


def test_sparse_samples_are_named_in_a_data_set_and_in_a_loader():
    pairs = [(x.to_sparse(), int(y)) for x, y in zip(X.float(), Y, strict=True)]

    def stacked(items):
        return torch.stack([x for x, _ in items]), torch.tensor([y for _, y in items])

    for data in (pairs, DataLoader(pairs, batch_size=4, collate_fn=stacked)):  # pyright: ignore
        with pytest.raises(InvalidArgumentError, match=r"sparse_coo.*to_dense"):
            Objective(nn.Linear(4, 3), "cross_entropy", data)


def test_labels_that_are_text_are_named():
    pairs = [(x, str(int(y))) for x, y in zip(X, Y, strict=True)]
    with pytest.raises(InvalidArgumentError, match=r"hold text, e\.g\. '\d'.*whole numbers"):
        Objective(CASE.build(), CASE.loss, pairs)


def test_a_model_that_needs_all_parts_of_a_batch_is_told_where_targets_stand():
    with pytest.raises(InvalidArgumentError, match=r"needs 2 inputs.*targets after the inputs"):
        Objective(nn.Bilinear(4, 4, 3), lambda outputs: outputs.mean(), (X, X))  # pyright: ignore
