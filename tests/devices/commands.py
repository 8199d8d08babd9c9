"""Runs the command line as one of several processes, without the seconds of a fresh interpreter."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from tests.devices.ports import free_port
from tests.processes import command, start

TASK = """
import os, signal, time
from pathlib import Path
import torch
from torch import nn
from flatkit import Task

class Fatal(nn.Module):
    # Kills rank 1 at its 40th call, the first time.
    calls, marker = 0, Path(__file__).with_name("killed")
    def forward(self, x):
        Fatal.calls += 1
        if Fatal.calls == 40 and os.environ.get("RANK") == "1" and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x

class Slow(nn.Module):
    # Takes long, and says at its 100th call that all is under way.
    calls = 0
    def forward(self, x):
        Slow.calls += 1
        time.sleep(0.03)
        if Slow.calls == 100:
            Path(__file__).with_name("under way").touch()
        return x

def build():
    draws = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(41, 5, generator=draws, dtype=torch.float64)
    return Task(model, "cross_entropy", (x, torch.randint(0, 3, (41,), generator=draws)))

def fatal(last=Fatal):
    task = build()
    model = nn.Sequential(*task.model, last())
    return Task(model, "cross_entropy", task.data)

def slow():
    return fatal(Slow)
"""


class Ended(NamedTuple):
    """How a process ended, and what it said."""

    code: int | None
    out: str
    err: str


def material(folder: Path) -> list[str]:
    """Write a task file and two checkpoints; return the options that name the task."""
    (folder / "task.py").write_text(TASK)
    draws = torch.Generator().manual_seed(1)
    for name in ("a", "b"):
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draws))
        torch.save(model.state_dict(), folder / f"{name}.pt")
    return ["--task", f"{folder / 'task.py'}:build"]


def run(
    rank: int,
    count: int,
    port: int,
    said: Path,
    arguments: Sequence[str],
    environment: Mapping[str, str],
) -> None:
    """Be one of the processes."""
    torch.set_num_threads(1)
    tempfile.tempdir = None  # read anew
    os.environ |= environment
    if count > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    command(arguments, f"{said}.{rank}")


def together(said: Path, *arguments: Sequence[str], **environment: str) -> list[Ended]:
    """Run a command in as many processes as there are lists of arguments.

    As a launcher does, the others are ended when one has failed.
    """
    count, port = len(arguments), free_port()
    processes = [
        start(run, rank, count, port, said, list(line), environment)
        for rank, line in enumerate(arguments)
    ]
    try:
        processes[0].join(timeout=200)
        for process in processes[1:]:
            process.join(timeout=0.1 if processes[0].exitcode else 60)
            if process.is_alive():
                process.kill()
                process.join()
    finally:
        for process in processes:
            process.kill()

    def text(rank: int, stream: str) -> str:
        path = Path(f"{said}.{rank}.{stream}")  # not there where it was ended before it began
        return path.read_text("utf-8") if path.exists() else ""

    return [Ended(p.exitcode, text(r, "out"), text(r, "err")) for r, p in enumerate(processes)]
