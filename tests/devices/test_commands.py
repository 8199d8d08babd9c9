"""Commands in two processes: files and tables of one, one that speaks, and what goes wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatkit.results.comparison import load_results
from tests.devices.commands import material, together
from tests.devices.ports import free_port

pytestmark = [pytest.mark.long, pytest.mark.distributed]
FEW = ["--measures", "loss,top_eigenvalues,max_gradient_norm", "--rho", "0.1", "--budget", "120"]


@pytest.fixture
def task(tmp_path: Path) -> list[str]:
    return material(tmp_path)


def results_in(path: Path) -> list[Any]:
    report = json.loads(path.read_text("utf-8"))
    return [[r["measure"], np.ravel(r["value"]).tolist()] for r in report["results"]]


def test_analyze_writes_and_says_once_what_one_process_finds(tmp_path, task):
    for name, count in (("one", 1), ("two", 2)):
        line = ["analyze", str(tmp_path / "a.pt"), *task, *FEW]
        saved = ["--json", str(tmp_path / f"{name}.json")]
        ended = together(tmp_path / name, *[[*line, *saved]] * count)
        assert [each.code for each in ended] == [0] * count, ended[0].err
        assert "top eigenvalue" in ended[0].out
        assert not [each.out + each.err for each in ended[1:] if each.out or each.err]
    one, two = (results_in(tmp_path / f"{name}.json") for name in ("one", "two"))
    for (name, expected), (other, found) in zip(one, two, strict=True):
        assert name == other
        assert found == pytest.approx(expected, rel=1e-6), name
    assert not list(tmp_path.glob("*.journal*")) and not list(tmp_path.glob("*.lock"))


def test_landscape_hands_its_points_out_and_writes_once(tmp_path, task):
    line = ["landscape", str(tmp_path / "a.pt"), *task, "--line", "--points", "7", "--no-figures"]
    for name, count in (("one", 1), ("two", 2), ("two again", 2)):
        out = ["--out", str(tmp_path / name.split()[0])]
        ended = together(tmp_path / name, *[[*line, *out]] * count)
        assert [each.code for each in ended] == [0] * count, ended[0].err
        assert not [each.out + each.err for each in ended[1:] if each.out or each.err]
    one, two = (next((tmp_path / name).glob("*.npz")) for name in ("one", "two"))
    with np.load(one) as first, np.load(two) as second:
        for name in ("axis_t", "loss", "gradient_norm"):
            np.testing.assert_allclose(second[name], first[name], rtol=1e-12)
    assert [path.name for path in (tmp_path / "two").iterdir()] == [two.name]


def test_verify_and_compare_are_those_of_one_process(tmp_path, task):
    both = [str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]
    lines = {
        "verify": ["verify", both[0], *task, "--rho", "0.05", "--search-budget", "20"],
        "compare": ["compare", *both, *task, *FEW, "--jobs", "1"],
    }
    for name, line in lines.items():
        for count in (1, 2):
            saved = ["--json", str(tmp_path / f"{name}.{count}.json")]
            ended = together(tmp_path / name, *[[*line, *saved]] * count)
            assert [each.code for each in ended] == [0] * count, ended[0].err
            assert ended[0].out and all(not each.out for each in ended[1:])
    one, two = (results_in(tmp_path / f"verify.{count}.json") for count in (1, 2))
    assert [name for name, _ in one] == [name for name, _ in two]
    for (name, expected), (_, found) in zip(one, two, strict=True):
        if name in ("loss", "top_eigenvalues", "zeroth_order_sharpness", "first_order_flatness"):
            assert found == pytest.approx(expected, rel=1e-5), name
    one, two = (load_results(tmp_path / f"compare.{count}.json").entries for count in (1, 2))
    for entry, other in zip(one, two, strict=True):
        for expected, found in zip(entry.report.results, other.report.results, strict=True):
            assert np.ravel(found.value) == pytest.approx(np.ravel(expected.value), rel=1e-5)


@pytest.mark.parametrize(
    ("first", "second", "code", "says"),
    [
        (["--processes", "2"], None, 2, "error: --processes must be left out under torchrun"),
        (["--rho", "none"], None, 2, "error: --rho"),
        (["--device", "cuda"], None, 2, "error: --device cuda is not available here"),
        (["--seed", "1"], ["--seed", "2"], 1, "error: rank 1 of 2 differs from rank 0 in seed"),
        (["--samples", "1"], None, 2, "error: --processes must be at most 1, one a sample, got 2"),
    ],
)
def test_what_is_wrong_is_one_line_of_one_rank(tmp_path, task, first, second, code, says):
    line = ["analyze", str(tmp_path / "a.pt"), *task, "--json", str(tmp_path / "r.json")]
    ended = together(tmp_path / "said", [*line, *first], [*line, *(second or first)])
    assert ended[0].code == code
    assert ended[0].err.startswith(says) and ended[0].err.count("\n") == 1
    assert not ended[0].out and not ended[1].out and not ended[1].err
    assert not (tmp_path / "r.json").exists()


def test_the_first_rank_says_why_another_one_failed(tmp_path, task):
    lines = [["analyze", str(tmp_path / name), *task] for name in ("a.pt", "missing.pt")]
    ended = together(tmp_path / "said", *lines)
    assert ended[0].code == 1 and not ended[1].err
    assert ended[0].err.startswith("error: rank 1 of 2 failed: ") and "missing.pt" in ended[0].err


def test_a_command_of_one_process_refuses_a_launcher(tmp_path):
    ended = together(tmp_path / "said", *[["info", "a.pt"]] * 2)
    assert ended[0].code == 2 and "info runs in one process" in ended[0].err


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flatkit_cli.main", *arguments]


def test_a_rank_that_is_killed_is_named_and_the_command_goes_on(tmp_path, task):
    line = ["analyze", str(tmp_path / "a.pt"), "--task", f"{tmp_path / 'task.py'}:fatal", *FEW]
    line += ["--json", str(tmp_path / "r.json"), "--processes", "2"]
    (tmp_path / "tmp").mkdir()
    (ended,) = together(tmp_path / "said", line, TMPDIR=str(tmp_path / "tmp"))
    assert ended.code == 1 and not ended.out
    assert ended.err.startswith("error: rank 1 of 2 was killed by SIGKILL"), ended.err
    assert ended.err.count("\n") == 1
    assert time.time() - (tmp_path / "killed").stat().st_mtime < 60
    assert not (tmp_path / "r.json").exists() and not list(tmp_path.glob("*.tmp"))
    assert not [path for path in (tmp_path / "tmp").iterdir() if "torchinductor" not in path.name]
    (again,) = together(tmp_path / "said", line)
    assert again.code == 0 and "top eigenvalue" in again.out, again.err
    assert results_in(tmp_path / "r.json") and not list(tmp_path.glob("*.lock"))


@pytest.mark.slow
def test_where_the_launcher_is_killed_the_ranks_end(tmp_path, task):
    line = ["analyze", str(tmp_path / "a.pt"), "--task", f"{tmp_path / 'task.py'}:slow"]
    line += ["--measures", "loss,first_order_flatness", "--rho", "0.1,0.2,0.3", "--budget", "9000"]
    process = subprocess.Popen(command(*line, "--processes", "2"), stderr=subprocess.PIPE)
    while not (tmp_path / "under way").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    _, said = process.communicate(timeout=60)  # which ends when the last rank has
    assert "error: the launcher, or else " in said.decode(), said.decode()


@pytest.mark.slow
def test_torchrun_restarts_a_job_that_lost_a_rank(tmp_path, task):
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    torchrun += ["--master-port", str(free_port()), "-m", "flatkit_cli.main"]
    line = ["analyze", str(tmp_path / "a.pt"), "--task", f"{tmp_path / 'task.py'}:fatal", *FEW]
    line += ["--json", str(tmp_path / "r.json")]
    done = subprocess.run([sys.executable, *torchrun, *line], capture_output=True, text=True)
    assert done.returncode == 0 and "top eigenvalue" in done.stdout, done.stderr
    assert (tmp_path / "killed").exists() and results_in(tmp_path / "r.json")


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_there(tmp_path, task):
    line = ["analyze", str(tmp_path / "a.pt"), "--task", f"{tmp_path / 'task.py'}:slow"]
    line += ["--measures", "loss,first_order_flatness", "--rho", "0.1,0.2,0.3", "--budget", "9000"]
    line += ["--json", str(tmp_path / "r.json"), "--processes", "2"]
    process = subprocess.Popen(command(*line), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (tmp_path / "under way").exists():
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said.decode()
    assert said.decode().splitlines().count("interrupted") == 1
    assert (
        json.loads((tmp_path / "r.json").read_text("utf-8"))["analysis"]["ended"] == "interrupted"
    )
