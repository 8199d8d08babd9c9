"""The table of one report: which function was measured, and every number with its error."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flatkit.render.readings import Reading, readings
from flatkit.results import Cost, Report, Result

ADVICE: Mapping[str, str] = {
    "budget": "the budget ran out before the tolerance was met; value and error hold, "
    "more work may sharpen them",
    "rounding": "rounding of the dtype is as large as the tolerance; float64 helps",
    "multiplicity": "an eigenvalue may be a multiple one that is reported too few times; the error "
    "says by how much that would displace the others",
    "kinks": "the gradient jumps where the search ended, as in a piecewise linear network; the "
    "bound holds, and a larger budget may raise it",
    "search_missed_maximum": "another search proves that a larger value exists in the ball; "
    "the bound holds but is loose",
    "unchecked_stop": "PyHessian stops when its estimate changes little; the residual beside it is "
    "computed here",
    "disagreement": "flatkit and PyHessian differ by more than their residuals allow",
}
"""What a status other than `converged` means."""

_GEOMETRIES = {
    "adaptive": "the displacement divided by |θ|, weight by weight",
    "filter": "the displacement divided by the norm of its filter",
    "linf": "each coordinate of the displacement",
}
"""What ρ means in balls other than the round one."""

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
    table = _frame()
    for result in report:
        for cells in _rows(result):
            table.add_row(*cells)
    notes = [
        *_status_notes(report),
        *_explanations(report),
        *(Text(note) for note in _geometry_notes(report)),
        *(Text(line, style="dim") for line in _LEGEND),
    ]
    return Group(*_header(report), table, *notes)


def objective_text(objective: Mapping[str, Any]) -> str:
    """Return in one line which function was measured.

    >>> objective_text({"loss": "mse", "samples": 5, "samples_available": 9, "dtype": "float64"})
    'mean mse over 5 of 9 samples, float64'
    """
    if not objective:
        return "not recorded"
    available = objective.get("samples_available")
    of = f" of {available:,}" if isinstance(available, int) else ""
    samples = objective.get("samples")
    parts = [f"mean {objective.get('loss', 'loss')} over {_count(samples)}{of} samples"]
    if objective.get("batchnorm"):
        parts.append(f"BatchNorm {objective['batchnorm']}")
    parts += [str(objective[key]) for key in ("dtype", "device") if objective.get(key)]
    if objective.get("parameters"):
        parts.append(f"P = {_count(objective['parameters'])} parameters")
    return ", ".join(parts)


def _header(report: Report) -> Iterator[RenderableType]:
    title = _checkpoint_text(report.checkpoint)
    if title:
        yield Text(title, style="bold")
    yield Text(f"L: {objective_text(report.objective)}" if report.objective else "")
    used, available = (report.objective.get(key) for key in ("samples", "samples_available"))
    if isinstance(used, int) and isinstance(available, int) and used < available:
        yield Text(
            f"! a random subset of {used / available:.0%}: the numbers hold for these samples",
            style="yellow",
        )


def _checkpoint_text(checkpoint: Mapping[str, Any]) -> str:
    parts = [str(checkpoint[key]) for key in ("name", "path") if checkpoint.get(key)]
    if checkpoint.get("epoch") is not None:
        parts.append(f"epoch {checkpoint['epoch']}")
    if checkpoint.get("optimizer"):
        parts.append(f"trained with {checkpoint['optimizer']}")
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


def _rows(result: Result) -> Iterator[Sequence[str]]:
    """Yield a row for each reading of a result, the cost on the first only."""
    cost: Sequence[str] = _cost(result.cost)
    found = readings(result)
    if not found:
        yield (_title(result), _shape(result.value), "see figures", _status(result.status), *cost)
    for reading in found:
        yield (
            escape(reading.title),
            reading.value_text(),
            _error(reading, result),
            _status(reading.status),
            *cost,
        )
        cost = ("",) * len(cost)


def _error(reading: Reading, result: Result) -> str:
    """Return the error in words; R1/ρ² also says how near it is to λmax."""
    ratio = result.settings.get("ratio_to_top_eigenvalue")
    if "over_rho_squared" in reading.key and isinstance(ratio, float):
        return f"{ratio:.2f} × λmax"
    return reading.error_text()


def _cost(cost: Cost) -> tuple[str, ...]:
    counts = (cost.losses, cost.gradients, cost.matvecs)
    return (*(f"{count}" for count in counts), f"{cost.seconds:.1f}")


def _status(status: str) -> str:
    if status == "converged":
        return "[green]converged[/green]"
    return f"[bold yellow]! {escape(status.replace('_', ' '))}[/bold yellow]"


def _status_notes(report: Report) -> Iterator[Text]:
    for status in dict.fromkeys(result.status for result in report):
        if status != "converged":
            meaning = ADVICE.get(status, "the measurement did not converge")
            yield Text(f"! {status.replace('_', ' ')}: {meaning}", style="yellow")


def _explanations(report: Report) -> Iterator[Text]:
    """Yield what a cross-check says in words."""
    for result in report.all("cross_check"):
        for line in result.settings.get("explanation", ()):
            yield Text(f"flatkit and PyHessian: {line}")


def _geometry_notes(report: Report) -> Iterator[str]:
    """Say what ρ means in a ball that is not the round one, and what does not move in it."""
    shapes: dict[str, int] = {}
    for result in report:
        shape = result.settings.get("geometry", "l2")
        if isinstance(shape, str) and shape in _GEOMETRIES:
            shapes[shape] = max(shapes.get(shape, 0), result.settings.get("frozen_parameters", 0))
    for shape, frozen in shapes.items():
        note = f"{shape}: ρ bounds {_GEOMETRIES[shape]}"
        if frozen:
            note += f"; {frozen:,} of the parameters have length 0 and do not move"
        yield note


def _title(result: Result) -> str:
    return escape(result.measure.replace("_", " "))


def _shape(value: Any) -> str:
    """Return the size of a slice or plane."""
    if not isinstance(value, Mapping):
        return "-"
    if "coordinate" in value:
        return f"{len(value['loss'])} × {len(value['coordinate'])}"
    if "x" in value and "y" in value:
        return f"{len(value['x'])} × {len(value['y'])}"
    return "-"


def _count(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int) else "?"
