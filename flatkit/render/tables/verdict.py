"""Tables of one checkpoint: R0 and R1 at every radius, and the claims with their verdicts."""

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from flatkit.render.curvature_scale import over_rho_squared
from flatkit.render.notation import at_least, significant
from flatkit.render.tables.folded import Folded
from flatkit.results.report import Report
from flatkit.results.status import Status

VERDICT_COLOURS = {"holds": "green", "fails": "bold red", "cannot tell": "yellow"}


def verdict_table(name: str, report: Report) -> RenderableType:
    """Return R1/ρ² and 2 R0/ρ² beside λmax for every ρ, and each claim with its verdict.

    >>> from rich.console import Console
    >>> from flatkit.results.result import Result
    >>> claim = {"claim": "R0 ≤ R1", "verdict": "holds", "reason": ""}
    >>> Console(width=60).print(verdict_table("gam", Report([Result("verdict", [claim])])))
    gam
    ...holds...
    """
    radii = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("ρ", "R1/ρ²", "quadratic model", "2 R0/ρ²", "quadratic model"):
        radii.add_column(title, justify="right")
    for r1 in report.all("first_order_flatness"):
        rho = r1.settings["rho"]
        r0 = report.result("zeroth_order_sharpness", rho=rho)
        model = report.result("quadratic_model_maximum", rho=rho)
        radii.add_row(
            f"{rho:.3g}",
            at_least(over_rho_squared(r1)),
            _model(model.value, model.settings.get("rounding", 0.0), rho**2),
            "rounding" if r0.status == Status.ROUNDING else at_least(over_rho_squared(r0)),
            _model(
                2 * r0.settings["quadratic_model"],
                2 * r0.settings.get("quadratic_model_rounding", 0.0),
                rho**2,
            ),
        )
    claims = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("claim", "verdict", "why"):
        claims.add_column(title, overflow="fold")
    for claim in report.result("verdict").value:
        colour = VERDICT_COLOURS[claim["verdict"]]
        verdict = f"[{colour}]{claim['verdict']}[/{colour}]"
        claims.add_row(claim["claim"], verdict, escape(claim["reason"]))
    return Group(escape(name), *_facts(report), *([Folded(radii)] if radii.rows else []), claims)


def _model(value: float, rounding: float, squared: float) -> str:
    """Return what the model says over ρ², with what 16 bits may have put it off."""
    off = f" ± {significant(rounding / squared, 2)}" if rounding else ""
    return significant(value / squared) + off


def _facts(report: Report) -> list[str]:
    top, blurred = report.find("top_eigenvalues"), report.find("rounding_radius")
    facts = []
    if top is not None:
        facts.append(
            f"λmax = {significant(top.value[0], 6)}, residual {significant(top.error[0], 2)}"
        )
    if blurred is not None:
        facts.append(
            f"below ρ = {significant(blurred.value, 2)} rounding may change R1 by more than 1 %: "
            "not measured there"
        )
    return facts
