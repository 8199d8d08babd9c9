"""Archives of torch and of NumPy; whatever zipfile raises of one is an error of its file."""

import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from typing import BinaryIO

from flatkit.errors import CheckpointError


@contextmanager
def opened(file: BinaryIO, path: str) -> Generator[zipfile.ZipFile, None, None]:
    """Open an archive whose records have different names.

    Args:
        file: that holds it.
        path: its name, for errors.

    Raises:
        CheckpointError: it is damaged, also where that shows only inside; or names repeat.

    >>> import io
    >>> with opened(io.BytesIO(b"none"), "a.npz"):
    ...     pass
    Traceback (most recent call last):
    flatkit.errors.CheckpointError: a.npz is truncated or damaged (File is not a zip file); ...
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if len(set(archive.namelist())) < len(archive.namelist()):
                raise CheckpointError(f"{path} is refused: two records of one name")
            yield archive
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises a dozen types for bytes that are no archive
        raise CheckpointError(
            f"{path} is truncated or damaged ({error or type(error).__name__}); copy it again"
        ) from error
