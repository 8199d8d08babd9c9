"""Images in bytes become the standardised tensors of a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from flatkit.checks import check_count
from flatkit.data.dataset import Dataset, Split
from flatkit.errors import DataError, InvalidArgumentError


@dataclass(frozen=True, eq=False)
class Images:
    """Images as they are stored.

    Attributes:
        pixels: uint8, shape [N, C, H, W].
        labels: class indices, integers, shape [N].
    """

    pixels: np.ndarray
    labels: np.ndarray

    def first(self, count: int | None, name: str) -> "Images":
        """Return the first `count` images, or all.

        Raises:
            InvalidArgumentError: `name` asks for more than there are.
        """
        if count is None:
            return self
        if count > len(self.labels):
            raise InvalidArgumentError(
                f"{name} must be at most the {len(self.labels)} images that there are, got {count}"
            )
        return Images(self.pixels[:count], self.labels[:count])


@dataclass(frozen=True)
class Standard:
    """Mean and standard deviation of each channel of pixels in [0, 1], published constants.

    They do not depend on the samples in use, so a part of a data set is standardised as the whole.
    """

    mean: Sequence[float]
    deviation: Sequence[float]


def image_arguments(
    root: str | None,
    train_samples: int | None,
    test_samples: int | None,
    shrink: int,
    standardize: bool,
    verify: bool,
) -> dict[str, Any]:
    """Return the arguments that every data set of images takes, checked, by name.

    Raises:
        InvalidArgumentError: a number of samples or of pixels below one.
    """
    check_count("shrink", shrink)
    for name, count in (("train_samples", train_samples), ("test_samples", test_samples)):
        if count is not None:
            check_count(name, count)
    return {
        "root": root,
        "train_samples": train_samples,
        "test_samples": test_samples,
        "shrink": shrink,
        "standardize": standardize,
        "verify": verify,
    }


def image_dataset(
    name: str,
    kwargs: Mapping[str, Any],
    *,
    train: Images,
    test: Images,
    classes: int,
    standard: Standard,
) -> Dataset:
    """Return the data set of both splits, cut and standardised as `kwargs` say.

    Args:
        name: in the registry.
        kwargs: which rebuild it; all but `root` and `verify` are used here.
        train: the training images.
        test: the test images.
        classes: number of classes.
        standard: what to subtract and divide by, if `standardize`; else pixels lie in [0, 1].

    Raises:
        DataError: a label outside the classes.
        InvalidArgumentError: more images are asked for than there are, or `shrink` does not
            divide their sides.

    >>> two = Images(np.array([[[[0]]], [[[255]]]], dtype=np.uint8), np.array([0, 1]))
    >>> kwargs = image_arguments(None, None, 1, shrink=1, standardize=True, verify=True)
    >>> data = image_dataset("x", kwargs, train=two, test=two, classes=2,
    ...                      standard=Standard([0.5], [0.25]))
    >>> data.train.inputs.flatten().tolist(), data.test.samples
    ([-2.0, 2.0], 1)
    """
    for part in (train, test):
        if part.labels.min(initial=0) < 0 or part.labels.max(initial=0) >= classes:
            raise DataError(f"a label of {name} lies outside 0 .. {classes - 1}")
    if any(side % kwargs["shrink"] for side in train.pixels.shape[2:]):
        raise InvalidArgumentError(
            f"shrink must divide the sides {list(train.pixels.shape[2:])} of the images, "
            f"got {kwargs['shrink']}"
        )
    kept = standard if kwargs["standardize"] else Standard([0.0], [1.0])
    return Dataset(
        name=name,
        kwargs=kwargs,
        train=_split(train.first(kwargs["train_samples"], "train_samples"), kept, kwargs["shrink"]),
        test=_split(test.first(kwargs["test_samples"], "test_samples"), kept, kwargs["shrink"]),
        classes=classes,
    )


def _split(images: Images, standard: Standard, shrink: int) -> Split:
    mean, deviation = (
        torch.tensor(values).view(-1, 1, 1) for values in (standard.mean, standard.deviation)
    )
    inputs = torch.from_numpy(images.pixels.astype(np.float32))
    if shrink > 1:
        # Means of bytes before they are divided: the same means, and the constants below still fit.
        inputs = F.avg_pool2d(inputs, shrink)
    inputs.div_(255).sub_(mean).div_(deviation)  # in place: a data set is hundreds of megabytes
    return Split(inputs, torch.from_numpy(images.labels.astype(np.int64)))
