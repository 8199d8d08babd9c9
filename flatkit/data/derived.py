"""A data set made from another: fewer samples, a validation split, wrong labels; seeded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatkit.checks import check_count, check_fraction
from flatkit.data.dataset import Dataset, Split
from flatkit.errors import InvalidArgumentError


def derived(
    dataset: Dataset,
    *,
    train_samples: int | None = None,
    validation_samples: int = 0,
    label_noise: float = 0.0,
    data_seed: int = 0,
) -> Dataset:
    """Return a data set with fewer training samples, a validation split, wrong labels.

    First the subset is drawn, then labels are made wrong, then the validation split is taken out of
    what is left for training, wrong labels included: a training with wrong labels has no right ones
    to choose settings by. The test samples stay as they are, all with their right labels.

    Args:
        dataset: whose training samples are meant.
        train_samples: so many of them, drawn with the same share of every class; None for all.
        validation_samples: so many of these are for choosing settings, not for training; drawn
            with the same share of every class.
        label_noise: share of the labels that are made wrong, each another class, all of them alike
            likely (symmetric noise).
        data_seed: of the three draws; no part of the seed of a training.

    Raises:
        InvalidArgumentError: more samples than there are, or a class without a sample.

    >>> from flatkit.data import DATASETS
    >>> blobs = DATASETS.build("gaussians", samples=50, classes=2)
    >>> noisy = derived(blobs, train_samples=30, validation_samples=10, label_noise=0.2)
    >>> noisy.train.samples, noisy.validation.samples, noisy.test.samples
    (20, 10, 10)
    """
    made = derivation(
        dataset.train.samples,
        dataset.train.targets,
        classes=dataset.classes,
        train_samples=train_samples,
        validation_samples=validation_samples,
        label_noise=label_noise,
        data_seed=data_seed,
    )
    if not made.changes:
        return dataset
    assert made.labels is not None  # there were targets
    inputs, labels = dataset.train.inputs, made.labels
    return replace(
        dataset,
        train=Split(inputs[made.train], labels[made.train]),
        validation=None
        if made.validation is None
        else Split(inputs[made.validation], labels[made.validation]),
        clean_targets=dataset.train.targets[made.train] if label_noise else None,
        changes=made.changes,
    )


@dataclass(frozen=True, eq=False)
class Derivation:
    """Which samples are left for what, and with which labels.

    Attributes:
        train: rows of the samples that are trained on, int64, sorted.
        validation: rows of those that choose settings; None without such.
        labels: of all samples [N], those that were made wrong among them; None of what has none.
        changes: arguments of `derivation` that made it; empty if nothing changed.
    """

    train: Tensor
    validation: Tensor | None
    labels: Tensor | None
    changes: Mapping[str, Any]


def derivation(
    samples: int,
    labels: Tensor | None,
    *,
    classes: int = 0,
    train_samples: int | None = None,
    validation_samples: int = 0,
    label_noise: float = 0.0,
    data_seed: int = 0,
) -> Derivation:
    """Return what `derived` makes of samples, by their numbers.

    Args:
        samples: N.
        labels: classes, int64 [N]; without, samples are drawn whatever their targets are.
        classes: how many there are.
        train_samples: as of `derived`, as the next three.
        validation_samples: of these, not for training.
        label_noise: share of the labels that are made wrong.
        data_seed: of the draws.

    Raises:
        InvalidArgumentError: as of `derived`; or wrong labels of samples that have none.

    >>> made = derivation(10, None, train_samples=5, validation_samples=2)
    >>> len(made.train), len(made.validation), made.changes["train_samples"]
    (3, 2, 5)
    """
    changes: dict[str, Any] = {
        "train_samples": train_samples,
        "validation_samples": check_count("validation_samples", validation_samples, minimum=0),
        "label_noise": check_fraction("label_noise", label_noise),
    }
    changes = {name: value for name, value in changes.items() if value}
    rows, validation = np.arange(samples), None
    if not changes:
        return Derivation(torch.from_numpy(rows), None, labels, {})
    if label_noise and labels is None:
        raise InvalidArgumentError(
            "label_noise needs targets that are classes, whole numbers [N]; leave it out"
        )
    draw = np.random.default_rng(check_count("data_seed", data_seed, minimum=0))
    groups = np.zeros(samples, np.int64) if labels is None else labels.cpu().numpy()
    if train_samples is not None:
        # Here and below the order of draws is part of the result: files name `data_seed` alone.
        wanted = check_count("train_samples", train_samples)
        rows = _stratified("train_samples", groups, wanted, draw)
    if label_noise and labels is not None:
        wrong = _wrong(labels[torch.from_numpy(rows)], label_noise, classes, draw)
        # `index_copy` returns a new tensor: the labels of the data set stay right.
        labels = labels.index_copy(0, torch.from_numpy(rows), wrong)
    if validation_samples:
        chosen = _stratified("validation_samples", groups[rows], validation_samples, draw)
        # Numbers within `rows`, not of samples.
        left = np.setdiff1d(np.arange(len(rows)), chosen)
        if not len(left):
            raise InvalidArgumentError(
                f"validation_samples must leave samples to train on, got {validation_samples} of "
                f"{len(rows)}"
            )
        rows, validation = rows[left], torch.from_numpy(rows[chosen])
    changes |= {"data_seed": data_seed}
    return Derivation(torch.from_numpy(rows), validation, labels, changes)


def with_changes(dataset: Dataset, changes: Mapping[str, Any]) -> Dataset:
    """Return `derived` with the arguments that a data set keeps as `changes`.

    >>> from flatkit.data import DATASETS
    >>> blobs = DATASETS.build("gaussians", samples=50, classes=2)
    >>> few = derived(blobs, train_samples=30)
    >>> with_changes(blobs, few.changes).sha256() == few.sha256()
    True
    """
    return derived(dataset, **changes)


def _stratified(
    name: str, targets: np.ndarray, count: int, draw: np.random.Generator
) -> np.ndarray:
    """Return `count` sorted rows with the same share of every class, by largest remainders."""
    labels, sizes = np.unique(targets, return_counts=True)
    if count > len(targets):
        raise InvalidArgumentError(
            f"{name} must be at most the {len(targets)} training samples, got {count}"
        )
    exact = count * sizes / len(targets)
    taken = np.floor(exact).astype(int)
    # A class that loses most by rounding down comes first; equal ones in the order of labels.
    rest = np.argsort(taken - exact, kind="stable")[: count - taken.sum()]
    taken[rest] += 1
    if (taken == 0).any() and count < len(targets):
        raise InvalidArgumentError(
            f"{name} must hold every one of the {len(labels)} classes, got {count}"
        )
    rows = [
        draw.permutation(np.flatnonzero(targets == label))[:number]
        for label, number in zip(labels, taken, strict=True)
    ]
    return np.sort(np.concatenate(rows))


def _wrong(targets: Tensor, share: float, classes: int, draw: np.random.Generator) -> Tensor:
    """Return labels of which round(share · N) are another class, each alike likely."""
    if classes < 2:
        raise InvalidArgumentError("label_noise needs two classes at least, got one")
    noisy = targets.clone()
    rows = torch.from_numpy(draw.permutation(len(targets))[: round(share * len(targets))])
    # 1 to C - 1 steps round the classes: never back to the same one.
    steps = torch.from_numpy(draw.integers(1, classes, len(rows)))
    noisy[rows] = (noisy[rows] + steps) % classes
    return noisy
