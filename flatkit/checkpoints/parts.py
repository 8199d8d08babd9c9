"""What a checkpoint is to be completed with, where it names no model; no torch, for the CLI."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from flatkit.checks import check_choice, check_count
from flatkit.data import DATASETS
from flatkit.errors import InvalidArgumentError
from flatkit.models import MODELS
from flatkit.objective.names import LOSSES
from flatkit.settings import described, setting

_OF_MODELS = ("model", "model_args", "data", "data_args", "data_root", "loss")
_NO_ARGUMENTS: dict[str, Any] = {}


def check_length(name: str, value: Any) -> int:
    """Return a number of tokens: one to predict, and one before it.

    >>> check_length("text_length", 1)
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: text_length must be a whole number >= 2, got 1
    """
    return check_count(name, value, minimum=2)


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
    texts: Sequence[str] = setting(
        (),
        "Text that a causal language model in a folder of Hugging Face is measured on.",
        group="Checkpoint",
        metavar="FILE[,FILE]",
    )
    test_texts: Sequence[str] = setting(
        (), "Text that it was not trained on.", group="Checkpoint", metavar="FILE[,FILE]"
    )
    text_layout: Literal["blocks", "lines"] = setting(
        "blocks",
        "Samples of such text: blocks of tokens, or each line by itself.",
        group="Checkpoint",
    )
    text_length: int | None = setting(
        None,
        "Tokens of a sample at most.",
        check=check_length,
        group="Checkpoint",
        default_text="as many as the model takes, at most 256",
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
        check_choice("text_layout", self.text_layout, ("blocks", "lines"))
        for name in ("texts", "test_texts"):
            if isinstance(files := getattr(self, name), str):
                raise InvalidArgumentError(f"{name} must be a list of files, [{files!r}]")
        if self.text_length is not None:
            check_length("text_length", self.text_length)
        of_texts = ("test_texts", "text_layout", "text_length")
        if not self.texts and (given := self._changed(of_texts)):
            raise InvalidArgumentError(f"{', '.join(given)} need `texts`, which they are about")
        if self.texts and (given := self._changed(("task", *_OF_MODELS))):
            raise InvalidArgumentError(
                f"texts are for the model in a folder of Hugging Face; leave out {', '.join(given)}"
            )
        if self.task is not None and (given := self._changed(_OF_MODELS)):
            raise InvalidArgumentError(
                f"task builds model, loss and data; leave out {', '.join(given)}"
            )
        for part in ("model", "data"):
            if getattr(self, f"{part}_args") and getattr(self, part) is None:
                raise InvalidArgumentError(f"{part}_args need `{part}`, the name they belong to")
        # Shapes and classes of the model come from its data.
        if self.model is not None and self.data is None:
            raise InvalidArgumentError("model needs `data`, the name of a data set")

    @property
    def complete(self) -> bool:
        """Whether they name a model; else the checkpoint must."""
        return self.task is not None or self.model is not None or bool(self.texts)

    def _changed(self, names: Sequence[str]) -> list[str]:
        """Return those of some settings that were given, as a message names them."""
        usual = {field.name: field.default for field in fields(self)}
        return [f"`{name}`" for name in names if getattr(self, name) not in (usual[name], {})]
