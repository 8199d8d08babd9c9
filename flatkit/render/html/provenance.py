"""Where the numbers of a page come from: files, digests, versions, settings, the command."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flatkit.render.tables.report import objective_text
from flatkit.results.comparison import Comparison, Entry
from flatkit.results.report import Report
from flatkit.results.schema import encode


@dataclass(frozen=True)
class Source:
    """Where the numbers of a run come from.

    Attributes:
        name: of the run.
        facts: title -> text.
        command: that measures it again, one a shell takes; empty for a call from Python.
        settings: everything else that is recorded, as JSON.
    """

    name: str
    facts: Mapping[str, str]
    command: str
    settings: str


def sources(comparison: Comparison) -> list[Source]:
    """Return the source of each run.

    >>> report = Report([], checkpoint={"path": "a.pt"}, command=("flatkit", "analyze", "a b.pt"))
    >>> found = sources(Comparison([Entry("a", "a", report)]))[0]
    >>> found.facts["file"], found.command
    ('a.pt', "flatkit analyze 'a b.pt'")
    """
    return [_source(entry) for entry in comparison.entries]


def common(found: Sequence[Source]) -> dict[str, str]:
    """Return the facts that all of several runs share, to be said once.

    >>> common([Source("a", {"format": "x", "file": "a.pt"}, "", ""),
    ...         Source("b", {"format": "x", "file": "b.pt"}, "", "")])
    {'format': 'x'}
    """
    if len(found) < 2:
        return {}
    return {
        title: fact
        for title, fact in found[0].facts.items()
        if all(other.facts.get(title) == fact for other in found)
    }


def commands(found: Sequence[Source]) -> dict[str, list[str]]:
    """Return the commands, each once, with the runs that it measured.

    >>> commands([Source("a", {}, "x", ""), Source("b", {}, "x", ""), Source("c", {}, "", "")])
    {'x': ['a', 'b']}
    """
    names: dict[str, list[str]] = {}
    for source in found:
        if source.command:
            names.setdefault(source.command, []).append(source.name)
    return names


def _source(entry: Entry) -> Source:
    report, checkpoint = entry.report, entry.report.checkpoint
    data, test = checkpoint.get("data"), report.objective.get("test")
    facts = {
        "file": checkpoint.get("path"),
        "sha256 of the file": checkpoint.get("sha256"),
        "format": checkpoint.get("format"),
        "epoch": checkpoint.get("epoch"),
        "trained with": checkpoint.get("optimizer"),
        "function": objective_text(report.objective),
        "sha256 of the data": data.get("sha256") if isinstance(data, Mapping) else None,
        "sha256 of the sample numbers": report.objective.get("indices_sha256"),
        "sha256 of the test sample numbers": (
            test.get("indices_sha256") if isinstance(test, Mapping) else None
        ),
        "versions": ", ".join(f"{k} {v}" for k, v in _versions(report).items()),
        "work": _work(report.analysis),
    }
    return Source(
        entry.name,
        {title: str(fact) for title, fact in facts.items() if fact not in (None, "")},
        # As a shell takes it again: a path may have spaces.
        shlex.join(str(word) for word in report.command),
        _settings(report),
    )


def _versions(report: Report) -> dict[str, str]:
    return {"flatkit": report.flatkit, **report.environment}


def _work(analysis: Mapping[str, Any]) -> str:
    spent, seconds = analysis.get("gradients"), analysis.get("seconds")
    parts = [str(analysis["ended"])] if analysis.get("ended") else []
    parts += [f"{spent:,.0f} gradients"] if isinstance(spent, int | float) else []
    parts += [f"{seconds:.1f} s"] if isinstance(seconds, int | float) else []
    return ", ".join(parts)


_LONG = ("indices",)


def _settings(report: Report) -> str:
    """Return what else is recorded: of the function, the training and each measurement."""
    kept = {
        "function": {k: v for k, v in report.objective.items() if k not in _LONG},
        "checkpoint": dict(report.checkpoint),
        "measurements": [
            {"measure": result.measure, **_short(result.settings)} for result in report
        ],
    }
    return json.dumps(encode(kept), indent=1, ensure_ascii=False, default=str)


def _short(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without long lists, which are numbers of their own."""
    return {k: v for k, v in settings.items() if not (isinstance(v, list) and len(v) > _MANY)}


_MANY = 24
"""More entries than that are no setting that a person reads."""
