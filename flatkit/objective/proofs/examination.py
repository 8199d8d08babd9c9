"""What was looked at before anything is measured with an objective, and what was found."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

Found: TypeAlias = tuple[bool | None, str, float | None]
"""`passed`, `how` and `error` of a check."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what was to be proved, e.g. `deterministic`.
        passed: whether it was; None if it was not looked at, for the reason that `how` gives. What
            is found wrong is an error, or is put right, which `how` says; or is a kink at the point
            (`smooth`), of which the results say that they have no second derivative.
        how: on what it was looked at and what was found, in words.
        error: relative, what was left over; None if that has no size.
        seconds: that it took.
    """

    name: str
    passed: bool | None
    how: str
    error: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Examination:
    """What was found of an objective when it was made; a check that fails is an error instead.

    Attributes:
        mean_over: what the loss is a mean over: `samples`, labels that count, or `loss` where the
            loss itself says how much each sample counts.
        checks: what was looked at, in order.

    >>> found = Examination("samples").adding(Check("deterministic", True, "two evaluations agree"))
    >>> found["deterministic"].passed, found["additive"].passed
    (True, None)
    """

    mean_over: str
    checks: tuple[Check, ...] = ()

    def __getitem__(self, name: str) -> Check:
        """Return the check of a name; one that has not passed if it was not looked at."""
        return next((c for c in self.checks if c.name == name), Check(name, None, "not looked at"))

    @property
    def derivatives(self) -> int:
        """How many derivatives there are at the point, as far as was looked: 2, or fewer on a kink.

        >>> Examination("samples").derivatives
        2
        """
        smooth = self["smooth"]
        if smooth.passed is not False:
            return 2
        return 0 if smooth.error else 1

    @property
    def seconds(self) -> float:
        """What all of it took."""
        return sum(check.seconds for check in self.checks)

    def adding(self, *checks: Check) -> "Examination":
        """Return it with further checks; one of the same name takes the place of the earlier."""
        names = {check.name for check in checks}
        kept = [check for check in self.checks if check.name not in names]
        return replace(self, checks=(*kept, *checks))

    def describe(self) -> list[dict[str, Any]]:
        """Return the checks, ready for JSON."""
        return [asdict(check) for check in self.checks]


def prove(name: str, proof: Callable[[], Found]) -> Check:
    """Return a check with the time that it took.

    Args:
        name: of the check.
        proof: returns `passed`, `how` and `error`; raises what is found wrong.

    >>> prove("additive", lambda: (True, "3 splits add up", 1e-8)).how
    '3 splits add up'
    """
    begun = time.perf_counter()
    passed, how, error = proof()
    return Check(name, passed, how, error, time.perf_counter() - begun)


NOT_EXAMINED = (Check("examined", None, "not examined, as asked: nothing below is proved"),)
"""What stands in place of the checks where they were switched off."""
