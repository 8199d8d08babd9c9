"""Settings of the whole test run."""

import itertools
import os
import time

import pytest
import torch

# The networks here are tiny: threads only wait for each other, badly so on a busy machine.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start


@pytest.fixture
def equal_clock(monkeypatch):
    """Make all products as fast: which engine multiplies is decided by its measured speed."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
