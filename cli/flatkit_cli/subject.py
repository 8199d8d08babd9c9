"""Options that say what a checkpoint belongs to: a task file, or model, data and loss by name."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatkit.data import DATASETS
from flatkit.errors import InvalidArgumentError
from flatkit.models import MODELS
from flatkit_cli.assignments import parse_assignments

if TYPE_CHECKING:
    from flatkit.checkpoints import Checkpoint
    from flatkit.objective.task import Task

_LOSSES = ("cross_entropy", "token_cross_entropy", "mse")

_OPTIONS = (
    click.option(
        "--task",
        metavar="FILE.py:FUNCTION",
        help="Your function that returns flatkit.Task(model, loss, data); its code is run.",
    ),
    click.option(
        "--model", type=click.Choice(MODELS.names), help="Model, where the file names none."
    ),
    click.option(
        "--model-arg", multiple=True, metavar="NAME=VALUE", help="Its argument; repeatable."
    ),
    click.option("--data", type=click.Choice(DATASETS.names), help="Data set of that model."),
    click.option(
        "--data-arg", multiple=True, metavar="NAME=VALUE", help="Its argument; repeatable."
    ),
    click.option("--data-root", metavar="DIR", help="Folder of the data."),
    click.option("--loss", type=click.Choice(_LOSSES), help="[default: cross_entropy]"),
    click.option("--entry", metavar="NAME", help="Part of the file with the weights, e.g. ema."),
    click.option(
        "--rename",
        multiple=True,
        metavar="OLD=NEW",
        help="Names in the file that begin with OLD begin with NEW in the model; repeatable.",
    ),
    click.option(
        "--ignore",
        multiple=True,
        metavar="PATTERN",
        help="Names that may be in only one of file and model; repeatable.",
    ),
)
_NAMES = ("model", "data", "data_root", "loss", "task", "ignore")
_KEYS = (*_NAMES, "model_arg", "data_arg", "rename")
"""Of the options that complete a checkpoint."""


def subject_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_subject(options: dict[str, Any]) -> Callable[[Path], "Task"]:
    """Take these options out of all of a command, check them, and return what makes the tasks.

    Raises:
        InvalidArgumentError: they exclude each other, or are malformed.

    >>> options = {name: None for name in (*_NAMES, "entry")}
    >>> options |= {"model_arg": (), "data_arg": (), "rename": (), "seed": 3}
    >>> make = take_subject(options)
    >>> options
    {'seed': 3}
    """
    entry = options.pop("entry")
    given: dict[str, Any] = {name: options.pop(name) for name in _NAMES}
    given["ignore"] = given["ignore"] or ()
    for part in ("model", "data"):
        texts = options.pop(f"{part}_arg")
        given[f"{part}_args"] = parse_assignments(texts, f"--{part}-arg")
    given["rename"] = _renames(options.pop("rename"))

    from flatkit.checkpoints import load
    from flatkit.checkpoints.task_file import Parts, assemble

    parts = Parts(**given)
    return lambda path: assemble(load(path, entry=entry), parts)


def take_subjects(
    options: dict[str, Any],
) -> "Callable[[Path], Checkpoint | Callable[[], Task]]":
    """Return what makes the subjects of a command that may need no more of some than the weights.

    A checkpoint that needs no completion stays one: its data are built only where they are used.
    Of others, the function that it returns makes the task.

    Raises:
        InvalidArgumentError: see `take_subject`.
    """
    entry = options["entry"]
    completed = any(value for name, value in options.items() if name in _KEYS)
    make_task = take_subject(options)

    def make(path: Path) -> "Checkpoint | Callable[[], Task]":
        from flatkit.checkpoints import load

        return partial(make_task, path) if completed else load(path, entry=entry)

    return make


def _renames(texts: tuple[str, ...]) -> Mapping[str, str]:
    renames = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if not equals or not old:
            raise InvalidArgumentError(f"--rename must be OLD=NEW, got {text!r}")
        renames[old] = new
    return renames
