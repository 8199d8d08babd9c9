"""The command `flatkit`: its subcommands, and how errors leave it.

Subcommands load when they are called, and torch when they run, so that help is quick.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from flatkit.checks import nearest
from flatkit.errors import FlatkitError, InvalidArgumentError, MismatchError, RankError
from flatkit.results.names import showable
from flatkit.version import __version__
from flatkit_cli.launched import is_launched
from flatkit_cli.options import flags_of, in_flags
from flatkit_cli.processes import as_rank
from flatkit_cli.spelling import spell_out

# With the words of their help, so that the list of commands imports none of them.
_COMMANDS = {
    "analyze": "measure curvature, flatness and landscape of a checkpoint",
    "compare": "measure checkpoints alike, or put saved reports side by side",
    "demo": "train SGD, SAM and GAM on digits, analyze and compare them",
    "info": "say what a checkpoint file is and holds",
    "landscape": "draw the loss around, between and along checkpoints",
    "plan": "say what an analysis of a checkpoint would take",
    "plot": "draw the figures of saved reports and surfaces again",
    "track": "measure every checkpoint of a training, as curves over its epochs",
    "study": "train several optimizers over seeds and judge what is claimed of them",
    "verify": "say whether the theory of flatness holds at a checkpoint",
    "train": "train a network with SGD, AdamW, SAM or GAM",
}

# 130 is 128 + SIGINT, as shells report a program that Ctrl-C has ended.
USAGE, FAILURE, INTERRUPTED = 2, 1, 130


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in _COMMANDS:
            return None
        return getattr(import_module(f"flatkit_cli.{cmd_name}"), cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that comes first; another word is answered with the nearest."""
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            ctx.fail(f"No such command {name!r}{nearest(name, _COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Measure how flat a minimum is, from the saved checkpoint.

\b
flatkit train --data digits --model mlp --optimizer gam --epochs 5 --out runs/gam
flatkit analyze runs/gam/ckpt.pt
""",
)
@click.version_option(__version__, prog_name="flatkit")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Take what belongs to all commands; `main` reads --debug itself."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0, 2 for wrong usage, 1 for failure, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    spell_out()
    return as_rank(lambda: _run(arguments)) if is_launched() else _run(arguments)


def _run(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    # Anywhere on the line, because that is where it is added after an error.
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        # Not standalone, where click would print errors itself and end the process. `obj` are the
        # words that `launch` gives to further processes.
        with _warnings_as_lines():
            code = cli.main(arguments, prog_name="flatkit", standalone_mode=False, obj=arguments)
        return code if isinstance(code, int) else 0
    # Before its parent: the help is the answer, and no line that begins with `error:`.
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return USAGE
    except click.ClickException as error:
        message = _one_line(error.format_message()).rstrip(".")
        click.echo(f"error: {message}{_hint(error)}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone; Python would complain at exit
        return FAILURE
    except Exception as error:
        return _report(error, _flags(arguments), debug)


@contextmanager
def _warnings_as_lines() -> Generator[None]:
    """Say warnings in a line each, without the place in the code, and flatkit's each time."""

    def say(message: Warning | str, *_: Any) -> None:
        click.echo(f"warning: {_one_line(str(message))}", err=True)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module="flatkit")
        warnings.showwarning = say
        yield


def with_flags(message: str, flags: Mapping[str, str], *, about_arguments: bool = True) -> str:
    """Return a message of the library with the flags in the place of its arguments.

    The library names an argument in backticks; a message that is about an argument also names it as
    its first word. Other words stay, as a list may hold a measure of the name of an argument.

    Args:
        message: of an error.
        flags: name of an argument -> its flag; one in backticks that is not among them is a flag
            of another command.
        about_arguments: whether it is.

    >>> with_flags("x_range must grow, got x; pass `overwrite`", {"x_range": "--range"})
    '--range must grow, got x; pass --overwrite'
    """
    message = in_flags(message, flags)
    if not about_arguments:
        return message
    first = message.partition(" ")[0]
    return flags.get(first, first) + message.removeprefix(first)


def _flags(arguments: list[str]) -> Mapping[str, str]:
    """Return the flags of the command that was called; the group itself has only `--debug`."""
    # The first word is the command, as no option of the group takes a value.
    name = next((argument for argument in arguments if not argument.startswith("-")), "")
    command = cli.get_command(click.Context(cli), name)
    return flags_of(command) if command is not None else {}


def _report(error: Exception, flags: Mapping[str, str], debug: bool) -> int:
    if debug:
        traceback.print_exc()
    # Its table keeps its lines; every other error is one line.
    if isinstance(error, MismatchError):
        text = with_flags(str(error), flags, about_arguments=False)
        click.echo(f"error: {text}", err=True)
        return FAILURE
    if isinstance(error, FlatkitError):
        wrong_usage = isinstance(error, InvalidArgumentError)
        text = with_flags(str(error), flags, about_arguments=wrong_usage)
        click.echo(f"error: {_one_line(text)}", err=True)
        return USAGE if wrong_usage else FAILURE
    # A fault of ours, or of code of the user. The type is said, as the text may be empty.
    kind, text = type(error).__name__, _one_line(str(error)) or "no message"
    message = f"{kind}: {text}"
    if is_launched():
        rank, count = os.environ["RANK"], os.environ["WORLD_SIZE"]
        message = str(RankError.of(rank, count, kind, text))
    click.echo(f"error: {message} (unexpected; --debug shows where)", err=True)
    return FAILURE


def _one_line(text: str) -> str:
    return showable(" ".join(text.split()))


def _hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"; see '{context.command_path} --help'" if context is not None else ""


if __name__ == "__main__":
    sys.exit(main())
