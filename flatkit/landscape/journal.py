"""A journal of finished points: a job that is killed goes on where it was, at any point.

One line a pass, with a checksum, appended when the pass is done; a line that a kill
cut short is dropped. Floats are written so that they read back bit for bit.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flatkit.errors import OutputError, ResultError
from flatkit.files.atomic import make_folder

Point = tuple[int, ...]
_START = b'{"job": '


class Journal:
    """Finished points in a file; used as a context, which closes the file.

    Args:
        path: of the file; missing folders are made.
        job: what is measured, ready for JSON; a journal of another job is refused.

    Raises:
        ResultError: the file is the journal of another job, the difference named, or no journal.
        OutputError: it cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.journal"
    >>> with Journal(path, {"seed": 0}) as journal:
    ...     journal.add([(0, 1)], [{"loss": 0.1}])
    >>> with Journal(path, {"seed": 0}) as journal:
    ...     journal.find([(0, 1)])
    [{'loss': 0.1}]
    """

    def __init__(self, path: str | Path, job: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._found: dict[tuple[Point, ...], list[dict[str, float]]] = {}
        make_folder(self.path.parent)
        self._good = self._read(json.loads(json.dumps(job)))
        try:
            self._file = self.path.open("ab")
            self._file.truncate(self._good)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        if self._good == 0:
            self._write({"job": job})

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def num_points(self) -> int:
        """How many points are in it."""
        return sum(len(points) for points in self._found)

    def find(self, points: Sequence[Point]) -> list[dict[str, float]] | None:
        """Return the values of a pass that was finished before, or None."""
        return self._found.get(tuple(tuple(point) for point in points))

    def add(self, points: Sequence[Point], values: Sequence[Mapping[str, float]]) -> None:
        """Append a finished pass; it survives the process from now on."""
        self._write({"points": list(points), "values": [dict(row) for row in values]})

    def remove(self) -> None:
        """Delete the file: the whole surface is saved."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _write(self, content: Mapping[str, Any]) -> None:
        text = json.dumps(content).encode()
        try:
            self._file.write(b"%08x %s\n" % (zlib.crc32(text), text))
            self._file.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _read(self, job: Mapping[str, Any]) -> int:
        """Take over the whole lines of an earlier run; return how many bytes they are."""
        if not self.path.exists():
            return 0
        good = 0
        try:
            with self.path.open("rb") as file:
                for line in file:
                    content = _parse(line)
                    if content is None:
                        break
                    if good == 0:
                        self._check(content, job)
                    else:
                        key = tuple(tuple(point) for point in content["points"])
                        self._found[key] = content["values"]
                    good += len(line)
        except OSError as error:
            raise ResultError(f"cannot read {self.path}: {error.strerror or error}") from error
        if good == 0 and not _is_torn_start(self.path.read_bytes()[:64]):
            raise ResultError(f"{self.path} is no journal of flatkit; move it away")
        return good

    def _check(self, content: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        old = content.get("job")
        if not isinstance(old, Mapping):
            raise ResultError(f"{self.path} is no journal of flatkit; move it away")
        if old != job:
            raise ResultError(
                f"{self.path} holds points of another job ({_difference(old, job)}); "
                "give the same settings, pass `overwrite`, or choose another `out`"
            )


def _is_torn_start(start: bytes) -> bool:
    """Whether a file without a whole line can be a first line that a kill cut short."""
    return b"\n" not in start and _START.startswith(start[9 : 9 + len(_START)])


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return the first few settings that differ."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    texts = []
    for name in names[:3]:
        before, now = (json.dumps(job.get(name)) for job in (old, new))
        short = len(before) + len(now) < 80
        texts.append(f"{name}: {before} there, {now} here" if short else name)
    return "; ".join(texts)


def _parse(line: bytes) -> Any:
    checksum, space, text = line.partition(b" ")
    if not line.endswith(b"\n") or not space:
        return None
    text = text[:-1]
    try:
        if int(checksum, 16) != zlib.crc32(text):
            return None
        return json.loads(text)
    except ValueError:
        return None
