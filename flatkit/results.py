"""Results: values with their error bars, status, settings, cost and provenance; JSON in and out.

This module never imports torch, so that saved results can be read and drawn without it.

JSON has no infinity: a point of a surface that left the float range is written as the string
"Infinity". A NaN is never a result; inside a grid, a point without a value is `None`.
"""

import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from flatkit.errors import ResultError
from flatkit.files.atomic import write_text_atomically
from flatkit.status import Status, known_status
from flatkit.version import __version__

SCHEMA = 1

ErrorKind: TypeAlias = Literal["residual", "standard_error", "lower_bound", "exact"]
Value: TypeAlias = Any
"""A number, or lists and dicts of numbers, strings and None."""


@dataclass(frozen=True)
class Cost:
    """What a measurement cost.

    Attributes:
        gradients: gradients of the loss over all the samples.
        matvecs: products with the Hessian over all the samples.
        seconds: wall-clock time.
        losses: evaluations of the loss alone over all the samples.
    """

    gradients: int = 0
    matvecs: int = 0
    seconds: float = 0.0
    losses: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        """Return what both are together."""
        more = asdict(other)
        return Cost(**{name: value + more[name] for name, value in asdict(self).items()})

    def __sub__(self, earlier: "Cost") -> "Cost":
        """Return what was added after an earlier reading."""
        before = asdict(earlier)
        return Cost(**{name: value - before[name] for name, value in asdict(self).items()})


