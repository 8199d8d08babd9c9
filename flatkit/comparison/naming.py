"""Which files a comparison means, and what its runs are called: names, groups, seeds and epochs."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import glob
from itertools import islice, takewhile, zip_longest
from pathlib import Path
from typing import Any, TypeAlias

from flatkit.checkpoints.readers.folders import stem
from flatkit.checks import nearest
from flatkit.errors import InvalidArgumentError

Groups: TypeAlias = str | Mapping[str, str] | Callable[[str], str] | None
"""A regular expression, a mapping from names, or a function of the name of a run."""

_MAGIC = re.compile(r"[*?[]")
_USUAL = ("ckpt", "checkpoint", "model", "weights", "last")
"""Names of files that say nothing beside that of their folder."""
_SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".safetensors")
_IN_FOLDERS = (
    *("config.json", "*.index.json", "*model*.safetensors", "*model*.bin", "latest"),
    *(".metadata", "adapter_config.json", "*_states.pt"),
)
"""Files of which one lies in every checkpoint that is a folder."""
_MOST = 10_000
"""Files of a folder that are looked at."""
# Not inside of a word: `reseed3` names no seed.
_NUMBERED = r"(?:^|[^a-z]){word}[\s_=:-]*(\d+)"
_SEED, _EPOCH = (
    re.compile(_NUMBERED.format(word=word), re.IGNORECASE) for word in ("seed", "epoch")
)


@dataclass(frozen=True)
class Run:
    """One subject of a comparison.

    Attributes:
        subject: what is measured, or a report.
        name: that was given, or follows from its path; empty where neither is there.
        group: that was given with it, if one was.
        path: of its file, if it has one.
        found: whether a pattern found it; what two patterns find is meant once.
    """

    subject: Any
    name: str = ""
    group: str = ""
    path: str = ""
    found: bool = False


@dataclass(frozen=True)
class Place:
    """Where a run belongs.

    Attributes:
        group: of repetitions.
        seed: of its training; empty if that is not known.
        epoch: of its training, if that is known.
    """

    group: str
    seed: str = ""
    epoch: float | None = None


def runs_of(subjects: Any) -> list[Run]:
    """Return the runs that are meant, with the files in the place of patterns, each file once.

    Args:
        subjects: one subject or several; or a mapping from names, in which several subjects of one
            name, or a pattern of several files, are a group of that name.

    Raises:
        InvalidArgumentError: there are none; a pattern matches nothing; a file is missing or is
            named twice.

    >>> [run.name for run in runs_of({"sgd": "a.json", "gam": 7})]
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: there is no file a.json
    """
    runs: list[Run] = []
    if isinstance(subjects, Mapping):
        given: Mapping[str, Any] = subjects
        for name, meant in given.items():
            found = [run for each in _several(meant) for run in _expanded(each)]
            alone = len(found) == 1 and not isinstance(meant, (list, tuple))
            inner = [""] if alone else _numbered(found)
            runs += [
                replace(run, name=f"{name}, {own}" if own else name, group=name)
                for run, own in zip(found, inner, strict=True)
            ]
    else:
        runs = [run for each in _several(subjects) for run in _expanded(each)]
    if not runs:
        raise InvalidArgumentError("compare needs at least one checkpoint, task or report")
    return _each_once(runs)


def named(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with names from their paths, where none were given.

    >>> paths = [f"runs/{kind}/epoch-{n}.pt" for kind in ("sgd", "gam") for n in (1, 9)]
    >>> files = [Run(0, path=path) for path in paths]
    >>> [run.name for run in named(files)]
    ['sgd/epoch-1', 'sgd/epoch-9', 'gam/epoch-1', 'gam/epoch-9']
    """
    nameless = [run for run in runs if run.path and not run.name]
    # By identity, as two runs may be equal.
    names = dict(zip(map(id, nameless), short_names([r.path for r in nameless]), strict=True))
    return [replace(run, name=run.name or names.get(id(run), "")) for run in runs]


def short_names(paths: Sequence[str]) -> list[str]:
    """Return the parts of paths by which they differ.

    >>> short_names(["runs/sgd/ckpt.pt", "runs/gam/ckpt.pt"]), short_names(["runs/sgd/ckpt.pt"])
    (['sgd', 'gam'], ['sgd'])
    >>> short_names(["a.pt", "old/b.pt"])
    ['a', 'old/b']
    """
    parts = [_parts(path) for path in paths]
    rows = zip(*(own[:-1] for own in parts), strict=False)
    shared = sum(1 for _ in takewhile(lambda row: len(set(row)) == 1, rows))
    # From the end, where the file names are: paths may be of different depth.
    rows = zip_longest(*(reversed(own[shared:]) for own in parts))
    told = [at for at, row in enumerate(rows) if len(set(row)) > 1]
    names: list[str] = []
    for own in parts:
        kept = [own[-1 - at] for at in reversed(told) if at < len(own) - shared]
        usual = own[-1].lower() in _USUAL and len(own) > 1
        names.append("/".join(kept) or own[-2 if usual else -1])
    # `ckpt` says nothing beside the folder, unless it is all that tells two files apart.
    shorter = [
        name.rpartition("/")[0] if own[-1].lower() in _USUAL and "/" in name else name
        for name, own in zip(names, parts, strict=True)
    ]
    return shorter if len(set(shorter)) == len(shorter) else names


