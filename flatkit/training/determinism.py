"""What lets a run repeat itself bit for bit: deterministic kernels, random states of its own."""

import os
from collections.abc import Generator
from contextlib import contextmanager

import torch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic_algorithms(wanted: bool) -> Generator[None, None, None]:
    """Let torch use only deterministic kernels, and raise where there is none.

    What was set before is set again afterwards. On the CPU the kernels in use here repeat
    themselves anyway, for a fixed number of threads.

    >>> with deterministic_algorithms(True):
    ...     torch.are_deterministic_algorithms_enabled()
    True
    """
    if not wanted:
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        os.environ.get(_CUBLAS),
    )
    try:
        os.environ.setdefault(_CUBLAS, ":4096:8")  # cuBLAS repeats itself only with a workspace
        torch.use_deterministic_algorithms(True)
        # It chooses kernels by the time they take, which differs from run to run.
        torch.backends.cudnn.benchmark = False
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = before[2]
        if before[3] is None:
            os.environ.pop(_CUBLAS, None)


@contextmanager
def private_random_state(device: torch.device) -> Generator[None, None, None]:
    """Put the caller's random states back afterwards.

    >>> before = torch.get_rng_state()
    >>> with private_random_state(torch.device("cpu")):
    ...     _ = torch.rand(1)
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    # By default it forks the states of all GPUs, and warns where there are several.
    with torch.random.fork_rng(devices=devices):
        yield
