"""The history of a run: one row an epoch, in a JSON file that needs no torch to read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from flatkit.errors import ResultError
from flatkit.files.atomic import write_text_atomically

SCHEMA = 1


@dataclass(frozen=True)
class EpochRow:
    """What one epoch did.

    Attributes:
        epoch: from 1.
        lr: learning rate of its steps.
        train_loss: mean over all training samples after the epoch, model in eval mode, with the
            label smoothing of the training and without augmentation. Like the next three, None
            after an epoch that was not evaluated.
        train_accuracy: the same model and samples, in [0, 1].
        test_loss: as `train_loss`, over the test samples.
        test_accuracy: as `train_accuracy`, over the test samples.
        gradients: gradients of batches since the start of the run; a step of SAM takes two.
        seconds: wall-clock time of the epoch with its evaluation.
        average_test_loss: as `test_loss`, of the moving average of the weights; None without one.
        average_test_accuracy: as `average_test_loss`, of the accuracy.
        rho: radius ρ of its steps; None with an optimizer that has none.
        validation_loss: as `train_loss`, over the samples that choose settings; None without such.
        validation_accuracy: as `train_accuracy`, over the same samples as `validation_loss`.
        clean_train_accuracy: on the training samples by their right labels, where some were made
            wrong.
        train_gradient_norm: of the gradient of `train_loss`, if it was asked for.
        test_gradient_norm: as `train_gradient_norm`, of `test_loss`.
        skipped: steps since the start of the run that were not made, because scaled gradients
            overflowed float16; None in another precision.
    """

    epoch: int
    lr: float
    train_loss: float | None
    train_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    gradients: int
    seconds: float
    average_test_loss: float | None = None
    average_test_accuracy: float | None = None
    rho: float | None = None
    skipped: int | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    clean_train_accuracy: float | None = None
    train_gradient_norm: float | None = None
    test_gradient_norm: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "EpochRow":
        """Read a row back; keys of later versions are ignored, those of earlier ones suffice.

        Raises:
            ResultError: a key is missing or its value is no number.

        >>> row = EpochRow(1, 0.1, 2.0, 0.5, 2.5, 0.25, gradients=23, seconds=0.5)
        >>> EpochRow.from_dict(row.to_dict()) == row
        True
        """
        # Columns came with time: a row of before lacks the later ones, which have defaults.
        values = {item.name: data.get(item.name, item.default) for item in fields(cls)}
        bad = [
            name
            for name, value in values.items()
            if not isinstance(value, (int, float))
            and not (
                value is None and name.endswith(("_loss", "_accuracy", "_norm", "rho", "skipped"))
            )
        ]
        if bad:
            raise ResultError(f"malformed row of a history: no number for {', '.join(bad)}")
        return cls(**values)


def write_history(path: str | Path, rows: Sequence[EpochRow]) -> Path:
    """Write the rows as one JSON file, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    text = json.dumps({"schema": SCHEMA, "rows": [row.to_dict() for row in rows]}, indent=1)
    return write_text_atomically(path, text + "\n")


def read_history(path: str | Path) -> tuple[EpochRow, ...]:
    """Read the rows of a `history.json`.

    Raises:
        ResultError: the file is missing, or not a history.

    >>> import tempfile
    >>> row = EpochRow(1, 0.1, 2.0, 0.5, 2.5, 0.25, gradients=23, seconds=0.5)
    >>> read_history(write_history(tempfile.mkdtemp() + "/history.json", [row])) == (row,)
    True
    """
    try:
        data = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ResultError(f"{path} is not a history: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ResultError(f"{path} is not a history of schema {SCHEMA}")
    rows = data.get("rows", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ResultError(f"{path} is not a history: its `rows` are no list of epochs")
    return tuple(EpochRow.from_dict(row) for row in rows)
