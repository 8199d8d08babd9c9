"""One measured quantity: value, error bar, status, settings and cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from flatkit.errors import ResultError
from flatkit.results.cost import Cost
from flatkit.results.schema import check_kind, decode, encode, plain_value, refuse_nan
from flatkit.results.showing import Shown, in_short
from flatkit.results.status import Status, known_status

ErrorKind: TypeAlias = Literal["residual", "standard_error", "lower_bound", "exact", "rounding"]
Value: TypeAlias = Any
"""A number, or lists and dicts of numbers, strings and None."""


@dataclass(frozen=True, repr=False)
class Result(Shown):
    """One measured quantity.

    Attributes:
        measure: what was measured, e.g. `top_eigenvalues`.
        value: a number, or lists and dicts of numbers.
        error: how wrong the value may be, in the sense of `error_kind`; `None` for a lower bound,
            whose distance to the maximum is not known.
        error_kind: `residual` (an eigenvalue lies within `error` of the value), `standard_error`
            (of a mean over random draws), `lower_bound` (a feasible point of a maximisation),
            `exact` (no solver or sampling error over the samples named; rounding of the named
            dtype remains), or `rounding` (that of bfloat16, as it was measured, and no other).
        status: how it ended. One that this version does not know, from a file of a later one, stays
            a string.
        settings: what is needed to measure it again.
        cost: gradients, products, seconds.

    Raises:
        ResultError: the value or error is NaN or no plain data, or the kind of error is unknown.

    >>> result = Result("trace", 0.5, error=0.1, error_kind="standard_error")
    >>> result.value, result
    (0.5, <Result trace = 0.5, standard error 0.1, converged>)
    """

    measure: str
    value: Value
    error: Value = None
    error_kind: ErrorKind = "exact"
    status: Status | str = Status.CONVERGED
    settings: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        """Refuse what is not a result, and freeze the settings."""
        if self.error_kind not in get_args(ErrorKind):
            raise ResultError(f"unknown error_kind {self.error_kind!r} of {self.measure}")
        for name in ("value", "error", "settings"):
            where = f"{name} of {self.measure}"
            object.__setattr__(self, name, plain_value(getattr(self, name), where))
            refuse_nan(getattr(self, name), where)
        object.__setattr__(self, "status", known_status(self.status))
        # Read only, as results are shared by tables, figures and comparisons.
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))

    def __repr__(self) -> str:
        """Return a line: measure, where, value, how wrong it may be, how it ended."""
        where = ", ".join(
            f"{name}={in_short(self.settings[name])}"
            for name in ("split", "rho", "geometry")
            if name in self.settings and self.settings[name] != "l2"
        )
        # `exact` and `lower bound` have no number beside them.
        wrong = self.error_kind.replace("_", " ")
        if self.error_kind in ("residual", "standard_error", "rounding"):
            wrong += f" {in_short(self.error)}"
        name = f"{self.measure}({where})" if where else self.measure
        return f"<Result {name} = {in_short(self.value)}, {wrong}, {self.status}>"

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` reads, ready for JSON."""
        return {
            "measure": self.measure,
            "value": encode(self.value),
            "error": encode(self.error),
            "error_kind": self.error_kind,
            "status": str(self.status),
            "settings": encode(dict(self.settings)),
            "cost": asdict(self.cost),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Result":
        """Read a result back; unknown keys of `cost` are ignored.

        Raises:
            ResultError: a key is missing or malformed.
        """
        try:
            measure = check_kind(data["measure"], str, "measure of a result")
            spent = check_kind(data["cost"], dict, f"cost of {measure}")
            known = {
                key: check_kind(spent[key], int | float, f"{key} of {measure}")
                for key in asdict(Cost())
                if key in spent
            }
            return cls(
                measure=measure,
                value=decode(data["value"]),
                error=decode(data["error"]),
                error_kind=data["error_kind"],
                status=check_kind(data["status"], str, f"status of {measure}"),
                settings=decode(check_kind(data["settings"], dict, f"settings of {measure}")),
                cost=Cost(**known),
            )
        except (KeyError, TypeError) as error:
            raise ResultError(
                f"malformed result: {error!r} is missing or of a wrong type"
            ) from error
