"""Folders that training programs leave: DeepSpeed's, FSDP's, shards under names of their own."""

import argparse
import json
import runpy
import shlex
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import flatkit
from flatkit.checkpoints.inspection import inspect
from flatkit.errors import CheckpointError


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def assert_reads(path) -> None:
    other = nn.Linear(3, 2)
    flatkit.load(path).load_into(other)
    assert torch.equal(other.weight, model().weight)


def states(state) -> dict:
    return {
        "module": state,
        "param_shapes": [{name: tensor.shape for name, tensor in state.items()}],
        "ds_config": argparse.Namespace(stage=1),
        "ds_version": "0.15.0",
    }


@pytest.fixture
def folder(tmp_path):
    for step in ("global_step10", "global_step20"):
        (tmp_path / step).mkdir()
    (tmp_path / "latest").write_text("global_step20\n")
    whole = {name: tensor.bfloat16() for name, tensor in model().state_dict().items()}
    torch.save(states({n: t * 0 for n, t in whole.items()}), file(tmp_path, "global_step10"))
    torch.save(states(model().state_dict()), file(tmp_path, "global_step20"))
    return tmp_path


def file(folder, step, name="mp_rank_00_model_states.pt"):
    return folder / step / name


def test_a_folder_of_deepspeed_follows_latest(folder):
    assert_reads(folder)
    assert inspect(folder)["format"] == "DeepSpeed"
    assert_reads(folder / "global_step20")
    assert flatkit.load(folder / "global_step10").state_dict["weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("text", ["global_step30", "../x", "", "/etc", "a/b", "\0"])
def test_latest_that_leads_nowhere_or_out_is_refused(folder, text):
    (folder / "latest").write_text(text)
    with pytest.raises(CheckpointError, match="latest names"):
        flatkit.load(folder)


CONVERTER = """
import sys, torch
from pathlib import Path
folder, out = map(Path, sys.argv[1:3])
tag = sys.argv[4] if sys.argv[3:] else (folder / "latest").read_text()
assert (folder / tag).is_dir()
out.mkdir()
torch.manual_seed(0)
torch.save(torch.nn.Linear(3, 2).state_dict(), out / "pytorch_model.bin")
"""


@pytest.mark.parametrize("latest", [True, False])
def test_the_command_that_joins_zero_3_works_as_it_is_printed(tmp_path, latest, monkeypatch):
    step = tmp_path / "my run" / "global_step5"
    step.mkdir(parents=True)
    empty = {name: torch.empty(0) for name in model().state_dict()}
    for rank in range(2):
        torch.save(states(empty), step / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    (step.parent / "zero_to_fp32.py").write_text(CONVERTER)
    if latest:
        (step.parent / "latest").write_text("global_step5")
    with pytest.raises(CheckpointError, match="ZeRO-3; join them with python") as caught:
        flatkit.load(step.parent if latest else step)
    command = str(caught.value).partition("join them with ")[2].partition(" and give ")
    words = shlex.split(command[0])
    assert words[0] == "python"
    monkeypatch.setattr(sys, "argv", words[1:])
    runpy.run_path(
        words[1], run_name="__main__"
    )  # what python does, without another import of torch
    assert_reads(command[2].removesuffix(" to flatkit"))
    with pytest.raises(CheckpointError, match="as DeepSpeed ZeRO-3 and FSDP leave it"):
        assert_reads(step / "zero_pp_rank_0_mp_rank_00_model_states.pt")


def test_weights_cut_up_among_model_parallel_ranks_are_refused(folder):
    torch.save(
        states(model().state_dict()), file(folder, "global_step20", "mp_rank_01_model_states.pt")
    )
    with pytest.raises(CheckpointError, match=r"model parallel, 2 files"):
        flatkit.load(folder)


def test_the_folder_of_fsdp_inside_another_is_found(tmp_path):
    import warnings

    from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inner = tmp_path / "pytorch_model_fsdp_0"
        save({"model": model().state_dict()}, checkpoint_id=inner)
    (tmp_path / "optimizer_0").mkdir()
    assert_reads(tmp_path)


def test_an_index_and_a_file_of_another_name_are_found(tmp_path):
    names = {"weight": "a.safetensors", "bias": "b.safetensors"}
    for name, part in names.items():
        save_file({name: model().state_dict()[name]}, tmp_path / part)
    text = "\ufeff" + json.dumps({"weight_map": names})  # with the mark of some editors before it
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(text, "utf-8")
    assert_reads(tmp_path)


def test_a_folder_with_a_number_in_its_name_keeps_the_whole_of_it(tmp_path):
    """`runs/lr0.1` and `runs/lr0.01` were both called `lr0`."""
    for name in ("lr0.1", "lr0.01"):
        (tmp_path / name).mkdir()
        torch.save({"w": torch.ones(1)}, tmp_path / name / "pytorch_model.bin")
    names = [flatkit.load(tmp_path / name).name for name in ("lr0.1", "lr0.01")]
    assert names == [f"{tmp_path.name}/lr0.1", f"{tmp_path.name}/lr0.01"]
