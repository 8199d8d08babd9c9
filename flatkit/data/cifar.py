"""CIFAR-10 and CIFAR-100 from the folders that their archives unpack to, python or binary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flatkit.data.dataset import Dataset
from flatkit.data.images import Images, Standard, image_arguments, image_dataset
from flatkit.data.local_files import check_md5, data_root, first_folder, missing, read_file
from flatkit.errors import DataError
from flatkit.files.plain_pickle import (
    ForeignObjectError,
    MalformedPickleError,
    Name,
    Record,
    Vocabulary,
    read_pickle,
)

_SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_PIXELS = 3 * 32 * 32
_ARRAYS = Vocabulary(
    records={
        "numpy.dtype",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",  # since NumPy 2
    }.__contains__,
    names={"numpy.ndarray"}.__contains__,
)
"""All that a pickled batch of images names: the parts of a NumPy array."""


@dataclass(frozen=True)
class _Layout:
    """The files of one archive.

    Attributes:
        folder: which it unpacks to.
        train: files of the training images, in order.
        test: file of the test images.
        labels: python: the key of the labels; binary: how many label bytes stand before the
            pixels, of which the last counts.
        md5: published checksums by file name, where there are any.
    """

    folder: str
    train: Sequence[str]
    test: str
    labels: str | int
    md5: Mapping[str, str] = field(default_factory=dict)


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_CIFAR10 = (
    _Layout(
        folder="cifar-10-batches-py",
        train=_BATCHES,
        test="test_batch",
        labels="labels",
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
    ),
    _Layout(
        folder="cifar-10-batches-bin",
        train=tuple(f"{name}.bin" for name in _BATCHES),
        test="test_batch.bin",
        labels=1,
    ),
)
_CIFAR100 = (
    _Layout(
        folder="cifar-100-python",
        train=("train",),
        test="test",
        labels="fine_labels",
        md5={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        },
    ),
    _Layout(folder="cifar-100-binary", train=("train.bin",), test="test.bin", labels=2),
)


def build_cifar10(
    *,
    root: str | None = None,
    train_samples: int | None = None,
    test_samples: int | None = None,
    shrink: int = 1,
    standardize: bool = True,
    verify: bool = True,
) -> Dataset:
    """Return CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 colour images of 32x32, ten classes.

    Read from `cifar-10-batches-py` or `cifar-10-batches-bin`; nothing is downloaded, and nothing
    in the pickles of the former is executed. Files beyond `train_samples` need not be there.

    Args:
        root: folder that holds one of these, or is one; by default $FLATKIT_DATA_ROOT or `data`.
        train_samples: use the first so many training images.
        test_samples: use the first so many test images.
        shrink: replace blocks of so many pixels a side by their means, for trials on a CPU.
        standardize: subtract the mean and divide by the standard deviation of each channel
            (published constants); otherwise pixels lie in [0, 1].
        verify: require the published checksums (of the python files) and numbers of images.

    Raises:
        DataError: files are missing, damaged or not those that were published.
    """
    kwargs = image_arguments(root, train_samples, test_samples, shrink, standardize, verify)
    standard = Standard((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    return _build("cifar10", "CIFAR-10", _CIFAR10, kwargs, classes=10, standard=standard)


def build_cifar100(
    *,
    root: str | None = None,
    train_samples: int | None = None,
    test_samples: int | None = None,
    shrink: int = 1,
    standardize: bool = True,
    verify: bool = True,
) -> Dataset:
    """Return CIFAR-100 (Krizhevsky 2009) with its 100 fine classes.

    Read from `cifar-100-python` or `cifar-100-binary`. All arguments and errors are those of
    `build_cifar10`.
    """
    kwargs = image_arguments(root, train_samples, test_samples, shrink, standardize, verify)
    standard = Standard((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    return _build("cifar100", "CIFAR-100", _CIFAR100, kwargs, classes=100, standard=standard)


def _build(
    name: str,
    title: str,
    layouts: Sequence[_Layout],
    kwargs: dict[str, Any],
    *,
    classes: int,
    standard: Standard,
) -> Dataset:
    root = data_root(kwargs["root"])
    for layout in layouts:
        folder = first_folder([root / layout.folder, root], [*layout.train, layout.test])
        if folder is not None:
            break
    else:
        raise missing(title, root, [layout.folder for layout in layouts], _SOURCE)
    # Both sets have 50,000 training images, in five files or in one.
    per_file = 50_000 // len(layout.train)

    def read(file: str, expected: int) -> Images:
        images = _read(folder / file, layout, kwargs["verify"])
        if kwargs["verify"] and len(images.labels) != expected:
            raise DataError(
                f"{folder / file} holds {len(images.labels)} images, published were {expected}: "
                "get it again, or pass the data argument verify=false to read it as it is"
            )
        return images

    parts: list[Images] = []
    for file in layout.train:
        # A part of the data needs only the files that hold it.
        parts.append(read(file, per_file))
        if sum(len(part.labels) for part in parts) >= (kwargs["train_samples"] or np.inf):
            break
    train = Images(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )
    test = read(layout.test, 10_000)
    return image_dataset(name, kwargs, train=train, test=test, classes=classes, standard=standard)


def _read(path: Path, layout: _Layout, verify: bool) -> Images:
    content = read_file(path)
    if verify:
        check_md5(path, content, layout.md5.get(path.name))
    if isinstance(layout.labels, int):
        return _binary_images(path, content, layout.labels)
    return _pickled_images(path, content, layout.labels)


def _binary_images(path: Path, content: bytes, label_bytes: int) -> Images:
    record = label_bytes + _PIXELS
    if not content or len(content) % record:
        raise DataError(
            f"{path} is damaged: {len(content)} bytes are no whole number of records of {record}"
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)  # [N, record]
    # Stored plane by plane: red, green, blue.
    return Images(rows[:, label_bytes:].reshape(-1, 3, 32, 32), rows[:, label_bytes - 1])


def _pickled_images(path: Path, content: bytes, labels: str) -> Images:
    batch = read_batch(path, content)
    pixels, classes = batch.get("data"), batch.get(labels)
    if not (
        isinstance(pixels, np.ndarray)
        and pixels.shape[1:] == (_PIXELS,)
        and isinstance(classes, list)
        and all(isinstance(label, int) for label in classes)
        and len(classes) == len(pixels) > 0
    ):
        raise DataError(
            f"{path} is not a batch of CIFAR: it needs data, bytes [N, {_PIXELS}], and {labels}, "
            f"a list of N numbers; it holds {', '.join(sorted(batch)) or 'nothing'}"
        )
    return Images(pixels.reshape(-1, 3, 32, 32), np.array(classes))


def read_batch(path: Path, content: bytes) -> dict[str, Any]:
    """Return what a pickled batch holds: numbers, strings, lists, and arrays of uint8.

    Args:
        path: for messages.
        content: of the file.

    Raises:
        DataError: it is no pickle, is damaged, or names anything but an array of bytes; nothing
            of it has been executed.

    >>> import pickle
    >>> read_batch(Path("batch"), pickle.dumps({b"labels": [3, 1]}))
    {'labels': [3, 1]}
    >>> read_batch(Path("batch"), pickle.dumps(print))
    Traceback (most recent call last):
    flatkit.errors.DataError: batch is not a batch of CIFAR: it would import builtins.print, ...
    """
    try:
        batch = read_pickle(content, _ARRAYS)
        if isinstance(batch, dict):
            return {_text(key): _array_or_value(value) for key, value in batch.items()}
    except ForeignObjectError as error:
        raise DataError(
            f"{path} is not a batch of CIFAR: it would import {error}, which no batch of images "
            "needs"
        ) from None
    except MalformedPickleError as error:
        raise DataError(f"{path} is not a batch of CIFAR: {error}") from error
    raise DataError(f"{path} is not a batch of CIFAR: it holds a {type(batch).__name__}")


def _array_or_value(value: Any) -> Any:
    """Return an array of the bytes that a record of one holds; anything else as it is."""
    if not isinstance(value, Record):
        return value
    match value:
        case Record(
            name="numpy.core.multiarray._reconstruct" | "numpy._core.multiarray._reconstruct",
            args=(Name("numpy.ndarray"), *_),
            state=(_, tuple(shape), Record(name="numpy.dtype", args=(code, *_)), fortran, raw),
        ):
            return _array(shape, code, raw, order="F" if fortran else "C")
        case _:
            raise MalformedPickleError(f"a {value.name} that is no array")


def _array(shape: tuple[Any, ...], code: Any, raw: Any, order: Literal["C", "F"]) -> np.ndarray:
    if code not in ("u1", b"u1"):
        raise MalformedPickleError(f"an array of {code!r}, not of bytes")
    data = raw.encode("latin-1") if isinstance(raw, str) else raw  # strings of Python 2 are bytes
    if (
        not isinstance(data, bytes)
        # `type`, as a bool is an int that no shape holds.
        or not all(type(n) is int and n >= 0 for n in shape)
        or len(data) != prod(shape)
    ):
        raise MalformedPickleError("an array whose bytes do not fit its shape")
    return np.frombuffer(data, np.uint8).reshape(shape, order=order)


def _text(key: Any) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)
