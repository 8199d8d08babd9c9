import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from flatkit import checkpoints
from flatkit.errors import FlatkitError, InvalidArgumentError, TrainingDivergedError
from flatkit.settings import settings_of
from flatkit.training import TrainingConfig, read_history
from flatkit_cli.train import train
from tests.data.local_folders import cifar_binary

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
    row = read_history(tmp_path / "history.json")[-1]
    assert row.test_accuracy is not None
    came = f"2 epochs, test accuracy {100 * row.test_accuracy:.2f} %, training loss"
    assert came in result.stderr
    assert f"next: flatkit analyze {tmp_path / 'ckpt.pt'}" in result.stderr.splitlines()[-1]
    result = run("--epochs", 1, "--track-curvature", 1, "--out", tmp_path / "tracked")
    rows = json.loads((tmp_path / "tracked" / "curvature.json").read_text())["rows"]
    top = f"λmax {rows[-1]['values'][0]:.4g} ± "
    assert top in result.stderr and f"at step {rows[-1]['step']} (all in" in result.stderr


def test_a_long_run_writes_about_ten_lines_into_a_log(tmp_path):
    result = run("--epochs", 45, "--out", tmp_path)
    assert 10 <= len(result.stderr.splitlines()) <= 14
    assert "epoch 45/45" in result.stderr


def test_steps_that_overflow_float16_are_told(tmp_path):
    data = ["--data-arg", "spread=50", "--model-arg", "activation=relu", "--lr", 1e-4]
    result = run(*data, "--precision", "float16", "--epochs", 1, "--out", tmp_path)
    (row,) = read_history(tmp_path / "history.json")
    assert row.skipped
    assert f"{row.skipped} steps skipped so far (float16 overflow)" in result.stderr


