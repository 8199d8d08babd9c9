"""Saved reports and comparisons in one, each run under a name of its own."""

import os
from collections.abc import Sequence
from pathlib import Path

from flatkit.errors import InvalidArgumentError
from flatkit.results.comparison import Comparison, Entry, load_results


def merge(files: Sequence[Path], *, repeats: bool = False) -> Comparison:
    """Return the runs of several files as one comparison, each under a name of its own.

    Args:
        files: saved reports and comparisons.
        repeats: groups of one name in several files are one group; else they are kept apart.

    Raises:
        InvalidArgumentError: a file is given twice.
        ResultError: a file holds neither a report nor a comparison.

    >>> import tempfile
    >>> from flatkit.results.report import Report
    >>> from flatkit.results.result import Result
    >>> folder = Path(tempfile.mkdtemp())
    >>> report = Report([Result("loss", 0.5, 0.0)], checkpoint={"name": "gam"})
    >>> files = [report.save(folder / str(seed) / "gam.json") for seed in (0, 1)]
    >>> [entry.name for entry in merge(files).entries]
    ['gam (0/gam.json)', 'gam (1/gam.json)']
    >>> merge(files, repeats=True).groups
    ['gam']
    """
    places = [path.resolve() for path in files]
    for path, place in zip(files, places, strict=True):
        if places.count(place) > 1:
            raise InvalidArgumentError(f"{path} is given twice; name every file once")
    loaded = [list(load_results(path).entries) for path in files]
    labels = _short(places)
    names, groups = _homes(loaded, "name"), _homes(loaded, "group")
    entries: list[Entry] = []
    for number, found in enumerate(loaded):
        for entry in found:
            # Two files that use one name must not become one run, nor silently one method.
            suffix = f" ({labels[number]})"
            name = entry.name + (suffix if len(names[entry.name]) > 1 else "")
            apart = len(groups[entry.group]) > 1 and not repeats
            group = entry.group + (suffix if apart else "")
            entries.append(Entry(name, group, entry.report, entry.seed, entry.epoch))
    return Comparison(entries)


def _homes(loaded: Sequence[Sequence[Entry]], attribute: str) -> dict[str, set[int]]:
    """Return for every name the numbers of the files that use it."""
    homes: dict[str, set[int]] = {}
    for number, entries in enumerate(loaded):
        for entry in entries:
            homes.setdefault(getattr(entry, attribute), set()).add(number)
    return homes


def _short(places: Sequence[Path]) -> list[str]:
    """Return the paths without the folders that all of them share."""
    if not places:
        return []
    common = os.path.commonpath([place.parent for place in places])
    return [place.relative_to(common).as_posix() for place in places]
