"""Which processes share what is made from now on: those that a launcher started, when they join."""

import json
import os
import platform
import socket
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from flatkit.devices.ranks import ALONE, Ranks
from flatkit.errors import InvalidArgumentError
from flatkit.version import __version__

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
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextmanager
def joined() -> Generator[Ranks]:
    """Join the processes that `torchrun` started; what is measured inside is shared out among them.

    Every rank runs the same program: each pass over the samples is cut among all of them, and all
    have the same numbers. A group of torch.distributed that is there already is used; else one is
    made, and is gone at the end. Without a launcher this is the only process.

    Raises:
        InvalidArgumentError: more ranks on a machine than GPUs, where it has some.
        RankError: the ranks have different versions of flatkit, torch or Python.

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
    name = f"flatkit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if own:
        store, rank, count = next(rendezvous("env://"))
        # A store that outlives a restart still holds where the processes of before were.
        store = PrefixStore(name, store)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=count)
        group = distributed.group.WORLD
    else:
        store = distributed.distributed_c10d._get_default_store()  # pyright: ignore
        group = distributed.new_group(backend=backend)
    words = PrefixStore(name, store)
    rank = distributed.get_rank()
    words.set(f"process/{rank}", json.dumps([socket.gethostname(), os.getpid()]))
    ranks = Ranks(rank, distributed.get_world_size(), group, words)
    token = _CURRENT.set(ranks)
    versions = {"flatkit": __version__, "torch": torch.__version__}
    try:
        ranks.check_alike({**versions, "Python": platform.python_version()})
        yield ranks
    except Exception as error:
        ranks.leave(error)
        raise
    finally:
        _CURRENT.reset(token)
        if own:
            distributed.destroy_process_group()


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
