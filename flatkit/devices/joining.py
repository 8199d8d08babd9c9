"""Which processes share what is made from now on: those that a launcher started, when they join."""

import itertools
import os
import platform
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from flatkit.devices.ranks import ALONE, Ranks
from flatkit.devices.words import Words
from flatkit.errors import InvalidArgumentError
from flatkit.version import __version__

_JOINED = itertools.count()
"""How often the processes have joined, all of them alike."""
_CURRENT: ContextVar[Ranks] = ContextVar("ranks", default=ALONE)


def current() -> Ranks:
    """Return the ranks that share what is made from now on: those of `joined`, or this one alone.

    >>> current().count
    1
    """
    return _CURRENT.get()


@contextmanager
def apart() -> Generator[None]:
    """Let what is made inside be of this process alone, though others have joined.

    >>> with apart():
    ...     current().count
    1
    """
    token = _CURRENT.set(ALONE)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def were_started() -> bool:
    """Whether a launcher started several processes of this job.

    >>> were_started()
    False
    """
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


@contextmanager
def joined() -> Generator[Ranks]:
    """Join the processes that `torchrun` started; what is measured inside is shared out among them.

    Every rank runs the same program: each pass over the samples is cut among all of them, and all
    have the same numbers. A group of torch.distributed that is there already is used; else one is
    made, and is gone at the end. Where one rank leaves the block in an error or dies, the others
    raise what names it, or end with that line and exit code 1 within some seconds, as nothing can
    call off what they wait for. Without a launcher this is the only process.

    Raises:
        InvalidArgumentError: more ranks on a machine than GPUs, where it has some; the environment
            says that there are several, and not where they meet.
        RankError: the ranks have different versions of flatkit, torch or Python.
        LostRankError: another rank failed, or is gone.

    >>> with joined() as ranks:
    ...     ranks.count
    1
    """
    if not were_started():
        yield ALONE
        return
    _take_gpu()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    own = not distributed.is_initialized()
    # What was said in a block before, or before a restart, is not of this one.
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    name = f"flatkit/{restart}/{next(_JOINED)}"
    if own:
        store, rank, count = _met()
        store = PrefixStore(name, store)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=count)
        group: Any = distributed.group.WORLD
    else:
        store = distributed.distributed_c10d._get_default_store()  # pyright: ignore
        group = distributed.new_group(backend=backend)
    store = PrefixStore(name, store)
    rank, count = distributed.get_rank(), distributed.get_world_size()
    ranks = Ranks(rank, count, group, store, Words(rank, count, store))
    token = _CURRENT.set(ranks)
    versions = {"flatkit": __version__, "torch": torch.__version__}
    try:
        with ranks.words.watching():
            ranks.check_alike({**versions, "Python": platform.python_version()})
            yield ranks
    finally:
        _CURRENT.reset(token)
        ranks.hang_up()
        distributed.destroy_process_group(None if own else group)
        del group


def _met() -> tuple[Any, int, int]:
    """Return the store of all processes, the rank of this one, and their number.

    Raises:
        InvalidArgumentError: the environment does not say where they meet.
    """
    try:
        return next(rendezvous("env://"))
    except ValueError as error:  # a variable is missing, or no number
        raise InvalidArgumentError(
            f"RANK and WORLD_SIZE are in the environment as of a launcher, and the rest is not: "
            f"{error}; start by torchrun, or unset both"
        ) from error


def _take_gpu() -> None:
    """Let `cuda` be the GPU of this rank.

    Raises:
        InvalidArgumentError: there are fewer GPUs than ranks here.
    """
    gpus, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not gpus:
        return
    if here > gpus:
        raise InvalidArgumentError(
            f"{here} ranks need as many GPUs on this machine, and it has {gpus}; start fewer, or "
            "hide the GPUs (CUDA_VISIBLE_DEVICES=) to compute on the CPU"
        )
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
