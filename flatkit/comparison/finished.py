"""Reports of finished analyses, kept while several are compared: a killed comparison goes on."""

import hashlib
import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any
from warnings import warn

import torch

from flatkit.checkpoints.checkpoint import Checkpoint
from flatkit.files.store import Store, forget
from flatkit.measures.settings import AnalysisSettings
from flatkit.results.report import Report
from flatkit.version import __version__

_KIND = "report"
_NO_SETTINGS = ("settings", "progress", "command", "loss", "data", "test_data")


class Finished:
    """The reports of checkpoints, in a store, and a journal for each analysis that is under way.

    Args:
        store: of the comparison; None keeps nothing.
    """

    def __init__(self, store: Store | None = None) -> None:
        self._store = store

    def reports(self, subjects: Mapping[int, Any]) -> dict[int, Report]:
        """Return the reports of those that were finished before."""
        found: dict[int, Report] = {}
        for number, subject in subjects.items():
            digest = _digest(subject)
            text = self._store.get(_KIND, digest) if self._store and digest else None
            if text is not None:
                found[number] = Report.from_json(text)
        return found

    def journal(self, number: int, subject: Any) -> str | None:
        """Return where the analysis of a subject keeps its passes.

        Args:
            number: of the subject; a checkpoint is known by its content.
            subject: what is analyzed.
        """
        if self._store is None:
            return None
        return f"{self._store.path}.{_digest(subject)[:12] or number}"

    def keep(self, number: int, subject: Any, report: Report) -> Report:
        """Return a finished report, and keep it instead of the passes that led to it."""
        digest, journal = _digest(subject), self.journal(number, subject)
        if self._store is None or journal is None or not digest:
            return report
        well = not self._store.failed
        self._store.put(_KIND, digest, report.to_json())
        if not self._store.failed:
            forget(journal)
        elif well:
            warn(f"{self._store.failed}; the comparison goes on, but is not kept", stacklevel=3)
        return report

    def remove(self, subjects: Mapping[int, Any]) -> None:
        """Delete all that was kept: the comparison is done."""
        if self._store is not None:
            for number, subject in subjects.items():
                forget(self.journal(number, subject) or "")
            self._store.remove()


@contextmanager
def finished(
    path: str | Path | None, settings: Mapping[str, Any], *, fresh: bool = False
) -> Generator[Finished, None, None]:
    """Open the journal of a comparison.

    Args:
        path: of the file; None for no journal.
        settings: the arguments of every analysis; with others a journal is refused.
        fresh: forget what is there.

    Raises:
        ResultError: it is of a comparison with other settings, damaged, or none.
        OutputError: another process writes it, or it cannot be written.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/a.journal"
    >>> with finished(path, {"seed": 0}) as kept:
    ...     kept.reports({0: "no_such_file.pt"})
    {}
    >>> with finished(path, {"seed": 1}):
    ...     pass
    Traceback (most recent call last):
    flatkit.errors.ResultError: .../a.journal is of another job (seed: 0 there, 1 here); ...
    """
    if path is None:
        yield Finished()
        return
    with Store(path, _identity(settings), fresh=fresh) as store:
        yield Finished(store)


def _identity(given: Mapping[str, Any]) -> dict[str, Any]:
    chosen: AnalysisSettings = given.get("settings") or AnalysisSettings()
    changes = {name: value for name, value in given.items() if name not in _NO_SETTINGS}
    chosen = chosen.changed(changes)
    known = {field.name: getattr(chosen, field.name) for field in fields(chosen)}
    about = {**known, "flatkit": __version__, "torch": torch.__version__}
    return json.loads(json.dumps(about, default=str))


def _digest(subject: Any) -> str:
    """Return a digest of a checkpoint and its place; empty for what is none, or in memory alone."""
    if isinstance(subject, Checkpoint):
        content = subject.sha256
    elif isinstance(subject, str | Path) and Path(subject).is_file():
        content = hashlib.sha256(Path(subject).read_bytes()).hexdigest()
    else:
        return ""
    place = subject.path if isinstance(subject, Checkpoint) else subject
    return hashlib.sha256(f"{content} {place}".encode()).hexdigest()
