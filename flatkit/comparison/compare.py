"""`compare`: measures run on several checkpoints, side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias
from warnings import warn

from flatkit.checkpoints.parts import Parts
from flatkit.checkpoints.readers.reader import check_kind
from flatkit.checks import check_count
from flatkit.comparison.entries import entries_of, loaded
from flatkit.comparison.finished import Finished, finished
from flatkit.comparison.functions import objective_differences
from flatkit.comparison.naming import Groups, named, placed, runs_of, unmatched
from flatkit.comparison.sharing import Build, Completion, at_once, jobs_for
from flatkit.comparison.watching import RunsWatcher, watcher_of_runs
from flatkit.devices.joining import current
from flatkit.errors import InvalidArgumentError
from flatkit.measures.report import Subject, analyze, plan
from flatkit.measures.settings import AnalysisSettings
from flatkit.objective.task import Task
from flatkit.results.comparison import Comparison, Entry
from flatkit.results.report import Report
from flatkit.settings import settings_of

Compared: TypeAlias = Subject | Report | Comparison


def compare(
    subjects: Compared | Sequence[Compared] | Mapping[str, Compared | Sequence[Compared]],
    *,
    task: str | Build | None = None,
    groups: Groups = None,
    entry: str | None = None,
    jobs: int | None = None,
    journal: str | Path | None = None,
    fresh: bool = False,
    progress: Any = None,
    command: Sequence[str] = (),
    settings: AnalysisSettings | None = None,
    **changes: Any,
) -> Comparison:
    r"""Measure several checkpoints alike, and put them side by side, with saved reports if given.

    All are measured by the same samples, probes, directions and budget. Model and data of one task
    are built once, or once in each process.

    Args:
        subjects: paths of checkpoints of any program and of saved reports and comparisons
            (`.json`), patterns of such paths (`runs/*/epoch-*.pt`), checkpoints, tasks, reports and
            comparisons, mixed; or by name, where several of one name are a group. Others are named
            by the parts of their paths in which they differ.
        task: what checkpoints belong to that do not name their model: `FILE.py:FUNCTION`, a
            function that returns a `Task`, or one, whose model takes the weights of each and has
            its own again in the end.
        groups: of repetitions of one method: a regular expression that is searched in the names
            (its first group, or that named `group`; `seed` and `epoch` may be named too), a mapping
            from names, or a function of a name. By default each run is its own.
        entry: the part of the files that holds the weights, e.g. `ema`.
        jobs: how many checkpoints at once, each in a process that has its share of the cores; by
            default as many as there are cores where four files or more of small networks are
            measured on a CPU, else one. With other threads sums are rounded otherwise.
        journal: a file in which finished reports of checkpoints are kept: the same call goes on
            after it was stopped, and with further checkpoints or measures what is there is taken.
        fresh: forget what the journal holds.
        progress: called with what is counted (checkpoints, measures), how many are done and how
            many there are; by default a live table in a terminal and a notebook; False for none.
        command: kept in the reports.
        settings: of every analysis.
        **changes: single settings by name, as of `analyze`; or what completes checkpoints in place
            of a task: `model`, `data`, `loss`, `rename`, `ignore` and so on.

    Raises:
        InvalidArgumentError: there is nothing to compare, a file is missing, a pattern matches
            nothing, `groups` fits no run; two of those that are measured are different functions
            (of other samples, data, loss, BatchNorm mode, dtype or number of parameters); or
            something cannot be given to another process. Further as `analyze`.
        ResultError: the journal is of other settings, or a file holds no report.
        FlatkitError: a process died.

    >>> import torch
    >>> from flatkit.objective.task import Task
    >>> data = (torch.ones(1, 1), torch.zeros(1, 1))
    >>> tasks = {name: Task(torch.nn.Linear(1, 1), "mse", data) for name in ("a", "b")}
    >>> [e.name for e in compare(tasks, measures=["loss"], progress=False).entries]
    ['a', 'b']
    """
    if jobs is not None:
        check_count("jobs", jobs)
    completion, chosen = _completion(task, entry, settings, changes)
    runs = loaded(named(runs_of(subjects)))
    measured = {n: run.subject for n, run in enumerate(runs) if not isinstance(run.subject, Entry)}
    # What is wrong with files and groups is said at once, not after the first analyses.
    for subject in measured.values():
        if isinstance(subject, str | Path):
            check_kind(subject)
    _ = placed(runs, groups, [("", None)] * len(runs))
    if remark := unmatched(runs, groups):
        warn(remark, stacklevel=2)
    ranks = current()
    watcher = watcher_of_runs(progress if ranks.is_first else False)
    if ranks.count > 1:  # they take one checkpoint after the other, together
        jobs = 1
    if jobs is None:
        jobs = jobs_for(list(measured.values()), chosen, completion, quiet=not callable(progress))
    reports = {n: r.subject.report for n, r in enumerate(runs) if isinstance(r.subject, Entry)}
    names = {number: runs[number].name for number in measured}
    with finished(
        journal if ranks.is_first else None, chosen, completion, measured, fresh=fresh
    ) as done:
        work = _Work(completion, command, done, watcher, names, fresh, chosen)
        reports |= work.reports(measured, jobs)
    found = [reports[number] for number in range(len(runs))]
    return Comparison(entries_of(runs, found, groups))


class _Work:
    """The analyses of one comparison.

    Args:
        completion: of the checkpoints.
        command: kept in the reports.
        done: what was finished before, and keeps what is.
        watcher: is told.
        names: of the runs, by number.
        fresh: as of `compare`.
        settings: of every analysis.
    """

    def __init__(
        self,
        completion: Completion,
        command: Sequence[str],
        done: Finished,
        watcher: RunsWatcher,
        names: Mapping[int, str],
        fresh: bool,
        settings: AnalysisSettings,
    ) -> None:
        self._settings = settings
        self._completion, self._command = completion, command
        self._done, self._watcher, self._names, self._fresh = done, watcher, names, fresh

    def reports(self, subjects: Mapping[int, Any], jobs: int) -> dict[int, Report]:
        """Return the report of every subject; what is finished stands first.

        Raises:
            InvalidArgumentError: two are of different functions.
        """
        if not subjects:
            return {}
        found = _told(lambda: self._done.reports(subjects))
        left = {number: s for number, s in subjects.items() if number not in found}
        kept = {self._names[number]: report for number, report in found.items()}
        self._watcher.begin(list(self._names.values()), jobs, kept)
        try:
            for number, report in self._run(left, jobs):
                found[number] = self._done.keep(number, left[number], report)
                self._watcher.done(self._names[number], found[number])
                # After each: the second checkpoint tells that it is of another function, not the
                # last.
                self._refuse_differences(found, number)
        finally:
            self._watcher.end()
            # A task in memory is the caller's, and its model gets its own weights back.
            self._completion.restore()
        self._done.finish(found, subjects)
        return found

    def _run(self, left: Mapping[int, Any], jobs: int) -> Iterator[tuple[int, Report]]:
        ranks = current()
        # The first rank alone has the store; the others go by what it says.
        journals = ranks.decided(lambda: [self._done.journal(n, s) for n, s in left.items()])
        wanted = ranks.decided(lambda: [self._done.wanted(s).measures for s in left.values()])
        journals = dict(zip(left, journals, strict=True))
        settings = {
            number: replace(self._settings, measures=measures)
            for number, measures in zip(left, wanted, strict=True)
        }
        if left:
            number, subject = next(iter(left.items()))
            task = self._completion.task
            if ranks.count > 1:  # all make it, or none could
                schedule = plan(task(subject), settings=settings[number])
                _ = schedule.forecast
                self._watcher.plan(lambda: schedule, len(left))
            else:
                first = settings[number]
                self._watcher.plan(lambda: plan(task(subject), settings=first), len(left))
        if jobs > 1:
            yield from at_once(
                analyze_file,
                left,
                settings,
                jobs,
                journals,
                completion=self._completion,
                command=self._command,
                fresh=self._fresh,
            )
            return
        for number, subject in left.items():
            report = analyze(
                self._completion.task(subject),
                settings=settings[number],
                progress=self._watcher.watch(self._names[number]),
                command=self._command,
                journal=journals[number],
                fresh=self._fresh,
            )
            yield number, report

    def _refuse_differences(self, found: Mapping[int, Report], new: int) -> None:
        first = next(iter(found))  # done before: of several processes any may be
        pair = {self._names[number]: found[number] for number in sorted((first, new))}
        entries = [Entry(name, name, report) for name, report in pair.items()]
        differences = objective_differences(Comparison(entries))
        if differences:
            raise InvalidArgumentError(
                f"different functions cannot be compared: {'; '.join(differences)}. Give all the "
                "same `task`, or `model`, `data` and `loss`; reports that were saved one by one "
                "(flatkit analyze, with `json`) are shown side by side, with a warning"
            )


def _told(reports: Callable[[], dict[int, Report]]) -> dict[int, Report]:
    """Return the reports that the first rank has kept."""
    ranks = current()
    if ranks.count == 1:
        return reports()
    texts = ranks.decided(lambda: {n: report.to_json() for n, report in reports().items()})
    return {int(number): Report.from_json(text) for number, text in texts.items()}


_shared: dict[str, Completion] = {}
"""Of a process that works for another one; nothing else calls `analyze_file`."""


def analyze_file(
    path: str,
    settings: Mapping[str, Any],
    command: Sequence[str],
    completing: Mapping[str, Any],
    journal: str | None,
    fresh: bool,
) -> str:
    """Return the report of a checkpoint as JSON, for another process.

    Args:
        path: of a checkpoint.
        settings: of the analysis.
        command: kept in the report.
        completing: `entry`, and the fields of `Parts`.
        journal: as of `analyze`.
        fresh: as of `analyze`.
    """
    if not _shared:
        parts = {name: value for name, value in completing.items() if name != "entry"}
        _shared[""] = Completion(Parts(**parts), completing["entry"])
    task, chosen = _shared[""].task(path), AnalysisSettings(**settings)
    return analyze(
        task, settings=chosen, progress=False, command=command, journal=journal, fresh=fresh
    ).to_json()


def _completion(
    task: str | Build | None,
    entry: str | None,
    settings: AnalysisSettings | None,
    changes: Mapping[str, Any],
) -> tuple[Completion, AnalysisSettings]:
    """Return what completes checkpoints, and the settings of the analyses, checked."""
    of_parts = settings_of(Parts)
    given = {name: value for name, value in changes.items() if name in of_parts}
    others = {name: value for name, value in changes.items() if name not in of_parts}
    build: Build | None = None
    if isinstance(task, str):
        given["task"] = task
    # A model can be called too, but returns outputs.
    elif (
        task is not None
        and not isinstance(task, Task)
        and (hasattr(task, "forward") or not callable(task))
    ):
        raise InvalidArgumentError(
            "task must be FILE.py:FUNCTION, a function that returns flatkit.Task(model, loss, "
            f"data), or such a Task; got a {type(task).__name__}"
        )
    elif task is not None:
        build = task
    parts = Parts(**given)
    if build is not None and parts.complete:
        raise InvalidArgumentError("task builds model, loss and data; leave out `model`")
    return Completion(parts, entry, build), (settings or AnalysisSettings()).changed(others)
