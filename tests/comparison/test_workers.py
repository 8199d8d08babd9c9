"""Processes of our own: answers, errors and deaths come back to the caller."""

import math
import os
import time

import pytest

from flatkit.checks import check_positive
from flatkit.comparison.workers import in_processes
from flatkit.errors import FlatkitError, InvalidArgumentError, MismatchError


def call(function, *arguments):
    return next(in_processes(function, [arguments], jobs=1))[1]


def test_calls_run_at_once_on_a_thread_each_in_processes_of_their_own():
    started = time.monotonic()
    found = dict(in_processes(os.getenv, [("OMP_NUM_THREADS",)] * 3, jobs=2))
    assert found == {0: "1", 1: "1", 2: "1"} and time.monotonic() - started < 60
    assert call(os.getpid) != os.getpid()


def test_what_a_call_prints_and_raises_reaches_the_caller(capfd):
    assert call(print, "hello") is None
    assert capfd.readouterr().err == "hello\n"
    with pytest.raises(FlatkitError, match=r"^ValueError: .*(domain|nonneg)"):
        call(math.sqrt, -1.0)
    assert "Traceback" in capfd.readouterr().err


def test_an_error_of_flatkit_keeps_its_kind_and_words():
    with pytest.raises(InvalidArgumentError, match="rho must be a finite number > 0, got -1"):
        call(check_positive, "rho", -1)
    with pytest.raises(MismatchError, match="do not fit") as found:
        call(_mismatch)
    assert found.value.details == "bias"


def test_a_process_that_dies_is_an_error_and_stops_the_others():
    with pytest.raises(FlatkitError, match="exit code 3"):
        list(in_processes(_exit_or_sleep, [(3,), (0,)], jobs=2))


def _mismatch():
    raise MismatchError("they do not fit", "bias")


def _exit_or_sleep(code):
    if code:
        os._exit(code)
    time.sleep(600)
