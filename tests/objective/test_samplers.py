"""Samplers say which samples there are: each once, undisturbed; what is drawn anew is refused."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from flatkit import Objective
from flatkit.errors import InvalidArgumentError, UserCodeError

N = 20
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 2, (N,), generator=torch.Generator().manual_seed(1))
DATA = TensorDataset(X, Y)
torch.manual_seed(0)
MODEL = nn.Linear(3, 2)


class Balanced(Sampler):
    """A batch sampler: one sample of each class a batch, three batches."""

    rows = tuple(int(i) for c in (0, 1) for i in (c == Y).nonzero().flatten()[:3])  # pyright: ignore

    def __iter__(self):
        for i in range(3):
            yield [self.rows[i], self.rows[3 + i]]

    def __len__(self):
        return 3


class Shuffled:
    """Mixes its own list in place on every pass, and counts the passes."""

    def __init__(self, rows):
        self.rows, self.passes, self.generator = list(rows), 0, torch.Generator()

    def __iter__(self):
        self.passes += 1
        torch.randperm(3, generator=self.generator)
        random.shuffle(self.rows)
        yield from self.rows

    def __len__(self):
        return len(self.rows)


class Counts:
    """Returns itself as its iterator."""

    def __iter__(self):
        self.at = 0
        return self

    def __next__(self):
        self.at += 2
        if self.at > 6:
            raise StopIteration
        return self.at

    def __len__(self):
        return 3


def loader(**settings):
    return DataLoader(DATA, **{"batch_size": 4, **settings})


FIXED = {
    "a shuffle": (lambda: loader(shuffle=True), range(N)),
    "a shuffle that drops its last batch": (
        lambda: loader(batch_size=8, shuffle=True, drop_last=True),
        range(N),
    ),
    "a fixed order that drops its last batch": (
        lambda: loader(batch_size=8, drop_last=True),
        range(16),
    ),
    "a list": (lambda: loader(sampler=[7, 2, 4]), [2, 4, 7]),
    "a list from the end": (lambda: loader(sampler=[-1, 2]), [2, 19]),
    "numbers of NumPy": (lambda: loader(sampler=np.array([3, 1])), [1, 3]),
    "a range": (lambda: loader(sampler=range(5)), range(5)),
    "a sequence of fewer": (lambda: loader(sampler=SequentialSampler(range(6))), range(6)),
    "a random order of fewer": (lambda: loader(sampler=RandomSampler(range(6))), range(6)),
    "a subset": (lambda: loader(sampler=SubsetRandomSampler([9, 3, 5])), [3, 5, 9]),
    "a batch sampler of a subset": (
        lambda: DataLoader(
            DATA, batch_sampler=BatchSampler(SubsetRandomSampler(range(6)), 4, True)
        ),
        range(6),
    ),
    "a batch sampler that drops": (
        lambda: DataLoader(DATA, batch_sampler=BatchSampler(range(6), 4, True)),
        range(4),
    ),
    "a batch sampler of one's own": (
        lambda: DataLoader(DATA, batch_sampler=Balanced()),
        sorted(Balanced.rows),
    ),
    "a list of batches": (lambda: DataLoader(DATA, batch_sampler=[[5, 1], [8]]), [1, 5, 8]),
    "a share of a group": (
        lambda: loader(sampler=DistributedSampler(DATA, num_replicas=4, rank=1, shuffle=False)),
        range(1, N, 4),
    ),
    "the whole of a group of one": (
        lambda: loader(sampler=DistributedSampler(DATA, num_replicas=1, rank=0)),
        range(N),
    ),
    "a sampler that mixes its list": (lambda: loader(sampler=Shuffled([3, 4, 11])), [3, 4, 11]),
    "a sampler that is its own iterator": (lambda: loader(sampler=Counts()), [2, 4, 6]),
    "all of them twice": (lambda: loader(sampler=RandomSampler(DATA, num_samples=2 * N)), range(N)),
    "weights without replacement": (
        lambda: loader(sampler=WeightedRandomSampler([1.0] * N, N, replacement=False)),
        range(N),
    ),
    "a subset that lists a sample twice": (
        lambda: DataLoader(Subset(DATA, [0, 0, 1]), batch_size=2),
        [0, 0, 1],
    ),
}


@pytest.mark.parametrize(("make", "rows"), FIXED.values(), ids=FIXED.keys())
def test_the_samples_of_a_loader_are_measured_each_once(make, rows):
    rows = list(rows)
    expected = float(F.cross_entropy(MODEL(X[rows]).detach().double(), Y[rows]))
    objective = Objective(MODEL, "cross_entropy", make())
    assert objective.num_samples == len(rows)
    assert objective.loss() == pytest.approx(expected, rel=1e-6)


class Endless:
    def __iter__(self):
        while True:
            yield 0


class DrawsAnew:
    def __len__(self):
        return N

    def __iter__(self):
        return iter(np.random.permutation(N)[:10].tolist())  # noqa: NPY002


class Fails:
    def __iter__(self):
        raise ValueError("no groups")


REFUSED = {
    "replacement": (lambda: RandomSampler(DATA, replacement=True), "with replacement.*`samples`"),
    "a part drawn anew": (lambda: RandomSampler(DATA, num_samples=6), "draws 6 of 20.*Subset"),
    "weights": (lambda: WeightedRandomSampler([1.0] * N, N), "WeightedRandomSampler.*`weight`"),
    "a draw of one's own": (DrawsAnew, "sampler DrawsAnew.*two passes differ.*Subset"),
    "repeats": (lambda: [0, 0, 1], "sampler list.*sample 0 2 times"),
    "no end": (Endless, "Endless.*more than 8 times"),
    "an iterator": (lambda: iter([0, 1]), "only once"),
    "texts": (lambda: ["a", "b"], "yields 'a', where whole numbers"),
    "places beyond the data": (lambda: [3, 40], "sample 40, and the data set has 20"),
}


@pytest.mark.parametrize(("sampler", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_a_draw_that_is_no_fixed_set_is_refused_with_the_way_out(sampler, words):
    with pytest.raises(InvalidArgumentError, match=f"(?i){words}"):
        Objective(MODEL, "cross_entropy", DataLoader(DATA, sampler=sampler(), batch_size=4))


@pytest.mark.parametrize(("processes", "said"), [(4, 4), (1, None)])
def test_the_share_of_one_process_is_said(processes, said):
    share = DistributedSampler(DATA, num_replicas=processes, rank=0, shuffle=False)
    found = Objective(MODEL, "cross_entropy", loader(sampler=share)).describe()
    assert found.get("share_of_one_process_in") == said
    assert (found["samples"], found["samples_available"]) == (N // processes, N)


def test_a_batch_sampler_that_draws_anew_is_refused_by_name():
    drawn = BatchSampler(RandomSampler(DATA, replacement=True), 4, False)
    with pytest.raises(InvalidArgumentError, match=r"RandomSampler.*replacement"):
        Objective(MODEL, "cross_entropy", DataLoader(DATA, batch_sampler=drawn))


def test_a_sampler_that_fails_is_shown_with_its_line():
    with pytest.raises(UserCodeError, match=r"sampler Fails .*test_samplers.py, line .*no groups"):
        Objective(MODEL, "cross_entropy", loader(sampler=Fails()))


def test_nothing_of_a_sampler_or_of_the_random_states_changes():
    sampler = Shuffled([3, 4, 11])
    own = torch.Generator().manual_seed(5)
    found = DataLoader(DATA, sampler=sampler, batch_size=2, generator=own)

    def state():
        generators = (own, sampler.generator)
        return (
            *(g.get_state().tolist() for g in generators),
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002  # pyright: ignore
            list(sampler.rows),
            sampler.passes,
        )

    before = state()
    Objective(MODEL, "cross_entropy", found).loss()
    assert state() == before


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_generator_of_a_loader_stays(shuffle):
    own = torch.Generator().manual_seed(5)
    before = own.get_state()
    Objective(MODEL, "cross_entropy", loader(shuffle=shuffle, generator=own)).loss()
    assert torch.equal(own.get_state(), before)
