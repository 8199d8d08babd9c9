"""One command in several processes: started by `--processes N`, or by `torchrun`."""

import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatkit.checks import check_count
from flatkit.errors import FlatkitError, InvalidArgumentError
from flatkit_cli.launched import is_launched, speaks
from flatkit_cli.options import Command, F, option

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

_INTERRUPTED = 130
"""The exit code after Ctrl-C, which all of them get and the first tells of."""
_GOES_ON = "The same command goes on from what it has kept, as in the journal of --json"
_LINGER = 10.0
"""Seconds that a rank which failed waits before it speaks itself: the first one says why, and who
started them then ends the others."""


class SharedCommand(Command):
    """A command whose work several processes can share; `processes_option` adds its option."""

    def invoke(self, ctx: click.Context) -> Any:
        """Start the processes, or be one of them, or do all of it alone.

        Raises:
            InvalidArgumentError: it is given twice, or both it and torchrun ask for several.
        """
        # Taken out: the functions of commands know nothing of processes.
        given = ctx.params.pop("processes", ())
        if len(given) > 1:
            raise InvalidArgumentError(f"processes must be given once, got {given}")
        count = given[0] if given else None
        if is_launched():
            from flatkit.devices.joining import joined
            from flatkit.devices.words import NOTES

            # The processes that `launch` starts have the option on their line, too, and its folder.
            if count is not None and NOTES not in os.environ:
                raise InvalidArgumentError(
                    f"processes must be left out under torchrun, which has started "
                    f"{os.environ['WORLD_SIZE']} already"
                )
            with joined():
                return click.Command.invoke(self, ctx)
        if count is None or check_count("processes", count) == 1:
            return click.Command.invoke(self, ctx)
        raise click.exceptions.Exit(launch(count, ctx.find_root().obj))


def processes_option(command: F) -> F:
    """Add `--processes`."""
    return option(
        "--processes",
        type=int,
        multiple=True,
        metavar="N",
        group="Processes",
        help="Share the work among N processes of this machine; the numbers are those of one, to "
        "rounding. For several machines start this command by torchrun.  [default: 1]",
    )(command)


def as_rank(run: Callable[[], int]) -> int:
    """Return the exit code of one of several processes; all but the first are silent.

    One that fails alone speaks after a while, if the first has not ended by then.
    """
    # Else a rank that outlives the first by a moment prints the stack of its lost connection.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if speaks():
        return _marked(run())
    said, parent = io.StringIO(), os.getppid()
    # What a silent rank says is kept: where it fails alone, nobody else knows why.
    with redirect_stdout(io.StringIO()), redirect_stderr(said):
        code = run()
    if code == _INTERRUPTED:
        return code
    if code:
        from flatkit.devices.words import is_told

        time.sleep(_LINGER)
        if is_told(parent):
            return code
        here = f"error: rank {os.environ['RANK']}: "
        sys.stderr.write(re.sub("^error: (?!rank )", here, said.getvalue(), count=1, flags=re.M))
    return _marked(code)


def _marked(code: int) -> int:
    """Return an exit code, and let `launch` know that it comes with a line that says why."""
    if code:
        from flatkit.devices.words import note

        note(code)
    return code


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run the command in so many processes, and return its exit code.

    Args:
        count: of the processes.
        arguments: of the command line.

    Raises:
        FlatkitError: one of them was killed.
    """
    import uuid

    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Else each would take all cores, and they would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    with _notes() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            # Port 0: the system chooses a free one, also for two commands at once.
            rdzv_endpoint="localhost:0",
            # What failed on this input would fail again; going on is what the journal is for.
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(str(folder / "torch")),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "flatkit_cli.main", *arguments)
        except ChildFailedError as error:
            return _code_said(folder) or _unsaid(error, count)
        except SignalException as error:
            if not _code_said(folder):
                is_ctrl_c, name = error.sigval == signal.SIGINT, error.sigval.name
                said = "interrupted" if is_ctrl_c else f"error: ended by {name}. {_GOES_ON}"
                click.echo(said, err=True)
            # As a shell says which signal has ended a program.
            return 128 + int(error.sigval)
    return 0


@contextmanager
def _notes() -> Generator[Path]:
    """Make the folder of notes; torch logs nothing, as what went wrong is said here."""
    import logging
    import tempfile

    from flatkit.devices.words import NOTES

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="flatkit-") as folder:
        os.environ[NOTES] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ[NOTES]
            logging.disable(before)


def _code_said(folder: Path) -> int:
    """Return the exit code of the first process that has said why it failed; 0 if none has."""
    codes = [path for path in sorted(folder.iterdir()) if path.is_file()]
    return int(codes[0].read_text() or 1) if codes else 0


def _unsaid(error: "ChildFailedError", count: int) -> int:
    """Say how the process ended that failed first, and could not say it.

    Raises:
        FlatkitError: always.
    """
    rank, failure = error.get_first_failure()
    name = failure.signal_name()
    memory = ", perhaps as the memory was full" if name == "SIGKILL" else ""
    how = f"was killed by {name}{memory}"
    if failure.exitcode == _INTERRUPTED:
        how = "was interrupted alone"
    elif failure.exitcode >= 0:
        how = f"ended itself with exit code {failure.exitcode}, as by `os._exit` in its task"
    raise FlatkitError(f"rank {rank} of {count} {how}; the other processes were ended. {_GOES_ON}")
