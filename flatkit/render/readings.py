"""What a result says, in the symbols of the field: one number a reading."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from flatkit.errors import ResultError
from flatkit.render.notation import at_least, bound, significant, to_error
from flatkit.results import Report, Result

Role: TypeAlias = Literal["fit", "flatness", "detail"]
"""`fit` and `flatness` are compared, `detail` is only in the table of one report."""


@dataclass(frozen=True)
class Reading:
    """One number of a result.

    Attributes:
        key: for programs, e.g. `first_order_flatness_over_rho_squared[rho=0.05]`.
        title: for readers, e.g. `R1/ρ² (ρ = 0.05)`.
        value: the number.
        error: of it, in the sense of `error_kind` (see `flatkit.results.Result`).
        error_kind: likewise.
        status: of the result.
        role: where it is shown; the smaller a `flatness`, the flatter.
        rho: the radius, if there is one.

    >>> Reading("trace", "trace tr H", 12.0, 0.5, "standard_error", "converged").converged
    True
    """

    key: str
    title: str
    value: float
    error: float | None
    error_kind: str
    status: str
    role: Role = "detail"
    rho: float | None = None

    @property
    def converged(self) -> bool:
        """Whether the measurement did what it was asked."""
        return self.status == "converged"

    def value_text(self) -> str:
        """Return the value with the digits that its error allows, a lower bound as `≥`."""
        if self.error_kind == "lower_bound":
            return at_least(self.value)
        if self.error_kind == "exact" or self.error is None:
            return significant(self.value)
        digits = 2 if self.error_kind == "standard_error" else 1
        return to_error(self.value, self.error, digits=digits)

    def error_text(self) -> str:
        """Return how wrong the value may be, in words."""
        if self.error_kind in ("lower_bound", "exact"):
            return self.error_kind.replace("_", " ")
        if self.error is None:
            return "unknown"
        if self.error_kind == "standard_error":
            return f"± {significant(self.error, 2)}"
        return f"{self.error_kind} {bound(self.error)}"


def readings(result: Result) -> list[Reading]:
    """Return the numbers that a result holds; none for slices, planes and other structures.

    Raises:
        ResultError: the result lacks what its measure always has.

    >>> result = Result("first_order_flatness", 0.5, error_kind="lower_bound",
    ...                 settings={"rho": 0.1})
    >>> [(reading.title, reading.value_text()) for reading in readings(result)]
    [('R1 (ρ = 0.1)', '≥ 0.500'), ('R1/ρ² (ρ = 0.1)', '≥ 50.0')]
    """
    try:
        return _SPECIAL.get(result.measure, _other)(result)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ResultError(f"malformed result of {result.measure}: {error!r}") from error


def compared(report: Report) -> dict[str, Reading]:
    """Return by key the readings that tables and figures compare, in the order of the table.

    >>> list(compared(Report([Result("trace", 8.0, 0.1, error_kind="standard_error")])))
    ['trace']
    """
    found: dict[str, Reading] = {}
    for result in report:
        for reading in readings(result):
            if reading.role != "detail":
                found.setdefault(reading.key, reading)
    return dict(sorted(found.items(), key=lambda item: rank(item[1])))


def rank(reading: Reading) -> tuple[int, float]:
    """Return the place of a reading in a table.

    >>> small, large = (
    ...     Reading("loss", "loss", 1.0, 0.0, "exact", "exact", rho=rho) for rho in (0.1, 0.2)
    ... )
    >>> rank(small) < rank(large)
    True
    """
    name = reading.key.partition("[")[0]
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), reading.rho or 0.0)


def _other(result: Result) -> list[Reading]:
    if isinstance(result.value, list):
        return _eigenvalues(result)
    if not _is_number(result.value):
        return []
    title, role = _PLAIN.get(result.measure, (result.measure.replace("_", " "), "detail"))
    return [_reading(result, result.measure, title, role=role)]


def _reading(
    result: Result,
    key: str,
    title: str,
    *,
    scale: float = 1.0,
    role: Role = "detail",
    rho: float | None = None,
) -> Reading:
    error = result.error * scale if _is_number(result.error) else None
    return Reading(
        key=key,
        title=title,
        value=float(result.value) * scale,
        error=error,
        error_kind=result.error_kind,
        status=result.status,
        role=role,
        rho=rho,
    )


def _loss(result: Result) -> list[Reading]:
    split = result.settings.get("split", "train")
    return [_reading(result, f"{split}_loss", f"{split} loss", role="fit")]


def _accuracy(result: Result) -> list[Reading]:
    split = result.settings.get("split", "train")
    title = f"{split} accuracy (%)"
    return [_reading(result, f"{split}_accuracy", title, scale=100.0, role="fit")]


def _eigenvalues(result: Result) -> list[Reading]:
    """Return a reading for each entry of a list; of eigenvalues, the first is λmax."""
    errors = result.error if isinstance(result.error, list) else [None] * len(result.value)
    found = []
    for number, (value, error) in enumerate(zip(result.value, errors, strict=True), start=1):
        if not _is_number(value):
            continue
        largest = result.measure == "top_eigenvalues" and number == 1
        found.append(
            Reading(
                key="top_eigenvalue" if largest else f"{result.measure}[{number}]",
                title="top eigenvalue λmax" if largest else _numbered(result.measure, number),
                value=float(value),
                error=error,
                error_kind=result.error_kind,
                status=result.status,
                role="flatness" if largest else "detail",
            )
        )
    return found


def _numbered(measure: str, number: int) -> str:
    names = {"top_eigenvalues": "eigenvalue λ", "bottom_eigenvalues": "lowest eigenvalue "}
    return f"{names.get(measure, measure.replace('_', ' ') + ' ')}{number}"


def _zeroth_order(result: Result) -> list[Reading]:
    return [_in_ball(result, "R0", role="flatness")]


def _first_order(result: Result) -> list[Reading]:
    rho = result.settings["rho"]
    # R1, R1/ρ² and the largest norm say the same at one ρ; R1/ρ² is on the scale
    # of λmax, so it is the one that is compared.
    ratio = _in_ball(result, "R1/ρ²", "_over_rho_squared", scale=rho**-2, role="flatness")
    return [_in_ball(result, "R1"), ratio]


def _largest_norm(result: Result) -> list[Reading]:
    return [_in_ball(result, "max ‖∇L‖")]


def _of_model(result: Result) -> list[Reading]:
    return [_in_ball(result, "model R1")]


def _average(result: Result) -> list[Reading]:
    return [_in_ball(result, "average ΔL")]


def _of_batches(result: Result) -> list[Reading]:
    return [_in_ball(result, f"R0 of {result.settings['m']} samples")]


def _of_layers(result: Result) -> list[Reading]:
    """Return the top eigenvalue and the trace of every layer's block."""
    found = []
    for name, kind, title in (
        ("top", "residual", "λmax of {}"),
        ("trace", "standard_error", "trace of {}"),
    ):
        rows = zip(result.value["layer"], result.value[name], result.error[name], strict=True)
        found += [
            Reading(
                key=f"layer_{name}[{layer}]",
                title=title.format(layer or "the rest"),
                value=value,
                error=error,
                error_kind=kind,
                status=result.status,
            )
            for layer, value, error in rows
        ]
    return found


