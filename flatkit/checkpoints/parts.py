"""What a checkpoint is to be completed with, where it names no model; no torch, for the CLI."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatkit.data import DATASETS
from flatkit.errors import InvalidArgumentError
from flatkit.models import MODELS
from flatkit.objective.names import LOSSES
from flatkit.settings import described, setting

_NO_ARGUMENTS: dict[str, Any] = {}


def file_of(spec: str, what: str) -> Path:
    """Return the file of a function of the user, without running it.

    Args:
        spec: `FILE.py:FUNCTION`.
        what: the function is for, in messages.

    Raises:
        InvalidArgumentError: not of this form, or there is no such file.

    >>> file_of("mine.py", "trainer")
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: trainer must be FILE.py:FUNCTION, got 'mine.py'
    """
    name, colon, function = spec.rpartition(":")
    path = Path(name)
    if not colon or path.suffix != ".py" or not function.isidentifier():
        raise InvalidArgumentError(f"{what} must be FILE.py:FUNCTION, got {spec!r}")
    if not path.is_file():
        raise InvalidArgumentError(
            f"{what} names {path}, and there is no such file in {Path.cwd()}"
        )
    return path


def file_digest(spec: str, what: str) -> str:
    """Return the SHA-256 of the file of a function of the user; not of what it imports.

    Raises:
        InvalidArgumentError: as `file_of`.
    """
    return hashlib.sha256(file_of(spec, what).read_bytes()).hexdigest()


@described
@dataclass(frozen=True)
class Parts:
    """What a checkpoint is to be completed with.

    The arguments of a model that the data know (`in_shape`, `classes`) come from them.

    Raises:
        InvalidArgumentError: parts that exclude each other.

    >>> Parts(task="a.py:build", model="mlp")
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: task builds model, loss and data; leave out `model`
    """

    task: str | None = setting(
        None,
        "Your function that returns flatkit.Task(model, loss, data); its code is run.",
        group="Checkpoint",
        metavar="FILE.py:FUNCTION",
    )
    model: str | None = setting(
        None, "Model, where the file names none.", group="Checkpoint", choices=MODELS
    )
    model_args: Mapping[str, Any] = setting(
        _NO_ARGUMENTS, "Its argument.", group="Checkpoint", flags=("--model-arg",)
    )
    data: str | None = setting(
        None, "Data set of that model.", group="Checkpoint", choices=DATASETS
    )
    data_args: Mapping[str, Any] = setting(
        _NO_ARGUMENTS, "Its argument.", group="Checkpoint", flags=("--data-arg",)
    )
    data_root: str | None = setting(None, "Folder of the data.", group="Checkpoint", metavar="DIR")
    loss: str | None = setting(
        None,
        "Loss of that model.",
        group="Checkpoint",
        choices=LOSSES,
        default_text="cross_entropy",
    )
    rename: Mapping[str, str] = setting(
        {}, "Names in the file that begin with OLD begin with NEW in the model.", group="Checkpoint"
    )
    ignore: Sequence[str] = setting(
        (),
        "Names that may be in only one of file and model.",
        group="Checkpoint",
        metavar="PATTERN[,PATTERN]",
    )
    allow_uninitialised: bool = setting(
        False,
        "Let ignored weights of the model stay as it was built, at random.",
        group="Checkpoint",
    )

    def __post_init__(self) -> None:
        """Check which parts go together."""
        if self.task is not None:
            others = ("model", "model_args", "data", "data_args", "data_root", "loss")
            given = [f"`{name}`" for name in others if getattr(self, name)]
            if given:
                raise InvalidArgumentError(
                    f"task builds model, loss and data; leave out {', '.join(given)}"
                )
        for part in ("model", "data"):
            if getattr(self, f"{part}_args") and getattr(self, part) is None:
                raise InvalidArgumentError(f"{part}_args need `{part}`, the name they belong to")
        if self.model is not None and self.data is None:
            raise InvalidArgumentError("model needs `data`, the name of a data set")

    @property
    def complete(self) -> bool:
        """Whether they name a model; else the checkpoint must."""
        return self.task is not None or self.model is not None
