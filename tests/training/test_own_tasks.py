"""The user's own model, loss and data: trained by any optimizer, resumed, measured, refused."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flatkit import checkpoints
from flatkit.checkpoints.task_file import load_task
from flatkit.errors import CheckpointError, FlatkitError
from flatkit.results import Report
from flatkit.studies.settings import Arm, Study
from flatkit.studies.study import study
from flatkit.training import EpochRow, TrainingConfig, read_history, train
from flatkit.training.optimizers import OPTIMIZERS
from flatkit.training.run_tracking import RunTracker
from flatkit_cli.main import main

TASK = """
import torch
import torch.nn.functional as F
from torch import nn

import flatkit


def pairs(count, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=draw)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def network():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 3))


def build():
    return flatkit.Task(network(), "cross_entropy", pairs(60, 1), pairs(30, 2))


def weighted():
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 4.0]))
    return flatkit.Task(network(), loss, pairs(60, 1), pairs(30, 2))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x, scale):
        return {"out": self.layer(x).squeeze(1) * scale}


def rows(count, seed):
    x, y = pairs(count, seed)
    scale = torch.linspace(1, 2, count)
    return [{"x": x[n], "scale": scale[n], "labels": y[n].float()} for n in range(count)]


def regression():
    loss = lambda outputs, targets: F.mse_loss(outputs["out"], targets)
    return flatkit.Task(Named(), loss, rows(60, 1), rows(30, 2))


def without_test():
    return flatkit.Task(network(), "cross_entropy", pairs(60, 1))


def no_mean():
    loss = lambda outputs, targets: F.cross_entropy(outputs, targets) ** 2
    return flatkit.Task(network(), loss, pairs(60, 1), pairs(30, 2))


class Tempered(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, outputs, targets):
        return F.cross_entropy(outputs / self.temperature, targets)


def tempered():
    return flatkit.Task(network(), Tempered(), pairs(60, 1), pairs(30, 2), loss_parameters=True)


def unnamed():
    return flatkit.Task(network(), Tempered(), pairs(60, 1), pairs(30, 2))


def frozen():
    loss = Tempered().requires_grad_(False)
    return flatkit.Task(network(), loss, pairs(60, 1), pairs(30, 2))


class TemperedModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.network, self.temperature = network(), nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        return self.network(inputs) / self.temperature


def in_the_model():
    return flatkit.Task(TemperedModel(), "cross_entropy", pairs(60, 1), pairs(30, 2))


def fails():
    return pears(3)


class Breaks(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        if self.training:
            raise KeyError("only in training")
        return self.layer(x)


def breaks():
    return flatkit.Task(Breaks(), "cross_entropy", pairs(60, 1), pairs(30, 2))


def ignoring():
    (x, y), test = pairs(60, 1), pairs(30, 2)
    y[::4] = -100
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.0, 4.0]))
    return flatkit.Task(nn.Linear(4, 3), loss, (x, y), test)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        self.register_buffer("adjacency", torch.eye(4).to_sparse(), persistent=False)

    def forward(self, x):
        return self.layer((self.adjacency @ x.T).T) @ self.mask.softmax(-1)


def sparse():
    model = Masked()
    model.register_buffer("adjacency", model.adjacency)
    return flatkit.Task(model, "cross_entropy", pairs(60, 1), pairs(30, 2))


def masked():
    return flatkit.Task(Masked(), "cross_entropy", pairs(60, 1), pairs(30, 2))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(function: str = "build", **changes) -> TrainingConfig:
    usual = {"epochs": 3, "batch_size": 16, "device": "cpu", "seed": 2}
    return TrainingConfig(task=f"mine.py:{function}", **{**usual, **changes})


def command(*arguments: object) -> int:
    return main(list(map(str, arguments)))


def weights(path: str | Path) -> dict[str, torch.Tensor]:
    return dict(checkpoints.load(path).state_dict)


