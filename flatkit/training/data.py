"""The data of a run: those that are named, and what the settings make of them."""

from typing import Any

from flatkit.data import DATASETS
from flatkit.data.dataset import Dataset
from flatkit.data.derived import derived
from flatkit.training.config import TrainingConfig


def training_data(config: TrainingConfig) -> Dataset:
    """Return the data set of a run, with the subset, wrong labels and splits that it asks for.

    Raises:
        InvalidArgumentError: an argument is out of range.
        DataError: its files are missing or damaged.
        MissingDependencyError: a package that holds it is not installed.

    >>> training_data(TrainingConfig(data="gaussians", train_samples=100)).train.samples
    100
    """
    dataset = DATASETS.build(str(config.data), **config.data_arguments)
    return derived(dataset, **changes_of(config))


def changes_of(config: TrainingConfig) -> dict[str, Any]:
    """Return what is made of the data: arguments of `flatkit.data.derived.derivation`.

    >>> changes_of(TrainingConfig(label_noise=0.2))
    {'label_noise': 0.2, 'data_seed': 0}
    """
    names = ("train_samples", "validation_samples", "label_noise")
    changes = {name: value for name in names if (value := getattr(config, name))}
    return {**changes, "data_seed": config.data_seed} if changes else {}
