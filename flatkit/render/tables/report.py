"""The table of one report: which function was measured, and every number with its error."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flatkit.measures.registry import MEASURES
from flatkit.render.readings import error_text, readings, value_text
from flatkit.render.samples import count_text, samples_text, subsets
from flatkit.render.tables.folded import Folded
from flatkit.render.tables.sheet import Column, Sheet
from flatkit.render.tables.sheet import Text as Cell
from flatkit.results.cost import Cost
from flatkit.results.report import Report
from flatkit.results.result import Result
from flatkit.results.status import Status, advice, in_words

_GEOMETRIES = {
    "adaptive": "the displacement divided by |θ|, weight by weight",
    "filter": "the displacement divided by the norm of its filter",
    "linf": "each coordinate of the displacement",
}
"""What ρ means in balls other than the round one."""

_NAME, _STATUS = 18, 12
"""Characters of a name, and of a status with its mark, that is still read at a glance."""
_LEGEND = (
    "exact: no solver or sampling error over these samples. residual: an eigenvalue lies within "
    "it. ±: one standard error. ≥: lower bound, the best point that a search found.",
    "Cost in passes over the samples: L losses, ∇L gradients, Hv Hessian-vector products; s "
    "seconds.",
)


def report_table(report: Report) -> RenderableType:
    """Return the header and table of a report, for `rich.console.Console.print`.

    >>> from rich.console import Console
    >>> report = Report([Result("trace", 8.04, 0.1, error_kind="standard_error")])
    >>> Console(width=80).print(report_table(report))
    <BLANKLINE>
      quantity    value   error    status      L   ∇L   Hv     s...
     ──────────...
      trace tr H  8.04   ± 0.10   converged   0    0    0   0.0...
    """
    table, rows = _frame(), [cells for result in report for cells in _rows(result)]
    for cells in rows:
        table.add_row(*cells)
    notes = [
        *_status_notes(report),
        *_remarks(report),
        *(Text(note) for note in _geometry_notes(report)),
        *(Text(f"! {note}", style="yellow") for note in _engine_remarks(report)),
        *(Text(line, style="dim") for line in (*_LEGEND, *_rounding_note(report))),
    ]
    return Group(*_header(report), Folded(table, slack=_slack(rows)), *notes)


def report_sheet(report: Report) -> Sheet:
    """Return the numbers of a report with their errors, for the formats of files.

    >>> sheet = report_sheet(Report([Result("trace", 8.04, 0.1, error_kind="standard_error")]))
    >>> [text.plain for text in sheet.rows[0]]
    ['trace tr H', '8.04', '± 0.10', 'converged']
    """
    rows = [
        [
            Cell(reading.title),
            Cell(value_text(reading)),
            Cell(error_text(reading)),
            Cell(in_words(reading.status), doubtful=reading.status != Status.CONVERGED),
        ]
        for result in report
        for reading in readings(result)
    ]
    columns = [Column(name, number=name == "value") for name in
               ("quantity", "value", "error", "status")]  # fmt: skip
    head = [f"L: {objective_text(report.objective)}"] if report.objective else []
    title = _checkpoint_text(report.checkpoint)
    warnings = [str(line) for line in _status_notes(report)]
    return Sheet(
        columns, rows, head=[title, *head] if title else head, warnings=warnings,
        notes=[_LEGEND[0]],
    )  # fmt: skip


def objective_text(objective: Mapping[str, Any]) -> str:
    """Return in one line which function was measured.

    >>> objective_text({"loss": "mse", "samples": 5, "samples_available": 9, "dtype": "float64"})
    'mean mse over 5 of 9 training samples, float64'
    """
    if not objective:
        return "not recorded"
    parts = [f"mean {objective.get('loss', 'loss')} over {samples_text(objective)}"]
    if objective.get("batchnorm"):
        parts.append(f"BatchNorm {objective['batchnorm']}")
    parts += [str(objective[key]) for key in ("dtype", "device") if objective.get(key)]
    if objective.get("parameters"):
        parts.append(f"P = {count_text(objective['parameters'])} parameters")
    return ", ".join(parts)


def _rounding_note(report: Report) -> Iterator[str]:
    """Say what the error is of numbers in 16 bits, where there are some."""
    if any(result.error_kind == "rounding" for result in report):
        yield f"rounding: of {_narrow(report)}, as it was measured against float32."


def _narrow(report: Report) -> str:
    """Return in words in which dtype of 16 bits the numbers were computed."""
    return report.objective.get("dtype", "bfloat16").rpartition(", ")[2]


def _header(report: Report) -> Iterator[RenderableType]:
    title = _checkpoint_text(report.checkpoint)
    if title:
        yield Text(title, style="bold")
    yield Text(f"L: {objective_text(report.objective)}" if report.objective else "")
    yield from _examination(report.objective)
    if report.objective.get("test"):
        yield Text(f"test data: {samples_text(report.objective['test'], 'test')}")
    parts = subsets(report.objective)
    if parts:
        yield Text(f"! {' and '.join(parts)}: the numbers hold for these", style="yellow")
    missing = report.analysis.get("not_in_bfloat16")
    if missing:
        names = ", ".join(name.replace("_", " ") for name in missing)
        narrow = _narrow(report)
        out = "" if narrow == "bfloat16" else "; with dtype float32 they are measured without it"
        text = f"! not in {narrow}, whose noise they cannot state: {names}{out}"
        yield Text(text, style="yellow")


def _examination(objective: Mapping[str, Any]) -> Iterator[Text]:
    """Yield in one line what was proved of the function, and a line for all that was not."""
    checks = objective.get("examination") or []
    proved = [check for check in checks if check["passed"]]
    if proved:
        seconds = sum(check["seconds"] for check in checks)
        names = ", ".join(check["name"] for check in proved)
        yield Text(f"examined in {seconds:.2g} s: {names}", style="dim")
    for check in checks:
        if not check["passed"]:
            yield Text(f"{check['name']}: {check['how']}", style="dim")


def _checkpoint_text(checkpoint: Mapping[str, Any]) -> str:
    parts = [str(checkpoint[key]) for key in ("name", "path") if checkpoint.get(key)]
    if checkpoint.get("epoch") is not None:
        parts.append(f"epoch {checkpoint['epoch']}")
    if checkpoint.get("optimizer"):
        parts.append(f"trained with {checkpoint['optimizer']}")
    # Numbers of a network with a layer at random mean something else: said beside each of them.
    parts += [note for note in checkpoint.get("fitted", ()) if note.startswith("left ")]
    return ", ".join(parts)


def _frame() -> Table:
    from rich import box

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("quantity", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("error", no_wrap=True)
    table.add_column("status", overflow="fold")
    for name in ("L", "∇L", "Hv", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _slack(rows: Sequence[Sequence[str]]) -> int:
    """Return by how many characters names and statuses can be broken before words are."""
    found = 0
    for place, least in ((0, _NAME), (3, _STATUS)):
        widths = (Text.from_markup(row[place]).cell_len for row in rows)
        found += max(0, max(widths, default=0) - least)
    return found


def _rows(result: Result) -> Iterator[Sequence[str]]:
    """Yield a row for each reading of a result, the cost on the first only."""
    cost: Sequence[str] = _cost(result.cost)
    found = readings(result)
    if not found:
        yield (_title(result), _size(result), "see figures", _status(result.status), *cost)
    for reading in found:
        yield (
            escape(reading.title),
            value_text(reading),
            error_text(reading),
            _status(reading.status),
            *cost,
        )
        cost = ("",) * len(cost)


def _cost(cost: Cost) -> tuple[str, ...]:
    counts = (cost.losses, cost.gradients, cost.matvecs)
    return (*(f"{count}" for count in counts), f"{cost.seconds:.1f}")


def _status(status: Status | str) -> str:
    if status == Status.CONVERGED:
        return "[green]converged[/green]"
    return f"[bold yellow]! {escape(in_words(status))}[/bold yellow]"


def _status_notes(report: Report) -> Iterator[Text]:
    for status in dict.fromkeys(result.status for result in report):
        if status != Status.CONVERGED:
            yield Text(f"! {in_words(status)}: {advice(status)}", style="yellow")


def _remarks(report: Report) -> Iterator[Text]:
    """Yield what measures say of their results in words."""
    for result in report:
        if result.measure in MEASURES:
            yield from (Text(line) for line in MEASURES[result.measure].remarks(result))


def _geometry_notes(report: Report) -> Iterator[str]:
    """Say what ρ means in a ball that is not the round one, and what does not move in it."""
    shapes: dict[str, int] = {}
    for result in report:
        shape = result.settings.get("geometry", "l2")
        if isinstance(shape, str) and shape in _GEOMETRIES:
            # The largest: what does not move is the same in all balls of one kind, if it was
            # counted.
            shapes[shape] = max(shapes.get(shape, 0), result.settings.get("frozen_parameters", 0))
    for shape, frozen in shapes.items():
        note = f"{shape}: ρ bounds {_GEOMETRIES[shape]}"
        if frozen:
            note += f"; {frozen:,} of the parameters have length 0 and do not move"
        yield note


def _engine_remarks(report: Report) -> Iterator[str]:
    """Yield what is to be said of products that are less exact than they should be."""
    remarks = (result.settings.get("engine_remark") for result in report)
    yield from dict.fromkeys(remark for remark in remarks if isinstance(remark, str))


def _title(result: Result) -> str:
    return escape(result.measure.replace("_", " "))


def _size(result: Result) -> str:
    """Return the size of what has no readings, such as a plane."""
    if result.measure not in MEASURES or not isinstance(result.value, Mapping):
        return "-"
    return MEASURES[result.measure].size(result)
