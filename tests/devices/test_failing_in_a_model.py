"""A rank that fails alone inside a model in parts, where others wait for what it should send."""

import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint
from torch import Tensor, nn
from torch.distributed import fsdp
from torch.distributed.device_mesh import init_device_mesh

from flatkit.devices import together, words
from flatkit.devices.joining import joined
from flatkit.objective import Objective
from tests.devices import commands, sharded_models
from tests.devices.ports import free_port
from tests.devices.ranks_worker import (
    CLASSES,
    INPUTS,
    WIDTH,
    data,
    network,
    raised,
    vectors,
)
from tests.processes import start

pytestmark = [
    pytest.mark.long,
    pytest.mark.distributed,
    pytest.mark.skipif(not sharded_models.KINDS, reason="no fully_shard in this torch"),
]
THETA = INPUTS * WIDTH + WIDTH + WIDTH * CLASSES + CLASSES
WAITS = {"_LOOK": 0.2, "_BREAKS": 2.0, "_LINGER": 1.0, "_ROLL_CALL": 0.2}
TASK = """
import os
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from flatkit import Task
from tests.devices.ranks_worker import data, network

class Falls(nn.Module):
    calls = 0
    def forward(self, x):
        Falls.calls += 1
        if Falls.calls == 40 and os.environ["RANK"] == "1":
            raise MemoryError("no room for this")
        return x

def build(falls=True):
    model = network()
    if falls:
        model[1] = nn.Sequential(model[1], Falls())
    fully_shard(model[0], mesh=init_device_mesh("cpu", (2,)))
    return Task(fully_shard(model), "cross_entropy", data())

def sound():
    return build(falls=False)
"""


class Falling(nn.Module):
    """Does what it is told to do on some ranks."""

    on: tuple[int, ...] = ()
    killed = False

    def forward(self, x: Tensor) -> Tensor:
        if int(os.environ["RANK"]) in Falling.on:
            if Falling.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise MemoryError("no room for this")
        return x


def fall(rank: int, count: int, port: int, folder: Path, kind: str, killed: bool) -> None:
    """Fail on all ranks, go on, and fail on the last one; what is said goes to a file."""
    torch.set_num_threads(1)
    together._ALL_FAIL = 1.0
    for name, seconds in WAITS.items():
        setattr(words, name, seconds)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.dup2(os.open(folder / f"{rank}.err", os.O_CREAT | os.O_WRONLY), 2)
    with joined():
        model = network()
        model.insert(1, Falling())  # pyright: ignore
        if kind == "fully_shard":  # its weights are gathered after the failure
            fsdp.fully_shard(model[-1], mesh=init_device_mesh("cpu", (count,)))  # pyright: ignore
        model, moved = sharded_models.in_parts(kind, model), vectors(THETA)[0]
        objective = Objective(model, "cross_entropy", data(), chunk_size=21)
        said: dict[str, Any] = {"before": objective.gradient(moved)}
        Falling.on = tuple(range(count))
        said["on all"] = raised(lambda: objective.gradient(moved))
        Falling.on = ()
        if kind == "fully_shard":  # by its own hooks, which flatkit used
            said["user's"] = model(data()[0]).detach()
        said["after"] = objective.gradient(moved)
        plane = on_two_dimensions(kind, count)
        said["two dimensions"] = raised(lambda: Objective(plane, "cross_entropy", data()))
        torch.save(said, folder / f"{rank}.said")
        Falling.on, Falling.killed = (count - 1,), killed
        said["on one"] = raised(objective.gradient)
        torch.save(said, folder / f"{rank}.said")
        if not killed:
            time.sleep(60)  # a rank that goes on after an error ends nothing by its own end


def on_two_dimensions(kind: str, count: int) -> nn.Module:
    """Return the network over a mesh of two dimensions, as for FSDP beside replicas."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    model, mesh = network(), init_device_mesh("cpu", (1, count), mesh_dim_names=("a", "b"))
    if kind == "fully_shard":
        return fsdp.fully_shard(model, mesh=mesh)  # pyright: ignore
    layer: Any = next(model.children())
    layer.weight = nn.Parameter(
        distribute_tensor(layer.weight.detach(), mesh, [Replicate(), Shard(1)])
    )
    return model


def fallen(folder: Path, kind: str, *, killed: bool) -> tuple[list[int | None], list[Any]]:
    """Return exit codes and what two ranks found and said; the last one, if it lives, is ended."""
    port = free_port()
    processes = [start(fall, r, 2, port, folder, kind, killed) for r in range(2)]
    try:
        processes[0].join(timeout=40)
        processes[1].join(timeout=0.1)
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
    return codes, [torch.load(folder / f"{r}.said", weights_only=True) for r in range(2)]


@pytest.mark.parametrize("kind", sharded_models.KINDS)
def test_where_one_rank_fails_in_the_model_the_other_ends_and_names_it(tmp_path, kind):
    codes, said = fallen(tmp_path, kind, killed=False)
    for found in said:  # what fails on all ranks ends nothing, and leaves no trace
        assert found["on all"].startswith("UserCodeError") and "no room" in found["on all"]
        assert torch.equal(found["after"], found["before"])
        if kind == "fully_shard":
            torch.testing.assert_close(found["user's"], network()(data()[0]).detach())
        assert found["two dimensions"].startswith("InvalidArgumentError: the model is sharded over")
        assert "one of several dimensions" in found["two dimensions"]
        assert "\n" not in found["two dimensions"]
    assert said[1]["on one"].startswith("RankError: rank 1 of 2 failed: UserCodeError: the model")
    assert codes == [1, None]
    line = (tmp_path / "0.err").read_text("utf-8").splitlines()[-1]
    assert line.startswith("error: rank 1 of 2 failed: UserCodeError: the model fails")
    assert "no room for this" in line


def test_a_rank_that_is_killed_in_the_model_is_named_by_the_other(tmp_path):
    codes, said = fallen(tmp_path, "fully_shard", killed=True)
    assert codes == [0, -signal.SIGKILL]
    assert said[0]["on one"].startswith("LostRankError: rank 1 of 2 was lost")


def test_a_command_tells_in_one_line_which_rank_failed_in_the_model(tmp_path):
    (tmp_path / "task.py").write_text(TASK)
    saving: Any = torch.distributed.checkpoint
    with warnings.catch_warnings():  # that one process saves
        warnings.simplefilter("ignore")
        saving.save(network().state_dict(), checkpoint_id=tmp_path / "run", no_dist=True)
    line = ["analyze", str(tmp_path / "run"), "--measures", "loss,gradient_norm", "--task"]
    sound = commands.together(tmp_path / "sound", *[[*line, f"{tmp_path / 'task.py'}:sound"]] * 2)
    assert [each.code for each in sound] == [0, 0], sound[0].err
    assert "gradient norm" in sound[0].out and not sound[1].out
    ended = commands.together(tmp_path / "falls", *[[*line, f"{tmp_path / 'task.py'}:build"]] * 2)
    assert ended[0].code == 1 and not ended[0].out
    *_, said = ended[0].err.splitlines()  # after the plan, which a slow machine shows
    assert said.startswith(
        "error: rank 1 of 2 failed: UserCodeError: the model fails on rank 1 of 2 in "
    )
    assert "MemoryError: no room for this" in said and ended[0].err.count("error: ") == 1
    assert not ended[1].out and not ended[1].err
