"""`study`: train arms over seeds, measure them, judge the claims; goes on where it was stopped."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flatkit.checks import check_count
from flatkit.comparison.workers import Processes, usable_cores
from flatkit.devices.joining import current
from flatkit.errors import InvalidArgumentError, ResultError
from flatkit.files.atomic import check_writable, write_text_atomically
from flatkit.results.comparison import Comparison, Entry, load_results
from flatkit.results.report import Report
from flatkit.studies.outcome import Outcome, judged
from flatkit.studies.runs import Run, choose, finished, run_one, study_runs, tuning_runs
from flatkit.studies.settings import Study, read_study
from flatkit.studies.watching import DoneRun, StudyWatcher, watcher_of_study

_MANIFEST = "study.json"


def study(
    source: Study | str | Path,
    out: str | Path,
    *,
    jobs: int | None = None,
    progress: Any = None,
) -> Outcome:
    """Train every arm with every seed, measure all alike, and judge what is claimed of them.

    What is done lies in `out` and is never made again, so that the same call goes on after it was
    stopped, also with more seeds or arms. Every run is computed by one thread in a process of its
    own, so that the numbers do not depend on how many go at once. Of several ranks (inside of
    `flatkit.devices.joining.joined`) each takes the next run when it is free, in a folder that all
    of them see.

    Args:
        source: the study, a TOML file, or the name of one that comes along.
        out: folder of the runs and of what came out.
        jobs: how many runs at once; by default as there are cores; of several ranks one each.
        progress: a `StudyWatcher`, or a callback of what is counted (runs), how many are done and
            how many there are; by default a live table in a terminal and a notebook; False for
            none.

    Raises:
        InvalidArgumentError: settings that cannot be.
        ResultError: `out` holds another study; the message says which settings differ.
        OutputError: it cannot be written.
    """
    asked = source if isinstance(source, Study) else read_study(source)
    folder, ranks = Path(out), current()
    # Ranks are processes already, and each would start its own.
    if ranks.count > 1 and jobs is not None:
        raise InvalidArgumentError(
            f"jobs must be left out where {ranks.count} ranks share a study, one run each"
        )
    ranks.check_alike({"the study": asked.to_dict(), "its files": asked.files})
    ranks.decided(lambda: _claim_folder(asked, folder))
    watcher = watcher_of_study(progress if ranks.is_first else False)
    jobs = usable_cores() if jobs is None else check_count("jobs", jobs)
    own = jobs if ranks.count == 1 else 1
    with Processes(own) as processes:  # the same ones tune and run: each start takes seconds
        found = _carried_out(asked, folder, processes, watcher)
    if ranks.is_first:
        found.save(folder)
    return found


def _carried_out(
    asked: Study, folder: Path, processes: Processes, watcher: StudyWatcher
) -> Outcome:
    """Choose what is tuned, make every run that is not done, and return what came out."""
    tuning = tuning_runs(asked)
    chosen = choose(asked, _done(asked, folder, tuning, processes, watcher)) if tuning else {}
    runs = study_runs(asked, chosen)
    due = 0

    def look(done: Collection[str]) -> None:
        nonlocal due
        whole = _whole_seeds(asked, runs, done)
        if due and due <= len(whole) < len(asked.seeds):
            ready = [run for run in runs if run.seed in whole]
            watcher.early(len(whole), lambda: collected(asked, folder, ready, chosen))
        # Statistics of many runs take minutes: after 1, 2, 4, 8, ... seeds they are worth that.
        due = 2 ** len(whole).bit_length()

    _done(asked, folder, runs, processes, watcher, look)
    return collected(asked, folder, runs, chosen)


def _whole_seeds(asked: Study, runs: Sequence[Run], done: Collection[str]) -> list[int]:
    """Return the seeds of which every run is done."""
    unfinished = {run.seed for run in runs if run.folder not in done}
    return [seed for seed in asked.seeds if seed not in unfinished]


def collected(
    asked: Study,
    folder: Path,
    runs: Sequence[Run],
    chosen: Mapping[tuple[str, str], Mapping[str, Any]],
) -> Outcome:
    """Return what came out of runs that lie in a folder.

    Args:
        asked: the study.
        folder: of the study.
        runs: that are done.
        chosen: what tuning chose.
    """
    entries: dict[str, list[Entry]] = {condition: [] for condition in asked.conditions}
    along: dict[str, list[Entry]] = {condition: [] for condition in asked.conditions}
    diverged: dict[str, dict[str, str]] = {}
    gradients: dict[str, dict[str, list[float]]] = {}
    # Arm by arm, as tables show them; they were made seed by seed.
    for run in _by_arm(asked, runs):
        place = folder / run.folder
        outcome = finished(place)
        name = f"{run.arm}, seed {run.seed}"
        if outcome["diverged"] is not None:
            diverged.setdefault(run.condition, {})[name] = outcome["diverged"]
            continue
        report = Report.load(place / "report.json")
        entries[run.condition].append(Entry(name, run.arm, report, seed=str(run.seed)))
        spent = gradients.setdefault(run.condition, {})
        spent.setdefault(run.arm, []).append(outcome.get("gradients") or 0)
        if (place / "along.json").is_file():
            for entry in load_results(place / "along.json").entries:
                own = replace(
                    entry, name=f"{name}, {entry.name}", group=run.arm, seed=str(run.seed)
                )
                along[run.condition].append(own)
    comparisons = {key: Comparison(own) for key, own in entries.items() if own}
    curves = {key: Comparison(own) for key, own in along.items() if own}
    return Outcome(
        asked,
        comparisons,
        curves,
        judged(asked, comparisons, curves, diverged),
        _nested(chosen),
        diverged,
        {key: {arm: sum(n) / len(n) for arm, n in own.items()} for key, own in gradients.items()},
    )


def _done(
    asked: Study,
    folder: Path,
    runs: Sequence[Run],
    processes: Processes,
    watcher: StudyWatcher,
    look: Callable[[Collection[str]], object] = len,
) -> dict[str, Mapping[str, Any]]:
    """Return what came out of every run, by its folder; those that are not done yet are made.

    Args:
        asked: the study.
        folder: of the study.
        runs: all.
        processes: that make them.
        watcher: is told.
        look: called with the folders of those that are done, at first and each time one is made.
    """
    along, ranks = list(asked.matched), current()
    # The first rank looks for all: another one might see a file that was written meanwhile.
    there = ranks.decided(lambda: [(folder / r.folder / "outcome.json").is_file() for r in runs])
    done = [run for run, is_done in zip(runs, there, strict=True) if is_done]
    kept = [DoneRun(run, folder / run.folder) for run in done]
    found = {one.run.folder: one.outcome for one in kept}
    left = [run for run in runs if run.folder not in found]
    calls = [
        (
            str(folder / run.folder),
            # Plain data, as workers are spoken to in JSON and nothing is unpickled.
            json.loads(json.dumps(run.settings)),
            json.loads(json.dumps(asked.analysis_of(run.seed))) if run.measured else None,
            along,
            asked.task_of(run.settings),
            asked.trainer,
        )
        for run in left
    ]
    watcher.begin(runs, kept, max(processes.jobs, ranks.count))
    look(found)

    def make(place: int) -> dict[str, Any]:
        ((_, outcome),) = processes.map(run_one, [calls[place]])
        return outcome

    shared = ranks.count > 1
    made = enumerate(ranks.hand_out(len(calls), make)) if shared else processes.map(run_one, calls)
    try:
        for place, outcome in made:
            run = left[place]
            found[run.folder] = outcome
            watcher.done(DoneRun(run, folder / run.folder))
            look(found)
    finally:
        watcher.end()
    return found


def _claim_folder(asked: Study, folder: Path) -> None:
    """Write down which study a folder is of, or refuse one that is of another."""
    manifest = folder / _MANIFEST
    # Before anything is trained.
    check_writable(manifest)
    if manifest.is_file():
        earlier = _earlier(manifest)
        differing = asked.differences(earlier)
        if differing:
            raise ResultError(
                f"{folder} holds another study ({'; '.join(differing)}); choose another folder, or "
                "the settings and files that it has; seeds and arms may be added"
            )
    whole = {**asked.to_dict(), "files": asked.files}
    write_text_atomically(manifest, json.dumps(whole, indent=1) + "\n")


def _earlier(manifest: Path) -> dict[str, Any]:
    """Return the settings of the study that a folder is of."""
    try:
        earlier: Any = json.loads(manifest.read_text("utf-8"))
        whole = all(isinstance(arm, dict) and "name" in arm for arm in earlier["arms"])
        whole = whole and isinstance(earlier.setdefault("files", {}), dict)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{manifest} is no study ({error!r}); choose another folder") from error
    if not whole or not isinstance(earlier.get("seeds"), list):
        raise ResultError(f"{manifest} is no study; choose another folder")
    return earlier


def _by_arm(asked: Study, runs: Sequence[Run]) -> list[Run]:
    """Return runs in the order of the arms, then of the seeds."""
    names = [arm.name for arm in asked.arms]
    return sorted(runs, key=lambda run: (names.index(run.arm), asked.seeds.index(run.seed)))


def _nested(chosen: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for (condition, arm), values in chosen.items():
        found.setdefault(condition, {})[arm] = dict(values)
    return found
