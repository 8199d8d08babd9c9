"""A file in which long work keeps what is finished: killed at any moment, it goes on where it was.

SQLite, in WAL mode: every entry is there as a whole or not at all, and survives the process from
the moment in which it was put there.
"""

import json
import shutil
import sqlite3
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from flatkit.errors import OutputError, ResultError
from flatkit.files.atomic import sole_writer

_MAGIC, _ID, _FORMAT = b"SQLite format 3\0", 0x666C6174, 1  # "flat"
_BLOBS = "blob"
_LARGEST = 900_000_000
"""Bytes of one blob: SQLite takes a billion of a row."""
_CHECKED = 2**28
"""Bytes of a file up to which all of it is checked at opening, which takes less than a second."""
MAX_BLOB_BYTES = 2**32
_SHARE_OF_DISK = 0.25


class Store:
    r"""Finished parts of one job in one file, used as a context.

    It holds small records, ready for JSON, by kind and key, and bytes by key. Only one process at
    a time has it open; a lock of a process that died does not bind. While it is not open it holds
    nothing, and keeps nothing.

    Where the disk is full or fails meanwhile, nothing more is kept, `failed` says why, and the work
    goes on: it cannot be resumed from there, but it ends. Where the machine itself stops, the
    last entries may be missing; the others are whole.

    Args:
        path: of the file; missing folders are made.
        identity: of the job, ready for JSON; the store of another job is refused.
        fresh: forget what a store of that name holds.
        max_blob_bytes: bytes of all blobs, and a quarter of the disk that is free on entry at most;
            those beyond are not kept.
        advice: what to do about the store of another job.

    Attributes:
        path: of the file.
        identity: of the job, as it comes back from JSON.
        failed: why nothing is kept any more; empty as long as all is well.

    Raises:
        ResultError: on entry, if the store is of another job (what differs is named), damaged, of
            another version, or the file is no store. It is left as it is.
        OutputError: on entry, if another process has it open, or it cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.journal"
    >>> with Store(path, {"seed": 0}) as store:
    ...     store.put("loss", "train", 0.1)
    ...     store.put_blob("gradient", bytes(4))
    True
    >>> with Store(path, {"seed": 0}) as store:
    ...     store.get("loss", "train"), store.blob("gradient"), store.get("loss", "test")
    (0.1, b'\x00\x00\x00\x00', None)
    >>> with Store(path, {"seed": 1}):
    ...     pass
    Traceback (most recent call last):
    flatkit.errors.ResultError: .../a.journal is of another job (seed: 0 there, 1 here); ...
    """

    def __init__(
        self,
        path: str | Path,
        identity: Mapping[str, Any],
        *,
        fresh: bool = False,
        max_blob_bytes: int = MAX_BLOB_BYTES,
        advice: str = "give the same settings, begin with `fresh`, or name another file",
    ) -> None:
        self.path, self.failed = Path(path), ""
        self.identity = json.loads(json.dumps(identity))
        self._fresh, self._advice = fresh, advice
        self._room = max_blob_bytes
        self._stack = ExitStack()
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> "Store":
        """Open the file.

        Raises:
            ResultError: it is not this job's.
            OutputError: it cannot be written, or another process has it.
        """
        with ExitStack() as stack:
            stack.enter_context(sole_writer(self.path))
            stack.callback(self._close)
            self._open()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file, and free it for others."""
        self._stack.close()

    def put(self, kind: str, key: str, value: Any) -> None:
        """Keep a record, in place of one of the same kind and key.

        Args:
            kind: of records, any word but `blob`.
            key: within the kind.
            value: ready for JSON; floats come back bit for bit, also those that are not finite.
        """
        self._write(kind, key, json.dumps(value).encode())

    def get(self, kind: str, key: str) -> Any:
        """Return a record; None if there is none.

        Raises:
            ResultError: the file is damaged.
        """
        found = self._read(kind, key)
        return None if found is None else json.loads(found)

    def records(self, kind: str) -> dict[str, Any]:
        """Return all records of a kind, by key.

        Raises:
            ResultError: the file is damaged.
        """
        select = "SELECT key, value, checksum FROM entries WHERE kind = ? ORDER BY rowid"
        rows = self._rows(select, kind)
        return {key: json.loads(self._sound(value, check)) for key, value, check in rows}

    def put_blob(self, key: str, data: bytes | memoryview) -> bool:
        """Keep bytes; return whether there was room for them."""
        if len(data) > min(self._room, _LARGEST) or not self._write(_BLOBS, key, data):
            return False
        self._room -= len(data)
        return True

    def blob(self, key: str) -> bytes | None:
        """Return bytes that were kept; None if there are none.

        Raises:
            ResultError: the file is damaged.
        """
        return self._read(_BLOBS, key)

    @property
    def has_blobs(self) -> bool:
        """Whether it holds bytes of any key."""
        return bool(self._rows("SELECT 1 FROM entries WHERE kind = ? LIMIT 1", _BLOBS))

    def remove(self) -> None:
        """Close and delete the file: what it was for is done."""
        self._close()
        forget(self.path)

    def _open(self) -> None:
        """Connect to the file, a new one or that of the same job."""
        if not self._holds_something() or self._fresh:
            forget(self.path)  # a -wal file beside none would be taken for its own
        try:
            # The lock beside the file says who writes; SQLite's own then need no shared memory.
            self._connection = sqlite3.connect(
                self.path, timeout=0, isolation_level=None, check_same_thread=False
            )
            # Before WAL mode begins: set later, it would find the shared memory made already.
            self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._check_or_begin(self._connection)
            self._connection.execute("PRAGMA journal_mode = WAL")
            # In WAL mode NORMAL syncs at checkpoints alone: a kill loses
            # nothing, a power cut the last entries.
            self._connection.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.OperationalError as error:
            raise OutputError(f"cannot write {self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def _holds_something(self) -> bool:
        """Whether there is a store already.

        Raises:
            ResultError: there is another file.
            OutputError: it cannot be read.
        """
        try:
            start = _first_bytes(self.path, 72)
        except OSError as error:
            raise OutputError(f"cannot read {self.path}: {error.strerror or error}") from error
        # SQLite has the number of the application at byte 68.
        if start and (start[:16] != _MAGIC or start[68:] != _ID.to_bytes(4, "big")):
            raise ResultError(f"{self.path} is no journal of flatkit; move it away")
        return bool(start)

    def _check_or_begin(self, connection: sqlite3.Connection) -> None:
        """Make the tables of a new store, in one transaction; or check those that are there."""
        connection.execute("BEGIN IMMEDIATE")  # fails where nothing can be written
        if not connection.execute("SELECT * FROM sqlite_master").fetchall():
            connection.execute(f"PRAGMA application_id = {_ID}")
            connection.execute(f"PRAGMA user_version = {_FORMAT}")
            connection.execute(
                "CREATE TABLE entries (kind TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, "
                "checksum INTEGER NOT NULL, UNIQUE (kind, key))"
            )
            self._insert(connection, "store", "identity", json.dumps(self.identity).encode())
        connection.execute("COMMIT")
        if connection.execute("PRAGMA user_version").fetchone() != (_FORMAT,):
            raise ResultError(f"{self.path} is of another version of flatkit; move it away")
        if self.path.stat().st_size <= _CHECKED:
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if answer != "ok":
                raise self._damaged(answer.splitlines()[-1])
        self._compare(self.get("store", "identity"))
        total = "SELECT coalesce(sum(length(value)), 0) FROM entries WHERE kind = ?"
        self._room -= connection.execute(total, (_BLOBS,)).fetchone()[0]
        free = shutil.disk_usage(self.path.parent).free
        self._room = min(self._room, int(_SHARE_OF_DISK * free))

    def _compare(self, old: Any) -> None:
        if not isinstance(old, Mapping):
            raise self._damaged("it does not say of what job it is")
        if old != self.identity:
            what = difference(old, self.identity)
            raise ResultError(f"{self.path} is of another job ({what}); {self._advice}")

    def _write(self, kind: str, key: str, value: bytes | memoryview) -> bool:
        """Keep an entry; return whether it is kept."""
        if self._connection is None or self.failed:
            return False
        try:
            self._insert(self._connection, kind, key, value)
        except sqlite3.Error as error:
            self.failed = f"cannot write {self.path}: {error}"
            return False
        return True

    def _insert(
        self, connection: sqlite3.Connection, kind: str, key: str, value: bytes | memoryview
    ) -> None:
        row = (kind, key, value, zlib.crc32(value))
        connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", row)

    def _read(self, kind: str, key: str) -> bytes | None:
        rows = self._rows(
            "SELECT value, checksum FROM entries WHERE kind = ? AND key = ?", kind, key
        )
        return self._sound(*rows[0]) if rows else None

    def _rows(self, select: str, *given: str) -> list[Any]:
        if self._connection is None:
            return []
        try:
            return self._connection.execute(select, given).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def _sound(self, value: bytes, checksum: int) -> bytes:
        if zlib.crc32(value) != checksum:
            raise self._damaged("a checksum is wrong")
        return value

    def _damaged(self, why: object) -> ResultError:
        return ResultError(f"{self.path} is damaged ({why}); move it away")

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()  # takes over and removes the -wal file
            self._connection = None


def forget(path: str | Path) -> None:
    """Delete a store that is not open, with what a kill has left beside it.

    >>> forget("nothing.journal")
    """
    for end in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{end}").unlink(missing_ok=True)


def _first_bytes(path: Path, count: int) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as file:
        return file.read(count)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return the first few settings in which two jobs differ, in words.

    >>> difference({"seed": 0, "data": "a" * 64}, {"seed": 1, "data": "b" * 64})
    'seed: 0 there, 1 here; data'
    """
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    texts: list[str] = []
    for name in names[:3]:
        before, now = (json.dumps(job.get(name)) for job in (old, new))
        short = len(before) + len(now) < 80
        texts.append(f"{name}: {before} there, {now} here" if short else name)
    return "; ".join(texts)
