"""The data of a run: those that are named, and what the settings make of them."""

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
    return derived(
        DATASETS.build(str(config.data), **config.data_arguments),
        train_samples=config.train_samples,
        validation_samples=config.validation_samples,
        label_noise=config.label_noise,
        data_seed=config.data_seed,
    )
