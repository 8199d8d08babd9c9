import csv
import sys
from typing import Any

import pytest
import torch

from flatkit.errors import MissingDependencyError, OutputError
from flatkit.optim import GAM
from flatkit.training import TrainingConfig, train
from flatkit.training.history import EpochRow
from flatkit.training.logs import CsvLog, TensorBoardLog

SMALL: dict[str, Any] = {
    "data": "gaussians",
    "data_kwargs": {"samples": 50, "features": 4, "classes": 3},
    "model_kwargs": {"hidden": (5,)},
    "batch_size": 16,
    "device": "cpu",
    "log": ("csv", "tensorboard"),
}


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]  # pyright: ignore[reportGeneralTypeIssues]
    }


def test_the_logs_hold_the_history(tmp_path):
    config = TrainingConfig(**SMALL, epochs=3, ema=0.5, evaluate_every=2)
    history = train(config, tmp_path).history
    with (tmp_path / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    for row, expected in zip(rows, history, strict=True):
        for name, value in expected.to_dict().items():
            assert (None if row[name] == "" else float(row[name])) == value, name
    found = scalars(tmp_path / "tensorboard")
    assert set(found) == {
        "lr", "gradients", "seconds", "loss/train", "loss/test", "accuracy/train",
        "accuracy/test", "loss/average_test", "accuracy/average_test",
    }  # fmt: skip
    assert [step for step, _ in found["lr"]] == [1, 2, 3]
    assert found["loss/test"] == [
        (row.epoch, pytest.approx(row.test_loss, rel=1e-6)) for row in history[1:]
    ]


def test_a_resumed_run_goes_on_in_both_logs_and_epochs_that_were_lost_are_hidden(tmp_path):
    train(TrainingConfig(**SMALL, epochs=2), tmp_path)
    lost = TensorBoardLog(tmp_path / "tensorboard", after=2)
    lost(EpochRow(3, 9.0, 9.0, 9.0, 9.0, 9.0, gradients=9, seconds=9.0))  # then it was killed
    lost.close()
    history = train(TrainingConfig(**SMALL, epochs=4), tmp_path, resume=True).history
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", "1", "2", "3", "4"]
    found = scalars(tmp_path / "tensorboard")["lr"]
    assert found == [(row.epoch, pytest.approx(row.lr, rel=1e-6)) for row in history]


def test_a_replaced_run_leaves_nothing_in_the_logs(tmp_path):
    train(TrainingConfig(**SMALL, epochs=3), tmp_path)
    train(TrainingConfig(**{**SMALL, "log": ()}, epochs=1), tmp_path, overwrite=True)
    assert not (tmp_path / "history.csv").exists()
    assert not list((tmp_path / "tensorboard").iterdir())


def test_without_tensorboard_the_extra_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'flatkit\[tensorboard\]'"):
        train(TrainingConfig(**SMALL, epochs=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_log_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").touch()
    row = EpochRow(1, 0.1, 2.0, 0.5, 2.5, 0.25, gradients=23, seconds=0.5)
    with pytest.raises(OutputError):
        CsvLog(tmp_path / "file" / "history.csv")(row)
    with pytest.raises(OutputError):
        TensorBoardLog(tmp_path / "file" / "tensorboard")


def test_a_plain_loop_trains_with_gam_and_writes_both_logs(tmp_path):
    """A loop of one's own: closure, scheduler, logs; on data that a line separates."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 5)
    targets = (inputs @ torch.randn(5) > 0).long()
    model = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    optimizer = GAM(torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), rho=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    cross_entropy = torch.nn.functional.cross_entropy
    logs = [CsvLog(tmp_path / "own.csv"), TensorBoardLog(tmp_path / "own")]
    losses, accuracies = [], []
    for epoch in range(1, 9):
        for rows in torch.randperm(256).split(32):
            optimizer.step(lambda rows=rows: cross_entropy(model(inputs[rows]), targets[rows]))
        with torch.no_grad():
            outputs = model(inputs)
        losses.append(cross_entropy(outputs, targets).item())
        accuracies.append((outputs.argmax(1) == targets).double().mean().item())
        lr = float(schedule.get_last_lr()[0])
        for log in logs:
            log(EpochRow(epoch, lr, losses[-1], accuracies[-1], None, None, 32 * epoch, 0.0))
        schedule.step()
    logs[1].close()
    assert accuracies[-1] > 0.95
    assert len((tmp_path / "own.csv").read_text().splitlines()) == 9
    found = scalars(tmp_path / "own")
    assert found["loss/train"] == [
        (epoch, pytest.approx(loss, rel=1e-6)) for epoch, loss in enumerate(losses, start=1)
    ]
    assert "loss/test" not in found
