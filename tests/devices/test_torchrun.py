"""Commands under `torchrun`: what fails ends in one line, leaves nothing behind, and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.devices.commands import TASK, material
from tests.devices.ports import free_port

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
_MINUTE = 60.0
_BROKEN = """

class Broken(nn.Module):
    # Fails on rank 2 at its 45th call, the first time, when some passes are kept.
    calls, marker = 0, Path(__file__).with_name("broken")
    def forward(self, x):
        Broken.calls += 1
        time.sleep(0.03)
        if Broken.calls == 45 and os.environ.get("RANK") == "2" and not self.marker.exists():
            self.marker.touch()
            raise RuntimeError("a broken sensor")
        return x

def broken():
    return fatal(Broken)
"""
FEW = ["--measures", "loss,top_eigenvalues,max_gradient_norm", "--rho", "0.1", "--budget", "120"]
MANY = ["--measures", "loss,first_order_flatness", "--rho", "0.1,0.2,0.3", "--budget", "9000"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    material(tmp_path)
    (tmp_path / "task.py").write_text(TASK + _BROKEN)
    return tmp_path


def torchrun(folder: Path, count: int, task: str, *more: str, restarts: int = 0) -> list[str]:
    """Return a command line that analyses in so many processes, or in one without a launcher."""
    begin = [sys.executable, "-m"]
    if count > 1:
        begin += ["torch.distributed.run", "--nproc-per-node", str(count)]
        begin += ["--max-restarts", str(restarts), "--master-port", str(free_port()), "-m"]
    line = ["flatkit_cli.main", "analyze", str(folder / "a.pt")]
    return [*begin, *line, "--task", f"{folder / 'task.py'}:{task}", *more]


def ended(line: Sequence[str]) -> tuple[int, list[str], str]:
    """Return the exit code, the lines that tell of an error, and all of stderr."""
    done = subprocess.run(line, capture_output=True, text=True)
    told = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    return done.returncode, told, done.stderr


def numbers(path: Path) -> list[Any]:
    report = json.loads(path.read_text("utf-8"))
    return [np.ravel(result["value"]).tolist() for result in report["results"]]


def running(folder: Path) -> list[str]:
    """Return the processes that have to do with a folder."""
    found: list[str] = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes()
        except OSError:  # which has just ended
            continue
        if str(folder).encode() in words:
            found.append(words.replace(b"\0", b" ").decode())
    return found


def test_one_rank_that_raises_ends_all_by_its_name_and_others_go_on_from_the_journal(folder):
    saved = folder / "r.json"
    began = time.monotonic()
    code, told, said = ended(torchrun(folder, 3, "broken", *FEW, "--json", str(saved)))
    assert time.monotonic() - began < _MINUTE
    assert code == 1 and len(told) == 1, said
    assert "rank 2 of 3" in told[0] and "a broken sensor" in told[0]
    # The report of torchrun has the same for the cause, whichever rank it was the first to see.
    cause = said.partition("Root Cause")[2]
    assert "rank 2 of 3" in cause and "a broken sensor" in cause
    assert not running(folder) and not saved.exists() and not list(folder.glob("*.tmp*"))
    kept = {path.name: path.read_bytes() for path in folder.glob("r.json.*")}
    assert "r.json.journal" in kept

    alone = folder / "alone.json"
    code, told, said = ended(torchrun(folder, 1, "build", *FEW, "--json", str(alone)))
    assert code == 0, said
    for count in (3, 2, 1):
        for name, content in kept.items():
            (folder / name).write_bytes(content)
        code, told, said = ended(torchrun(folder, count, "broken", *FEW, "--json", str(saved)))
        assert code == 0 and not told, said
        for found, expected in zip(numbers(saved), numbers(alone), strict=True):
            assert found == pytest.approx(expected, rel=1e-6)
        assert not list(folder.glob("r.json.*"))
        saved.unlink()


def test_torchrun_restarts_three_ranks_and_they_go_on(folder):
    saved = [folder / "r.json", folder / "alone.json"]
    code, told, said = ended(
        torchrun(folder, 3, "broken", *FEW, "--json", str(saved[0]), restarts=2)
    )
    assert code == 0 and len(told) == 1 and "rank 2 of 3" in told[0], said
    code, _, said = ended(torchrun(folder, 1, "build", *FEW, "--json", str(saved[1])))
    assert code == 0, said
    for found, expected in zip(*map(numbers, saved), strict=True):
        assert found == pytest.approx(expected, rel=1e-6)
    assert not list(folder.glob("r.json.*")) and not running(folder)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_ranks_end_with_their_launcher_and_the_same_command_goes_on(folder, sent):
    saved = folder / "r.json"
    line = torchrun(folder, 3, "slow", *MANY, "--json", str(saved))
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    while not (folder / "under way").exists():
        assert process.poll() is None
        time.sleep(0.1)
    began = time.monotonic()
    os.kill(process.pid, sent)
    _, said = process.communicate(timeout=2 * _MINUTE)  # which ends when the last rank has
    assert time.monotonic() - began < _MINUTE and not running(folder)
    told = [text for text in said.splitlines() if text.startswith("error: ")]
    if sent == signal.SIGKILL:
        assert len(told) == 1 and "the launcher" in told[0], said
    assert not saved.exists() and not list(folder.glob("*.tmp*"))
