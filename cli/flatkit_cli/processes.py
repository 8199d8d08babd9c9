"""One command in several processes: started by `--processes N`, or by `torchrun`."""

import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatkit.checks import check_count
from flatkit.errors import FlatkitError, InvalidArgumentError
from flatkit_cli.launched import is_launched, speaks
from flatkit_cli.options import Command, F, option

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

_OURS = "FLATKIT_PROCESSES"
"""Stands in the environment of processes that `launch` started: there both ask for the same."""
_ERROR_FILE, _SAID = "TORCHELASTIC_ERROR_FILE", "said"
"""Where a process tells its launcher that it has said itself why it failed."""
_INTERRUPTED = 130
"""The exit code after Ctrl-C, which all of them get and the first tells of."""
_LINGER = 10.0
"""Seconds that a rank which failed waits before it speaks itself: the first one says why, and who
started them then ends the others."""


class SharedCommand(Command):
    """A command whose work several processes can share; `processes_option` adds its option."""

    def invoke(self, ctx: click.Context) -> Any:
        """Start the processes, or be one of them, or do all of it alone.

        Raises:
            InvalidArgumentError: both `processes` and torchrun ask for several.
        """
        count = ctx.params.pop("processes", None)
        if is_launched():
            if count is not None and _OURS not in os.environ:
                raise InvalidArgumentError(
                    f"processes must be left out under torchrun, which has started "
                    f"{os.environ['WORLD_SIZE']} already"
                )
            from flatkit.devices.joining import joined

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
    said = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(said):
        code = run()
    if code not in (0, _INTERRUPTED):
        time.sleep(_LINGER)
        here = f"error: rank {os.environ['RANK']}: "
        sys.stderr.write(said.getvalue().replace("error: ", here, 1))
    return _marked(code)


def _marked(code: int) -> int:
    """Return an exit code, and let `launch` know that it comes with a line that says why."""
    file = os.environ.get(_ERROR_FILE)
    if code and file and _OURS in os.environ:
        with suppress(OSError):  # then `launch` says a second line
            Path(file).write_text(json.dumps({"message": _SAID, "timestamp": int(time.time())}))
    return code


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run the command in so many processes, and return its exit code.

    Args:
        count: of the processes.
        arguments: of the command line.

    Raises:
        FlatkitError: one of them was killed.
    """
    import logging
    import uuid

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch").setLevel(logging.CRITICAL)  # what went wrong is said here
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.environ[_OURS] = str(count)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "flatkit_cli.main", *arguments)
    except ChildFailedError as error:
        return _code_of(error, count)
    except SignalException as error:  # the first process has said so
        return 128 + int(error.sigval)
    finally:
        del os.environ[_OURS]
    return 0


def _code_of(error: "ChildFailedError", count: int) -> int:
    """Return the exit code of the process that failed first, which has said why.

    Raises:
        FlatkitError: it was killed, or code of the model or data ended it, and it could not.
    """
    rank, failure = error.get_first_failure()
    if failure.message == _SAID:
        return max(failure.exitcode, 1)  # it may have been ended on its way out
    name = failure.signal_name()
    memory = ", perhaps as the memory was full" if name == "SIGKILL" else ""
    how = f"was killed by {name}{memory}"
    if failure.exitcode >= 0:
        how = f"ended itself with exit code {failure.exitcode}, as by `sys.exit` in its task"
    raise FlatkitError(
        f"rank {rank} of {count} {how}; the other processes were ended. "
        "The same command goes on where there is a journal, that of `json_file`"
    )