def placed(
    runs: Sequence[Run], groups: Groups, trainings: Sequence[tuple[str, float | None]]
) -> list[Place]:
    """Return to which group each run belongs, and its seed and epoch.

    A regular expression is searched in the name; its first group, or that named `group`, is the
    group; those named `seed` and `epoch` are the numbers. These follow else from the settings of
    the training, else from digits after the word in the path or the name. Where runs of one group
    are of several epochs, each epoch is a group.

    Args:
        runs: with names.
        groups: a regular expression, a mapping, or a function; by default each run is a group.
        trainings: seed and epoch of each, as its checkpoint tells them.

    A run that the expression does not fit is a group of its own (`unmatched` names them).

    Raises:
        InvalidArgumentError: the expression has no group, or fits no name; the mapping holds names
            that no run has.

    >>> files = [Run(0, f"{kind}-seed{n}") for kind in ("sgd", "gam") for n in (0, 1)]
    >>> [(p.group, p.seed) for p in placed(files, r"(.*)-seed", [("", None)] * 4)]
    [('sgd', '0'), ('sgd', '1'), ('gam', '0'), ('gam', '1')]
    """
    found = _matched(runs, groups)
    places: list[Place] = []
    for run, own, (seed, epoch) in zip(runs, found, trainings, strict=True):
        # The path, too: a name holds only the parts in which the paths differ.
        text = f"{run.name} {run.path}"
        # First what the user says, then what the training says, then the name of the file.
        seed = own.get("seed") or seed or _last(_SEED, text)
        known = own.get("epoch") or ("" if epoch is not None else _last(_EPOCH, text))
        epoch = _number(known) if known else epoch
        places.append(Place(own.get("group") or run.group or run.name, seed, epoch))
    epochs: dict[str, set[float | None]] = {}
    for place in places:
        epochs.setdefault(place.group, set()).add(place.epoch)
    for at, (run, own, place) in enumerate(zip(runs, found, places, strict=True)):
        # Groups that were saved stay, unless a pattern names them anew.
        as_saved = hasattr(run.subject, "report") and not own.get("group")
        # Epochs of a training are no repetitions: their spread would pass for that of seeds.
        if len(epochs[place.group]) > 1 and place.epoch is not None and not as_saved:
            places[at] = replace(place, group=f"{place.group}, epoch {place.epoch:g}")
    return places


def unmatched(runs: Sequence[Run], groups: Groups) -> str:
    """Return a sentence about the runs that a regular expression does not fit, if there are any."""
    missed = [r.name for r, own in zip(runs, _matched(runs, groups), strict=True) if not own]
    if not isinstance(groups, str) or not missed:
        return ""
    return f"groups {groups!r} does not fit {_some(missed)}: each is a group of its own"


def _matched(runs: Sequence[Run], groups: Groups) -> list[dict[str, str]]:
    """Return what `groups` says of each run: `group`, `seed` and `epoch`, as far as it does."""
    names = [run.name for run in runs]
    if groups is None:
        return [{} for _ in runs]
    if isinstance(groups, Mapping):
        unknown = [name for name in groups if name not in names]
        if unknown:
            raise InvalidArgumentError(
                f"groups names {unknown[0]!r}, which no run is called{nearest(unknown[0], names)} "
                f"The runs are {_some(names)}"
            )
        return [{"group": groups[name]} if name in groups else {} for name in names]
    if callable(groups):
        return [{"group": str(groups(name))} for name in names]
    pattern = _compiled(groups)
    found = [_groups_of(pattern, name) for name in names]
    if not any(found):
        raise InvalidArgumentError(
            f"groups must fit the names of runs; {groups!r} fits none of them: {_some(names)}"
        )
    return found