def _of_density(result: Result) -> list[Reading]:
    """Return the mean eigenvalue, which is trace/P, and the mass, which is 1."""
    own = result.settings
    return [
        Reading(
            "density_mean",
            "mean of the density",
            own["mean"],
            own["mean_error"],
            "standard_error",
            result.status,
        ),
        Reading("density_mass", "mass of the density", own["mass"], 0.0, "exact", result.status),
    ]


def _cross_check(result: Result) -> list[Reading]:
    """Return the eigenvalues of both, side by side."""
    return [
        Reading(
            key=f"cross_check_{who}[{number}]",
            title=f"λ{number} by {name}",
            value=value,
            error=error,
            error_kind="residual",
            status=result.status,
        )
        for who, name in (("flatkit", "flatkit"), ("pyhessian", "PyHessian"))
        for number, (value, error) in enumerate(
            zip(result.value[who], result.error[who], strict=True), start=1
        )
    ]


def _in_ball(
    result: Result, symbol: str, suffix: str = "", *, scale: float = 1.0, role: Role = "detail"
) -> Reading:
    """Return a reading that names its ball, so that balls of different shape are not compared."""
    rho, geometry = result.settings["rho"], result.settings.get("geometry", "l2")
    plain = geometry == "l2"
    key = f"{result.measure}{suffix}[rho={rho!r}{'' if plain else f', {geometry}'}]"
    title = f"{symbol} (ρ = {rho:g}{'' if plain else f', {geometry}'})"
    return _reading(result, key, title, scale=scale, role=role, rho=rho)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_SPECIAL = {
    "loss": _loss,
    "accuracy": _accuracy,
    "top_eigenvalues": _eigenvalues,
    "zeroth_order_sharpness": _zeroth_order,
    "first_order_flatness": _first_order,
    "max_gradient_norm": _largest_norm,
    "quadratic_model_maximum": _of_model,
    "average_sharpness": _average,
    "m_sharpness": _of_batches,
    "layer_curvature": _of_layers,
    "spectral_density": _of_density,
    "cross_check": _cross_check,
}
_PLAIN: Mapping[str, tuple[str, Role]] = {
    "gradient_norm": ("gradient norm ‖∇L‖", "fit"),
    "trace": ("trace tr H", "flatness"),
}
_ORDER = (
    "train_loss",
    "test_loss",
    "train_accuracy",
    "test_accuracy",
    "gradient_norm",
    "top_eigenvalue",
    "trace",
    "zeroth_order_sharpness",
    "first_order_flatness_over_rho_squared",
)