def test_every_option_reaches_the_settings(tmp_path):
    options = {
        "--optimizer": "gam", "--base": "sgd", "--gam-mode": "accelerated", "--rho": 0.3,
        "--oracle": "sam", "--rho-sam": 0.07, "--every": 2, "--max-norm": 3.0,
        "--rho-prime": 0.03, "--alpha": 0.5, "--beta": 0.4, "--gamma": 0.02, "--epochs": 2,
        "--lr": 0.05, "--momentum": 0.8, "--weight-decay": 0.001, "--schedule": "step",
        "--milestones": "0.25,0.5", "--decay": 0.2, "--label-smoothing": 0.1, "--seed": 7,
        "--save-every": 1, "--model": "mlp", "--ema": 0.5, "--evaluate-every": 2,
        "--rho-schedule": "cosine", "--rho-final": 0.1,
        "--accumulate": 3, "--precision": "bfloat16", "--train-samples": 38,
        "--validation-samples": 10, "--label-noise": 0.2, "--data-seed": 4, "--warmup": 1,
    }  # fmt: skip
    arguments = [str(part) for item in options.items() for part in item]
    result = run(
        *arguments, "--model-arg", "hidden=6,5", "--model-arg", "activation=gelu",
        "--optimizer-arg", "eps=1e-10",
        "--deterministic", "--gradient-norms", "--log", "csv", "--out", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.exception
    config = checkpoints.load(tmp_path / "ckpt.pt").config
    for option, value in options.items():
        expected = [0.25, 0.5] if option == "--milestones" else value
        assert config[option[2:].replace("-", "_")] == expected, option
    assert config["model_kwargs"] == {"hidden": [6, 5], "activation": "gelu"}
    assert config["data_kwargs"] == {"samples": 50}
    assert config["optimizer_kwargs"] == {"eps": 1e-10}
    assert (config["batch_size"], config["device"]) == (20, "cpu")
    assert config["deterministic"] is config["gradient_norms"] is True
    assert config["log"] == ["csv"]
    folder = [str(tmp_path / "images"), str(tmp_path / "run")]
    cifar_binary(tmp_path / "images", count=20)
    images = ["--data", "cifar10", "--data-arg", "verify=false", "--data-root", folder[0]]
    images += ["--augment", "crop_flip", "--epochs", "1", "--out", folder[1]]
    images += ["--optimizer", "asam", "--eta", "0.02"]
    assert CliRunner().invoke(train, images).exit_code == 0
    config = checkpoints.load(tmp_path / "run" / "ckpt.pt").config
    assert (config["data_root"], config["augment"]) == (folder[0], "crop_flip")
    assert config["eta"] == 0.02
    covered = {option[2:].replace("-", "_") for option in options}
    covered |= {
        "model_kwargs",
        "data_kwargs",
        "optimizer_kwargs",
        "batch_size",
        "device",
        "data",
        "deterministic",
        "gradient_norms",
    }
    assert covered | {"task", "log", "data_root", "augment", "eta"} == set(config)


RUN = """
data = "gaussians"
optimizer = "sam"
rho = 0.3
epochs = 2
batch_size = 10
device = "cpu"
model = "mlp"

[data_kwargs]
samples = 60
features = 5

[model_kwargs]
hidden = [4, 3]
activation = "gelu"
"""


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(train, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, (SystemExit, FlatkitError)):
        raise result.exception
    return result


def test_a_file_gives_the_settings_and_options_override_it(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(RUN)
    assert invoke("--config", file, "--out", tmp_path / "a").exit_code == 0
    config = checkpoints.load(tmp_path / "a" / "ckpt.pt").config
    assert (config["optimizer"], config["rho"], config["epochs"]) == ("sam", 0.3, 2)
    assert config["data_kwargs"] == {"samples": 60, "features": 5}
    assert config["model_kwargs"] == {"hidden": [4, 3], "activation": "gelu"}
    options = ["--rho", 0.1, "--epochs", 1, "--data-arg", "samples=50", "--model-arg", "hidden=6"]
    assert invoke("--config", file, *options, "--out", tmp_path / "b").exit_code == 0
    config = checkpoints.load(tmp_path / "b" / "ckpt.pt").config
    assert (config["optimizer"], config["rho"], config["epochs"]) == ("sam", 0.1, 1)
    assert config["data_kwargs"] == {"samples": 50, "features": 5}
    assert config["model_kwargs"] == {"hidden": 6, "activation": "gelu"}


def test_arguments_of_another_data_set_or_model_do_not_come_from_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(RUN)
    options = ["--data", "digits", "--model", "cnn", "--model-arg", "width=2", "--epochs", 1]
    assert invoke("--config", file, *options, "--out", tmp_path / "a").exit_code == 0
    config = checkpoints.load(tmp_path / "a" / "ckpt.pt").config
    assert (config["data_kwargs"], config["model_kwargs"]) == ({}, {"width": 2})


def test_a_run_from_a_file_is_resumed_with_the_file_too(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(RUN)
    invoke("--config", file, "--out", tmp_path / "a")
    again = invoke("--config", file, "--resume", "--epochs", 3, "--out", tmp_path / "a")
    assert again.exit_code == 0
    assert checkpoints.load(tmp_path / "a" / "ckpt.pt").epoch == 3
    file.write_text(RUN.replace("rho = 0.3", "rho = 0.4"))
    again = invoke("--config", file, "--resume", "--out", tmp_path / "a")
    assert "`rho` is 0.3 in the run, 0.4 was asked for" in str(again.exception)


def test_a_recipe_runs_with_other_data_in_place_of_the_paper_s(tmp_path):
    cifar_binary(tmp_path, count=12)
    options = ["--data-root", tmp_path, "--data-arg", "verify=false", "--batch-size", 30]
    options += ["--model", "resnet20", "--model-arg", "width=2", "--epochs", 1, "--device", "cpu"]
    result = invoke("--config", "cifar10-resnet18-gam", *options, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.exception
    config = checkpoints.load(tmp_path / "run" / "ckpt.pt").config
    assert (config["rho_prime"], config["augment"]) == (0.03, "crop_flip")
    assert (config["label_smoothing"], config["weight_decay"]) == (0.1, 5e-4)


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
    assert "`optimizer` is 'sgd' in the run, 'sam' was asked for" in str(result.exception)
    assert "`rho` is None in the run, 0.1 was asked for" in str(result.exception)
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
        (["--optimizer-arg", "nestrov=1"], "no further argument 'nestrov'; it takes dampening"),
        (["--optimizer-arg", "lr=1"], "optimizer sgd has no further argument 'lr'"),
        (["--schedule", "step", "--milestones", "a,b"], "--milestones must be numbers"),
        (["--resume"], "nothing to resume"),
        (["--config", "cifar10-resnet18-game"], "did you mean 'cifar10-resnet18-gam'"),
        (["--config", "absent/run.toml"], "cannot read absent/run.toml: No such file"),
        (["--data-root", "x"], "data_root does not apply to gaussians"),
        (["--augment", "flip"], "augment flip needs images"),
        (["--ema", 1], "ema must be below 1"),
        (["--evaluate-every", 0], "evaluate_every must be"),
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
    assert "[default: 0.05 with sam and gsam, 0.5 with asam, 0.2 with gam]" in text
    assert "[mlp|cnn|resnet18|resnet20|resnet56|wide_resnet|pyramidnet|vit]" in text


def test_help_comes_in_groups_and_every_setting_is_in_one():
    lines = CliRunner().invoke(train, ["--help"]).output.splitlines()
    headings = [line.rstrip(":") for line in lines if line and not line.startswith(" ")]
    assert headings[1:] == ["Data", "Model", "Optimizer", "Schedule", "Run", "Options"]
    assert {known.group for known in settings_of(TrainingConfig).values()} == set(headings[1:-1])
    rest = lines[lines.index("Options:") + 1 :]
    assert len(rest) == 1 and "--help" in rest[0]


def _environment() -> dict[str, str]:
    import os
    import sys

    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_the_history_is_plain_json(tmp_path):
    run("--epochs", 1, "--out", tmp_path)
    rows = json.loads((tmp_path / "history.json").read_text())["rows"]
    assert rows[0]["gradients"] == 2
