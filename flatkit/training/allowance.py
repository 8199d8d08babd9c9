"""How much of the time of a training measurements may take."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import final

from flatkit.checks import check_fraction
from flatkit.errors import InvalidArgumentError


@final
class Allowance:
    """Lets a measurement begin when its time is at most a share of all the time until its end.

    What the next one takes is taken to be what the last one took. What the first one takes nobody
    knows: it is always allowed, and those after it wait until the share holds.

    Args:
        max_share: of the time since `begin`, training and measurements together; None allows all.
        clock: seconds that never go back.

    Attributes:
        spent: seconds that measurements took so far.

    >>> seconds = iter([0.0, 10.0, 11.0, 20.0, 40.0])
    >>> allowance = Allowance(0.05, clock=lambda: next(seconds))
    >>> allowance.begin()
    >>> with allowance.measuring():  # from 10 to 11
    ...     pass
    >>> allowance.spent, allowance.allows(), allowance.allows()  # 2 of 21, and 2 of 41 seconds
    (1.0, False, True)
    """

    def __init__(
        self, max_share: float | None = None, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        if max_share is not None and check_fraction("max_share", max_share) == 0:
            raise InvalidArgumentError("max_share must be above 0, or nothing is ever measured")
        self._max_share, self._clock = max_share, clock
        self._begun: float | None = None
        self._last = 0.0
        self.spent = 0.0

    @property
    def last(self) -> float:
        """Seconds that the last measurement took."""
        return self._last

    def begin(self) -> None:
        """Count time from now on, if it is not counted yet."""
        if self._begun is None:
            self._begun = self._clock()

    def allows(self) -> bool:
        """Return whether a measurement may begin now."""
        self.begin()
        # Without a first one nobody knows what it takes, and nothing would ever be measured.
        if self._max_share is None or not self.spent:
            return True
        assert self._begun is not None  # by `begin`
        elapsed = self._clock() - self._begun
        # As it will stand when the next one has ended: that one is part of all the time as well.
        return self.spent + self._last <= self._max_share * (elapsed + self._last) * _SLACK

    @contextmanager
    def measuring(self) -> Generator[None, None, None]:
        """Count the seconds of the block as those of a measurement, also if it fails."""
        self.begin()
        started = self._clock()
        try:
            yield
        finally:
            self._last = self._clock() - started
            self.spent += self._last


_SLACK = 1 + 1e-9
"""For the rounding of a share such as 0.03 of 100 seconds."""
