"""Processes of our own: answers, errors and deaths come back to the caller."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flatkit.checks import check_positive
from flatkit.comparison.workers import Processes, in_processes
from flatkit.errors import FlatkitError, InvalidArgumentError, MismatchError

pytestmark = pytest.mark.usefixtures("fresh_interpreters")


def call(function, *arguments):
    return next(in_processes(function, [arguments], jobs=1))[1]


def test_calls_run_at_once_on_a_thread_each_in_processes_of_their_own():
    started = time.monotonic()
    found = dict(in_processes(os.getenv, [("OMP_NUM_THREADS",)] * 3, jobs=2))
    assert found == {0: "1", 1: "1", 2: "1"} and time.monotonic() - started < 60
    assert call(os.getpid) != os.getpid()


def test_the_same_processes_serve_until_the_end_of_the_context():
    with Processes(2) as processes:
        assert list(processes.map(os.getpid, [])) == []
        (one,) = dict(processes.map(os.getpid, [()])).values()
        assert one in dict(processes.map(os.getpid, [()] * 4)).values()
        with pytest.raises(FlatkitError, match="exit code 3"):
            list(processes.map(_exit_or_sleep, [(3,)]))
        (other,) = dict(processes.map(os.getpid, [()])).values()  # of a fresh one
        assert other != one and not _runs(one)
    assert not _runs(other)


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


def test_a_process_ends_with_the_one_that_asked_even_in_the_middle_of_a_call(tmp_path):
    code = (
        "import time; from flatkit.comparison.workers import in_processes\n"
        "from tests.comparison.test_workers import say_and_sleep\n"
        f"list(in_processes(say_and_sleep, [({str(tmp_path / 'pid')!r},)], jobs=1))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    while not (tmp_path / "pid").exists():
        time.sleep(0.05)
        assert parent.poll() is None
    worker = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while _runs(worker):
        assert time.monotonic() < deadline, "the worker goes on alone"
        time.sleep(0.05)


def say_and_sleep(file):
    Path(f"{file}.new").write_text(str(os.getpid()))
    Path(f"{file}.new").rename(file)
    time.sleep(600)


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