def falls(rows: Sequence[EpochRow]) -> bool:
    first, last = rows[0].train_loss, rows[-1].train_loss
    return first is not None and last is not None and last < first


def loss_of(report: Report, split: str, measure: str = "loss") -> float:
    found = report.find(measure, split=split)
    assert found is not None
    return found.value


def same(one: str | Path, other: str | Path) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first | second)


def test_a_step_on_an_own_loss_equals_the_formula(folder):
    """One step of gradient descent on class-weighted cross-entropy, in float64 of NumPy."""
    (folder / "plain.py").write_text(
        TASK.replace("network():\n    return", "network():\n    return nn.Linear(4, 3)\n    return")
    )
    config = settings(
        "weighted", epochs=1, batch_size=60, lr=0.3, momentum=0.0, weight_decay=0.0,
        schedule="none",
    )  # fmt: skip
    config = TrainingConfig(**{**config.to_dict(), "task": "plain.py:weighted"})
    train(config, "run")
    torch.manual_seed(2)
    model = nn.Linear(4, 3)
    w, b = (p.detach().double().numpy() for p in (model.weight, model.bias))
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(60, 4, generator=draw).double().numpy()
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)
    counts = np.array([1.0, 2.0, 4.0])[y]
    z = x @ w.T + b
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    slope = counts[:, None] * (p - np.eye(3)[y]) / counts.sum()
    found = weights("run/ckpt.pt")
    np.testing.assert_allclose(found["weight"], w - 0.3 * slope.T @ x, atol=2e-7)
    np.testing.assert_allclose(found["bias"], b - 0.3 * slope.sum(0), atol=2e-7)
    z = x @ found["weight"].double().numpy().T + found["bias"].double().numpy()
    losses = np.log(np.exp(z).sum(1)) - z[np.arange(60), y]
    (row,) = read_history("run/history.json")
    assert row.train_loss == pytest.approx((counts * losses).sum() / counts.sum(), rel=1e-6)
    assert row.train_accuracy == pytest.approx((z.argmax(1) == y).mean())


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS.names))
def test_every_optimizer_trains_an_own_task(folder, optimizer):
    rows = train(settings(optimizer=optimizer, epochs=5, lr=0.02), "run").history
    assert falls(rows)
    assert rows[-1].test_accuracy is not None


def test_parts_of_a_batch_add_up_where_samples_count_differently(folder):
    """Without BatchNorm and dropout, whose parts differ; to rounding of float32."""
    text = TASK.replace("nn.BatchNorm1d(6), nn.Dropout(0.2), ", "")
    (folder / "mine.py").write_text(text)
    train(settings("weighted", epochs=1), "whole")
    train(settings("weighted", epochs=1, accumulate=3), "parts")
    whole, parts = weights("whole/ckpt.pt"), weights("parts/ckpt.pt")
    assert not same("whole/ckpt.pt", "parts/ckpt.pt")
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)


def test_the_initial_weights_follow_the_seed_and_nobody_s_random_state_moves(folder):
    before = torch.get_rng_state()
    for number, seed in enumerate((2, 2, 3)):
        train(settings(epochs=1, seed=seed), f"run-{number}")
    assert torch.equal(torch.get_rng_state(), before)
    assert same("run-0/ckpt.pt", "run-1/ckpt.pt")
    assert not same("run-0/ckpt.pt", "run-2/ckpt.pt")


def test_an_own_task_goes_on_bit_for_bit(folder):
    """With BatchNorm and dropout, whose statistics and draws are part of the state."""
    config = settings(optimizer="gam", schedule="none", ema=0.9)
    train(config, "whole")
    train(TrainingConfig(**{**config.to_dict(), "epochs": 2}), "parts")
    assert command("train", "--resume", "--epochs", 3, "--out", "parts") == 0
    assert same("whole/ckpt.pt", "parts/ckpt.pt")
    assert same("whole/ema.pt", "parts/ema.pt")
    assert [r.train_loss for r in read_history("whole/history.json")] == [
        r.train_loss for r in read_history("parts/history.json")
    ]


