"""Interpreters that serve several tests are to each as if they were fresh."""

import os
import sys
from pathlib import Path

import pytest

from flatkit.checkpoints.task_file import load_task
from flatkit.comparison.workers import in_processes
from flatkit.errors import FlatkitError

OWN = """
import torch, flatkit, beside
def build():
    return flatkit.Task(torch.nn.Linear(beside.SIZE, 1), "mse", (torch.ones(2, beside.SIZE),) * 2)
"""


def call(function, *arguments):
    return next(in_processes(function, [arguments], jobs=1))[1]


def size_of(task):
    return load_task(task).model.in_features


def test_folder_path_environment_and_code_are_those_of_the_test(tmp_path, monkeypatch):
    found = []
    for size in (2, 3):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "own.py").write_text(OWN)
        (folder / "beside.py").write_text(f"SIZE = {size}")
        monkeypatch.chdir(folder)
        monkeypatch.setenv("OF_THE_TEST", str(size))
        monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
        assert call(size_of, "own.py:build") == size
        assert call(os.getcwd) == str(folder)
        assert call(os.getenv, "OF_THE_TEST") == str(size)
        assert call(os.getenv, "OMP_NUM_THREADS") == "1"
        found.append(call(os.getpid))
    assert found[0] == found[1] != os.getpid()


def test_one_whose_call_failed_is_not_kept(tmp_path):
    before = call(os.getpid)
    with pytest.raises(FlatkitError, match="FileNotFoundError"):
        call(os.listdir, str(tmp_path / "missing"))
    assert call(os.getpid) != before and not Path(f"/proc/{before}").exists()
