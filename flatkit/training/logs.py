"""The rows of a run, epoch by epoch, where other programs look: CSV and TensorBoard.

Both logs are called with an `EpochRow`, by the trainer (`log=("csv", "tensorboard")`) or by a loop
of your own.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, final

from flatkit.errors import MissingDependencyError, OutputError
from flatkit.files.atomic import make_folder, write_text_atomically
from flatkit.training.history import EpochRow

LOGS = ("csv", "tensorboard")


@final
class CsvLog:
    """A CSV file with one row an epoch, whole after every epoch; empty cells were not measured.

    Args:
        path: the file; written anew.
        rows: what a resumed run has done already.

    >>> import tempfile
    >>> log = CsvLog(Path(tempfile.mkdtemp()) / "history.csv")
    >>> log(EpochRow(1, 0.1, 2.0, 0.5, 2.5, 0.25, gradients=23, seconds=0.5))
    >>> log.path.read_text().splitlines()[1]
    '1,0.1,2.0,0.5,2.5,0.25,23,0.5,,,,,,,,,'
    """

    def __init__(self, path: str | Path, rows: Sequence[EpochRow] = ()) -> None:
        self.path = Path(path)
        self._rows = list(rows)

    def __call__(self, row: EpochRow) -> None:
        """Add a row.

        Raises:
            OutputError: the file cannot be written.
        """
        # All rows again: a file that only grows can end in half a row.
        self._rows.append(row)
        stream = io.StringIO()
        columns = [item.name for item in fields(EpochRow)]
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.to_dict() for row in self._rows)
        write_text_atomically(self.path, stream.getvalue())

    def close(self) -> None:
        """Do nothing: the file is whole already."""


@final
class ScalarLog:
    """Numbers by name and step, as TensorBoard reads them.

    Args:
        folder: of the event files.
        after: the last step done; later ones that a killed run left are hidden.

    Raises:
        MissingDependencyError: tensorboard is not installed.
        OutputError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path, *, after: int = 0) -> None:
        writer = _summary_writer()
        make_folder(folder)
        # TensorBoard hides from this step on what the killed run wrote; files of events only grow.
        self._writer = writer(str(folder), purge_step=after + 1)

    def __call__(self, scalars: Mapping[str, float], step: int) -> None:
        """Add the numbers of a step.

        Raises:
            OutputError: they cannot be written.
        """
        try:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)
            # By default it writes every two minutes, and a kill would lose what waits.
            self._writer.flush()
        except OSError as error:
            raise OutputError(f"cannot write the log of TensorBoard: {error}") from error

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


@final
class TensorBoardLog:
    """Scalars of every epoch as TensorBoard reads them: `loss/train`, `accuracy/test`, `lr`, ...

    Args:
        folder: of the event files.
        after: the last epoch done; later ones that a killed run left are hidden.

    Raises:
        MissingDependencyError: tensorboard is not installed.
        OutputError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path, *, after: int = 0) -> None:
        self._log = ScalarLog(folder, after=after)

    def __call__(self, row: EpochRow) -> None:
        """Add the numbers of a row.

        Raises:
            OutputError: they cannot be written.
        """
        values = row.to_dict().items()
        known = {_tag(name): v for name, v in values if name != "epoch" and v is not None}
        self._log(known, row.epoch)

    def close(self) -> None:
        """Close the event file."""
        self._log.close()


def check_logs(names: Sequence[str]) -> None:
    """Refuse logs that cannot be written here, before anything is done.

    Raises:
        MissingDependencyError: the package of a log is not installed.
    """
    if "tensorboard" in names:
        _summary_writer()


def open_logs(names: Sequence[str], folder: Path, rows: Sequence[EpochRow]) -> list[Any]:
    """Return the logs of a run in `folder`, which has done `rows`.

    Raises:
        MissingDependencyError: the package of a log is not installed.
    """
    logs: list[Any] = []
    if "csv" in names:
        logs.append(CsvLog(folder / "history.csv", rows))
    if "tensorboard" in names:
        logs.append(TensorBoardLog(folder / "tensorboard", after=len(rows)))
    return logs


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            "the log tensorboard needs tensorboard: pip install 'flatkit[tensorboard]'"
        ) from error
    return SummaryWriter


def _tag(name: str) -> str:
    split, _, quantity = name.rpartition("_")  # train_loss, average_test_accuracy, lr
    return f"{quantity}/{split}" if split else quantity
