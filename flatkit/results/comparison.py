"""Reports side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from flatkit.errors import ResultError, UnknownNameError
from flatkit.files.atomic import write_text_atomically
from flatkit.results.names import showable
from flatkit.results.report import Report
from flatkit.results.schema import SCHEMA, check_kind, check_schema, json_text, parse, read_text
from flatkit.results.showing import Shown, no_such, table_of
from flatkit.version import __version__

_STATISTICS = "flatkit.comparison.statistics", "statistics"
"""Module and function; by name, as statistics are made of results and not results of them."""
_PAGE = "flatkit.render.html.document", "save_comparison"


@dataclass(frozen=True)
class Entry:
    """A report in a comparison.

    Attributes:
        name: of the run, unique in the comparison, e.g. `gam, seed 1`; as of `showable`.
        group: runs of one group are repetitions of one method, e.g. `gam`.
        report: its results.
        seed: of the training; runs of two groups with one seed are pairs. Empty if not known.
        epoch: of the training, if it is known.
    """

    name: str
    group: str
    report: Report
    seed: str = ""
    epoch: float | None = None

    def __post_init__(self) -> None:
        """Spell out what no table, page or figure can show."""
        object.__setattr__(self, "name", showable(self.name))
        object.__setattr__(self, "group", showable(self.group))

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` reads, ready for JSON."""
        # Left out where they are not known, as in files of before.
        known = {"seed": self.seed or None, "epoch": self.epoch}
        return {
            "name": self.name,
            "group": self.group,
            **{key: value for key, value in known.items() if value is not None},
            "report": self.report.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Entry":
        """Read a run back.

        Raises:
            KeyError: a key is missing.
            ResultError: something else is in its place.
        """
        report = Report.from_dict(data["report"])
        name, group = (check_kind(data[key], str, f"{key} of a run") for key in ("name", "group"))
        seed = check_kind(data.get("seed", ""), str | int, f"seed of {name}")
        epoch = check_kind(data.get("epoch"), int | float | None, f"epoch of {name}")
        return cls(name, group, report, str(seed), epoch)


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """Reports side by side, in groups of repetitions; by name like a dict of the reports.

    >>> from flatkit.results.result import Result
    >>> report = Report([Result("loss", 0.5, error=0.0)])
    >>> comparison = Comparison([Entry("sgd, seed 0", "sgd", report)])
    >>> Comparison.from_json(comparison.to_json()) == comparison
    True
    >>> comparison, list(comparison), comparison["sgd, seed 0"]
    (<Comparison of 1 run in 1 group: sgd (1)>, ['sgd, seed 0'], <Report of a model: loss>)
    """

    entries: Sequence[Entry]

    def __post_init__(self) -> None:
        """Freeze the entries and refuse two of one name."""
        object.__setattr__(self, "entries", tuple(self.entries))
        names = [entry.name for entry in self.entries]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ResultError(f"two runs of a comparison are both named {repeated[0]!r}")

    @property
    def groups(self) -> list[str]:
        """The groups, in the order of their first run."""
        return list(dict.fromkeys(entry.group for entry in self.entries))

    def in_group(self, group: str) -> list[Entry]:
        """Return the runs of one group."""
        return [entry for entry in self.entries if entry.group == group]

    def __getitem__(self, name: str) -> Report:
        """Return the report of a run.

        Raises:
            UnknownNameError: there is no such run; the message names those that there are.
        """
        found = next((entry.report for entry in self.entries if entry.name == name), None)
        if found is not None:
            return found
        # The usual slip: runs are named by group and seed.
        if name in self.groups:
            runs = ", ".join(entry.name for entry in self.in_group(name))
            raise UnknownNameError(
                f"{name!r} is a group of the runs {runs}; take one, or .in_group({name!r})"
            )
        raise no_such(name, "run", self.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.entries)

    def __bool__(self) -> bool:
        """Return True: a comparison without runs is one, too."""
        return True

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def keys(self) -> list[str]:
        """Return the names of the runs."""
        return [entry.name for entry in self.entries]

    def values(self) -> list[Report]:
        """Return the reports."""
        return [entry.report for entry in self.entries]

    def items(self) -> list[tuple[str, Report]]:
        """Return name and report of each run."""
        return [(entry.name, entry.report) for entry in self.entries]

    def table(self, format: str = "text", *, pairs: bool = False) -> str:
        """Return groups or runs in rows, quantities with their errors in columns, as a table.

        Args:
            format: `text`, `markdown`, `latex` (booktabs), `csv` (tidy, a number a row) or `html`.
            pairs: the differences between groups instead, with 95 % intervals and corrected p.

        Raises:
            InvalidArgumentError: another format.
            ResultError: the comparison has no run.

        >>> from flatkit.results.result import Result
        >>> report = Report([Result("trace", 8.04, 0.1, "standard_error")])
        >>> print(Comparison([Entry("sgd", "sgd", report)]).table("markdown"))
        | run | trace tr H |
        | :-- | --: |
        | sgd | 8.04 ± 0.10 |
        ...
        """
        return table_of(self, format, pairs=pairs)

    def __repr__(self) -> str:
        """Return a line: how many runs in which groups."""
        runs, groups = len(self.entries), len(self.groups)
        sizes = [f"{group} ({len(self.in_group(group))})" for group in self.groups[:6]]
        more = [f"{groups - 6} more"] if groups > 6 else []
        return (
            f"<Comparison of {runs} run{'' if runs == 1 else 's'} in {groups} "
            f"group{'' if groups == 1 else 's'}: {', '.join([*sizes, *more])}>"
        )

    def statistics(self) -> Any:
        """Return what the runs allow to say: errors apart, paired differences, a verdict.

        Returns:
            `flatkit.comparison.statistics.Statistics`.

        Raises:
            ResultError: the comparison has no run.
        """
        module, function = _STATISTICS
        return getattr(import_module(module), function)(self)

    def to_json(self) -> str:
        """Return the comparison as JSON text."""
        entries = [entry.to_dict() for entry in self.entries]
        return json_text({"schema": SCHEMA, "flatkit": __version__, "comparison": entries})

    @classmethod
    def from_json(cls, text: str) -> "Comparison":
        """Read JSON text.

        Raises:
            ResultError: not a comparison, or one of another schema.
        """
        data = parse(text, "a comparison")
        check_schema(data, "comparison", "a comparison")
        try:
            return cls([Entry.from_dict(entry) for entry in data["comparison"]])
        except (KeyError, TypeError) as error:
            raise ResultError(f"malformed comparison: {error!r}") from error

    def to_html(self, path: str | Path) -> Path:
        """Write the comparison as a page: one file that asks no network for anything.

        It holds the verdict in words, tables that sort, the figures, planes that turn, how to
        read each measure, caveats and where the numbers come from, and prints well.

        Raises:
            OutputError: the file cannot be written.
        """
        module, function = _PAGE
        return getattr(import_module(module), function)(self, path)

    def save(self, path: str | Path) -> Path:
        """Write the comparison as one JSON file, whole or not at all."""
        return write_text_atomically(path, self.to_json() + "\n")


class Conditions(Shown):
    """What has a comparison for each condition, as the outcome of a study does.

    Attributes:
        comparisons: by condition.
    """

    comparisons: Mapping[str, Comparison]


def load_results(path: str | Path) -> Comparison:
    """Read a saved report or comparison; a lone report becomes a comparison of one.

    Raises:
        ResultError: the file holds neither.

    >>> import tempfile
    >>> from flatkit.results.result import Result
    >>> path = Report([Result("loss", 0.5, error=0.0)]).save(tempfile.mkdtemp() + "/sgd.json")
    >>> [entry.name for entry in load_results(path).entries]
    ['sgd']
    """
    text = read_text(path)
    data = parse(text, str(path))
    if isinstance(data, dict) and "comparison" in data:
        return Comparison.from_json(text)
    if not isinstance(data, dict) or "results" not in data:
        raise ResultError(
            f"{path} is {_other(data)}, neither a report nor a comparison, as "
            "`flatkit analyze CKPT --json FILE` and `flatkit compare CKPT... --json FILE` save them"
        )
    check_schema(data, "results", "a report")
    report = Report.from_dict(data)
    # A report that was made in memory has no name; its file has one.
    name = str(report.checkpoint.get("name") or Path(path).stem)
    return Comparison([Entry(name, name, report)])


def _other(data: Any) -> str:
    """Return what JSON is that is no report."""
    rows = data.get("rows") if isinstance(data, dict) else None
    first = rows[0] if isinstance(rows, list) and rows else None
    known = set(first) if isinstance(first, dict) else set[str]()
    # Files that lie beside checkpoints are told apart, as they are named by mistake.
    if "step" in known:
        return "the curvature that a training tracked (flatkit track FOLDER draws its checkpoints)"
    if "train_loss" in known:
        return "the history of a training (flatkit track FOLDER draws its checkpoints)"
    if isinstance(data, dict) and "weight_map" in data:
        return "the index of a checkpoint in shards (name its folder)"
    return "some other JSON"
