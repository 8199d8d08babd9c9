import re
from pathlib import Path

import pytest

from flatkit.errors import InvalidArgumentError
from flatkit.training import TrainingConfig
from flatkit.training.settings_file import read_settings, recipe_names

# (rho, rho_prime, beta, alpha, gamma) as published by Zhang et al. (2023).
PUBLISHED = {
    "cifar100-resnet18-gam": (0.2, 0.02, 0.5, 0.6, 0.03),
    "cifar100-pyramidnet-gam": (0.2, 0.04, 0.3, 0.5, 0.05),
    "cifar10-resnet18-gam": (0.2, 0.03, 0.1, 0.1, 0.05),
    "cifar10-pyramidnet-gam": (0.2, 0.03, 0.1, 0.1, 0.03),
}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_valid_run_of_the_published_training(name):
    config = TrainingConfig(**read_settings(name))
    data, model, *optimizer = name.split("-")
    assert (config.data, config.model) == (data, model)
    assert config.optimizer == optimizer[0]
    assert (config.lr, config.momentum, config.weight_decay) == (0.1, 0.9, 5e-4)
    assert (config.batch_size, config.epochs, config.label_smoothing) == (128, 200, 0.1)
    assert (config.schedule, config.augment) == ("cosine", "crop_flip")


@pytest.mark.parametrize("over", ["loss", "sam"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipes_of_gam_hold_the_published_settings(name, over):
    config = TrainingConfig(**read_settings(name if over == "loss" else f"{name}-sam"))
    assert config.oracle == over
    assert config.rho_sam == {"loss": None, "sam": 0.05 if "cifar10-" in name else 0.1}[over]
    found = (config.rho, config.rho_prime, config.beta, config.alpha, config.gamma)
    assert found == PUBLISHED[name]
    assert config.gam_mode == "accelerated"


def test_a_file_is_read_with_its_tables(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('lr = 0.5\nlog = ["csv"]\n[model_kwargs]\nhidden = [3]\n')
    assert read_settings(file) == {"lr": 0.5, "log": ["csv"], "model_kwargs": {"hidden": [3]}}
    config = TrainingConfig(**read_settings(str(file)))
    assert (config.lr, config.model_kwargs) == (0.5, {"hidden": [3]})


def test_a_file_beside_is_meant_by_its_ending(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text("lr = 0.5")
    assert read_settings("run.toml") == {"lr": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = ", "is not TOML"),
        ("lr = 0.1\nlr = 0.2", "is not TOML"),
        ("learning_rate = 0.1", "has an unknown setting 'learning_rate'"),
        ("epoch = 3", "did you mean 'epochs'"),
        ("model_kwargs = 3", r"model_kwargs in .* must be a table, \[model_kwargs\]"),
    ],
)
def test_a_malformed_file_is_named_with_what_is_wrong(tmp_path, text, message):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        read_settings(file)
    assert str(file) in str(caught.value)


def test_files_and_recipes_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"cannot read .*absent\.toml: No such file"):
        read_settings(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgumentError, match=r"cannot read .*binary\.toml"):
        read_settings(tmp_path / "binary.toml")
    with pytest.raises(InvalidArgumentError, match=r"no recipe .*, cifar10-resnet18-sgd") as e:
        read_settings("resnet")
    assert re.search(r"a file ends in \.toml", str(e.value))
