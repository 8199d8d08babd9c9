"""One tree of errors; each child also inherits the builtin that it refines.

`flatkit` on the command line answers `InvalidArgumentError` with exit code 2 and every other
`FlatkitError` with exit code 1, in one line.
"""

from typing import Any


class FlatkitError(Exception):
    """Base of every error that flatkit raises on purpose."""


class InvalidArgumentError(FlatkitError, ValueError):
    """An argument is outside what is allowed; the message names it, the range and the fix."""


class MissingDependencyError(FlatkitError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""


class PluginError(FlatkitError, ImportError):
    """A package adds something to flatkit, and cannot be imported or takes a name that is taken."""


class DataError(FlatkitError, ValueError):
    """The files of a data set are missing, damaged or of another kind."""


class CheckpointError(FlatkitError, ValueError):
    """A file is not a checkpoint that can be read safely."""


class MismatchError(CheckpointError):
    r"""The tensors of a file do not fit a model; `details` is a table of a line each.

    >>> str(MismatchError("a.pt and the model do not fit", "missing  bias"))
    'a.pt and the model do not fit\nmissing  bias'
    """

    def __init__(self, message: str, details: str) -> None:
        super().__init__(f"{message}\n{details}")
        self.message, self.details = message, details


class TaskError(FlatkitError, RuntimeError):
    """A task file cannot be loaded or builds no task; the message names the line of the file."""


class UserCodeError(FlatkitError, RuntimeError):
    """A model, loss, data set or the like that the user wrote fails; the message shows the line."""


class ResultError(FlatkitError, ValueError):
    """A saved result is malformed, or a value may not be stored as a result."""


class NothingToDrawError(ResultError):
    """The results hold nothing that a figure shows."""


class UnknownNameError(ResultError, KeyError):
    """A report, comparison or surface holds nothing of a name; the message names what it holds.

    >>> str(UnknownNameError("no trase"))  # that of a KeyError stands in quotes
    'no trase'
    """

    __str__ = Exception.__str__


class OutputError(FlatkitError, OSError):
    """An output cannot be written."""


class NonFiniteError(FlatkitError, ArithmeticError):
    """A loss, gradient or product is NaN or infinite where a number was needed."""


class NonFiniteWeightsError(CheckpointError, NonFiniteError):
    """Weights of a checkpoint are NaN or infinite: its training diverged."""


class NonDeterministicError(FlatkitError, RuntimeError):
    """The objective gives different values at the same point; the message names the cause."""


class NotSymmetricError(FlatkitError, ArithmeticError):
    """An operator that must be symmetric is not."""


class NonAdditiveLossError(FlatkitError, ValueError):
    """The loss of a batch is not the mean of the losses of its samples."""


class WrongGradientError(FlatkitError, ArithmeticError):
    """What autograd gives is not the derivative of the loss, or the loss has none at the point."""


class TrainingDivergedError(NonFiniteError):
    """The training loss became NaN or infinite; the last good checkpoint is kept."""


class RankError(FlatkitError, RuntimeError):
    """One of several processes that share a job failed, or is not like the others."""

    @classmethod
    def of(cls, rank: int | str, count: int | str, kind: str, text: str) -> "RankError":
        """Return what says which of so many ranks failed, and by what error.

        >>> str(RankError.of(1, 2, "MemoryError", "no room"))
        'rank 1 of 2 failed: MemoryError: no room'
        """
        return cls(f"rank {rank} of {count} failed: {kind}" + (f": {text}" if text else ""))


class LostRankError(RankError):
    """One of several processes that share a job is gone."""


class InterruptedAnalysis(KeyboardInterrupt):
    """An analysis was stopped by Ctrl-C.

    Attributes:
        report: what was measured until then, a `flatkit.Report`.
    """

    def __init__(self, report: Any) -> None:
        super().__init__()
        self.report = report
