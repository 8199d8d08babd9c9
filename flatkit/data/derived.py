"""A data set made from another: fewer samples, a validation split, wrong labels; seeded."""

from collections.abc import Mapping
from dataclasses import replace
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
    what is left for training: who has wrong labels has no right ones to choose by. The test samples
    stay as they are, all with their right labels.

    Args:
        dataset: whose training samples are meant.
        train_samples: so many of them, drawn with the same share of every class; None for all.
        validation_samples: so many of these are for choosing settings, not for training; drawn
            likewise.
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
    changes: dict[str, Any] = {
        "train_samples": train_samples,
        "validation_samples": check_count("validation_samples", validation_samples, minimum=0),
        "label_noise": check_fraction("label_noise", label_noise),
    }
    changes = {name: value for name, value in changes.items() if value}
    if not changes:
        return dataset
    draw = np.random.default_rng(check_count("data_seed", data_seed, minimum=0))
    split = dataset.train
    if train_samples is not None:
        wanted = check_count("train_samples", train_samples)
        split = _rows(split, _stratified("train_samples", split.targets.numpy(), wanted, draw))
    clean = split.targets
    if label_noise:
        split = Split(split.inputs, _wrong(clean, label_noise, dataset.classes, draw))
    validation = None
    if validation_samples:
        chosen = _stratified("validation_samples", clean.numpy(), validation_samples, draw)
        left = np.setdiff1d(np.arange(split.samples), chosen)
        if not len(left):
            raise InvalidArgumentError(
                f"validation_samples must leave samples to train on, got {validation_samples} of "
                f"{split.samples}"
            )
        validation, split, clean = _rows(split, chosen), _rows(split, left), clean[left]
    return replace(
        dataset,
        train=split,
        validation=validation,
        clean_targets=clean if label_noise else None,
        changes={**changes, "data_seed": data_seed},
    )


def with_changes(dataset: Dataset, changes: Mapping[str, Any]) -> Dataset:
    """Return `derived` with the arguments that a data set keeps as `changes`.

    >>> from flatkit.data import DATASETS
    >>> blobs = DATASETS.build("gaussians", samples=50, classes=2)
    >>> few = derived(blobs, train_samples=30)
    >>> with_changes(blobs, few.changes).sha256() == few.sha256()
    True
    """
    return derived(dataset, **changes)


def _rows(split: Split, rows: np.ndarray) -> Split:
    chosen = torch.from_numpy(rows)
    return Split(split.inputs[chosen], split.targets[chosen])


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
    steps = torch.from_numpy(draw.integers(1, classes, len(rows)))
    noisy[rows] = (noisy[rows] + steps) % classes
    return noisy
