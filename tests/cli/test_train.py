import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from flatkit import checkpoints
from flatkit.errors import FlatkitError, InvalidArgumentError, TrainingDivergedError
from flatkit_cli.train import train

SMALL = ["--data", "gaussians", "--data-arg", "samples=50", "--device", "cpu", "--batch-size", "20"]


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(train, [*SMALL, *map(str, arguments)])
    if result.exception and not isinstance(result.exception, (SystemExit, FlatkitError)):
        raise result.exception
    return result


def test_a_run_prints_the_path_of_its_checkpoint_and_nothing_else_on_stdout(tmp_path):
    result = run("--epochs", 2, "--out", tmp_path)
    assert result.exit_code == 0
    assert result.stdout.strip() == str(tmp_path / "ckpt.pt")
    assert "epoch 2/2  loss" in result.stderr


def test_a_long_run_writes_about_ten_lines_into_a_log(tmp_path):
    result = run("--epochs", 45, "--out", tmp_path)
    assert 10 <= len(result.stderr.splitlines()) <= 13
    assert "epoch 45/45" in result.stderr


def test_every_option_reaches_the_settings(tmp_path):
    options = {
        "--optimizer": "gam", "--base": "sgd", "--gam-mode": "accelerated", "--rho": 0.3,
        "--rho-prime": 0.03, "--alpha": 0.5, "--beta": 0.4, "--gamma": 0.02, "--epochs": 2,
        "--lr": 0.05, "--momentum": 0.8, "--weight-decay": 0.001, "--schedule": "step",
        "--milestones": "0.25,0.5", "--decay": 0.2, "--label-smoothing": 0.1, "--seed": 7,
        "--save-every": 1, "--model": "mlp",
    }  # fmt: skip
    arguments = [str(part) for item in options.items() for part in item]
    result = run(
        *arguments, "--model-arg", "hidden=6,5", "--model-arg", "activation=gelu", "--out", tmp_path
    )
    assert result.exit_code == 0, result.exception
    config = checkpoints.load(tmp_path / "ckpt.pt").config
    for option, value in options.items():
        expected = [0.25, 0.5] if option == "--milestones" else value
        assert config[option[2:].replace("-", "_")] == expected, option
    assert config["model_kwargs"] == {"hidden": [6, 5], "activation": "gelu"}
    assert config["data_kwargs"] == {"samples": 50}
    assert (config["batch_size"], config["device"]) == (20, "cpu")
    covered = {option[2:].replace("-", "_") for option in options}
    covered |= {"model_kwargs", "data_kwargs", "batch_size", "device", "data"}
    assert covered == set(config)


def test_a_run_is_resumed_with_nothing_but_its_folder(tmp_path):
    run("--epochs", 2, "--seed", 5, "--out", tmp_path)
    result = CliRunner().invoke(train, ["--resume", "--epochs", "3", "--out", str(tmp_path)])
    assert result.exit_code == 0
    assert "resuming" in result.stderr
    assert "cosine schedule stretches from 2 to 3" in result.stderr
    checkpoint = checkpoints.load(tmp_path / "ckpt.pt")
    assert (checkpoint.epoch, checkpoint.config["seed"]) == (3, 5)
    again = CliRunner().invoke(train, ["--resume", "--out", str(tmp_path)])
    assert again.exit_code == 0
    assert "nothing to do" in again.stderr


def test_a_resumption_names_only_what_was_given_and_differs(tmp_path):
    run("--epochs", 1, "--out", tmp_path)
    result = run("--resume", "--optimizer", "sam", "--rho", 0.1, "--out", tmp_path)
    assert isinstance(result.exception, InvalidArgumentError)
    assert "optimizer is 'sgd' in the run, 'sam' was asked for" in str(result.exception)
    assert "rho is None in the run, 0.1 was asked for" in str(result.exception)
    assert "batch_size" not in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rho", 0.1], "rho does not apply to optimizer sgd"),
        (["--optimizer", "sam", "--rho", -1], "rho must be a finite number >= 0"),
        (["--batch-size", 1000], "batch_size must be at most the 40 training samples"),
        (["--epochs", 0], "epochs must be"),
        (["--model-arg", "hidden"], "--model-arg must be NAME=VALUE, got 'hidden'"),
        (["--model-arg", "hidden=3", "--model-arg", "hidden=4"], "--model-arg gives hidden twice"),
        (["--model-arg", "hiden=3"], "did you mean 'hidden'"),
        (["--data-arg", "colour=3"], "data gaussians has no argument 'colour'"),
        (["--schedule", "step", "--milestones", "a,b"], "--milestones must be numbers"),
        (["--resume"], "nothing to resume"),
    ],
)
def test_bad_arguments_are_named_and_leave_nothing(tmp_path, arguments, message):
    result = run(*arguments, "--out", tmp_path / "run")
    assert isinstance(result.exception, InvalidArgumentError)
    assert message in str(result.exception)
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize(
    "arguments", [["--model", "resnet"], ["--data", "imagenet"], ["--optimizer", "sdg"], []]
)
def test_names_that_do_not_exist_and_a_missing_folder_are_usage_errors(arguments):
    out = ["--out", "run"] if arguments else []
    assert run(*arguments, *out).exit_code == 2
    assert not Path("run").exists()


def test_a_diverging_run_is_an_error_with_the_folder_kept(tmp_path):
    result = run("--lr", 1e30, "--epochs", 2, "--out", tmp_path)
    assert isinstance(result.exception, TrainingDivergedError)
    assert result.stdout == ""
    assert checkpoints.load(tmp_path / "ckpt.pt").epoch == 0


def test_ctrl_c_says_what_is_there_and_how_to_go_on(tmp_path, monkeypatch):
    def press(row):
        raise KeyboardInterrupt

    monkeypatch.setattr("flatkit_cli.progress._text", press)
    result = run("--epochs", 3, "--out", tmp_path)
    assert isinstance(result.exception, SystemExit)
    assert f"stopped; {tmp_path / 'ckpt.pt'} holds epoch 1" in result.stderr
    assert f"go on with: flatkit train --out {tmp_path} --resume" in result.stderr
    with pytest.raises(click.exceptions.Abort):  # so that main can answer 130
        train.main(["--overwrite", *SMALL, "--out", str(tmp_path)], standalone_mode=False)


def test_help_names_every_default_without_torch():
    import subprocess
    import sys

    code = (
        "import sys; from click.testing import CliRunner; from flatkit_cli.train import train;"
        "text = CliRunner().invoke(train, ['--help']).output;"
        "print(text); assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment()
    )
    text = " ".join(done.stdout.split())
    assert "[default: 0.05 with sam, 0.2 with gam]" in text
    assert "[mlp|cnn|resnet18|resnet20|resnet56|wide_resnet|pyramidnet|vit]" in text


def _environment() -> dict[str, str]:
    import os
    import sys

    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_the_history_is_plain_json(tmp_path):
    run("--epochs", 1, "--out", tmp_path)
    rows = json.loads((tmp_path / "history.json").read_text())["rows"]
    assert rows[0]["gradients"] == 2
