"""Interpreters of `flatkit.comparison.workers` that serve one test after another.

Each takes three seconds for its imports, and hundreds of tests would start some. Those of one
thread are forked off the server of `tests/processes.py`, which has them already.
"""

import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

from flatkit.comparison import workers
from flatkit.errors import FlatkitError

FRESH = workers._Worker
_MOST = 2
"""Interpreters that wait for the next test; each holds some hundred MB."""
_OURS = [Path(__file__).parents[1], Path(sys.prefix), Path(sys.base_prefix)]
_idle: list[tuple[int, Any]] = []


class ForkedWorker(FRESH):
    """Is to who asks as a fresh interpreter, but has imported torch, with one thread."""

    def __init__(self, threads: int = 1) -> None:
        from tests import processes

        asked, asking = Pipe(duplex=False)
        answering, answered = Pipe(duplex=False)
        streams = asked, answered, Connection(os.dup(2), readable=False)
        process = processes.start(processes.serve_calls, *streams)
        for stream in streams:
            stream.close()

        def wait() -> int | None:
            process.join()
            return process.exitcode

        forked: Any = SimpleNamespace(kill=process.kill, wait=wait)
        forked.stdin, forked.stdout = (
            os.fdopen(os.dup(end.fileno()), mode)
            for end, mode in ((asking, "wb"), (answering, "rb"))
        )
        asking.close()
        answering.close()
        self._process = forked


class KeptWorker:
    """Stands in for a fresh interpreter: one that is as if fresh, and is kept at the end.

    Where a call did not end well, it is not.
    """

    def __init__(self, threads: int) -> None:
        alike = [place for place, (known, _) in enumerate(_idle) if known == threads]
        place = alike[-1] if alike else None  # the one that was kept last
        self._process = made(threads) if place is None else _idle.pop(place)[1]
        self._threads, self._good, self._lock = threads, True, Lock()
        own = dict.fromkeys(workers._THREADS, str(threads))
        self.call(begin_anew, [str(Path.cwd()), sys.path, {**os.environ, **own}])

    def call(self, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        with self._lock:
            if not self._good:
                raise FlatkitError("a process of a test was stopped before it was called")
            self._good = False
        answer = self._process.call(function, arguments)
        self._good = True
        return answer

    def stop(self) -> None:
        with self._lock:
            good, self._good = self._good, False
        if good and len(_idle) < _MOST:
            _idle.append((self._threads, self._process))
        else:
            self._process.stop()


def made(threads: int) -> Any:
    """Return a process that has served nobody."""
    return ForkedWorker() if threads == 1 else FRESH(threads)


def begin_anew(folder: str, path: list[str], environment: dict[str, str]) -> None:
    """Take folder, path and environment of the process that asks; forget the task of another."""
    os.chdir(folder)
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and not any(Path(file).is_relative_to(root) for root in _OURS):
            del sys.modules[name]
    comparing: Any = sys.modules.get("flatkit.comparison.compare")
    if comparing is not None:
        comparing._shared.clear()


def keep() -> None:
    """Let all that is called in processes of its own be called in those that are kept."""
    module: Any = workers
    module._Worker = KeptWorker


@contextmanager
def kept() -> Generator[None]:
    """Keep such processes until the end of the context."""
    keep()
    try:
        yield
    finally:
        module: Any = workers
        module._Worker = FRESH
        while _idle:
            _idle.pop()[1].stop()
