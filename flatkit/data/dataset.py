"""What every data set is: tensors split into training and test, and how they were made."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flatkit.errors import InvalidArgumentError


class Split(NamedTuple):
    """Samples and their targets, row by row.

    Attributes:
        inputs: float32, shape [N, ...].
        targets: class indices, int64, shape [N].
    """

    inputs: Tensor
    targets: Tensor

    @property
    def samples(self) -> int:
        """The number of samples N."""
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification data set in memory.

    Attributes:
        name: in the registry `flatkit.data.DATASETS`.
        kwargs: which rebuild it with that name.
        train: for training and, in flatkit, the samples whose loss is analyzed.
        test: never trained on.
        classes: number of classes C; targets lie in 0 .. C - 1.
        validation: for choosing settings; None without such.
        clean_targets: the right labels of the training samples [N], where some were made wrong.
        changes: arguments of `flatkit.data.derived` that made it of the named one.

    >>> from flatkit.data import DATASETS
    >>> blobs = DATASETS.build("gaussians", samples=50, classes=2, features=3)
    >>> blobs.train.samples, blobs.test.samples, blobs.in_shape
    (40, 10, (3,))
    """

    name: str
    kwargs: Mapping[str, Any]
    train: Split
    test: Split
    classes: int
    validation: Split | None = None
    clean_targets: Tensor | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def in_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.train.inputs.shape[1:])

    def sha256(self) -> str:
        """Return a digest of all tensors of the splits, with shapes and dtypes, on any machine."""
        digest = hashlib.sha256()
        for tensor in (*self.train, *self.test, *(self.validation or ())):
            # The bytes of a big-endian machine would be others.
            array = np.ascontiguousarray(tensor.numpy())
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(f"{array.dtype.name}{array.shape}".encode())
            digest.update(little.tobytes())
        return digest.hexdigest()


def stratified_dataset(
    name: str,
    kwargs: Mapping[str, Any],
    inputs: np.ndarray,
    targets: np.ndarray,
    *,
    test_fraction: float,
    seed: int,
) -> Dataset:
    """Return a data set whose test part holds the same fraction of every class.

    Args:
        name: in the registry.
        kwargs: which rebuild it.
        inputs: float32, shape [N, ...].
        targets: class indices, int64, shape [N].
        test_fraction: of every class, above 0 and below 1.
        seed: of the draw.

    Raises:
        InvalidArgumentError: a class would have no training or no test sample.

    >>> inputs, targets = np.ones((4, 2), np.float32), np.array([0, 0, 1, 1])
    >>> data = stratified_dataset("pairs", {}, inputs, targets, test_fraction=0.5, seed=0)
    >>> data.train.targets, data.test.targets
    (tensor([0, 1]), tensor([0, 1]))
    """
    test = np.zeros(len(targets), dtype=bool)
    test[_test_indices(targets, test_fraction, seed)] = True
    train, held_out = (
        Split(torch.from_numpy(inputs[rows]), torch.from_numpy(targets[rows]))
        for rows in (~test, test)
    )
    return Dataset(name, kwargs, train, held_out, classes=int(targets.max()) + 1)


def _test_indices(targets: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return sorted indices of `fraction` of every class, rounded, drawn without replacement."""
    # Its own generator: neither torch's nor NumPy's global state is read or moved.
    generator = np.random.default_rng(seed)
    chosen: list[np.ndarray] = []
    for label in np.unique(targets):
        members = np.flatnonzero(targets == label)
        count = round(fraction * len(members))
        # Python rounds halves to even: 0.5 of 5 samples are 2.
        if not 0 < count < len(members):
            raise InvalidArgumentError(
                "test_fraction must leave training and test samples of every class, "
                f"got {fraction!r} of {len(members)} samples of class {label}"
            )
        chosen.append(generator.permutation(members)[:count])
    return np.sort(np.concatenate(chosen))
