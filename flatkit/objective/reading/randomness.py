"""Random states that are put back: torch's, Python's, NumPy's and those of single generators."""

import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy
import torch


@contextmanager
def undisturbed(*generators: torch.Generator | None) -> Generator[None, None, None]:
    """Let code draw random numbers, and put every random state back afterwards.

    Args:
        *generators: whose states are put back beside the global ones.

    >>> before = random.getstate()
    >>> with undisturbed():
    ...     drawn = random.random(), torch.rand(1)
    >>> random.getstate() == before
    True
    """
    states = [(g, g.get_state()) for g in generators if g is not None]
    python, array = random.getstate(), numpy.random.get_state()  # noqa: NPY002
    # To ask for CUDA where nobody uses it would start it, which takes seconds and memory.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        if not devices and torch.cuda.is_initialized():  # CUDA was set up inside
            torch.cuda.manual_seed_all(torch.initial_seed())
        random.setstate(python)
        numpy.random.set_state(array)  # noqa: NPY002
        for generator, state in states:
            generator.set_state(state)


def seed_all(seed: int) -> None:
    """Set the global random states; within `undisturbed`.

    >>> with undisturbed():
    ...     seed_all(0)
    ...     first = random.random()
    ...     seed_all(0)
    ...     random.random() == first
    True
    """
    random.seed(seed)
    numpy.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def random_states() -> tuple[Any, ...]:
    """Return the global random states, to tell whether anything was drawn between two of them.

    >>> before = random_states()
    >>> with undisturbed():
    ...     drawn = random.random()
    ...     random_states() == before
    False
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    arrays = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices)]
    # The legacy state, which is the one that libraries draw from.
    state: Any = numpy.random.get_state()  # noqa: NPY002
    kind, keys, *rest = state
    return random.getstate(), kind, bytes(keys), *rest, *(bytes(a.numpy()) for a in arrays)
