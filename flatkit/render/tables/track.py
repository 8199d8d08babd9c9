"""The table of checkpoints of a training by epoch: loss, accuracy, curvature, and 2/η beside it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from flatkit.comparison.curves import OVERLAP, curves, number, stability_of
from flatkit.errors import NothingToDrawError
from flatkit.render.curvature_scale import FIRST_ORDER
from flatkit.render.notation import at_least, radius, significant, with_spread
from flatkit.render.tables.folded import Folded
from flatkit.results.comparison import Comparison, Entry

_NOTES = {
    "trace": "± residual of λmax, standard error of the trace",
    "2/η": "2/η: where steps of plain gradient descent diverge",
    "overlap": "overlap: tr(P P')/j of the spaces of the j leading eigenvectors with those of the "
    "epoch before, ? where their eigenvalues do not stand apart",
}


def track_table(comparison: Comparison) -> RenderableType:
    """Return a table for every run, a row an epoch.

    Raises:
        NothingToDrawError: no run has two epochs.
    """
    runs = curves(comparison)
    if not runs:
        raise NothingToDrawError(
            "a table by epochs needs two of a run; flatkit.track and `flatkit track` make them"
        )
    parts: list[RenderableType] = []
    shown: set[str] = set()
    for run, entries in runs.items():
        first, last = entries[0].epoch or 0, entries[-1].epoch or 0
        parts.append(escape(f"{PurePath(run).name or run}, epochs {first:g} … {last:g}"))
        # Two tables, as all columns side by side are wider than a terminal.
        for columns in (_fit(), _curvature(entries)):
            cells = {name: [cell(entry) for entry in entries] for name, cell in columns.items()}
            filled = {name: column for name, column in cells.items() if any(column)}
            if len(filled) > 1:  # more than the epochs
                parts.append(Folded(_table(filled)))
            shown |= filled.keys()
    note = "; ".join(text for name, text in _NOTES.items() if name in shown)
    return Group(*parts, f"[dim]{note}[/dim]") if note else Group(*parts)


def _epoch(entry: Entry) -> str:
    return f"{entry.epoch:g}"


def _fit() -> dict[str, Callable[[Entry], str]]:
    """Return the cells of how well the data are fitted, by column."""
    return {
        "epoch": _epoch,
        "train\nloss": lambda entry: _plain(entry, "loss", split="train"),
        "test\nloss": lambda entry: _plain(entry, "loss", split="test"),
        "train\n%": lambda entry: _percent(entry, "train"),
        "test\n%": lambda entry: _percent(entry, "test"),
        "‖∇L‖": lambda entry: _plain(entry, "gradient_norm"),
    }


def _curvature(entries: Sequence[Entry]) -> dict[str, Callable[[Entry], str]]:
    """Return the cells of how curved the loss is, by column."""
    return {
        "epoch": _epoch,
        "λmax": lambda entry: _with_error(entry, "top_eigenvalues"),
        "2/η": _limit,
        "trace": lambda entry: _with_error(entry, "trace"),
        **{f"R1/ρ²\nρ={radius(rho)}": _first_order(rho) for rho in radii_of(entries)},
        "overlap": _overlap,
    }


def _table(columns: Mapping[str, Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def radii_of(entries: Sequence[Entry]) -> list[float]:
    """Return the radii of R1 that all of some runs have.

    >>> radii_of([])
    []
    """
    found = [{r.settings["rho"] for r in entry.report.all(FIRST_ORDER)} for entry in entries]
    return sorted(set.intersection(*found)) if found else []


def _plain(entry: Entry, measure: str, **settings: str) -> str:
    found = number(entry, measure, **settings)
    return "" if found is None else significant(found[0])


def _percent(entry: Entry, split: str) -> str:
    found = number(entry, "accuracy", split=split)
    return "" if found is None else f"{100 * found[0]:.1f}"


def _with_error(entry: Entry, measure: str) -> str:
    found = number(entry, measure)
    if found is None:
        return ""
    value, error = found
    rounded = error is None or error < 5e-4 * abs(value)  # less than the digits that are shown
    return significant(value) if rounded else with_spread(value, error or 0.0)


def _limit(entry: Entry) -> str:
    found = stability_of(entry)
    return "" if found is None else significant(found.two_over_lr)


def _first_order(rho: float) -> Callable[[Entry], str]:
    def cell(entry: Entry) -> str:
        found = number(entry, FIRST_ORDER, rho=rho)
        return "" if found is None else at_least(found[0] / rho**2)

    return cell


def _overlap(entry: Entry) -> str:
    found = entry.report.find(OVERLAP)
    if found is None:
        return ""
    pairs = zip(found.value, found.error, strict=True)
    return " ".join(f"{value:.2f}" + ("" if error is not None else "?") for value, error in pairs)
