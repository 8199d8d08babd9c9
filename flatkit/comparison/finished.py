"""Reports of finished analyses, kept while several are compared: a killed comparison goes on."""

import hashlib
import json
import os
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import warn

import torch

from flatkit.checkpoints.checkpoint import Checkpoint
from flatkit.devices.joining import apart
from flatkit.files.store import Store, forget
from flatkit.measures.settings import AnalysisSettings
from flatkit.objective.digest import parts_of
from flatkit.objective.settings import ObjectiveSettings
from flatkit.results.names import showable
from flatkit.results.report import Report
from flatkit.results.result import Result
from flatkit.version import __version__

if TYPE_CHECKING:
    from flatkit.comparison.sharing import Completion

_KIND, _PLACE = "report", "place"
_FREE = ("measures", "added")
"""Settings that may change from one run to the next."""
_SHORT = 60.0
"""Seconds up to which finished work is repeated sooner than its journal is worth keeping."""


class Finished:
    """The reports of checkpoints, in a store, and a journal for each analysis that is under way.

    Args:
        settings: of every analysis.
        store: of the comparison; None keeps nothing.
    """

    def __init__(self, settings: AnalysisSettings, store: Store | None = None) -> None:
        self._settings, self._store = settings, store

    def reports(self, subjects: Mapping[int, Any]) -> dict[int, Report]:
        """Return the reports of those that were finished before, with the measures asked for."""
        found: dict[int, Report] = {}
        for number, subject in subjects.items():
            self._tell_of_change(subject)
            known = self._known(subject)
            if known is not None and not self._missing(known):
                found[number] = _of_measures(known, self._settings.measures)
        return found

    def wanted(self, subject: Any) -> AnalysisSettings:
        """Return the settings with the measures that are not there yet."""
        known = self._known(subject)
        missing = self._settings.measures if known is None else self._missing(known)
        if len(missing) in (0, len(self._settings.measures)):
            return self._settings
        return replace(self._settings, measures=missing)

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
        """Return a finished report with what was known, kept instead of the passes that led to it.

        Args:
            number: of the subject.
            subject: what was analyzed.
            report: of the measures that were wanted.
        """
        known = self._known(subject)
        # A part was there before; else the new report is all there is.
        if known is not None and set(self._missing(known)) < set(self._settings.measures):
            report = _joined(known, report)
        digest, journal = _digest(subject), self.journal(number, subject)
        if self._store is not None and journal is not None and digest:
            well = not self._store.failed
            self._store.put(_KIND, digest, report.to_json())
            self._store.put(_PLACE, _place(subject), digest)
            if not self._store.failed:
                # The report is kept, and the passes that led to it are of no more use.
                forget(journal)
            elif well:
                warn(f"{self._store.failed}; the comparison goes on, but is not kept", stacklevel=3)
        return _of_measures(report, self._settings.measures)

    def finish(self, reports: Mapping[int, Report], subjects: Mapping[int, Any]) -> None:
        """Delete the journals, and all that was kept if it is sooner repeated.

        Args:
            reports: of all.
            subjects: of these.
        """
        if self._store is None:
            return
        for number, subject in subjects.items():
            forget(self.journal(number, subject) or "")
        seconds = sum(report.analysis.get("seconds", 0.0) for report in reports.values())
        if seconds < _SHORT:
            self._store.remove()

    def _known(self, subject: Any) -> Report | None:
        digest = _digest(subject) if self._store is not None else ""
        text = self._store.get(_KIND, digest) if self._store is not None and digest else None
        return None if text is None else Report.from_json(text)

    def _missing(self, known: Report) -> Sequence[str]:
        """Return which measures a report lacks: all, if it was stopped and is of others."""
        asked, there = self._settings.measures, _measures_of(known)
        if known.analysis.get("ended", "done") != "done":  # what one got then, another did not
            return () if set(asked) == set(there) else asked
        return tuple(name for name in asked if name not in there)

    def _tell_of_change(self, subject: Any) -> None:
        digest = _digest(subject) if self._store is not None else ""
        before = self._store.get(_PLACE, _place(subject)) if self._store and digest else None
        if before is not None and before != digest:
            warn(
                f"{_place(subject)} has changed since it was measured; it is measured anew",
                stacklevel=4,
            )


