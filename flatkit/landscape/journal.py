"""A journal of finished points: a job that is killed goes on where it was, at any point.

It is a store, a record a pass. Those of flatkit 0.1.0, a line with a checksum a pass, are taken
over.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from warnings import warn

from flatkit.errors import OutputError, ResultError
from flatkit.files.store import Store, difference

Point = tuple[int, ...]
_KIND = "points"
_ADVICE = "give the same settings, pass `overwrite`, or choose another `out`"


class Journal:
    """Finished points in a file; used as a context, which closes the file.

    Args:
        path: of the file; missing folders are made.
        job: what is measured, ready for JSON; a journal of another job is refused.
        note: is told once if the disk fails: what is measured from then on is not kept.

    Raises:
        ResultError: on entry, if the file is the journal of another job, the difference named, or
            no journal.
        OutputError: on entry, if it cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.journal"
    >>> with Journal(path, {"seed": 0}) as journal:
    ...     journal.add([(0, 1)], [{"loss": 0.1}])
    >>> with Journal(path, {"seed": 0}) as journal:
    ...     journal.find([(0, 1)])
    [{'loss': 0.1}]
    """

    def __init__(
        self, path: str | Path, job: Mapping[str, Any], note: Callable[[str], object] = warn
    ) -> None:
        self._store = Store(path, job, advice=_ADVICE)
        self._note = note

    def __enter__(self) -> "Journal":
        """Open the file."""
        _take_over(self._store)
        self._store.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._store.__exit__(kind, error, trace)

    def find(self, points: Sequence[Point]) -> list[dict[str, float]] | None:
        """Return the values of a pass that was finished before, or None."""
        return self._store.get(_KIND, _key(points))

    def add(self, points: Sequence[Point], values: Sequence[Mapping[str, float]]) -> None:
        """Keep a finished pass; it survives the process from now on."""
        well = not self._store.failed
        self._store.put(_KIND, _key(points), [dict(row) for row in values])
        if well and self._store.failed:
            self._note(f"{self._store.failed}; the rest is measured, but not kept if it is stopped")


def _key(points: Sequence[Sequence[int]]) -> str:
    return json.dumps([list(point) for point in points])


def _take_over(store: Store) -> None:
    """Turn a journal of flatkit 0.1.0 into a store; a line that a kill cut short is dropped."""
    try:
        first, *lines = [*_lines(store.path)] or [{}]
    except OSError as error:
        text = f"cannot read {store.path}: {error.strerror or error}"
        raise OutputError(text) from error
    old = first.get("job")
    if old is None:
        return
    if old != store.identity:
        what = difference(old, store.identity)
        raise ResultError(f"{store.path} is of another job ({what}); {_ADVICE}")
    beside = store.path.with_name(f"{store.path.name}.new")
    with Store(beside, store.identity, fresh=True) as new:
        for content in lines:
            new.put(_KIND, _key(content["points"]), content["values"])
        if new.failed:
            raise OutputError(new.failed)
    beside.replace(store.path)


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield what the whole lines of a journal of flatkit 0.1.0 say; of another file nothing."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            checksum, _, text = line.rstrip(b"\n").partition(b" ")
            if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
                return
            yield json.loads(text)