def test_inputs_by_name_and_outputs_that_are_no_classes(folder):
    rows = train(settings("regression", validation_samples=12, train_samples=40), "run").history
    assert falls(rows)
    assert rows[-1].train_accuracy is rows[-1].test_accuracy is None
    assert rows[-1].validation_loss is not None
    assert rows[-1].gradients == 3 * 2  # 28 samples in batches of 16


def test_from_the_shell_to_a_report(folder, capsys):
    given = ["--task", "mine.py:build", "--label-noise", 0.3, "--train-samples", 50]
    assert command(
        "train", *given, "--validation-samples", 10, "--epochs", 4, "--save-every", 2,
        "--optimizer", "sam", "--track-curvature", 3, "--device", "cpu", "--batch-size", 16,
        "--out", "run",
    ) == 0  # fmt: skip
    told = capsys.readouterr()
    assert told.out == "run/ckpt.pt\n"
    assert "next: flatkit analyze run/ckpt.pt --task mine.py:build" in told.err
    assert json.loads(Path("run/curvature.json").read_text())["samples"] == 40
    last = read_history("run/history.json")[-1]
    assert last.clean_train_accuracy is not None
    assert last.validation_accuracy is not None

    assert command("analyze", "run/ckpt.pt", "--json", "no.json") == 1
    assert "give --task mine.py:build" in capsys.readouterr().err
    measures = ["--measures", "loss,accuracy", "--json", "report.json"]
    assert command("analyze", "run/ckpt.pt", "--task", "mine.py:build", *measures) == 0
    report = Report.load("report.json")
    assert loss_of(report, "train") == pytest.approx(last.train_loss, rel=1e-6)
    assert loss_of(report, "train", "accuracy") == pytest.approx(last.train_accuracy)
    assert loss_of(report, "test") == pytest.approx(last.test_loss, rel=1e-6)
    assert report.checkpoint["optimizer"] == "sam"
    assert report.checkpoint["training"]["seed"] == 0
    assert command("info", "run/ckpt.pt") == 0
    assert "mine.py:build" in capsys.readouterr().out


def test_wrong_labels_of_other_data_are_not_put_on_these(folder):
    train(settings(label_noise=0.3), "run")
    (folder / "mine.py").write_text(
        TASK.replace("pairs(60, 1), pairs(30, 2)", "pairs(60, 5), None")
    )
    command(
        "analyze",
        "run/ckpt.pt",
        "--task",
        "mine.py:build",
        "--measures",
        "loss",
        "--json",
        "r.json",
    )
    (note,) = Report.load("r.json").checkpoint["fitted"]
    assert note == "trained on other data, of which label_noise, data_seed are left out"


def refused(function: str, **changes) -> str:
    with pytest.raises(FlatkitError) as raised:
        train(settings(function, **changes), "run")
    assert not list(Path().glob("run/*.pt")) or function == "breaks"
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("without_test", ["mine.py:without_test has no test data", "data, test_data)"]),
        ("no_mean", ["not a mean over"]),
        ("fails", ["mine.py, line", "in fails: NameError: name 'pears'"]),
        ("missing", ["mine.py has no function missing"]),
        ("breaks", ["mine.py, line", "only in training"]),
    ],
)
def test_a_task_that_cannot_be_trained_is_refused_in_a_line(folder, function, words):
    message = refused(function)
    assert all(part in message for part in words), message


@pytest.mark.parametrize(
    ("function", "changes", "words"),
    [
        ("regression", {"label_noise": 0.1}, "label_noise needs targets that are classes"),
        ("build", {"augment": "flip"}, "augment flip needs images"),
        ("build", {"batch_size": 61}, "at most the 60 training samples of mine.py:build, got 61"),
        ("build", {"train_samples": 61}, "train_samples must be at most the 60"),
        ("build", {"data": "digits"}, "task builds model, loss and data; leave out `data`"),
        ("build", {"label_smoothing": 0.1}, "leave out `label_smoothing`"),
    ],
)
def test_settings_that_an_own_task_does_not_take_are_refused(folder, function, changes, words):
    assert words in refused(function, **changes)


