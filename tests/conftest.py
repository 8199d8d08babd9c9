"""Settings of the whole test run."""

import gc
import itertools
import os
import time

import pytest
import torch

from flatkit.comparison import workers
from tests import kept_workers

# The networks here are tiny: threads only wait for each other, badly so on a busy machine.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start


# What is imported while tests are collected stays: to look through it takes a fifth of that time.
gc.disable()


def pytest_collection_finish() -> None:
    """Let the collector look at what the tests make alone."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def kept_interpreters():
    """Let the processes in which something is called serve all tests."""
    with kept_workers.kept():
        yield


@pytest.fixture
def fresh_interpreters(monkeypatch):
    """Let such processes begin and end with the test, as they do for users."""
    monkeypatch.setattr(workers, "_Worker", kept_workers.FRESH)


@pytest.fixture
def forked_interpreters(monkeypatch):
    """Let such processes write where this test reads, and end with it."""
    monkeypatch.setattr(workers, "_Worker", kept_workers.ForkedWorker)


@pytest.fixture
def equal_clock(monkeypatch):
    """Make all products as fast: which engine multiplies is decided by its measured speed."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
