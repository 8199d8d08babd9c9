"""Functions called in processes of their own, several at once.

A process of `multiprocessing` runs the script of the user again, unless that guards its main part,
and a fork does not survive threads. These are fresh interpreters that import what they are asked to
call, on every system alike. They end when this process does.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, BinaryIO, TypeVar

from flatkit.checks import check_count
from flatkit.errors import FlatkitError

T = TypeVar("T")

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def usable_cores() -> int:
    """Return how many cores this process may use.

    >>> usable_cores() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_processes(
    function: Callable[..., T], calls: Sequence[Sequence[Any]], *, jobs: int, threads: int = 1
) -> Generator[tuple[int, T], None, None]:
    """Yield the number and answer of every call, as they are done; calls begin in their order.

    A call is computed alike whatever runs beside it, as every process has so many threads. Where
    this generator is closed, or a call fails, the others are stopped.

    Args:
        function: of a module that can be imported; it and all arguments and answers are pickled.
        calls: the arguments of each.
        jobs: how many processes at once.
        threads: of each process.

    Raises:
        FlatkitError: a process died. What a call raises is raised here.

    >>> import math
    >>> sorted(in_processes(math.sqrt, [(4.0,), (9.0,)], jobs=1))
    [(0, 2.0), (1, 3.0)]
    """
    count = min(check_count("jobs", jobs), max(1, len(calls)))
    idle: SimpleQueue[_Worker] = SimpleQueue()
    workers = [_Worker(threads) for _ in range(count)]
    for worker in workers:
        idle.put(worker)

    def call(arguments: Sequence[Any]) -> T:
        worker = idle.get()
        try:
            return worker.call(function, arguments)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(call, arguments) for arguments in calls]
        try:
            yield from _as_done(futures)
        finally:
            for future in futures:
                future.cancel()
            for worker in workers:
                worker.stop()


def _as_done(futures: "Sequence[Future[T]]") -> Generator[tuple[int, T], None, None]:
    numbers = {future: number for number, future in enumerate(futures)}
    left = set(futures)
    while left:
        done, left = wait(left, return_when=FIRST_COMPLETED)
        for future in sorted(done, key=numbers.__getitem__):
            yield numbers[future], future.result()


class _Worker:
    """An interpreter that calls functions, one after another.

    Args:
        threads: of its numerical libraries.
    """

    def __init__(self, threads: int) -> None:
        code = (
            f"import sys; sys.path = {sys.path!r}; "
            f"from {__name__} import serve; serve()"  # by name: this file is its own protocol
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **dict.fromkeys(_THREADS, str(threads))},
        )

    def call(self, function: Callable[..., T], arguments: Sequence[Any]) -> T:
        """Return what the function gives there."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        message = pickle.dumps((function, tuple(arguments)))
        try:
            process.stdin.write(message)
            process.stdin.flush()
            failed, answer = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            raise FlatkitError(
                f"a process that computed ended with exit code {process.wait()}, perhaps for want "
                "of memory; run fewer at once"
            ) from error
        if failed:
            raise answer
        return answer

    def stop(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()


def serve() -> None:
    """Call what is asked for on stdin, and answer on stdout, until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a model prints must not stand among the answers
    with suppress(EOFError, BrokenPipeError):
        while True:
            _answer(sys.stdin.buffer, answers)


def _answer(asked: BinaryIO, answers: BinaryIO) -> None:
    function, arguments = pickle.load(asked)
    try:
        answer = False, function(*arguments)
    except Exception as error:  # whatever it is, it is raised where the call came from
        answer = True, _portable(error)
    pickle.dump(answer, answers)
    answers.flush()


def _portable(error: Exception) -> Exception:
    """Return an error that survives pickling, with the same words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # errors of others may hold anything
        return FlatkitError(f"{type(error).__name__}: {error}")
    return error
