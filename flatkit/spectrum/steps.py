"""Work in small pieces, which tells at any time what is known."""

import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

from flatkit.devices import ordinary_torch

T = TypeVar("T")
S = TypeVar("S")
R = TypeVar("R")

Steps: TypeAlias = Generator[Callable[[], T], None, None]
"""After each small piece of work: a function that returns what is known now. It is cheap to ask,
but is asked seldom; the last one tells the end."""


def finish(steps: Iterable[Callable[[], T]]) -> T:
    """Do all the work and return what it found.

    >>> finish([lambda: "about 3", lambda: "3.14"])
    '3.14'
    """
    ask = None
    for ask in steps:  # noqa: B007 (the last one is asked)
        pass
    if ask is None:
        raise ValueError("steps must yield at least once")
    return ask()


def end_of(work: Generator[object, None, R]) -> R:
    """Do all the work and return what it returns.

    >>> def work():
    ...     yield "about 3"
    ...     return 3.14
    >>> end_of(work())
    3.14
    """
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def changed(
    work: Generator[Callable[[], S], None, R], change: Callable[[S], T]
) -> Generator[Callable[[], T], None, R]:
    """Do the same work, and tell something that follows from what it tells.

    >>> [ask() for ask in changed((n for n in (lambda: 1, lambda: 2)), lambda n: 10 * n)]
    [10, 20]
    """

    def after(ask: Callable[[], S]) -> Callable[[], T]:
        return lambda: change(ask())

    while True:
        try:
            ask = next(work)
        except StopIteration as end:
            return end.value
        yield after(ask)


def timed(steps: Steps[T]) -> Steps[T]:
    """Do the work without the caller's contexts, and tell the seconds that it took by itself.

    Args:
        steps: tell a dataclass that has `seconds`.
    """
    seconds = 0.0
    while True:
        started = time.perf_counter()
        with ordinary_torch():
            ask = next(steps, None)
        if ask is None:
            return
        seconds += time.perf_counter() - started
        yield _stamped(ask, seconds)


def _stamped(ask: Callable[[], T], seconds: float) -> Callable[[], T]:
    def stamped() -> T:
        with ordinary_torch():
            found: Any = ask()
            return replace(found, seconds=seconds)

    return stamped
