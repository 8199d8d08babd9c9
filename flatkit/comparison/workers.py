"""Functions called in processes of their own, several at once.

A process of `multiprocessing` runs the script of the user again, unless that guards its main part,
and a fork does not survive threads. These are fresh interpreters that import what they are asked to
call, on every system alike. They end when this process does.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from importlib import import_module
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from flatkit import errors
from flatkit.checks import check_count
from flatkit.errors import FlatkitError, MismatchError

T = TypeVar("T")

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_LOOK_EVERY = 0.2
"""Seconds between looks whether the process that asked is still there."""


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
    """Yield the number and answer of every call, as they are done; see `Processes.map`.

    >>> import math
    >>> sorted(in_processes(math.sqrt, [(4.0,), (9.0,)], jobs=1))
    [(0, 2.0), (1, 3.0)]
    """
    with Processes(jobs, threads=threads) as processes:
        yield from processes.map(function, calls)


class Processes:
    """Interpreters that are started as they are needed, and serve until the end of the context.

    A call is computed alike whatever runs beside it, as every process has so many threads.

    Args:
        jobs: how many at once.
        threads: of each.

    Attributes:
        jobs: how many at once.
    """

    def __init__(self, jobs: int, *, threads: int = 1) -> None:
        self.jobs, self._threads = check_count("jobs", jobs), threads
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def map(
        self, function: Callable[..., T], calls: Sequence[Sequence[Any]]
    ) -> Generator[tuple[int, T], None, None]:
        """Yield the number and answer of every call, as they are done; calls begin in their order.

        Where this generator is closed, or a call fails, the others are stopped.

        Args:
            function: of a module that can be imported.
            calls: the arguments of each; these and the answers are what JSON holds.

        Raises:
            FlatkitError: a process died, or a call raised what is no error of flatkit; the errors
                of flatkit are raised as they are.
        """
        if not calls:
            return
        # None before there is work for it: an interpreter with torch takes seconds to start.
        while len(self._workers) < min(self.jobs, len(calls)):
            self._workers.append(_Worker(self._threads))
        idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            idle.put(worker)

        def call(arguments: Sequence[Any]) -> T:
            worker = idle.get()
            try:
                return worker.call(function, arguments)
            finally:
                idle.put(worker)

        # A thread a process, which only waits for its answer.
        with ThreadPoolExecutor(len(self._workers)) as pool:
            futures, whole = [pool.submit(call, arguments) for arguments in calls], False
            try:
                yield from _as_done(futures)
                whole = True
            finally:
                # What is under way is not waited for: killed, a process answers with an empty line.
                if not whole:
                    for future in futures:
                        future.cancel()
                    self._stop()

    def _stop(self) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers.clear()


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
        # Numerical libraries read how many threads they have once, when they are loaded.
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **dict.fromkeys(_THREADS, str(threads))},
        )

    def call(self, function: Callable[..., T], arguments: Sequence[Any]) -> T:
        """Return what the function gives there."""
        process, name = self._process, f"{function.__module__}:{function.__qualname__}"
        assert process.stdin is not None and process.stdout is not None
        line = b""
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps([name, list(arguments)]).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        # A process that died has left no line, or half of one.
        if not line.endswith(b"\n"):
            raise FlatkitError(
                f"a process that computed ended with exit code {process.wait()}, perhaps for want "
                "of memory; run fewer at once"
            )
        answer, error = json.loads(line)
        if error is not None:
            # `_described` names a class of `flatkit.errors`, and nothing else.
            raise getattr(errors, error["kind"])(*error["words"])
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
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a model prints must not stand among the answers
    with suppress(BrokenPipeError):
        for line in sys.stdin.buffer:
            name, arguments = json.loads(line)
            answers.write(json.dumps(_answer(name, arguments)).encode() + b"\n")
            answers.flush()


def _end_with(parent: int) -> None:
    """End this process when another one has ended, also in the middle of a call.

    A parent that was killed could not stop it, and what it writes would be in the way of the next.
    """
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    os._exit(1)


def _answer(name: str, arguments: Sequence[Any]) -> tuple[Any, dict[str, Any] | None]:
    module, _, function = name.partition(":")
    try:
        return getattr(import_module(module), function)(*arguments), None
    except FlatkitError as error:
        return None, _described(error)
    except Exception as error:  # a fault, or the code of others: it is raised where the call is
        traceback.print_exc()
        return None, {"kind": "FlatkitError", "words": [f"{type(error).__name__}: {error}"]}


def _described(error: FlatkitError) -> dict[str, Any]:
    """Return what makes an error of `flatkit.errors` again: its kind, or the next above it."""
    kind = next(k for k in type(error).__mro__ if getattr(errors, k.__name__, None) is k)
    if isinstance(error, MismatchError):
        return {"kind": kind.__name__, "words": [error.message, error.details]}
    return {"kind": kind.__name__, "words": [str(error)]}
