"""Read the pickled batches of CIFAR without executing anything in them.

A pickle may call whatever it names. These files name three things, all of NumPy: `_reconstruct`,
`ndarray` and `dtype`. Here each name stands for an object of ours that makes bytes into an array
of uint8 and can do nothing else; every other name is refused before anything is called.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from flatkit.errors import DataError


class _Token:
    """Stands for a name; without attributes, so that a pickle cannot leave anything in it."""

    __slots__ = ()


class _DType(_Token):
    __slots__ = ()

    def __call__(self, code: object, align: object = 0, copy: object = 1) -> np.dtype:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array of {code!r}, not of bytes")
        return np.dtype(np.dtype(np.uint8), copy=True)


class _Reconstruct(_Token):
    __slots__ = ()

    def __call__(self, kind: object, shape: object, code: object) -> np.ndarray:
        if kind is not _NDARRAY:
            raise pickle.UnpicklingError("an array of a foreign class")
        return np.empty(0, dtype=np.uint8)  # the pickle then sets shape and bytes


_NDARRAY = _Token()
_RECONSTRUCT = _Reconstruct()
_ALLOWED = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DType(),
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class _Reader(pickle.Unpickler):
    """Knows the names above and no other."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it would import {module_name}.{global_name}, which no batch of images needs"
            ) from None


def read_batch(path: Path, content: bytes) -> dict[str, Any]:
    """Return what a pickled batch holds: numbers, strings, lists, and arrays of uint8.

    Args:
        path: for messages.
        content: of the file.

    Raises:
        DataError: it is no pickle, is damaged, or names anything but an array of bytes; nothing
            of it has been executed.

    >>> read_batch(Path("batch"), pickle.dumps({b"labels": [3, 1]}))
    {'labels': [3, 1]}
    >>> read_batch(Path("batch"), pickle.dumps(print))
    Traceback (most recent call last):
    flatkit.errors.DataError: batch is not a batch of CIFAR: it would import builtins.print, ...
    """
    try:
        batch = _Reader(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f"{path} is not a batch of CIFAR: {error}") from error
    if not isinstance(batch, dict):
        raise DataError(f"{path} is not a batch of CIFAR: it holds a {type(batch).__name__}")
    return {_text(key): value for key, value in batch.items()}


def _text(key: Any) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)