@pytest.mark.parametrize("function", ["tempered", "unnamed"])
def test_a_loss_with_weights_of_its_own_is_refused_with_the_ways_out(folder, function):
    message = refused(function)
    parts = ("parameters of its own (temperature)", "part of the model", "requires_grad_(False)")
    assert all(words in message for words in parts), message


def test_the_ways_out_of_a_loss_with_weights_of_its_own_train(folder):
    train(settings("frozen", epochs=1), "frozen")
    train(settings("in_the_model", epochs=1), "inside")
    assert weights("inside/ckpt.pt")["temperature"] != 1


def test_samples_without_a_target_that_counts_are_neither_trained_on_nor_counted(folder):
    train(settings("ignoring", lr=1e-6, momentum=0.0, epochs=1), folder / "run")
    task, (row,) = load_task("mine.py:ignoring"), read_history(folder / "run" / "history.json")
    model, loss, test = task.model, task.loss, task.test_data
    assert callable(loss) and test is not None
    model.load_state_dict(weights(folder / "run" / "ckpt.pt"))
    for (x, y), found in ((task.data, row.train_loss), (test, row.test_loss)):
        assert found == pytest.approx(float(loss(model(x), y).detach()), rel=1e-6)


def test_masks_of_minus_infinity_and_sparse_buffers_are_no_divergence(folder):
    train(settings("masked", ema=0.5), folder / "run")
    *_, row = read_history(folder / "run" / "history.json")
    averaged, last = (weights(folder / "run" / name) for name in ("ema.pt", "ckpt.pt"))
    assert torch.equal(averaged["mask"], last["mask"]) and averaged["mask"].isinf().any()
    task = load_task("mine.py:masked")
    task.model.load_state_dict(averaged)
    assert task.test_data is not None
    x, y = task.test_data
    expected = float(nn.functional.cross_entropy(task.model(x), y).detach())
    assert row.average_test_loss == pytest.approx(expected, rel=1e-6)
    with pytest.raises(CheckpointError, match=r"cannot hold adjacency.*persistent=False"):
        train(settings("sparse"), folder / "other")
    assert not (folder / "other" / "ckpt.pt").exists()


def test_a_file_that_is_not_there_is_named(folder):
    with pytest.raises(FlatkitError, match=r"other\.py, and there is no such file"):
        train(TrainingConfig(task="other.py:build"), "run")
    with pytest.raises(FlatkitError, match=r"FILE\.py:FUNCTION"):
        train(TrainingConfig(task="other"), "run")


def test_a_run_is_not_continued_with_another_task_file_or_other_data(folder, capsys):
    (folder / "samples.py").write_text("SEED = 1\n")
    text = TASK.replace("import flatkit\n", "import flatkit\nfrom pathlib import Path\n", 1)
    text = text.replace("pairs(60, 1)", "pairs(60, len(Path('seed').read_text()))", 1)
    (folder / "mine.py").write_text(text)
    (folder / "seed").write_text("1")
    train(settings(epochs=1), "run")
    before = Path("run/ckpt.pt").read_bytes()
    for file, other, words in (
        ("mine.py", text + "\n", "mine.py has changed since run/ckpt.pt was trained (sha256 "),
        ("seed", "22", "run/ckpt.pt was trained on other data than mine.py:build gives here"),
    ):
        kept = Path(file).read_text()
        Path(file).write_text(other)
        assert command("train", "--resume", "--epochs", 2, "--out", "run") == 1
        assert words in capsys.readouterr().err
        Path(file).write_text(kept)
    assert Path("run/ckpt.pt").read_bytes() == before
    assert command("train", "--resume", "--epochs", 2, "--out", "run") == 0


