"""When a callback measures: every so many steps, or every so many epochs."""

from collections.abc import Collection

from flatkit.checks import check_count
from flatkit.errors import InvalidArgumentError

_STEPS = 100
"""Between measurements, where nothing is said."""


class Intervals:
    """Answers which steps and epochs are to be measured at, each once.

    Args:
        steps: optimizer steps between measurements.
        epochs: instead of steps; 100 steps where neither is given.
        others: names of further settings of a callback, which are those of its tracker.

    Raises:
        InvalidArgumentError: both are given, one is no whole number above 0, or `every` is among
            the others: a callback asks its tracker at steps of its own.

    >>> intervals = Intervals(2, None)
    >>> [intervals.step(step) for step in (1, 2, 2, 3, 4)], intervals.epoch(1)
    ([False, True, False, False, True], False)
    """

    def __init__(self, steps: int | None, epochs: int | None, others: Collection[str] = ()) -> None:
        if "every" in others:
            raise InvalidArgumentError(
                "every is of CurvatureTracker; a callback takes every_n_steps or every_n_epochs"
            )
        if steps is not None and epochs is not None:
            raise InvalidArgumentError("give one of every_n_steps and every_n_epochs, not both")
        for name, value in (("every_n_steps", steps), ("every_n_epochs", epochs)):
            if value is not None:
                check_count(name, value)
        self._steps = _STEPS if steps is None and epochs is None else steps
        self._epochs = epochs
        self._last = 0

    def step(self, number: int) -> bool:
        """Return whether to measure after a step; batches of one step ask more than once."""
        # Batches that accumulate do not move the number of the step.
        new, self._last = number != self._last, number
        return new and self._steps is not None and number % self._steps == 0

    def epoch(self, number: int) -> bool:
        """Return whether to measure after an epoch, counted from 1."""
        # Each epoch ends once, so that no number is asked for twice.
        return self._epochs is not None and number % self._epochs == 0