def _compiled(text: str) -> "re.Pattern[str]":
    try:
        pattern = re.compile(text)
    except TypeError as error:  # neither text nor a compiled pattern
        raise InvalidArgumentError(
            "groups must be a regular expression such as (.*)-seed[0-9]+, a mapping from the names "
            f"of runs, or a function of a name; got a {type(text).__name__}"
        ) from error
    except re.error as error:
        raise InvalidArgumentError(
            f"groups must be a regular expression, got {text!r}: {error}"
        ) from error
    # All parts in parentheses have names, and none of them is `group`.
    if "group" not in pattern.groupindex and pattern.groups == len(pattern.groupindex):
        raise InvalidArgumentError(
            f"groups must hold the group in parentheses, as (.*)-seed\\d+ does; got {text!r}"
        )
    return pattern


def _groups_of(pattern: "re.Pattern[str]", name: str) -> dict[str, str]:
    match = pattern.search(name)
    if match is None:
        return {}
    found = {key: value for key, value in match.groupdict().items() if value}
    if "group" not in pattern.groupindex:
        named = set(pattern.groupindex.values())
        first = next(number for number in range(1, pattern.groups + 1) if number not in named)
        found["group"] = match[first] or ""
    return found if found.get("group") else {}


def _several(subjects: Any) -> list[Any]:
    # A report can be iterated over, and is one subject; so is a data set, which is refused later.
    return [*subjects] if isinstance(subjects, (list, tuple)) else [subjects]


def _expanded(subject: Any) -> Iterator[Run]:
    """Yield the runs of a path, a pattern, or anything else."""
    if not isinstance(subject, (str, Path)):
        yield Run(subject, path=str(getattr(subject, "path", "")))
        return
    # A pattern in quotes comes with its ~.
    path = Path(subject).expanduser()
    text = str(path)
    if path.is_dir() and not _is_checkpoint(path):
        raise InvalidArgumentError(f"{text} is a folder, not a checkpoint; {_pattern_in(path)}")
    # Before it is taken for a pattern: brackets may be part of a name.
    if path.exists():
        yield Run(text, path=text)
        return
    if not _MAGIC.search(text):
        raise InvalidArgumentError(f"there is no file {text}{_beside(text)}")
    # Path.glob takes no absolute pattern
    files = sorted(glob(text, recursive=True), key=_natural)  # noqa: PTH207
    if not files:
        raise InvalidArgumentError(f"no file matches the pattern {text}{_beside(text)}")
    for file in files:
        yield Run(file, path=file, found=True)


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder may be one checkpoint, of Hugging Face, PEFT, DeepSpeed or torch."""
    return any(next(folder.glob(pattern), None) is not None for pattern in _IN_FOLDERS)


def _pattern_in(folder: Path) -> str:
    """Return which pattern names the checkpoints of a folder of runs."""
    found = [path.suffix for path in islice(folder.rglob("*"), _MOST) if path.suffix in _SUFFIXES]
    if not found:
        return "name the files in it"
    suffix = max(set(found), key=found.count)
    return f"a pattern names the {found.count(suffix)} in it: '{folder}/**/*{suffix}'"


def _beside(text: str) -> str:
    """Say what the folder of a file that is missing holds."""
    folder = Path(text)
    while _MAGIC.search(str(folder)) or not folder.is_dir():
        if folder == folder.parent:
            break
        folder = folder.parent
    held = sorted((path.name for path in folder.iterdir()), key=_natural) if folder.name else []
    return f"; {folder} holds {_some(held)}" if held else ""


def _each_once(runs: Sequence[Run]) -> list[Run]:
    """Return the runs, each file once; refuse a path that is named twice."""
    seen: dict[str, bool] = {}
    kept: list[Run] = []
    for run in runs:
        # A link and its target are one file; what has no path is its own.
        place = os.path.realpath(run.path) if run.path else f"{id(run)}"
        if place not in seen:
            kept.append(run)
        # Two patterns may well overlap; a path that is written twice is a slip.
        elif not (run.found or seen[place]):
            raise InvalidArgumentError(f"{run.path} is given twice; name every file once")
        seen[place] = run.found
    return kept


def _numbered(runs: Sequence[Run]) -> list[str]:
    """Return what tells runs of one name apart: parts of their paths, or numbers."""
    if all(run.path for run in runs):
        return short_names([run.path for run in runs])
    return [str(number) for number in range(1, len(runs) + 1)]


def _parts(path: str) -> list[str]:
    whole = Path(path).absolute()
    return [*whole.parts[:-1], stem(whole) if not whole.is_dir() else whole.name]


def _natural(text: str) -> list[tuple[int, str]]:
    """Order numbers in names as numbers: epoch-9 before epoch-10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]


def _last(pattern: "re.Pattern[str]", text: str) -> str:
    found = pattern.findall(text)
    return found[-1] if found else ""


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InvalidArgumentError(
            f"groups must give a number as the epoch, got {text!r}"
        ) from error


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"
