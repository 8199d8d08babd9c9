"""Reports side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from flatkit.errors import ResultError
from flatkit.files.atomic import write_text_atomically
from flatkit.results.report import Report
from flatkit.results.schema import SCHEMA, check_schema, json_text, parse, read_text
from flatkit.version import __version__

_STATISTICS = "flatkit.comparison.statistics", "statistics"
"""Module and function; by name, as statistics are made of results and not results of them."""


@dataclass(frozen=True)
class Entry:
    """A report in a comparison.

    Attributes:
        name: of the run, unique in the comparison, e.g. `gam, seed 1`.
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

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` reads, ready for JSON."""
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
        """
        report = Report.from_dict(data["report"])
        return cls(data["name"], data["group"], report, data.get("seed", ""), data.get("epoch"))


@dataclass(frozen=True)
class Comparison:
    """Reports side by side, in groups of repetitions.

    >>> from flatkit.results.result import Result
    >>> report = Report([Result("loss", 0.5, error=0.0)])
    >>> comparison = Comparison([Entry("sgd, seed 0", "sgd", report)])
    >>> Comparison.from_json(comparison.to_json()) == comparison
    True
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

    def save(self, path: str | Path) -> Path:
        """Write the comparison as one JSON file, whole or not at all."""
        return write_text_atomically(path, self.to_json() + "\n")


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
    check_schema(data, "results", f"{path} is neither a report nor a comparison; a report")
    report = Report.from_dict(data)
    name = str(report.checkpoint.get("name") or Path(path).stem)
    return Comparison([Entry(name, name, report)])
