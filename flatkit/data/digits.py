"""Handwritten digits: 1,797 real images of 8x8, shipped inside scikit-learn (no download)."""

import numpy as np

from flatkit.checks import check_count, check_fraction
from flatkit.data.dataset import Dataset, stratified_dataset
from flatkit.errors import MissingDependencyError


def build_digits(*, test_fraction: float = 0.2, split_seed: int = 0) -> Dataset:
    """Return the digits, with a fixed test set that holds the same part of every class.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test
    part, as scikit-learn ships it). Pixels 0 .. 16 are divided by 16, which is exact.

    Args:
        test_fraction: of every class.
        split_seed: of the split alone; the seed of a training run does not change it.

    Raises:
        MissingDependencyError: scikit-learn is not installed.

    >>> digits = build_digits()
    >>> digits.train.samples + digits.test.samples, digits.in_shape, digits.classes
    (1797, (1, 8, 8), 10)
    """
    check_fraction("test_fraction", test_fraction)
    check_count("split_seed", split_seed, minimum=0)
    images, targets = _load()
    kwargs = {"test_fraction": test_fraction, "split_seed": split_seed}
    return stratified_dataset(
        "digits", kwargs, images, targets, test_fraction=test_fraction, seed=split_seed
    )


def _load() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise MissingDependencyError(
            "the digits data need scikit-learn: pip install 'flatkit[demo]'"
        ) from error
    pixels, targets = (np.asarray(part) for part in load_digits(return_X_y=True))
    # Whole numbers 0 .. 16 by a power of two: float32 holds each quotient.
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)  # [N, 64] -> [N, 1, 8, 8]
    return images, targets.astype(np.int64)
