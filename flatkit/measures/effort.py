"""How much work an analysis may be: a budget in gradients, a time, or all that can be done."""

import math
import re
from dataclasses import dataclass

from flatkit.checks import check_positive
from flatkit.errors import InvalidArgumentError
from flatkit.settings import setting

USUAL_TIME = "10m"
"""How long an analysis may take where nothing else is asked for."""
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(duration: str) -> float:
    """Return a duration such as `90s`, `10m` or `1.5h` in seconds.

    Raises:
        InvalidArgumentError: it is none.

    >>> seconds_of("1.5m")
    90.0
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([smh])", duration.strip())
    if found is None or float(found[1]) == 0:
        raise InvalidArgumentError(
            f"time must be a number with s, m or h, such as 90s or 10m, got {duration!r}"
        )
    return float(found[1]) * _UNITS[found[2]]


def check_duration(name: str, value: str) -> str:
    """Check that a text is a duration."""
    seconds_of(value)
    return value


def _check_budget(name: str, value: float) -> float:
    if check_positive(name, value) < 1:
        raise InvalidArgumentError(f"{name} must be at least 1, a gradient, got {value!r}")
    return value


@dataclass(frozen=True, kw_only=True)
class EffortSettings:
    """How much work an analysis may be."""

    budget: float | None = setting(
        None,
        "Stop after N gradients of the loss in all; a Hessian-vector product counts as 2 or 3, the "
        "loss alone as a third.",
        check=_check_budget,
        group="Effort",
        metavar="N",
        default_text="none",
    )
    time: str | None = setting(
        None,
        "Stop after so long, e.g. 90s, 10m or 2h.",
        check=check_duration,
        group="Effort",
        metavar="TIME",
        default_text=f"{USUAL_TIME}, without --budget",
    )
    full: bool = setting(
        False,
        "No limit of time, and every search as thorough as it can be.",
        group="Effort",
        flags=("--full",),
    )

    def __post_init__(self) -> None:
        """Refuse two limits that exclude each other."""
        if self.budget is not None and self.time is not None:
            raise InvalidArgumentError("budget and `time` exclude each other; give one of them")
        if self.full and self.time is not None:
            raise InvalidArgumentError("full means no limit of time; leave out `time`")

    @property
    def seconds(self) -> float:
        """How long it may take; infinite without a limit."""
        if self.time is not None:
            return seconds_of(self.time)
        return math.inf if self.full or self.budget is not None else seconds_of(USUAL_TIME)