@contextmanager
def finished(
    path: str | Path | None,
    settings: AnalysisSettings,
    completion: "Completion | None" = None,
    subjects: Mapping[int, Any] | None = None,
    *,
    fresh: bool = False,
) -> Generator[Finished, None, None]:
    """Open the journal of a comparison.

    Args:
        path: of the file; None for no journal.
        settings: of every analysis; with others than `measures` a journal is refused.
        completion: of the checkpoints; its data, loss and code are part of what is kept.
        subjects: what is compared.
        fresh: forget what is there.

    Raises:
        ResultError: it is of a comparison with other settings or of another task, damaged, or none.
        OutputError: another process writes it, or it cannot be written.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/a.journal"
    >>> with finished(path, AnalysisSettings()) as kept:
    ...     kept.reports({0: "no_such_file.pt"})
    {}
    >>> with finished(path, AnalysisSettings(seed=1)):
    ...     pass
    Traceback (most recent call last):
    flatkit.errors.ResultError: .../a.journal is of another job (seed: 0 there, 1 here); ...
    """
    if path is None:
        yield Finished(settings)
        return
    with apart():  # of several ranks the first alone is here
        about = {**_identity(settings), **_about_task(settings, completion, subjects or {})}
    with Store(path, about, fresh=fresh) as store:
        yield Finished(settings, store)


def _identity(settings: AnalysisSettings) -> dict[str, Any]:
    known = {field.name: getattr(settings, field.name) for field in fields(settings)}
    known = {name: value for name, value in known.items() if name not in _FREE}
    # Another version may sum in another order: its numbers are not mixed with these.
    about = {**known, "flatkit": __version__, "torch": torch.__version__}
    # As the file gives it back, where tuples are lists.
    return json.loads(json.dumps(about, default=str))


def _about_task(
    settings: AnalysisSettings, completion: "Completion | None", subjects: Mapping[int, Any]
) -> dict[str, str]:
    """Return digests of the task that completes the checkpoints, whatever their weights are."""
    # One stands for all, which share model, data and loss.
    first = next((s for s in subjects.values() if _digest(s)), None)
    if completion is None or not completion.complete or first is None:
        return {}
    own, task = settings.of(ObjectiveSettings), completion.task(first)
    # For its digests alone; each analysis examines its own.
    objective = task.objective(own, examine=False)
    parts = parts_of(objective)
    model = f"{objective.model!r} {objective.space.names}"
    about = {
        "the samples": parts["samples"],
        "the model": hashlib.sha256(model.encode()).hexdigest(),
        "the loss": parts["loss"],
        "values that the model or the loss holds": parts["values"],
        "the code of the model or the loss": parts["code"],
    }
    if task.test_data is not None:
        test = task.objective(own, split="test", batchnorm="eval", examine=False)
        about["the test samples"] = parts_of(test)["samples"]
    return about


def _measures_of(report: Report) -> Collection[str]:
    return dict.fromkeys(result.measure for result in report).keys()


def _of_measures(report: Report, measures: Sequence[str]) -> Report:
    """Return a report with the results of some measures, in their order."""
    order = {name: at for at, name in enumerate(measures)}
    kept: list[Result] = [result for result in report if result.measure in order]
    kept.sort(key=lambda result: order[result.measure])
    return replace(report, results=kept)


def _joined(first: Report, second: Report) -> Report:
    """Return what two analyses of one checkpoint found."""
    anew = _measures_of(second)
    # What was measured anew takes the place of what was known.
    kept = [result for result in first if result.measure not in anew]
    totals = {
        name: first.analysis.get(name, 0.0) + second.analysis.get(name, 0.0)
        for name in ("gradients", "seconds")
    }
    objective = {**first.objective, **second.objective}
    return replace(
        second,
        results=[*kept, *second.results],
        objective=objective,
        analysis={**second.analysis, **totals},
    )


def _place(subject: Any) -> str:
    place = subject.path if isinstance(subject, Checkpoint) else subject
    return showable(str(Path(place).absolute()))  # SQLite takes no halves of pairs


def _digest(subject: Any) -> str:
    """Return a digest of a checkpoint and its place; empty for what is none, or in memory alone."""
    if isinstance(subject, Checkpoint):
        content = subject.sha256
    elif isinstance(subject, str | Path) and Path(subject).is_file():
        content = hashlib.sha256(Path(subject).read_bytes()).hexdigest()
    else:
        return ""
    place = subject.path if isinstance(subject, Checkpoint) else subject
    # With the place, which a report names; of any bytes that a file may be called by.
    return hashlib.sha256(content.encode() + b" " + os.fsencode(place)).hexdigest()
