"""The results of one checkpoint, and where they come from."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flatkit.errors import ResultError, UnknownNameError
from flatkit.files.atomic import write_text_atomically
from flatkit.results.names import names_of
from flatkit.results.result import Result
from flatkit.results.schema import SCHEMA, check_kind, check_schema, json_text, parse, read_text
from flatkit.results.showing import Shown, no_such, table_of
from flatkit.version import __version__

_PAGE = "flatkit.render.html.document", "save_report"
"""Module and function; by name, as pages are made of results and not results of them."""


@dataclass(frozen=True, repr=False)
class Report(Shown):
    """The results of one checkpoint, and where they come from.

    Iterated over, it gives its results. By name it is like a dict of them: `report["trace"]`,
    `report.keys()`, `"trace" in report`, `dict(report)`. A measure with several results has a name
    for each, e.g. `first_order_flatness[rho=0.05]`; of loss and accuracy, that alone is the one on
    the training data.

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
    >>> report
    <Report of a model: loss>
    >>> report["loss"].value, list(report.keys())
    (0.5, ['loss'])
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

    def __getitem__(self, name: str) -> Result:
        """Return a result by its name.

        Raises:
            UnknownNameError: there is none, or several; the message names what there is.
        """
        named = self._named
        if name in named:
            return named[name]
        # Not the first of them: a radius that nobody chose would pass for the answer.
        several = [key for key in named if key.partition("[")[0] == name]
        if several:
            raise UnknownNameError(
                f"{name} has {len(several)} results: {', '.join(several)}; name one of them, or "
                f"take all with .all({name!r})"
            )
        raise no_such(name, "result", named)

    def __contains__(self, item: object) -> bool:
        if isinstance(item, Result):
            return item in self.results
        return item in self._named or any(result.measure == item for result in self.results)

    def keys(self) -> list[str]:
        """Return the name of every result, each a key of `report[...]`."""
        return list(self._named)

    def values(self) -> list[Result]:
        """Return the results."""
        return list(self.results)

    def items(self) -> list[tuple[str, Result]]:
        """Return the name and the result of each."""
        return list(self._named.items())

    def table(self, format: str = "text") -> str:
        """Return the numbers with their errors as a table.

        Args:
            format: `text`, `markdown`, `latex` (booktabs), `csv` (tidy) or `html`.

        Raises:
            InvalidArgumentError: another format.

        >>> print(Report([Result("trace", 8.04, 0.1, "standard_error")]).table("csv"))
        run,group,seed,epoch,measure,rho,split,value,error,kind,status
        model,model,,,trace,,,8.04,0.1,standard_error,converged
        """
        return table_of(self, format)

    @property
    def _named(self) -> dict[str, Result]:
        return names_of(self.results)

    def __repr__(self) -> str:
        """Return a line: of what, and the measures."""
        name = self.checkpoint.get("name") or "a model"
        measures = ", ".join(dict.fromkeys(result.measure for result in self.results))
        return f"<Report of {name}: {measures or 'no result'}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the one object that `flatkit analyze --json -` prints."""
        return {
            "schema": SCHEMA,
            "flatkit": self.flatkit,
            "command": list(self.command),
            "checkpoint": dict(self.checkpoint),
            "objective": dict(self.objective),
            "environment": dict(self.environment),
            # Left out where nothing is known, as of results that were put together by hand.
            **({"analysis": dict(self.analysis)} if self.analysis else {}),
            "results": [result.to_dict() for result in self.results],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Report":
        """Read a report back.

        Raises:
            ResultError: not a report, or one of another schema.
        """
        check_schema(data, "results", "a report")
        about = {
            part: check_kind(data.get(part, {}), dict, f"{part} of a report")
            for part in ("checkpoint", "objective", "environment", "analysis")
        }
        check_kind(about["checkpoint"].get("training", {}), dict, "training of a report")
        for check in check_kind(about["objective"].get("examination", []), list, "examination"):
            own = check_kind(check, dict, "entry of an examination")
            check_kind(own.get("name"), str, "name of a check")
            check_kind(own.get("seconds"), int | float, "seconds of a check")
            if "passed" not in own:
                raise ResultError(f"the check {own['name']} of a report does not say if it passed")
        results = check_kind(data["results"], list, "results of a report")
        return cls(
            results=[Result.from_dict(check_kind(one, dict, "result")) for one in results],
            command=check_kind(data.get("command", []), list, "command of a report"),
            **about,
            flatkit=str(data.get("flatkit", "unknown")),
        )

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json_text(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Read a report from its JSON text."""
        return cls.from_dict(parse(text, "a report"))

    def to_html(self, path: str | Path) -> Path:
        """Write the report as a page: one file that asks no network for anything.

        It holds a summary in words, the table, the figures, planes that turn, how to read each
        measure, caveats and where the numbers come from, and prints well.

        Raises:
            OutputError: the file cannot be written.
        """
        module, function = _PAGE
        return getattr(import_module(module), function)(self, path)

    def save(self, path: str | Path) -> Path:
        """Write the report as one JSON file, whole or not at all."""
        return write_text_atomically(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Report":
        """Read a report from its JSON file."""
        return cls.from_dict(parse(read_text(path), str(path)))


def environment() -> dict[str, str]:
    """Return the versions that a result depends on, without importing the packages.

    >>> sorted(environment())[:2]
    ['machine', 'numpy']
    """
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    # By the metadata: to import torch takes seconds, and to show a saved report needs none.
    for package in ("torch", "numpy", "scipy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
