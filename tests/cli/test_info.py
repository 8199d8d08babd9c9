import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from flatkit import checkpoints
from flatkit.errors import CheckpointError
from flatkit.training import TrainingConfig, train
from flatkit_cli.info import info
from flatkit_cli.main import main

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "adamw"
    config = TrainingConfig(
        data="gaussians", optimizer="adamw", epochs=1, device="cpu", model_kwargs={"hidden": (3,)}
    )
    train(config, out)
    return out


def test_info_says_what_the_file_is_and_how_it_was_trained(run):
    result = CliRunner().invoke(info, [str(run / "ckpt.pt")])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["file", str(run / "ckpt.pt")]
    text = result.stdout
    assert "mlp(in_shape=[8], classes=4, hidden=[3], activation='tanh')" in text
    assert "optimizer adamw" in text
    assert "weight_decay 0.01" in text
    assert checkpoints.load(run / "ckpt.pt").sha256 in text
    assert ["hidden1.weight", "3x8", "float32", "-"] in [line.split() for line in lines]
    assert ["parameters", str(8 * 3 + 3 + 3 * 4 + 4)] in [line.split() for line in lines]


def test_info_in_json_is_one_object(run):
    facts = json.loads(CliRunner().invoke(info, [str(run / "ckpt.pt"), "--json"]).stdout)
    assert facts["parameters"] == 43
    assert facts["problem"] is None
    assert facts["optimizer"] == "adamw"
    assert facts["last_row"]["epoch"] == facts["epoch"] == 1
    assert facts["tensors"][0] == {
        "name": "hidden1.weight",
        "shape": [3, 8],
        "dtype": "float32",
        "non_finite": 0,
    }


def test_info_counts_what_is_not_finite(run, tmp_path):
    content = torch.load(run / "ckpt.pt", weights_only=True)
    content["state_dict"]["output.bias"][1:3] = float("nan")
    torch.save(content, tmp_path / "nan.pt")
    text = CliRunner().invoke(info, [str(tmp_path / "nan.pt")]).stdout
    assert ["output.bias", "4", "float32", "2"] in [line.split() for line in text.splitlines()]


def test_info_of_an_unknown_model_says_why_its_parameters_are_unknown(run, tmp_path):
    content = torch.load(run / "ckpt.pt", weights_only=True)
    content["model"]["name"] = "resnet"
    torch.save(content, tmp_path / "x.pt")
    facts = json.loads(CliRunner().invoke(info, [str(tmp_path / "x.pt"), "--json"]).stdout)
    assert facts["parameters"] is None
    assert "got 'resnet'" in facts["problem"]
    assert "unknown" in CliRunner().invoke(info, [str(tmp_path / "x.pt")]).stdout


def test_info_of_a_foreign_file_lists_its_tensors_and_what_is_still_needed(tmp_path):
    file = tmp_path / "x.pt"
    torch.save({"epoch": 7, "net": {"w": torch.tensor([1.0, float("inf")])}}, file)
    result = CliRunner().invoke(info, [str(file)])
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["format", "training", "checkpoint", "(torch.save)"] in rows
    assert ["weights", "net"] in rows
    assert ["beside", "them", "epoch", "7"] in rows
    assert ["w", "2", "float32", "1"] in rows
    assert "use an earlier checkpoint" in result.stdout
    torch.save({"net": {"w": torch.ones(2)}, "ema": {"w": torch.zeros(2)}}, file)
    text = CliRunner().invoke(info, [str(file)]).stdout
    assert f"flatkit analyze {file} --task my_task.py:build" in text
    assert ["other", "weights", "ema"] in [line.split() for line in text.splitlines()]
    facts = json.loads(CliRunner().invoke(info, [str(file), "--json", "--entry", "ema"]).stdout)
    assert facts["entry"] == "ema"
    assert facts["needs"] == ["model", "loss", "data"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of its memory from /proc")
def test_info_reads_a_large_file_in_little_memory(tmp_path):
    """512 MB, sparse on disk; the whole process stays below a quarter of that."""
    nbytes = 2**29
    table = json.dumps(
        {"w": {"dtype": "F32", "shape": [nbytes // 4], "data_offsets": [0, nbytes]}}
    ).encode()
    file = tmp_path / "large.safetensors"
    file.write_bytes(struct.pack("<Q", len(table)) + table)
    os.truncate(file, 8 + len(table) + nbytes)
    code = (
        "import sys; from flatkit_cli.main import main; main(['info', sys.argv[1]]); "
        "assert 'torch' not in sys.modules; "
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"  # kB
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "cli"},
    )
    assert f"{nbytes // 4:,} numbers" in done.stdout
    assert int(done.stdout.split()[-1]) * 1024 < nbytes / 4


def test_a_file_that_is_no_checkpoint_is_an_error(tmp_path):
    torch.save([1], tmp_path / "x.pt")
    result = CliRunner().invoke(info, [str(tmp_path / "x.pt")])
    assert isinstance(result.exception, CheckpointError)
    assert "holds no weights: it is a lone list" in str(result.exception)
    assert result.stdout == ""


def test_numbers_that_json_lacks_are_words_and_notes_stay_in_their_line(tmp_path, capsys):
    beside = {"best_loss": float("inf"), "lr": float("nan"), "note": "one\ntwo"}
    torch.save({"model": torch.nn.Linear(1, 1).state_dict(), **beside}, tmp_path / "a.pt")
    assert main(["info", str(tmp_path / "a.pt"), "--json"]) == 0
    text = capsys.readouterr().out
    facts = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert facts["beside"] == {**beside, "best_loss": "Infinity", "lr": "NaN"}
    assert main(["info", str(tmp_path / "a.pt")]) == 0
    assert "note one two" in capsys.readouterr().out
