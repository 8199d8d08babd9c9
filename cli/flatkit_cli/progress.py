"""Progress of a training on stderr: a bar on a terminal, about ten lines in a log."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import click

if TYPE_CHECKING:
    from flatkit.training import EpochRow

Reporters: TypeAlias = "tuple[Callable[[EpochRow], None], Callable[[str], None]]"

_LINES = 10


@contextmanager
def progress(epochs: int) -> Generator[Reporters, None, None]:
    """Yield `on_epoch` and `on_note` for a run of so many epochs; nothing goes to stdout."""
    # In a log a bar would be thousands of lines that write over each other.
    if not sys.stderr.isatty():
        yield _line_reporter(epochs), _note
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("epoch"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=epochs)

        def on_epoch(row: "EpochRow") -> None:
            bar.update(task, completed=row.epoch, description=_text(row))

        # By the console of the bar, which stays below; brackets in a note are no markup.
        yield on_epoch, lambda text: console.print(text, markup=False, highlight=False)


def _line_reporter(epochs: int) -> "Callable[[EpochRow], None]":
    every = max(1, epochs // _LINES)

    def on_epoch(row: "EpochRow") -> None:
        if row.epoch % every == 0 or row.epoch == epochs:
            _note(f"epoch {row.epoch}/{epochs}  {_text(row)}")

    return on_epoch


def _note(text: str) -> None:
    click.echo(text, err=True)


def _text(row: "EpochRow") -> str:
    skipped = f"  {row.skipped} steps skipped so far (float16 overflow)" if row.skipped else ""
    if row.train_loss is None:
        return f"{row.seconds:.1f} s, not evaluated{skipped}"
    judged = f"test loss {row.test_loss:.4f}"
    if row.test_accuracy is not None:
        judged = f"test accuracy {row.test_accuracy:.4f}"
    return f"loss {row.train_loss:.4f}  {judged}{skipped}"
