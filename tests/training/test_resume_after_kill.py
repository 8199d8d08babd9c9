"""A run that is killed in the middle of an epoch and resumed equals one that was not."""

import dataclasses
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from flatkit import checkpoints
from flatkit.training import TrainingConfig, read_history, train
from tests.processes import start, train_until_killed

pytestmark = pytest.mark.long

CNN: dict[str, Any] = {
    "data": "digits",
    "data_kwargs": {"test_fraction": 0.9},
    "model": "cnn",
    "model_kwargs": {"width": 2},
    "batch_size": 32,
}
CASES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", **CNN},
    "sam": {"optimizer": "sam", "base": "adamw", **CNN},
    "gam": {"optimizer": "gam", **CNN},
    "in parts": {
        "optimizer": "gam",
        "accumulate": 3,
        "precision": "bfloat16",
        "rho_schedule": "cosine",
        "rho_final": 0.1,
        **CNN,
    },
    "scaled": {
        "optimizer": "asam",
        "accumulate": 2,
        "precision": "float16",
        "rho_schedule": "proportional",
        **CNN,
    },
    "augmented": {"optimizer": "sgd", "augment": "crop_flip", "ema": 0.8, **CNN},
}
STEPS = 6  # ceil(180 / 32)
PASSES = {"sgd": 1, "sam": 2, "gam": 4, "in parts": 4 * 3, "scaled": 2 * 2, "augmented": 1}


def identical(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second) and first.dtype == second.dtype
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(identical(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(identical, first, second))
    return first == second


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, case):
    settings = {**CASES[case], "epochs": 4, "device": "cpu", "seed": 3}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    _train_until_killed(settings, killed, passes=PASSES[case], average="ema" in settings)
    assert checkpoints.load(killed / "ckpt.pt").epoch == 2
    resumed = train(TrainingConfig(**settings), killed, resume=True)
    assert resumed.epochs_run == 2

    train(TrainingConfig(**settings), whole)
    a, b = checkpoints.load(killed / "ckpt.pt"), checkpoints.load(whole / "ckpt.pt")
    assert identical(a.state_dict, b.state_dict)
    assert identical(a.training_state, b.training_state)
    histories = [
        [dataclasses.replace(row, seconds=0.0) for row in read_history(folder / "history.json")]
        for folder in (killed, whole)
    ]
    assert histories[0] == histories[1]
    assert a.config == b.config
    if "ema" in settings:
        first, second = (checkpoints.load(folder / "ema.pt") for folder in (killed, whole))
        assert identical(first.state_dict, second.state_dict)
        assert not identical(first.state_dict, a.state_dict)


def _train_until_killed(settings: dict[str, Any], out: Path, *, passes: int, average: bool) -> None:
    evaluations = 2 + average  # train and test, in one chunk each
    fatal = 2 * (STEPS * passes + evaluations) + 3 * passes  # in the third step of epoch 3
    process = start(train_until_killed, settings, out, fatal)
    process.join()
    assert process.exitcode == -signal.SIGKILL
