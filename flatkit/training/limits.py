"""What settings of a training may be, beside what the help of each says; needs no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from flatkit.checks import check_count, check_fraction
from flatkit.errors import InvalidArgumentError

_MAX_SEED = 2**63 - 1
OF_NAMED = ("data", "data_kwargs", "data_root", "model", "model_kwargs", "label_smoothing")
"""Settings of data and models by name, which a task of the user has in its own code."""


def check_seed(name: str, value: int) -> int:
    """Refuse what no generator takes.

    >>> check_seed("seed", 3)
    3
    """
    if check_count(name, value, minimum=0) > _MAX_SEED:
        raise InvalidArgumentError(f"{name} must be at most {_MAX_SEED}, got {value}")
    return value


def check_decay_of_average(name: str, value: float) -> float:
    """Refuse a decay with which an average never moves.

    >>> check_decay_of_average("ema", 0.99)
    0.99
    """
    if check_fraction(name, value) == 1:
        raise InvalidArgumentError(f"{name} must be below 1, or the average never moves")
    return value


def check_whole(name: str, value: int) -> int:
    """Refuse what is no whole number from 0 on.

    >>> check_whole("warmup", 0)
    0
    """
    return check_count(name, value, minimum=0)


def check_milestones(milestones: Sequence[float]) -> None:
    """Refuse milestones that are no growing fractions.

    >>> check_milestones([0.5, 0.75])
    """
    # At 0 or 1 the rate would fall before the first or after the last step.
    inside = all(0 < milestone < 1 for milestone in milestones)
    if not inside or sorted(set(milestones)) != list(milestones):
        raise InvalidArgumentError(
            "milestones must be growing fractions of the epochs between 0 and 1, "
            f"e.g. 0.5,0.75, got {milestones}"
        )


def check_task(settings: Mapping[str, Any]) -> None:
    """Refuse settings of data and models by name beside a task, which has its own.

    >>> check_task({"task": "mine.py:build", "data": "digits"})
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: task builds model, loss and data; leave out `data`
    """
    given = [f"`{name}`" for name in OF_NAMED if settings.get(name)]
    if given:
        raise InvalidArgumentError(
            f"task builds model, loss and data; leave out {', '.join(given)}"
        )
