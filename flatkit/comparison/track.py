"""`track`: the checkpoints of a training measured alike, as curves over its epochs."""

from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from flatkit.comparison.curves import OVERLAP, pair
from flatkit.comparison.overlap import subspace_overlap
from flatkit.results.comparison import Comparison, Entry
from flatkit.results.report import Report
from flatkit.results.result import Result

TRACKED = ("loss", "accuracy", "gradient_norm", "top_eigenvalues", "trace")
"""What is measured where nothing else is asked for."""
_VECTORS = 3
"""Eigenvectors: overlaps of the first, and of the first two; the third tells the gap."""


def track(
    source: str | Path | Sequence[str | Path],
    *,
    task: Any = None,
    journal: str | Path | None = None,
    eigenvectors: str | Path | None = None,
    **settings: Any,
) -> Comparison:
    """Measure every checkpoint of one training, or of several, in the order of the epochs.

    To each report but the first of a run the overlap of its leading eigenvectors with those of the
    checkpoint before is added, as `eigenvector_overlap`.

    Args:
        source: the folder of a run, a pattern of files, or several of them.
        task: what checkpoints of other programs belong to, as of `compare`.
        journal: a file in which finished reports are kept, so that the same call goes on after it
            was stopped. Beside it lie the eigenvectors, until all is done.
        eigenvectors: a folder in which they stay; k · P numbers a checkpoint.
        **settings: further arguments of `compare`, and settings of `analyze`; by default the
            measures loss, accuracy, gradient norm, top eigenvalues (three) and trace.

    Returns:
        Comparison of a run an epoch, named `gam, epoch 10`. `flatkit.render.track_table` and the
        figure `track` show it; `flatkit.load_results` reads what its `save` wrote.

    Raises:
        InvalidArgumentError: fewer than two epochs; further as `compare`.
        CheckpointError: a file cannot be read.

    >>> import tempfile
    >>> from flatkit.training import TrainingConfig, train
    >>> config = TrainingConfig(data="gaussians", epochs=2, save_every=1, device="cpu")
    >>> out = tempfile.mkdtemp()
    >>> _ = train(config, out)
    >>> found = track(out, measures=["loss"], progress=False)
    >>> [entry.epoch for entry in found.entries]
    [1, 2]
    """
    from flatkit.comparison.compare import compare
    from flatkit.comparison.epochs import stops_of

    sources = [source] if isinstance(source, str | Path) else list(source)
    stops = stops_of(sources, entry=settings.get("entry"))
    asked: dict[str, Any] = {"measures": TRACKED, **settings}
    if asked.get("settings") is not None:
        # Settings that come whole name their measures themselves.
        asked.pop("measures") if "measures" not in settings else None
    elif "top_eigenvalues" in asked["measures"]:
        asked.setdefault("num_eigenvalues", _VECTORS)
    more = {} if task is None else {"task": task}
    names = [f"{stop.run}, epoch {stop.epoch:g}" for stop in stops]
    subjects = {name: stop.path for name, stop in zip(names, stops, strict=True)}
    with _folder(eigenvectors, journal) as folder:
        asked["eigenvectors"] = str(folder)
        compared = compare(subjects, journal=journal, **more, **asked)
        entries: list[Entry] = []
        before: Entry | None = None
        for entry, stop, name in zip(compared.entries, stops, names, strict=True):
            own = replace(entry, name=name, group=name, epoch=stop.epoch)
            follows = before is not None and stops[len(entries) - 1].run == stop.run
            report = _with_overlap(own.report, before if follows else None, folder)
            entries.append(replace(own, report=report))
            before = own
    return Comparison(entries if eigenvectors else [_without_files(entry) for entry in entries])


def _without_files(entry: Entry) -> Entry:
    """Return a run whose results name no files of eigenvectors, which are gone."""
    results: list[Result] = []
    for result in entry.report:
        settings = {key: v for key, v in result.settings.items() if key != "eigenvectors"}
        results.append(replace(result, settings=settings))
    return replace(entry, report=replace(entry.report, results=results))


@contextmanager
def _folder(kept: str | Path | None, journal: str | Path | None) -> Any:
    """Yield the folder of the eigenvectors, which goes in the end unless it was asked for.

    It is that of the first of several processes.
    """
    from flatkit.devices.joining import current

    ranks = current()
    if kept is not None:
        yield Path(kept)
    elif journal is None:
        with TemporaryDirectory(prefix="flatkit-") if ranks.is_first else nullcontext() as own:
            yield Path(ranks.decided(lambda: own))
    else:
        folder = Path(f"{journal}.eigenvectors")
        yield folder
        if not ranks.is_first:
            return
        # Only where all went well: a run that goes on needs the vectors of the epoch before.
        for file in folder.glob("*.npy"):
            file.unlink()
        if folder.is_dir():
            folder.rmdir()


def _with_overlap(report: Report, before: Entry | None, folder: Path) -> Report:
    """Return a report with its overlap, if both runs have eigenvectors; the first rank finds it."""
    from flatkit.devices.joining import current

    ranks = current()
    if ranks.count == 1:
        return _overlapping(report, before, folder)
    told = ranks.decided(lambda: _overlapping(report, before, folder).to_json())
    return Report.from_json(told)


def _overlapping(report: Report, before: Entry | None, folder: Path) -> Report:
    found = report.find("top_eigenvalues")
    last = None if before is None else before.report.find("top_eigenvalues")
    if found is None or last is None or before is None:
        return report
    first, second = (_vectors(result, folder) for result in (last, found))
    # Of another shape, the two runs kept different numbers of vectors, or are different networks.
    if first is None or second is None or len(first) < 2 or first.shape != second.shape:
        return report
    pairs = [[pair(r, place) for place in range(len(first))] for r in (last, found)]
    overlaps, errors = subspace_overlap(
        first,
        second,
        values=([v for v, _ in pairs[0]], [v for v, _ in pairs[1]]),
        errors=([e or 0.0 for _, e in pairs[0]], [e or 0.0 for _, e in pairs[1]]),
    )
    settings = {"with_epoch": before.epoch, "vectors": list(range(1, len(first)))}
    overlap = Result(OVERLAP, overlaps, errors, error_kind="residual", settings=settings)
    return replace(report, results=[*report.results, overlap])


def _vectors(result: Result, folder: Path) -> Any:
    name = result.settings.get("eigenvectors")
    file = folder / str(name)
    return np.load(file, allow_pickle=False) if name and file.is_file() else None
