"""R0 and R1 on the scale of λmax: R1/ρ² and 2 R0/ρ² tend to it at a minimum as ρ → 0."""

from flatkit.results.report import Report
from flatkit.results.result import Result

FIRST_ORDER, ZEROTH_ORDER = "first_order_flatness", "zeroth_order_sharpness"
SYMBOLS = {FIRST_ORDER: "R1/ρ²", ZEROTH_ORDER: "2 R0/ρ²"}

# On a quadratic of curvature λ, the loss rises by λρ²/2 and the gradient norm is λρ.
_FACTORS = {FIRST_ORDER: 1.0, ZEROTH_ORDER: 2.0}


def over_rho_squared(result: Result) -> float:
    """Return R1/ρ² of a result of R1, 2 R0/ρ² of a result of R0.

    >>> over_rho_squared(Result(ZEROTH_ORDER, 0.375, None, "lower_bound", settings={"rho": 0.5}))
    3.0
    """
    return _FACTORS[result.measure] * result.value / result.settings["rho"] ** 2


def top_eigenvalue(report: Report) -> float | None:
    """Return λmax, if it was measured.

    >>> top_eigenvalue(Report([Result("top_eigenvalues", [3.0, 1.0], [0.1, 0.1], "residual")]))
    3.0
    """
    found = report.find("top_eigenvalues")
    return found.value[0] if found is not None and found.value else None
