"""Files that are whole or absent (written beside the target, then renamed), and of one writer."""

import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from flatkit.errors import OutputError


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> Path:
    """Write a file so that a reader sees the old one or the whole new one, never a part.

    A link stays one, and its target is written. A device or a pipe, as `/dev/stdout`, is written
    into: to rename a file to its name would take it from all other programs.

    Args:
        path: the target; missing folders are made.
        write: called with a binary stream beside the target; if it raises, nothing is left behind.

    Raises:
        OutputError: the folder or the file cannot be written.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "new" / "a.txt"
    >>> write_atomically(target, lambda stream: stream.write(b"whole")).read_text()
    'whole'
    """
    path = Path(path)
    make_folder(path.parent)
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file in it")
    temporary = None
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as stream:
                write(stream)
            return path
        target = Path(os.path.realpath(path))
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            # Before the renaming: after a power cut the new name
            # could else stand for an empty file.
            os.fsync(stream.fileno())
        # mkstemp makes files for their owner alone; these may be read by whom the umask lets.
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(target)
    except OSError as error:
        _remove(temporary)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    except BaseException:
        _remove(temporary)
        raise
    return path


def write_text_atomically(path: str | Path, text: str) -> Path:
    r"""Write UTF-8 text like `write_atomically`.

    Of the name of a file that is no UTF-8, Python keeps each strange byte as half of a pair, which
    is written as JSON writes it, `\udcff`: a report that names such a file reads as it was.

    >>> import tempfile
    >>> write_text_atomically(Path(tempfile.mkdtemp()) / "a.txt", "λ\n").read_text("utf-8")
    'λ\n'
    """
    return write_atomically(
        path, lambda stream: stream.write(text.encode("utf-8", "backslashreplace"))
    )


def make_folder(path: str | Path) -> Path:
    """Make a folder and its parents if they are missing.

    Raises:
        OutputError: it cannot be made, or it is not a folder.

    >>> import tempfile
    >>> make_folder(Path(tempfile.mkdtemp()) / "a" / "b").is_dir()
    True
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path}: {error.strerror or error}") from error
    return path


@contextmanager
def sole_writer(path: str | Path) -> Generator[None, None, None]:
    """Be the only process that writes a file while the context lasts.

    A lock of the operating system on `NAME.lock` beside the file, so that a process that dies by
    any means frees it; removed at the end. It holds among those that ask for it, and not between
    machines whose network file system keeps no locks.

    Args:
        path: of the file; missing folders are made.

    Raises:
        OutputError: another process writes it (named, where the system tells), or the lock cannot
            be made.

    >>> path = Path(tempfile.mkdtemp()) / "a.npz"
    >>> with sole_writer(path), sole_writer(path):
    ...     pass
    Traceback (most recent call last):
    flatkit.errors.OutputError: .../a.npz is being written by another process...
    >>> with sole_writer(path):
    ...     pass
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    name = make_folder(path.parent) / f"{path.name}.lock"
    lock = FileLock(name)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(
            f"{path} is being written by another process{_holder(name)}; wait until it has "
            "finished, stop it, or choose another file or folder"
        ) from error
    except OSError as error:
        raise OutputError(f"cannot lock {name}: {error.strerror or error}") from error
    try:
        yield
    finally:
        # A process that has opened the file meanwhile finds it unlinked and makes a new one. On
        # Windows an open file cannot be removed: it stays there, empty.
        with suppress(OSError):
            name.unlink()
        lock.release()


def check_writable(path: str | Path) -> Path:
    """Return `path` if a file can be written there, so that long work does not end in an error.

    Nothing is made: of missing folders, the nearest one that exists is checked.

    Raises:
        OutputError: it cannot be written.

    >>> check_writable("/dev/null/report.json")
    Traceback (most recent call last):
    flatkit.errors.OutputError: cannot write /dev/null/report.json: /dev/null is not a folder
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file in it")
    if path.exists() and not path.is_file():  # a device or a pipe
        if not os.access(path, os.W_OK):
            raise OutputError(f"cannot write {path}: no permission")
        return path
    target = Path(os.path.realpath(path))
    folder = next(parent for parent in target.parents if parent.exists())
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: no permission to write in {folder}")
    return path


def _holder(lock: Path) -> str:
    """Return which process has locked a file, as far as Linux tells; else nothing."""
    try:
        status = lock.stat()
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
        for line in Path("/proc/locks").read_text().splitlines():
            # number, FLOCK, ADVISORY, WRITE, process, device:inode, start, end
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == f"{device}:{status.st_ino}":
                return f" (process {fields[4]})"
    except (OSError, AttributeError, IndexError):
        pass
    return ""


def _umask() -> int:
    # It can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _remove(temporary: str | None) -> None:
    if temporary is not None:
        Path(temporary).unlink(missing_ok=True)
