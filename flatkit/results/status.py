"""How a measurement ended, and what that means for its value."""

from enum import Enum


class Status(str, Enum):
    """How a measurement ended. It is written to JSON as its value.

    Attributes:
        advice: what the status means for the value, and what helps; empty where all is well.

    >>> Status("budget") is Status.BUDGET, str(Status.BUDGET), Status.BUDGET == "budget"
    (True, 'budget', True)
    >>> Status.CONVERGED.advice
    ''
    """

    advice: str

    CONVERGED = "converged", ""
    BUDGET = (
        "budget",
        "the budget ran out before the tolerance was met; value and error hold, "
        "more work may sharpen them",
    )
    INTERRUPTED = (
        "interrupted",
        "stopped before the tolerance was met; value and error hold, the same command goes on",
    )
    ROUNDING = (
        "rounding",
        "rounding of the dtype is as large as the tolerance; a wider one helps, more work does not",
    )
    RANK = (
        "rank",
        "an eigenvalue, but what was seen does not rule out others beyond it within the tolerance; "
        "the error says how far these may lie, more products settle it",
    )
    MULTIPLICITY = (
        "multiplicity",
        "an eigenvalue may be a multiple one that is reported too few times; the error "
        "says by how much that would displace the others",
    )
    NOT_SMOOTH = (
        "not_smooth",
        "the point lies on a kink, where the loss has no such derivative: the number is that of "
        "the side which autograd takes, and another one on the other side; `smooth` in the "
        "examination names the weights and the ways out",
    )
    KINKS = (
        "kinks",
        "the gradient jumps where the search ended, as in a piecewise linear network; the "
        "bound holds, and a larger budget may raise it",
    )
    SEARCH_MISSED_MAXIMUM = (
        "search_missed_maximum",
        "another search proves that a larger value exists in the ball; the bound holds but is "
        "loose",
    )
    UNCHECKED_STOP = (
        "unchecked_stop",
        "PyHessian stops when its estimate changes little; the residual beside it is computed here",
    )
    DISAGREEMENT = (
        "disagreement",
        "flatkit and PyHessian differ by more than their residuals allow",
    )

    def __new__(cls, value: str, advice: str) -> "Status":
        """Make a member that equals its value and carries its advice."""
        member = str.__new__(cls, value)
        # The advice is no part of the value, by which files and comparisons know a status.
        member._value_ = value
        member.advice = advice
        return member

    def __str__(self) -> str:
        return str(self.value)


def known_status(text: str) -> Status | str:
    """Return the status of a name; a name that this version does not know stays what it is.

    >>> known_status("budget"), known_status("tired")
    (<Status.BUDGET: 'budget'>, 'tired')
    """
    # A file of a later version is still read: its unknown status counts as not converged.
    return next((status for status in Status if status.value == text), text)


def advice(status: str) -> str:
    """Return what a status means for the value.

    >>> advice("rounding"), advice("tired")
    ('rounding of the dtype is as large as the tolerance; a wider one helps, more work does not',
     'the measurement did not converge')
    """
    known = known_status(status)
    return known.advice if isinstance(known, Status) else "the measurement did not converge"


def in_words(status: str) -> str:
    """Return a status as tables show it.

    >>> in_words(Status.SEARCH_MISSED_MAXIMUM)
    'search missed maximum'
    """
    return str(status).replace("_", " ")
