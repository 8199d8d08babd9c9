"""Words that processes of a job leave for each other: why one failed, and who is gone.

They lie in a store of torch.distributed, which answers also where a sum or a broadcast of the
others can never end.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from flatkit.errors import FlatkitError, LostRankError, RankError

NOTES = "FLATKIT_PROCESSES"
"""In the environment of processes that a command starts: the folder in which each leaves its exit
code, when it has said why it failed."""
_ROLL_CALL = 2.0
"""Seconds in which those that live answer, after a connection broke: they notice in their next
sum, and who started them ends them sooner as a rule."""
_LOOK = 1.0
"""Seconds between looks at whether another rank is gone."""
_BREAKS = 5.0
"""Seconds that a rank which goes on is left, as a broken connection may end it in its own words."""
_LINGER = 10.0
"""These more, where it is not the first: that one speaks, and who started them ends the others."""
_PARTS = 10.0
"""Seconds that the first waits at most for the others to ask no more; on a busy machine they took
more than two."""
_NO_STORE = (
    "the launcher, or else the process that holds the store of the ranks, died or was killed"
)


class Words:
    """What one of several processes says of itself, and knows of the others.

    Args:
        rank: of this process, from 0.
        count: of all.
        store: of torch.distributed, empty at first.

    Attributes:
        lost: who is gone and why, as soon as it is known while `watching`.
    """

    def __init__(self, rank: int, count: int, store: Any) -> None:
        self.rank, self.count, self._store = rank, count, store
        self._places = dict[int, list[Any]]()
        self._through = False  # whether this rank has said that it asks no more
        self._parent = os.getppid()
        self.lost: str | None = None

    @contextmanager
    def watching(self) -> Generator[None]:
        """Let no rank outlive one that is gone, or ends in an error, while the context lasts.

        Whoever ends in an error leaves word why. A thread looks for such words, and for processes
        of this machine that died, as does the launcher, which holds the store: it ends this one
        where it does not end by itself within some seconds, since it may wait for what nobody will
        send, which nothing can call off.
        """
        self._store.set(f"process/{self.rank}", json.dumps([_machine(), os.getpid()]))
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(over,), daemon=True)
        watch.start()
        try:
            yield
        except BaseException as error:
            self.leave(error)
            raise
        else:
            over.set()
            watch.join()
            self._part()
        finally:
            over.set()

    def of(self, error: BaseException) -> tuple[int, str, str]:
        """Return what tells the others of an error: who raised it, its type and its text."""
        return self.rank, type(error).__name__, str(error)

    def leave(self, error: BaseException) -> None:
        """Leave word for those that find this rank gone, why it is, and for who started it."""
        if isinstance(error, Exception):
            _report(self._said(*self.of(error)))
        with suppress(RuntimeError):  # whoever held the store may be gone too
            if isinstance(error, KeyboardInterrupt):  # all get it, and save what is there
                self._store.set("through", b"")
            else:
                self._store.compare_set("left", "", json.dumps(self.of(error)))

    def raised(self, rank: int, kind: str, text: str) -> FlatkitError:
        """Return what another rank raised; where that is an error of flatkit, the same."""
        known: Any = getattr(sys.modules[FlatkitError.__module__], kind, None)
        if known is None or not issubclass(known, FlatkitError) or "__init__" in vars(known):
            return RankError.of(rank, self.count, kind, text)
        return known(text)

    def gone(self) -> str | None:
        """Return which other rank has left or died, and why; None where all seem to be there.

        Of the processes of other machines only those are known that left word.

        Raises:
            RuntimeError: whoever held the store is gone.
        """
        if self._store.check(["left"]):
            rank, kind, text = json.loads(self._store.get("left"))
            return None if rank == self.rank else self._said(rank, kind, text)
        lost = [rank for rank in range(self.count) if not self._lives(rank)]
        if not lost or self._store.check(["through"]):  # whoever is through may end
            return None
        return self._lost(lost)

    def missing(self) -> str:
        """Return in words who does not answer, after a connection to the others broke."""
        unknown = f"the connection of rank {self.rank} to the other ranks broke"
        try:
            self._store.set(f"alive/{self.rank}", b"")
            end = time.monotonic() + _ROLL_CALL
            while not (told := self._store.check(["left"])) and time.monotonic() < end:
                time.sleep(_ROLL_CALL / 20)
            if told:
                return self.gone() or unknown
            answers = [self._store.check([f"alive/{rank}"]) for rank in range(self.count)]
            lost = [r for r, there in enumerate(answers) if not (there or self._lives(r, False))]
        except RuntimeError:
            return self._without_store()
        return self._lost(lost) if lost else unknown

    def _said(self, rank: int, kind: str, text: str) -> str:
        """Return the error of a rank in words that name the one that failed."""
        if kind in (RankError.__name__, LostRankError.__name__):  # names another one
            return text
        return str(RankError.of(rank, self.count, kind, text))

    def _part(self) -> None:
        """Say that this rank is through; the first waits until no other asks any more.

        The store may end with its process, and who still asked would be told so in a stack of
        frames: the others say nothing that the first may have stopped to wait for.
        """
        with suppress(RuntimeError):
            if self._through and self.rank > 0:
                return
            self._store.set("through", b"")
            self._store.set(f"through/{self.rank}", b"")
            ranks, end = range(self.count), time.monotonic() + _PARTS
            while self.rank == 0 and time.monotonic() < end:
                if self._store.check([f"through/{rank}" for rank in ranks if self._lives(rank)]):
                    return
                time.sleep(_LOOK / 100)

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(_LOOK):
            try:
                self.lost = self.gone()
                if self.lost is None and self._store.check(["through"]):
                    self._through = True
                    self._store.set(f"through/{self.rank}", b"")
                    return
            except RuntimeError:
                self.lost = self._without_store()
            if self.lost is not None:
                if not over.wait(_BREAKS + _LINGER * (self.rank > 0)):
                    _end("" if is_told(self._parent) else self.lost)
                return

    def _lives(self, rank: int, elsewhere: bool = True) -> bool:
        """Whether the process of a rank is there; what is said of one of another machine."""
        if rank not in self._places:
            if not self._store.check([f"process/{rank}"]):  # it is about to join
                return True
            self._places[rank] = json.loads(self._store.get(f"process/{rank}"))
        machine, process = self._places[rank]
        return _lives(process) if machine == _machine() else elsewhere

    def _without_store(self) -> str:
        """Return in words who is gone, where whoever held the store is."""
        lost = [rank for rank in sorted(self._places) if not self._lives(rank)]
        return self._lost(lost) if lost else _NO_STORE

    def _lost(self, ranks: list[int]) -> str:
        names = ", ".join(map(str, ranks))
        return f"rank {names} of {self.count} was lost: it died, was killed or ran out of memory"


@cache
def _machine() -> str:
    """Return what those processes have in common that know each other by number.

    Containers may have one name, and those of one machine number their processes by themselves.
    """
    told = [socket.gethostname()]
    with suppress(OSError):  # where there is a /proc
        told.append(Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip())
        told.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(told)


def _lives(process: int) -> bool:
    """Whether a process of this machine is there, and not just its remains."""
    try:
        os.kill(process, 0)
        about = Path(f"/proc/{process}/stat").read_text("utf-8")
        return about.rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:  # no /proc here, or another user's
        return True


def _end(why: str) -> None:
    """End this process, whose main thread cannot be reached, with a line on stderr."""
    stream = sys.__stderr__  # a command that is not the first is silent on the other one
    if stream is not None and why:
        stream.write(f"error: {' '.join(why.split())}\n")
        stream.flush()
        note(1)
    _report(why)
    os._exit(1)


def _report(why: str) -> None:
    """Let the report of `torchrun` say why; else it names the first rank that ended."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and NOTES not in os.environ:  # `launch` reports by itself
        about = {"message": why, "extraInfo": {"timestamp": str(int(time.time()))}}
        with suppress(OSError):  # whole, as this process may be ended meanwhile
            Path(f"{path}.new").write_text(json.dumps({"message": about}), "utf-8")
            Path(f"{path}.new").replace(path)


def is_told(parent: int) -> bool:
    """Whether the launcher of this machine died, of which the first of its processes tells.

    Args:
        parent: of this process, when it began.

    >>> is_told(os.getppid())
    False
    """
    return os.getppid() != parent and os.environ.get("LOCAL_RANK", "0") != "0"


def note(code: int) -> None:
    """Let the command that started this process know that it has said why it ends.

    Args:
        code: with which it does.

    >>> note(1)  # nothing, where no command started it
    """
    folder = os.environ.get(NOTES)
    if folder:
        with suppress(OSError):  # then a second line is said
            Path(folder, os.environ["RANK"]).write_text(str(code))
