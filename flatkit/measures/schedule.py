"""Measures as processes: the next gradients go to the number that gains most for them.

Nothing here looks at a clock but to stop, to ask less often and to give memory back: whose turn it
is follows from values and counts alone, so that a run with more budget repeats one with less, and
goes on.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from flatkit.devices import give_back
from flatkit.errors import FlatkitError, PluginError
from flatkit.measures.base import Draft
from flatkit.measures.forecast import Forecast, forecast
from flatkit.measures.registry import MEASURES
from flatkit.measures.shared_settings import CurvatureSettings
from flatkit.results.cost import Cost
from flatkit.results.result import Result
from flatkit.results.status import Status

if TYPE_CHECKING:
    from flatkit.measures.influence import Influences
    from flatkit.measures.session import Session

NOT_ASKED: Mapping[str, Any] = {
    "sampling_error_is": "not known: nothing was left of the budget for it"
}
Ended: TypeAlias = Literal["done", "budget", "time", "interrupted"]

_STOPPED: Mapping[Ended | None, str] = {
    "budget": "the budget ended before its first value",
    "time": "the time ended before its first value",
    "interrupted": "it was interrupted before its first value",
}
_LOSS = 1 / 3
"""What the loss alone costs, in gradients."""
_ASKED = 0.05
"""Share of the time that asking for results may take."""
_LONG = 0.5
"""Seconds of a piece of work after which what the allocator keeps is worth giving back."""


def in_gradients(cost: Cost, product: float) -> float:
    """Return a cost in gradients of the loss, at fixed prices.

    Args:
        cost: what was computed.
        product: the price of a Hessian-vector product.

    >>> in_gradients(Cost(gradients=1, matvecs=2, losses=3), 2.0)
    6.0
    """
    return cost.gradients + product * cost.matvecs + _LOSS * cost.losses


@dataclass(frozen=True)
class Limit:
    """When to stop.

    Attributes:
        gradients: of the loss, at fixed prices; infinite without a budget.
        until: a reading of `time.monotonic`; infinite without a limit.
    """

    gradients: float = math.inf
    until: float = math.inf

    def reached(self, spent: float) -> Ended | None:
        """Return which limit was reached, if one was."""
        # Evaluations count as thirds of a gradient, whose sum is rounded.
        if spent >= self.gradients - 1e-6:
            return "budget"
        return "time" if time.monotonic() >= self.until else None


class Process:
    """A measure at work, piece by piece.

    Args:
        name: of the measure.
        session: what it measures.

    Attributes:
        done: whether nothing is left to do.
        wanting: how many times what is asked for its error still is; infinite without a value.
        cost: what it spent.
        results: as they were last asked for; those at the end, when it is done.
        pieces: how many pieces of work were done.
    """

    def __init__(self, name: str, session: "Session") -> None:
        self.name, self._session = name, session
        self.done, self.wanting, self.pieces = False, math.inf, 0
        self.cost, self.results = Cost(), tuple[Result, ...]()
        self._used = Cost()  # in its turns, also for others
        self._drafts: Iterator[Draft] | None = None
        self._draft: Draft | None = None
        self._asked_at, self._asking = -math.inf, 0.0

    @property
    def spent(self) -> float:
        """What it spent, in gradients."""
        return in_gradients(self.cost, self._session.product_price)

    @property
    def urgency(self) -> tuple[bool, float]:
        """How much the next piece gains: first values come first, the cheapest of them before.

        A first value costs what its measure says, or what it used already, if that is more. An
        error falls as a power of what was spent, so that the logarithm of what is wanting falls by
        as much as its share of what was spent.
        """
        if math.isinf(self.wanting):
            used = in_gradients(self._used, self._session.product_price)
            # Compared as (bool, number): all without a value come before those that have one.
            return True, -max(used, MEASURES[self.name].gradients_to_first(self._session))
        # Above 1: a measure that has reached its goal still goes on, as the last.
        return False, math.log(max(self.wanting, 1 + 1e-9)) / (1 + self.spent)

    def advance(self) -> None:
        """Do the next piece.

        Raises:
            PluginError: a measure of another package fails.
        """
        with self._at_work():
            if self._drafts is None and not self._begin():
                return
            assert self._drafts is not None
            draft = next(self._drafts, None)
        if draft is None:
            self.done = True
        else:
            self._draft, self.wanting = draft, draft.wanting
        self.pieces += 1
        if self.done:
            self.ask()

    def ask(self) -> None:
        """Take over the results as they stand."""
        if self._draft is None:
            return
        with self._at_work():
            begun = time.monotonic()
            self.results = self._told(self._draft.results())
            self._asked_at = time.monotonic()
            self._asking = self._asked_at - begun
        if self.done:
            self._draft = None  # with all that it holds

    def ask_if_cheap(self) -> None:
        """Take over the results unless that takes more than a small share of the time."""
        if not self.results or self._session.objective.ranks.decided(self._is_due):
            self.ask()

    def _is_due(self) -> bool:
        return time.monotonic() - self._asked_at > max(0.5, self._asking / _ASKED)

    def add_influences(self, influences: "Influences", limit: "Callable[[], Ended | None]") -> None:
        """Add to the results how other samples would have moved them, until a limit is reached."""
        ask = MEASURES[self.name].influence
        for number, result in enumerate(self.results if ask else ()):
            if limit() is not None:
                found: Mapping[str, Any] = NOT_ASKED
                cost = Cost()
            else:
                with self._at_work():
                    before = self._session.objective.cost
                    found = ask(influences, result) if ask else {}
                    cost = self._session.objective.cost - before
            # What draws of the samples said before is not taken back.
            # Not the other way round, as a spread over draws
            # was measured and this one is of first order.
            settings = {**found, **result.settings}
            changed = replace(result, settings=settings, cost=result.cost + cost)
            self.results = (*self.results[:number], changed, *self.results[number + 1 :])

    def _begin(self) -> bool:
        """Start the measure; return whether it goes on piece by piece, or else has its results."""
        found = MEASURES[self.name].run(self._session)
        if isinstance(found, Iterator):
            self._drafts = found
            return True
        self.results, self.done = self._told(found), True
        return False

    def _told(self, results: Sequence[Result]) -> tuple[Result, ...]:
        """Return results that say it where the loss has no such derivative at the point."""
        measure, session = MEASURES[self.name], self._session
        # Measures of curvature may be of some layers alone, where there may be no kink.
        of_part = CurvatureSettings in measure.settings
        function = session.curved if of_part else session.objective
        if function.examination.derivatives >= measure.derivatives:
            return tuple(results)
        return tuple(replace(result, status=Status.NOT_SMOOTH) for result in results)

    @contextmanager
    def _at_work(self) -> Generator[None, None, None]:
        """Charge to this process what is computed, and let errors from outside name it."""
        session, before, begun = self._session, self.cost, self._session.objective.cost
        # All that others have spent so far, which meters of this process are not to count.
        session.outside = session.objective.cost - before
        try:
            with named(self.name):
                yield
        finally:
            self.cost = session.objective.cost - session.outside
            self._used += session.objective.cost - begun
            session.outside = Cost()


class Schedule:
    """The processes of an analysis, and whose turn it is.

    Args:
        session: what is measured; its settings name the measures.
        limit: when to stop.

    Attributes:
        processes: in the order of the report.
        ended: how it ended; None while it goes on.
        started: by `time.monotonic`.
    """

    def __init__(self, session: "Session", limit: Limit) -> None:
        self.session, self.limit = session, limit
        self.processes = [Process(name, session) for name in session.settings.measures]
        self.started = time.monotonic()
        self._before = session.objective.cost
        self.ended: Ended | None = None

    @cached_property
    def forecast(self) -> Forecast:
        """What it will take; measured on a few samples when it is first asked for."""
        return forecast(self.session)

    @property
    def spent(self) -> float:
        """What was spent in all, in gradients."""
        cost = self.session.objective.cost - self._before
        return in_gradients(cost, self.session.product_price)

    @property
    def num_done(self) -> int:
        """How many of the processes have nothing left to do."""
        return sum(process.done for process in self.processes)

    def run(self, look: "Callable[[Schedule], object]") -> None:
        """Do piece after piece until all are done or the limit is reached.

        Args:
            look: called after each piece.

        Raises:
            KeyboardInterrupt: as it comes; what was asked for before stays.
        """
        while self.ended is None:
            waiting = [process for process in self.processes if not process.done]
            if not waiting:
                self.ended = "done"
                break
            self.ended = self._reached()
            if self.ended is not None:
                break
            turn, begun = max(waiting, key=lambda process: process.urgency), time.monotonic()
            turn.advance()
            if time.monotonic() - begun > _LONG:
                give_back(self.session.objective.theta)
            if not turn.done:
                turn.ask_if_cheap()
            look(self)
        # `ask_if_cheap` may have passed over what is known last.
        for process in self.processes:
            if not process.done:
                process.ask()
        if self.ended == "done":
            self._add_influences(look)

    def _reached(self) -> "Ended | None":
        """Return which limit was reached; the clock of the first rank is that of all."""
        # A budget is counted alike on all ranks: nobody need be asked.
        if math.isinf(self.limit.until):
            return self.limit.reached(self.spent)
        ranks = self.session.objective.ranks
        return ranks.decided(lambda: self.limit.reached(self.spent))

    def _add_influences(self, look: "Callable[[Schedule], object]") -> None:
        """Ask how other samples would have moved the numbers, after all of them are there.

        So nothing of them depends on it.
        """
        from flatkit.measures.influence import Influences

        influences = Influences(self.session)
        for process in self.processes:
            process.add_influences(influences, self._reached)
            look(self)

    def interrupt(self) -> None:
        """Note that the run was stopped from outside: what was last asked for is what there is."""
        self.ended = "interrupted"

    def describe(self) -> dict[str, Any]:
        """Return how it went, ready for JSON; the gradients are a budget that repeats it."""
        return {
            "ended": self.ended,
            # Sums of thirds, rounded so that the number as a budget stops at the same place.
            "gradients": round(self.spent, 6),
            "seconds": time.monotonic() - self.started,
            "unfinished": [process.name for process in self.processes if not process.done],
            "unmeasured": {
                process.name: MEASURES[process.name].absent
                if process.done
                else _STOPPED[self.ended]
                for process in self.processes
                if not process.results
            },
        }

    def results(self) -> list[Result]:
        """Return the results of all, those that are not done with a status that says so."""
        unfinished = Status.INTERRUPTED if self.ended == "interrupted" else Status.BUDGET
        return [
            result if process.done else stopped(result, unfinished)
            for process in self.processes
            for result in process.results
        ]


def stopped(result: Result, status: Status) -> Result:
    """Return a result of a process that was stopped: one that said `converged` is not.

    >>> stopped(Result("loss", 0.5), Status.BUDGET).status
    <Status.BUDGET: 'budget'>
    """
    known = (Status.CONVERGED, Status.BUDGET)
    return replace(result, status=status) if result.status in known else result


def run_whole(name: str, session: "Session") -> Sequence[Result]:
    """Run one measure to its end, outside of a schedule, and return its results."""
    process = Process(name, session)
    while not process.done:
        process.advance()
    return process.results


@contextmanager
def named(name: str) -> Generator[None, None, None]:
    """Let an error of a measure from outside name it; flatkit's own stay as they are."""
    try:
        yield
    except Exception as error:  # the code of others may raise anything
        outsider = MEASURES.outsider(name)
        if not outsider or isinstance(error, FlatkitError):
            raise
        raise PluginError(f"{outsider} failed: {type(error).__name__}: {error}") from error
