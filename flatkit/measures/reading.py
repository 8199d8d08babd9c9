"""What a result says, number by number: the title, the error, and how it is compared.

A measure's file makes the readings of its results; tables and figures show them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from flatkit.measures.catchment import Catchment
from flatkit.results.result import ErrorKind, Result
from flatkit.results.status import Status

Role: TypeAlias = Literal["fit", "flatness", "detail"]
"""`fit` and `flatness` are compared, `detail` is only in the table of one report."""
Better: TypeAlias = Literal["lower", "higher", "neither"]


@dataclass(frozen=True)
class Reading:
    """One number of a result.

    Attributes:
        key: for programs, e.g. `first_order_flatness_over_rho_squared[rho=0.05]`.
        title: for readers, with the unit, e.g. `R1/ρ² (ρ = 0.05)` or `test accuracy (%)`.
        value: the number.
        error: of it, in the sense of `error_kind`.
        error_kind: what the error is: `exact`, `residual`, `standard_error`, `lower_bound` or
            `rounding`.
        status: of the result.
        measure: the name of the measure, which decides the place in a table.
        role: where it is shown.
        better: which values are wanted; of a `flatness`, which are flatter.
        drawn: whether the figure that compares runs has a panel for it.
        rho: the radius, if there is one.
        place: among the readings of one measure, in a table of several runs.
        remark: what a table says in place of the error.
        sampling_error: standard error over samples of the data, None if it is not known.
        sampling_bias: by how much few samples make it too large, in the mean; None if unknown.
        influence: what equal blocks of the samples contribute; to first order their mean is the
            value, and their spread its error over samples.
        sampling_error_is: what that error is, in words, or why it is not known.
        error_is_of_samples: whether `error` is the same as `sampling_error`; then nothing is known
            of what else may be wrong.
        searched: of a lower bound, how well its ball was searched; None if that is not known.

    >>> Reading("trace", "trace tr H", 12.0, 0.5, "standard_error", "converged").converged
    True
    """

    key: str
    title: str
    value: float
    error: float | None
    error_kind: ErrorKind
    status: Status | str
    measure: str = ""
    role: Role = "detail"
    better: Better = "neither"
    drawn: bool = False
    rho: float | None = None
    place: int = 0
    remark: str = ""
    sampling_error: float | None = None
    sampling_bias: float | None = None
    influence: tuple[float, ...] = ()
    sampling_error_is: str = ""
    error_is_of_samples: bool = False
    searched: Catchment | None = None

    @property
    def converged(self) -> bool:
        """Whether the measurement did what it was asked."""
        return self.status == Status.CONVERGED

    @property
    def is_round(self) -> bool:
        """Whether its ball, if it has one, is the round one, to which λmax and ‖∇L‖ belong."""
        return "," not in self.key.partition("[")[2]


Reader: TypeAlias = Callable[[Result], list[Reading]]


def plain_readings(result: Result) -> list[Reading]:
    """Return a reading of a number, one for each entry of a list, none of other structures.

    A number is compared, though nobody says which values are better; entries of a list are not.

    >>> [reading.title for reading in plain_readings(Result("spectral_gap", [2.0, 1.0]))]
    ['spectral gap 1', 'spectral gap 2']
    """
    title = result.measure.replace("_", " ")
    if isinstance(result.value, list):
        return numbered(result, f"{title} ")
    return [number(result, result.measure, title, role="fit")] if is_number(result.value) else []


def number(result: Result, key: str, title: str, *, scale: float = 1.0, **more: Any) -> Reading:
    """Return the reading of a result whose value is one number.

    Args:
        result: the result.
        key: of the reading, for programs.
        title: of the reading, for readers.
        scale: value and error are multiplied by it.
        **more: further fields of `Reading`.

    >>> number(Result("accuracy", 0.5, 0.0), "accuracy", "accuracy (%)", scale=100.0).value
    50.0
    """
    return Reading(
        key=key,
        title=title,
        value=float(result.value) * scale,
        error=result.error * scale if is_number(result.error) else None,
        error_kind=result.error_kind,
        status=result.status,
        measure=result.measure,
        **over_samples(result, scale),
        **more,
    )


def _at(found: Any, place: int) -> Any:
    """Return an entry of a list; None where there is none."""
    return found[place] if isinstance(found, list) and place < len(found) else None


def numbered(result: Result, title: str) -> list[Reading]:
    """Return a reading for each number of a list, with its number after the title.

    >>> [reading.key for reading in numbered(Result("bottom_eigenvalues", [-1.0]), "lowest ")]
    ['bottom_eigenvalues[1]']
    """
    errors = result.error if isinstance(result.error, list) else [None] * len(result.value)
    name, kind = result.measure, result.error_kind
    return [
        replace(
            detail(result, f"{name}[{place}]", f"{title}{place}", float(value), error, kind),
            **over_samples(result, place=place - 1),
        )
        for place, (value, error) in enumerate(zip(result.value, errors, strict=True), start=1)
        if is_number(value)
    ]


def detail(
    result: Result, key: str, title: str, value: float, error: float | None, error_kind: ErrorKind
) -> Reading:
    """Return a reading of one of several numbers of a result.

    >>> detail(Result("spectral_density", {}), "mass", "mass", 1.0, 0.0, "exact").measure
    'spectral_density'
    """
    return Reading(key, title, value, error, error_kind, result.status, result.measure)


def in_ball(
    result: Result, symbol: str, suffix: str = "", *, scale: float = 1.0, **more: Any
) -> Reading:
    """Return a reading that names its ball, so that balls of different shape are not compared.

    >>> in_ball(Result("max_gradient_norm", 2.0, settings={"rho": 0.1}), "max ‖∇L‖").title
    'max ‖∇L‖ (ρ = 0.1)'
    """
    rho, geometry = result.settings["rho"], result.settings.get("geometry", "l2")
    shape = "" if geometry == "l2" else f", {geometry}"
    key = f"{result.measure}{suffix}[rho={rho!r}{shape}]"
    return number(result, key, f"{symbol} (ρ = {rho:g}{shape})", scale=scale, rho=rho, **more)


def over_samples(result: Result, scale: float = 1.0, place: int | None = None) -> dict[str, Any]:
    """Return how a number depends on the samples, and how well a ball was searched, for a reading.

    Args:
        result: the result.
        scale: of the number.
        place: of the number in a list, from 0.

    >>> over_samples(Result("trace", 8.0, settings={"sampling_error": 0.5}))["sampling_error"]
    0.5
    """
    error: Any = result.settings.get("sampling_error")
    influence: Any = result.settings.get("influence")
    bias: Any = result.settings.get("sampling_bias")
    values: Any = influence.get("values") if isinstance(influence, dict) else None
    # Draws of the samples know the spread of λmax alone.
    if place is not None:  # a single error in place of a list is that of the first
        error = _at(error, place) if isinstance(error, list) or place else error
        values, bias = _at(values, place), _at(bias, place)
    # Saved files may hold anything; what is no number is not shown as one.
    known = isinstance(values, list) and all(is_number(value) for value in values)
    return {
        "sampling_error": abs(scale) * error if is_number(error) else None,
        "sampling_bias": scale * bias if is_number(bias) else None,
        "influence": tuple(scale * value for value in values) if known else (),
        "sampling_error_is": str(result.settings.get("sampling_error_is", "")),
        "searched": Catchment.read(result.settings.get("catchment")),
    }


def is_number(value: Any) -> bool:
    """Return whether a value is a number; True and False are none.

    >>> is_number(2), is_number(True), is_number([2])
    (True, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool)
