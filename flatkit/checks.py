"""Checks of arguments: each names the argument, what is allowed, what came and the likely fix."""

import math
from collections.abc import Collection
from difflib import get_close_matches
from numbers import Real

from flatkit.errors import InvalidArgumentError


def check_positive(name: str, value: float, *, hint: str = "") -> float:
    """Return `value` if it is a finite number above zero.

    Raises:
        InvalidArgumentError: otherwise.

    >>> check_positive("rho", 0.1)
    0.1
    """
    if not (_is_finite(value) and value > 0):
        raise InvalidArgumentError(_message(name, "a finite number > 0", value, hint))
    return value


def check_non_negative(name: str, value: float, *, hint: str = "") -> float:
    """Return `value` if it is a finite number not below zero.

    Raises:
        InvalidArgumentError: otherwise.

    >>> check_non_negative("weight_decay", 0.0)
    0.0
    """
    if not (_is_finite(value) and value >= 0):
        raise InvalidArgumentError(_message(name, "a finite number >= 0", value, hint))
    return value


def check_fraction(name: str, value: float, *, hint: str = "") -> float:
    """Return `value` if it lies in the closed interval [0, 1].

    Raises:
        InvalidArgumentError: otherwise.

    >>> check_fraction("alpha", 0.5)
    0.5
    """
    if not (_is_finite(value) and 0 <= value <= 1):
        raise InvalidArgumentError(_message(name, "a number in [0, 1]", value, hint))
    return value


def check_count(name: str, value: int, *, minimum: int = 1, hint: str = "") -> int:
    """Return `value` if it is a whole number of at least `minimum`.

    Raises:
        InvalidArgumentError: otherwise; `True` and `2.0` are not whole numbers here.

    >>> check_count("epochs", 3)
    3
    """
    if not _is_whole(value) or value < minimum:
        raise InvalidArgumentError(_message(name, f"a whole number >= {minimum}", value, hint))
    return value


def check_odd(name: str, value: int) -> int:
    """Return `value` if it is an odd whole number of at least 3: that many points have a middle.

    Raises:
        InvalidArgumentError: otherwise.

    >>> check_odd("plane_points", 21)
    21
    """
    if check_count(name, value, minimum=3) % 2 == 0:
        raise InvalidArgumentError(
            f"{name} must be odd, so that the checkpoint itself is one of the points, got {value}"
        )
    return value


def check_choice(name: str, value: str, allowed: Collection[str]) -> str:
    """Return `value` if it is one of `allowed`; the error suggests the nearest spelling.

    Raises:
        InvalidArgumentError: otherwise.

    >>> check_choice("method", "lanczos", ["power", "lanczos"])
    'lanczos'
    """
    if value in tuple(allowed):  # a list, as a file may hold, is no key of a dictionary
        return value
    words = _message(name, "one of " + ", ".join(sorted(allowed)), value, "")
    raise InvalidArgumentError(words + nearest(value, allowed))


def nearest(value: object, allowed: Collection[str]) -> str:
    """Return the end of a message that asks for the nearest of `allowed`; empty if none is near.

    >>> nearest("gan", ["sgd", "gam"])
    "; did you mean 'gam'?"
    """
    found = get_close_matches(str(value), allowed, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def _message(name: str, allowed: str, value: object, hint: str) -> str:
    return f"{name} must be {allowed}, got {value!r}" + (f"; {hint}" if hint else "")