@dataclass(frozen=True)
class Result:
    """One measured quantity.

    Attributes:
        measure: what was measured, e.g. `top_eigenvalues`.
        value: a number, or lists and dicts of numbers.
        error: how wrong the value may be, in the sense of `error_kind`; `None` for a lower bound,
            whose distance to the maximum is not known.
        error_kind: `residual` (an eigenvalue lies within `error` of the value), `standard_error`
            (of a mean over random draws), `lower_bound` (a feasible point of a maximisation),
            or `exact` (no solver or sampling error over the samples named; rounding of the named
            dtype remains).
        status: how it ended. One that this version does not know, from a file of a later one, stays
            a string.
        settings: what is needed to measure it again.
        cost: gradients, products, seconds.

    Raises:
        ResultError: the value or error is NaN, or the kind of error is unknown.

    >>> Result("loss", 0.5, error=0.0, error_kind="exact", settings={"split": "train"}).value
    0.5
    """

    measure: str
    value: Value
    error: Value = None
    error_kind: ErrorKind = "exact"
    status: Status | str = Status.CONVERGED
    settings: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        """Refuse what is not a result, and freeze the settings."""
        if self.error_kind not in get_args(ErrorKind):
            raise ResultError(f"unknown error_kind {self.error_kind!r} of {self.measure}")
        for name in ("value", "error", "settings"):
            _refuse_nan(getattr(self, name), f"{name} of {self.measure}")
        object.__setattr__(self, "status", known_status(self.status))
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` reads, ready for JSON."""
        return {
            "measure": self.measure,
            "value": _encode(self.value),
            "error": _encode(self.error),
            "error_kind": self.error_kind,
            "status": str(self.status),
            "settings": _encode(dict(self.settings)),
            "cost": asdict(self.cost),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Result":
        """Read a result back; unknown keys of `cost` are ignored.

        Raises:
            ResultError: a key is missing or malformed.
        """
        try:
            known = {key: data["cost"][key] for key in asdict(Cost()) if key in data["cost"]}
            return cls(
                measure=data["measure"],
                value=_decode(data["value"]),
                error=_decode(data["error"]),
                error_kind=data["error_kind"],
                status=data["status"],
                settings=_decode(data["settings"]),
                cost=Cost(**known),
            )
        except (KeyError, TypeError) as error:
            raise ResultError(
                f"malformed result: {error!r} is missing or of a wrong type"
            ) from error


@dataclass(frozen=True)
class Report:
    """The results of one checkpoint, and where they come from.

    Attributes:
        results: in the order in which they were measured.
        checkpoint: path, sha256, format and training of the file, or empty for a model in memory.
        objective: samples, indices_sha256, loss, batchnorm, dtype, device, parameters.
        command: the command line, or empty for a call from Python.
        environment: versions of Python and packages.
        analysis: how the work went: `gradients` that were spent, which as a budget give the same
            numbers; how it `ended`: `done`, `budget`, `time` or `interrupted`; `seconds`.

    >>> report = Report([Result("loss", 0.5, error=0.0)], objective={"samples": 10})
    >>> Report.from_json(report.to_json()) == report
    True
    """

    results: Sequence[Result]
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    flatkit: str = __version__
    analysis: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Freeze the sequences."""
        object.__setattr__(self, "results", tuple(self.results))
        object.__setattr__(self, "command", tuple(self.command))

    def all(self, measure: str, **settings: Any) -> list[Result]:
        """Return the results of a measure whose settings hold all of `settings`."""
        return [
            result
            for result in self.results
            if result.measure == measure
            and all(result.settings.get(key) == value for key, value in settings.items())
        ]

    def find(self, measure: str, **settings: Any) -> Result | None:
        """Return the first result of a measure with such settings, or None."""
        return next(iter(self.all(measure, **settings)), None)

    def result(self, measure: str, **settings: Any) -> Result:
        """Return the first result of a measure with such settings.

        Raises:
            ResultError: there is none; the message names the measures that there are.
        """
        found = self.find(measure, **settings)
        if found is None:
            wanted = ", ".join([measure, *(f"{key}={value!r}" for key, value in settings.items())])
            present = ", ".join(dict.fromkeys(result.measure for result in self.results))
            raise ResultError(f"the report has no result {wanted}; it has {present or 'none'}")
        return found

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def to_dict(self) -> dict[str, Any]:
        """Return the one object that `flatkit analyze --json -` prints."""
        return {
            "schema": SCHEMA,
            "flatkit": self.flatkit,
            "command": list(self.command),
            "checkpoint": dict(self.checkpoint),
            "objective": dict(self.objective),
            "environment": dict(self.environment),
            **({"analysis": dict(self.analysis)} if self.analysis else {}),
            "results": [result.to_dict() for result in self.results],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Report":
        """Read a report back.

        Raises:
            ResultError: not a report, or one of another schema.
        """
        _check_schema(data, "results", "a report")
        return cls(
            results=[Result.from_dict(result) for result in data["results"]],
            checkpoint=data.get("checkpoint", {}),
            objective=data.get("objective", {}),
            command=data.get("command", ()),
            environment=data.get("environment", {}),
            analysis=data.get("analysis", {}),
            flatkit=data.get("flatkit", "unknown"),
        )

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return _dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Read a report from its JSON text."""
        return cls.from_dict(_loads(text, "a report"))

    def save(self, path: str | Path) -> Path:
        """Write the report as one JSON file, whole or not at all."""
        return write_text_atomically(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Read a report from its JSON file."""
        return cls.from_json(_read(path))


@dataclass(frozen=True)
class Entry:
    """A report in a comparison.

    Attributes:
        name: of the run, unique in the comparison, e.g. `gam, seed 1`.
        group: runs of one group are repetitions of one method, e.g. `gam`.
        report: its results.
    """

    name: str
    group: str
    report: Report


@dataclass(frozen=True)
class Comparison:
    """Reports side by side, in groups of repetitions.

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

    def to_json(self) -> str:
        """Return the comparison as JSON text."""
        entries = [
            {"name": entry.name, "group": entry.group, "report": entry.report.to_dict()}
            for entry in self.entries
        ]
        return _dumps({"schema": SCHEMA, "flatkit": __version__, "comparison": entries})

    @classmethod
    def from_json(cls, text: str) -> "Comparison":
        """Read JSON text.

        Raises:
            ResultError: not a comparison, or one of another schema.
        """
        data = _loads(text, "a comparison")
        _check_schema(data, "comparison", "a comparison")
        try:
            return cls(
                [
                    Entry(entry["name"], entry["group"], Report.from_dict(entry["report"]))
                    for entry in data["comparison"]
                ]
            )
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
    >>> path = Report([Result("loss", 0.5, error=0.0)]).save(tempfile.mkdtemp() + "/sgd.json")
    >>> [entry.name for entry in load_results(path).entries]
    ['sgd']
    """
    text = _read(path)
    data = _loads(text, str(path))
    if isinstance(data, dict) and "comparison" in data:
        return Comparison.from_json(text)
    _check_schema(data, "results", f"{path} is neither a report nor a comparison; a report")
    report = Report.from_dict(data)
    name = str(report.checkpoint.get("name") or Path(path).stem)
    return Comparison([Entry(name, name, report)])


def environment() -> dict[str, str]:
    """Return the versions that a result depends on, without importing the packages.

    >>> sorted(environment())[:2]
    ['machine', 'numpy']
    """
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("torch", "numpy", "scipy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _check_schema(data: Any, key: str, what: str) -> None:
    if not isinstance(data, Mapping) or key not in data:
        raise ResultError(f"not {what}: the key {key!r} is missing")
    if data.get("schema") != SCHEMA:
        raise ResultError(
            f"schema {data.get('schema')!r} cannot be read by flatkit {__version__}, "
            f"which knows schema {SCHEMA}; measure again, or install the version that wrote it"
        )


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ResultError(f"cannot read {path}: {reason}") from error


def _loads(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ResultError(f"not {what}: malformed JSON ({error})") from error


def _dumps(data: Any) -> str:
    return json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False)


def _refuse_nan(value: Any, where: str) -> None:
    if isinstance(value, float) and math.isnan(value):
        raise ResultError(f"the {where} is NaN; a NaN is an error, never a result")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_nan(item, f"{where}, {key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_nan(item, where)


def _encode(value: Any) -> Any:
    if isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any) -> Any:
    if value in ("Infinity", "-Infinity"):
        return float(value)
    if isinstance(value, dict):
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value
