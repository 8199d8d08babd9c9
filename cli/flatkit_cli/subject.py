"""Options that say what a checkpoint belongs to: a task file, or model, data and loss by name."""

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatkit.checkpoints.parts import Parts
from flatkit.errors import CheckpointError, InvalidArgumentError, ResultError
from flatkit_cli.options import F, option, setting_options, take_settings

if TYPE_CHECKING:
    from flatkit.checkpoints import Checkpoint
    from flatkit.objective.task import Task


def subject_options(command: F) -> F:
    """Add the options."""
    entry = option(
        "--entry",
        metavar="NAME",
        group="Checkpoint",
        help="Part of the file with the weights, e.g. ema.",
    )
    return setting_options(Parts)(entry(command))


def take_subject(options: dict[str, Any]) -> Callable[[Path], "Task"]:
    """Take these options out of all of a command, check them, and return what makes the tasks.

    Raises:
        InvalidArgumentError: they exclude each other, or are malformed.

    >>> options = {"model": "mlp", "data": "digits", "entry": None, "seed": 3}
    >>> make = take_subject(options)
    >>> options
    {'seed': 3}
    """
    entry, parts = options.pop("entry"), Parts(**take_settings(Parts, options))

    def make(path: Path) -> "Task":
        refuse_report(path)
        from flatkit.checkpoints.loading import load
        from flatkit.checkpoints.task_file import assemble

        return assemble(load(path, entry=entry), parts)

    return make


def take_subjects(
    options: dict[str, Any],
) -> "Callable[[Path], Checkpoint | Callable[[], Task]]":
    """Return what makes the subjects of a command that may need no more of some than the weights.

    A checkpoint that needs no completion stays one: its data are built only where they are used.
    For others it returns the function that makes the task.

    Raises:
        InvalidArgumentError: see `take_subject`.
    """
    # Of a copy, as `take_subject` takes them out of the options.
    entry, completed = options["entry"], bool(take_settings(Parts, dict(options)))
    make_task = take_subject(options)

    def make(path: Path) -> "Checkpoint | Callable[[], Task]":
        refuse_report(path)
        from flatkit.checkpoints.loading import load
        from flatkit.checkpoints.readers.reader import check_kind

        if not completed:
            return load(path, entry=entry)
        # Its turn may come after hours; what is no checkpoint is refused now.
        check_kind(path)
        return partial(make_task, path)

    return make


def check_subjects(paths: Sequence[Path]) -> None:
    """Refuse what is no checkpoint, or is named twice, before the first is measured.

    Raises:
        InvalidArgumentError: a path is given twice.
        CheckpointError: a file is missing, or none of a checkpoint.
    """
    from flatkit.checkpoints.readers.reader import check_kind

    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise InvalidArgumentError(f"{path} is given twice; name every file once")
        refuse_report(path)
        check_kind(path)


def refuse_report(path: Path) -> None:
    """Refuse a saved report in the place of a checkpoint, and say which command takes it.

    Raises:
        CheckpointError: the file is a report or a comparison.
    """
    # Only what is called a report is looked into: weights may be gigabytes.
    if path.suffix != ".json" or not path.is_file():
        return
    from flatkit.results.comparison import load_results

    try:
        load_results(path)
    except ResultError:
        return  # an index of shards perhaps, which the readers of checkpoints know
    name = shlex.quote(str(path))
    raise CheckpointError(
        f"{path} is a report, not a checkpoint: flatkit compare {name} shows it, "
        f"flatkit plot {name} --figures DIR draws it"
    )
