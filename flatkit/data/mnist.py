"""MNIST and Fashion-MNIST from their idx files, packed (.gz) or not."""

import gzip
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flatkit.data.dataset import Dataset
from flatkit.data.images import Images, Standard, image_arguments, image_dataset
from flatkit.data.local_files import check_md5, data_root, first_folder, missing, read_file
from flatkit.errors import DataError

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# Digests of the unpacked files, in the order above: the same bytes packed again differ.
_MNIST_MD5 = (
    "6bbc9ace898e44ae57da46a324031adb",
    "a25bea736e30d166cdddb491f175f624",
    "2646ac647ad5339dbf082846283269ea",
    "27ae3e4e09519cfbb04c329615203637",
)
_FASHION_MD5 = (
    "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "9018921c3c673c538a1fc5bad174d6f9",
    "8181f5470baa50b63fa0f6fddb340f0a",
    "15d484375f8d13e6eb1aabb0c3f46965",
)
_UNSIGNED_BYTES = 8


def build_mnist(
    *,
    root: str | None = None,
    train_samples: int | None = None,
    test_samples: int | None = None,
    shrink: int = 1,
    standardize: bool = True,
    verify: bool = True,
) -> Dataset:
    """Return MNIST (LeCun et al. 1998): 60,000 and 10,000 digits of 28x28, one channel.

    Read from the four idx files, each with or without `.gz`; nothing is downloaded.

    Args:
        root: folder that holds them, or holds `MNIST/raw`, `MNIST` or `mnist` with them; by
            default $FLATKIT_DATA_ROOT or `data`.
        train_samples: use the first so many training images.
        test_samples: use the first so many test images.
        shrink: replace blocks of so many pixels a side by their means, for trials on a CPU.
        standardize: subtract the mean and divide by the standard deviation (published constants);
            otherwise pixels lie in [0, 1].
        verify: require the published checksums of the unpacked files.

    Raises:
        DataError: files are missing, damaged or not those that were published.
    """
    kwargs = image_arguments(root, train_samples, test_samples, shrink, standardize, verify)
    return _build(
        "mnist",
        "MNIST",
        kwargs,
        folders=("MNIST/raw", "MNIST", "mnist"),
        md5=dict(zip(_FILES, _MNIST_MD5, strict=True)),
        standard=Standard((0.1307,), (0.3081,)),
        source="https://ossci-datasets.s3.amazonaws.com/mnist/",
    )


def build_fashion_mnist(
    *,
    root: str | None = None,
    train_samples: int | None = None,
    test_samples: int | None = None,
    shrink: int = 1,
    standardize: bool = True,
    verify: bool = True,
) -> Dataset:
    """Return Fashion-MNIST (Xiao et al. 2017), ten kinds of clothing in the form of MNIST.

    The folders are `FashionMNIST/raw`, `FashionMNIST`, `fashion-mnist` or `root` itself. All
    arguments and errors are those of `build_mnist`.
    """
    kwargs = image_arguments(root, train_samples, test_samples, shrink, standardize, verify)
    return _build(
        "fashion_mnist",
        "Fashion-MNIST",
        kwargs,
        folders=("FashionMNIST/raw", "FashionMNIST", "fashion-mnist"),
        md5=dict(zip(_FILES, _FASHION_MD5, strict=True)),
        standard=Standard((0.2860,), (0.3530,)),
        source="https://github.com/zalandoresearch/fashion-mnist",
    )


def _build(
    name: str,
    title: str,
    kwargs: dict[str, Any],
    *,
    folders: Sequence[str],
    md5: Mapping[str, str],
    standard: Standard,
    source: str,
) -> Dataset:
    root = data_root(kwargs["root"])
    both = [file + ending for file in _FILES for ending in ("", ".gz")]
    folder = first_folder([*(root / part for part in folders), root], both)
    if folder is None:
        raise missing(title, root, folders, source)

    def read(file: str) -> np.ndarray:
        path = folder / file
        if not path.is_file() and path.with_name(f"{file}.gz").is_file():
            path = path.with_name(f"{file}.gz")
        return read_idx(path, md5=md5[file] if kwargs["verify"] else None)

    arrays = [read(file) for file in _FILES]
    train, test = (_images(folder, *arrays[at : at + 2]) for at in (0, 2))
    return image_dataset(name, kwargs, train=train, test=test, classes=10, standard=standard)


def _images(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> Images:
    if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels):
        raise DataError(
            f"the idx files in {folder} do not belong together: images {list(pixels.shape)}, "
            f"labels {list(labels.shape)}"
        )
    return Images(pixels[:, None], labels)  # [N, H, W] -> [N, 1, H, W]


def read_idx(path: Path, *, md5: str | None = None) -> np.ndarray:
    """Return the array of bytes in an idx file.

    The format: two zero bytes, the type (8: unsigned bytes, the only one read here), the number of
    dimensions, each dimension as a big-endian 32-bit number, then the values.

    Args:
        path: unpacked if its name ends in `.gz`.
        md5: required of the unpacked content.

    Raises:
        DataError: the file is missing, damaged, of another type, or not the one of `md5`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "x.gz"
    >>> _ = path.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 6, 7])))
    >>> read_idx(path)
    array([5, 6, 7], dtype=uint8)
    """
    content = read_file(path)
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is damaged: {error}") from error
    # The fourth byte is the number of dimensions, up to 255; a wrong one shows in the length.
    if len(content) < 4 or content[:3] != bytes([0, 0, _UNSIGNED_BYTES]):
        raise DataError(f"{path} is not an idx file of bytes: it begins with {content[:4]!r}")
    # Of the unpacked content: two archives of one file differ in their time of packing.
    check_md5(path, content, md5)
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{path} is damaged: it ends within its header")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path} is damaged: {len(content) - start} values for the shape {list(shape)}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
