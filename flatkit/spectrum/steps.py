"""Work in small pieces, which tells at any time what is known."""

from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Steps: TypeAlias = Generator[Callable[[], T], None, None]
"""After each small piece of work: a function that returns what is known now. It is cheap to ask,
but is asked seldom; the last one tells the end."""


def finish(steps: Steps[T]) -> T:
    """Do all the work and return what it found.

    >>> finish(iter([lambda: "about 3", lambda: "3.14"]))
    '3.14'
    """
    ask = None
    for ask in steps:  # noqa: B007 (the last one is asked)
        pass
    if ask is None:
        raise ValueError("steps must yield at least once")
    return ask()
