"""Tables of a series of checkpoints: how curvature and flatness change over the training."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from flatkit.render.curvature_scale import SYMBOLS, over_rho_squared, top_eigenvalue
from flatkit.render.notation import at_least, radius, significant
from flatkit.render.series import epochs, required_series, shared_radii, value_of
from flatkit.render.tables.folded import Folded
from flatkit.results.comparison import Comparison
from flatkit.results.report import Report
from flatkit.results.status import Status


def series_table(comparison: Comparison) -> RenderableType:
    """Return tables of every run: what is left and how many claims hold; R1/ρ² and 2 R0/ρ².

    Raises:
        NothingToDrawError: no folder has checkpoints of two epochs.
    """
    runs = required_series(comparison)
    radii = shared_radii(runs)
    parts: list[RenderableType] = []
    for run, reports in runs.items():
        first, *_, last = epochs(reports)
        parts.append(escape(f"{PurePath(run).name or run}, epochs {first} … {last}"))
        parts.append(Folded(_table_of_states(reports)))
        if radii:
            parts.append(Folded(_table_of_radii(reports, radii)))
    return Group(*parts)


def _table_of_states(reports: Sequence[Report]) -> Table:
    table = _frame("epoch", "train loss", "‖∇L‖", "λmax", "claims that hold")
    for epoch, report in zip(epochs(reports), reports, strict=True):
        claims = [claim["verdict"] for claim in value_of(report, "verdict") or []]
        table.add_row(
            str(epoch),
            *(_number(value_of(report, name)) for name in ("loss", "gradient_norm")),
            _number(top_eigenvalue(report)),
            f"{claims.count('holds')} of {len(claims)}" if claims else "",
        )
    return table


def _table_of_radii(reports: Sequence[Report], radii: Sequence[float]) -> Table:
    """Return R1/ρ² and 2 R0/ρ² side by side at each radius."""
    pairs = [(rho, measure) for rho in radii for measure in SYMBOLS]
    table = _frame("epoch", *(f"{SYMBOLS[measure]}\nρ={radius(rho)}" for rho, measure in pairs))
    for epoch, report in zip(epochs(reports), reports, strict=True):
        table.add_row(str(epoch), *(_bound(report, measure, rho) for rho, measure in pairs))
    return table


def _frame(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right")
    return table


def _number(value: Any) -> str:
    return "" if value is None else significant(float(value))


def _bound(report: Report, measure: str, rho: float) -> str:
    found = report.find(measure, rho=rho)
    if found is None:
        return ""
    return "rounding" if found.status == Status.ROUNDING else at_least(over_rho_squared(found))
