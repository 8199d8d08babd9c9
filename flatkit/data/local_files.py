"""Files of data sets that lie on this machine: where they are, and whether they are whole."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from flatkit.errors import DataError

ROOT_VARIABLE = "FLATKIT_DATA_ROOT"
"""Environment variable that names the folder of the data sets, where no argument does."""


def data_root(root: str | None) -> Path:
    """Return the folder of the data sets: `root`, else $FLATKIT_DATA_ROOT, else `data`.

    >>> data_root("images").as_posix()
    'images'
    """
    return Path(root or os.environ.get(ROOT_VARIABLE) or "data").expanduser()


def first_folder(folders: Sequence[Path], files: Sequence[str]) -> Path | None:
    """Return the first folder that holds one of the files.

    >>> first_folder([Path("nowhere")], ["data_batch_1"]) is None
    True
    """
    return next(
        (folder for folder in folders if any((folder / name).is_file() for name in files)), None
    )


def missing(what: str, root: Path, folders: Sequence[str], source: str) -> DataError:
    """Return the error that says where a data set was looked for, and where to get it.

    Args:
        what: the data set, as people call it.
        root: the folder in which it was looked for.
        folders: which its archives unpack to.
        source: address of a page that offers it.
    """
    packed = [path for name in ("*.tar.gz", "*.tgz") for path in sorted(root.glob(name))]
    hint = f" (unpack {', '.join(map(str, packed))} first)" if packed else ""
    return DataError(
        f"no {what} in {root}: looked for {', '.join(f'{name}/' for name in folders)} there and "
        f"for its files in {root} itself{hint}; get it from {source}, unpack it, and name the "
        f"folder with `data_root`, root= or ${ROOT_VARIABLE}"
    )


def read_file(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        DataError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: unpack the whole archive again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def check_md5(path: Path, content: bytes, md5: str | None) -> None:
    """Refuse content that is not what was published.

    Args:
        path: for the message.
        content: of the file, unpacked.
        md5: its published checksum; None where none is known.

    Raises:
        DataError: it differs.
    """
    # Some builds of Python (FIPS) refuse md5 where it is to protect; here it only compares.
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 is not None and found != md5:
        raise DataError(
            f"{path} is not the published file (md5 {found}, published {md5}): get it again, or "
            "pass the data argument verify=false to read it as it is"
        )