def small_study(**changes) -> Study:
    usual: dict = {
        "arms": [Arm("sgd"), Arm("sam", {"optimizer": "sam"}, {"rho": [0.05, 0.5]})],
        "seeds": (0, 1),
        "tuning_seeds": 1,
        "train": {
            "task": "mine.py:build", "epochs": 3, "batch_size": 16, "save_every": 1,
            "validation_samples": 10,
        },
        "conditions": {"noisy": {"label_noise": 0.3}},
        "analyze": {"measures": ["loss", "accuracy", "top_eigenvalues", "trace"]},
    }  # fmt: skip
    return Study(**{**usual, **changes})


@pytest.mark.long
def test_a_study_of_an_own_task_measures_what_was_trained(folder):
    outcome = study(small_study(), "study", jobs=1)
    entries = outcome.comparisons["noisy"].entries
    assert [entry.group for entry in entries] == ["sgd", "sgd", "sam", "sam"]
    for entry in entries:
        row = read_history(f"study/noisy/{entry.group}/seed-{entry.seed}/history.json")[-1]
        loss = loss_of(entry.report, "train")
        assert loss == pytest.approx(row.train_loss, rel=1e-6)  # with the wrong labels
    assert len(outcome.along["noisy"].entries) == 12
    assert outcome.choices["noisy"]["sam"]["rho"] in (0.05, 0.5)


def test_a_study_does_not_go_on_with_another_task_file(folder):
    usual = {"task": "mine.py:build", "epochs": 1, "batch_size": 16}
    small = small_study(arms=[Arm("sgd"), Arm("slow", {"lr": 0.01})], seeds=(0,), train=usual)
    study(small, "study", jobs=1)
    (folder / "mine.py").write_text(TASK.replace("Dropout(0.2)", "Dropout(0.3)"))
    with pytest.raises(FlatkitError) as raised:
        study(replace(small, seeds=(0, 1)), "study", jobs=1)
    words = r"study holds another study \(mine.py has changed: sha256 \w{12} there, \w{12} here\)"
    assert re.match(words, str(raised.value))
    (folder / "mine.py").write_text(TASK)
    assert (
        len(study(replace(small, seeds=(0, 1)), "study", jobs=1).comparisons["noisy"].entries) == 4
    )


def test_values_are_tuned_by_the_loss_where_there_are_no_classes(folder):
    task = {"task": "mine.py:regression", "epochs": 2, "validation_samples": 10, "batch_size": 10}
    arms = [Arm("sgd"), Arm("slow", tune={"lr": [1e-9, 0.05]})]
    analyze = {"measures": ["loss", "top_eigenvalues"]}
    small = small_study(
        arms=arms, train=task, conditions={}, analyze=analyze, seeds=(0,), matched=[]
    )
    assert study(small, "study", jobs=1).choices[""]["slow"] == {"lr": 0.05}


def test_curvature_is_tracked_on_the_samples_that_the_seed_draws(tmp_path):
    file = tmp_path / "drawn.py"
    file.write_text(
        "import flatkit, torch\n"
        "def build():\n"
        "    x, more = torch.randn(40, 4), torch.randn(20, 4)\n"
        "    both = [(one, (one[:, 0] > 0).long()) for one in (x, more)]\n"
        "    return flatkit.Task(torch.nn.Linear(4, 2), 'cross_entropy', *both)\n"
    )
    config = TrainingConfig(task=f"{file}:build", epochs=1, batch_size=20, device="cpu")
    found = []
    for state in (1, 2):  # of the caller, which nothing depends on and nothing changes
        torch.manual_seed(state)
        before, out = torch.get_rng_state(), tmp_path / f"run-{state}"
        tracker = RunTracker(config, out, every=1)
        assert torch.equal(torch.get_rng_state(), before)
        train(config, out, on_step=tracker)
        found.append([row.values for row in tracker.history])
    assert found[0] == found[1] and len(found[0]) == 2
