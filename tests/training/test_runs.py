"""Runs of a few epochs on a small data set: what they leave, refuse and survive."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flatkit import checkpoints
from flatkit.data import DATASETS
from flatkit.data.dataset import Split
from flatkit.errors import (
    CheckpointError,
    DataError,
    InvalidArgumentError,
    OutputError,
    TrainingDivergedError,
)
from flatkit.models import MODELS
from flatkit.objective.losses import CrossEntropy
from flatkit.training import TrainingConfig, read_history, run, stored_config, train
from flatkit.training.learner import Learner
from tests.data.local_folders import cifar_binary
from tests.training.small import SMALL


def settings(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{**SMALL, **changes})


def weights(path: Path) -> dict[str, np.ndarray]:
    state = checkpoints.load(path).state_dict
    return {name: tensor.double().numpy() for name, tensor in state.items()}


def test_an_epoch_of_sgd_equals_the_formula(tmp_path):
    """One linear layer, cross-entropy, momentum and weight decay, written in NumPy."""
    config = settings(epochs=2, model_kwargs={"hidden": ()}, save_every=1, lr=0.3)
    train(config, tmp_path)
    blobs = DATASETS.build("gaussians", **SMALL["data_kwargs"])
    x, y = blobs.train.inputs.double().numpy(), blobs.train.targets.numpy()
    state = weights(tmp_path / "epoch-0001.pt")
    w, b = state["output.weight"], state["output.bias"]
    stored = checkpoints.load(tmp_path / "epoch-0001.pt").training_state["optimizer"]["state"]
    vw, vb = (stored[i]["momentum_buffer"].double().numpy() for i in range(2))
    lr = 0.3 * (1 + np.cos(np.pi / 2)) / 2
    order = np.random.default_rng([config.seed, 2]).permutation(len(y))
    for start in range(0, len(y), 16):
        rows = order[start : start + 16]
        logits = x[rows] @ w.T + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        p = (p / p.sum(1, keepdims=True) - np.eye(3)[y[rows]]) / len(rows)
        vw = 0.9 * vw + p.T @ x[rows] + 5e-4 * w
        vb = 0.9 * vb + p.sum(0) + 5e-4 * b
        w, b = w - lr * vw, b - lr * vb
    final = weights(tmp_path / "ckpt.pt")
    np.testing.assert_allclose(final["output.weight"], w, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(final["output.bias"], b, rtol=1e-4, atol=1e-6)


def test_a_run_leaves_a_checkpoint_and_a_history_that_agree(tmp_path):
    outcome = train(settings(label_smoothing=0.1, save_every=2), tmp_path / "new" / "run")
    folder = tmp_path / "new" / "run"
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["ckpt.pt", "epoch-0002.pt", "history.json"]
    checkpoint = checkpoints.load(outcome.checkpoint)
    assert read_history(folder / "history.json") == outcome.history
    assert [row["epoch"] for row in checkpoint.history] == [1, 2, 3]
    assert checkpoints.load(folder / "epoch-0002.pt").epoch == 2
    task = checkpoint.task()
    loss = checkpoint.build_loss()(task.model(task.data[0]), task.data[1]).mean().item()
    assert outcome.history[-1].train_loss == pytest.approx(loss, rel=1e-6)
    assert str(task.loss) == "cross_entropy(label_smoothing=0.1)"
    assert TrainingConfig.from_dict(checkpoint.config).label_smoothing == 0.1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "sam", "asam", "gsam", "gam"])
def test_every_optimizer_learns_and_counts_its_gradients(tmp_path, optimizer):
    config = settings(optimizer=optimizer, epochs=15, lr=0.01 if optimizer == "adamw" else 0.1)
    history = train(config, tmp_path).history
    first, last = history[0].train_accuracy, history[-1].train_accuracy
    assert first is not None and last is not None and last > max(0.6, first)
    passes = {"sgd": 1, "adamw": 1, "gam": 4}.get(optimizer, 2)
    assert [row.gradients for row in history] == [3 * passes * (i + 1) for i in range(15)]


@pytest.mark.parametrize(
    "settings_of", [{}, {"base": "adamw"}, {"gam_mode": "exact"}, {"oracle": "sam"}]
)
def test_gam_runs_over_every_base_and_in_both_modes(tmp_path, settings_of):
    history = train(settings(optimizer="gam", **settings_of), tmp_path).history
    loss = history[-1].train_loss
    assert loss is not None and loss < 1.2


@pytest.mark.parametrize("optimizer", ["sgd", "sam", "asam", "gsam", "gam"])
def test_batchnorm_statistics_move_once_a_step_whatever_the_passes(tmp_path, optimizer):
    config = TrainingConfig(
        optimizer=optimizer, model="cnn", model_kwargs={"width": 2}, epochs=1, batch_size=256
    )
    train(config, tmp_path)
    state = checkpoints.load(tmp_path / "ckpt.pt").state_dict
    assert state["block1.batchnorm.num_batches_tracked"] == 6  # ceil(1437 / 256)
    assert not torch.equal(state["block1.batchnorm.running_mean"], torch.zeros(2))


def test_looking_around_in_some_steps_only_counts_its_gradients_and_resumes(tmp_path):
    config = settings(optimizer="gam", oracle="sam", every=3, batch_size=12, epochs=2)
    whole = train(config, tmp_path / "whole")
    # Four steps an epoch; the steps 1, 4 and 7 take five gradients.
    assert [row.gradients for row in whole.history] == [12, 12 + 8]
    train(dataclasses.replace(config, epochs=1, schedule="none"), tmp_path / "part")
    train(dataclasses.replace(config, schedule="none"), tmp_path / "other")
    again = dataclasses.replace(config, schedule="none")
    assert train(again, tmp_path / "part", resume=True).history[-1].gradients == 20
    a, b = (weights(tmp_path / name / "ckpt.pt") for name in ("part", "other"))
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("optimizer", ["sgd", "gam"])
def test_the_gradient_that_the_base_uses_is_clipped(tmp_path, optimizer):
    """A full batch, one step without momentum and decay: the way is lr times the norm."""
    config = settings(
        optimizer=optimizer, max_norm=0.01, batch_size=41, epochs=1, lr=0.5, momentum=0.0,
        weight_decay=0.0, save_every=1,
    )  # fmt: skip
    moved = []
    train(config, tmp_path, on_step=lambda model, _: moved.append(copy.deepcopy(model)))
    torch.manual_seed(config.seed)
    start = MODELS.build("mlp", in_shape=(4,), classes=3, hidden=(5,))
    way = [a - b for a, b in zip(start.parameters(), moved[0].parameters(), strict=True)]
    length = torch.cat([part.flatten() for part in way]).norm().item()
    assert length == pytest.approx(0.5 * 0.01, rel=1e-4)


def test_two_runs_of_one_seed_are_equal_and_two_seeds_are_not(tmp_path):
    torch.manual_seed(5)
    train(settings(), tmp_path / "a")
    torch.manual_seed(6)
    train(settings(), tmp_path / "b")
    train(settings(seed=1), tmp_path / "c")
    a, b, c = (weights(tmp_path / name / "ckpt.pt") for name in "abc")
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not any(np.array_equal(a[name], c[name]) for name in a)


def test_the_random_state_of_the_caller_is_untouched(tmp_path):
    before = torch.get_rng_state()
    train(settings(epochs=1), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_that_the_data_refuse_write_nothing(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(InvalidArgumentError, match=r"at most the 41 training samples.*got 64"):
        train(settings(batch_size=64), out)
    with pytest.raises(InvalidArgumentError, match="cnn needs in_shape"):
        train(settings(model="cnn", model_kwargs={}), out)
    with pytest.raises(InvalidArgumentError, match="no argument 'widht'"):
        train(settings(model_kwargs={"widht": 3}), out)
    with pytest.raises(InvalidArgumentError, match="classes of the model comes from the data"):
        train(settings(model_kwargs={"classes": 3}), out)
    assert not out.exists() or not list(out.iterdir())


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        train(settings(), tmp_path / "file" / "run")


def test_a_run_is_not_overwritten_unless_that_is_said(tmp_path):
    train(settings(save_every=1), tmp_path)
    before = (tmp_path / "ckpt.pt").read_bytes()
    with pytest.raises(
        InvalidArgumentError, match="`resume`, replace it with `overwrite`, or choose another `out`"
    ):
        train(settings(), tmp_path)
    with pytest.raises(InvalidArgumentError, match="not both"):
        train(settings(), tmp_path, resume=True, overwrite=True)
    with pytest.raises(InvalidArgumentError, match="batch_size"):
        train(settings(batch_size=1000), tmp_path, overwrite=True)
    assert (tmp_path / "ckpt.pt").read_bytes() == before
    outcome = train(settings(epochs=1, seed=1), tmp_path, overwrite=True)
    assert len(outcome.history) == 1
    assert not list(tmp_path.glob("epoch-*"))


def test_a_leftover_history_or_kept_checkpoint_counts_as_a_run(tmp_path):
    (tmp_path / "epoch-0003.pt").touch()
    with pytest.raises(InvalidArgumentError, match="already holds a run"):
        train(settings(), tmp_path)


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(InvalidArgumentError, match="nothing to resume"):
        train(settings(), tmp_path, resume=True)
    with pytest.raises(InvalidArgumentError, match="nothing to resume"):
        stored_config(tmp_path)


def test_a_finished_run_has_nothing_left_to_do_but_its_history_file(tmp_path):
    first = train(settings(), tmp_path)
    before = first.checkpoint.read_bytes()
    (tmp_path / "history.json").unlink()  # killed between the two files
    notes: list[str] = []
    again = train(stored_config(tmp_path), tmp_path, resume=True, on_note=notes.append)
    assert again.epochs_run == 0
    assert again.history == first.history == read_history(tmp_path / "history.json")
    assert first.checkpoint.read_bytes() == before
    assert "nothing to do" in notes[0]


def test_more_epochs_continue_a_finished_run_and_say_that_the_schedule_stretches(tmp_path):
    train(settings(), tmp_path)
    notes: list[str] = []
    config = dataclasses.replace(stored_config(tmp_path), epochs=5)
    outcome = train(config, tmp_path, resume=True, on_note=notes.append)
    assert outcome.epochs_run == 2
    assert [row.epoch for row in outcome.history] == [1, 2, 3, 4, 5]
    assert "cosine schedule stretches from 3 to 5" in notes[0]
    assert outcome.history[3].lr == pytest.approx(0.1 * (1 + np.cos(np.pi * 3 / 5)) / 2)
    assert stored_config(tmp_path).epochs == 5


def test_a_resumption_that_contradicts_the_run_is_refused(tmp_path):
    train(settings(epochs=1), tmp_path)
    with pytest.raises(InvalidArgumentError, match="`seed` is 0 in the run, 1 was asked for"):
        train(settings(epochs=1, seed=1), tmp_path, resume=True)


def test_a_checkpoint_without_training_state_cannot_be_resumed(tmp_path):
    train(settings(epochs=1), tmp_path)
    content = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    torch.save({**content, "training_state": {}}, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match="training state is missing or malformed"):
        train(settings(epochs=2), tmp_path, resume=True)
    torch.save({**content, "config": {"colour": 1}}, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match="cannot be resumed: unknown training settings"):
        train(settings(epochs=2), tmp_path, resume=True)


def test_a_run_is_not_continued_on_another_kind_of_device(tmp_path):
    train(settings(epochs=1), tmp_path)
    content = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    content["training_state"]["device"] = "cuda"
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(InvalidArgumentError, match="trained on cuda and cannot go on"):
        train(settings(epochs=2), tmp_path, resume=True)


@pytest.mark.parametrize("optimizer", ["sgd", "sam", "gam"])
def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(tmp_path, optimizer):
    with pytest.raises(TrainingDivergedError) as caught:
        train(settings(optimizer=optimizer, lr=1e30, epochs=5), tmp_path)
    message = str(caught.value)
    assert "training diverged" in message
    assert "in epoch 1 (lr 1e+30); lower lr" in message
    assert ("or rho" in message) is (optimizer != "sgd")
    assert f"{tmp_path / 'ckpt.pt'} holds epoch 0" in message
    checkpoint = checkpoints.load(tmp_path / "ckpt.pt")
    assert checkpoint.epoch == 0
    assert not checkpoint.non_finite()


@pytest.mark.parametrize("step", [1, 2, 40, 41])
def test_the_step_of_a_nan_loss_is_named(step):
    """A NaN in one training sample shows at the step whose batch holds it."""
    config = settings(batch_size=1)
    inputs = torch.zeros(41, 4)
    inputs[np.random.default_rng([config.seed, 3]).permutation(41)[step - 1]] = float("nan")
    model = MODELS.build("mlp", in_shape=(4,), classes=3, hidden=())
    split = Split(inputs, torch.zeros(41, dtype=torch.long))
    optimizer = torch.optim.SGD(model.parameters())
    learner = Learner(model, optimizer, loss=CrossEntropy(), train=split, config=config)
    with pytest.raises(TrainingDivergedError, match=f"the loss is nan at step {step} in epoch 3"):
        learner.run_epoch(3)


def test_a_loss_that_overflows_after_the_last_step_keeps_the_checkpoint_before(tmp_path):
    data = {**SMALL["data_kwargs"], "spread": 10.0}
    one_step = {"batch_size": 41, "epochs": 1, "lr": 3e37, "model_kwargs": {"hidden": ()}}
    config = settings(**one_step, data_kwargs=data)
    with pytest.raises(TrainingDivergedError, match="not finite after the last step in epoch 1"):
        train(config, tmp_path)
    assert checkpoints.load(tmp_path / "ckpt.pt").epoch == 0


def test_the_kept_checkpoint_is_written_before_the_last_and_the_history_after_it(tmp_path):
    train(settings(epochs=1, save_every=1), tmp_path)
    names = ("epoch-0001.pt", "ckpt.pt", "history.json")
    times = [(tmp_path / name).stat().st_mtime_ns for name in names]
    assert times == sorted(times)


def test_what_a_killed_writer_left_is_swept_away(tmp_path):
    train(settings(epochs=1), tmp_path)
    for resume in (True, False):
        for name in (".ckpt.pt.x1", ".epoch-0001.pt.x2", ".history.json.x3", ".mine"):
            (tmp_path / name).touch()
        train(settings(epochs=1), tmp_path, resume=resume, overwrite=not resume)
        names = sorted(file.name for file in tmp_path.iterdir())
        assert names == [".mine", "ckpt.pt", "history.json"]


def test_an_interrupt_leaves_the_last_epoch_whole_and_resumable(tmp_path):
    def interrupt(row):
        if row.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings(), tmp_path / "a", on_epoch=interrupt)
    assert checkpoints.load(tmp_path / "a" / "ckpt.pt").epoch == 2
    train(settings(), tmp_path / "a", resume=True)
    train(settings(), tmp_path / "b")
    a, b = weights(tmp_path / "a" / "ckpt.pt"), weights(tmp_path / "b" / "ckpt.pt")
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_the_moving_average_equals_its_formula_and_is_a_checkpoint_by_itself(tmp_path):
    decay, seen = 0.7, []
    config = settings(ema=decay, epochs=2)
    outcome = train(
        config,
        tmp_path,
        on_step=lambda model, _: seen.append(
            {name: value.clone().double() for name, value in model.state_dict().items()}
        ),
    )
    expected = seen[0]
    for state in seen[1:]:
        expected = {
            name: decay * expected[name] + (1 - decay) * value for name, value in state.items()
        }
    average = checkpoints.load(tmp_path / "ema.pt")
    assert len(seen) == 6
    for name, value in expected.items():
        torch.testing.assert_close(average.state_dict[name].double(), value, rtol=1e-6, atol=1e-7)
    task = average.task()
    assert task.test_data is not None
    inputs, targets = task.test_data
    loss = CrossEntropy()(task.model(inputs), targets).mean().item()
    row = outcome.history[-1]
    assert row.average_test_loss == pytest.approx(loss, rel=1e-6)
    assert row.average_test_loss != row.test_loss
    assert average.epoch == 2
    with pytest.raises(InvalidArgumentError, match="already holds a run"):
        train(config, tmp_path)
    train(settings(epochs=1), tmp_path, overwrite=True)
    assert not (tmp_path / "ema.pt").exists()


def test_the_moving_average_includes_the_statistics_of_batchnorm(tmp_path):
    model = {"model": "cnn", "model_kwargs": {"width": 2}, "data": "digits", "data_kwargs": {}}
    train(settings(**model, ema=0.9, epochs=1, batch_size=256), tmp_path)
    last, average = (checkpoints.load(tmp_path / name).state_dict for name in ("ckpt.pt", "ema.pt"))
    name = "block1.batchnorm.running_mean"
    assert not torch.equal(average[name], torch.zeros(2))
    assert not torch.equal(average[name], last[name])


def test_evaluations_can_be_rare_and_the_last_epoch_has_one(tmp_path):
    outcome = train(settings(epochs=5, evaluate_every=2), tmp_path / "rare")
    every = train(settings(epochs=5), tmp_path / "every")
    assert [row.train_loss is None for row in outcome.history] == [True, False, True, False, False]
    assert [row.test_accuracy is None for row in outcome.history] == [
        row.train_loss is None for row in outcome.history
    ]
    for rare, row in zip(outcome.history, every.history, strict=True):
        assert rare.test_loss in (None, row.test_loss)
    assert read_history(tmp_path / "rare" / "history.json") == outcome.history
    a, b = weights(tmp_path / "rare" / "ckpt.pt"), weights(tmp_path / "every" / "ckpt.pt")
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("fails", [False, True])
def test_a_deterministic_run_uses_such_kernels_and_puts_the_setting_back(tmp_path, fails):
    seen = []

    def look(model, step):
        seen.append(torch.are_deterministic_algorithms_enabled())
        if fails:
            raise KeyError

    before = torch.are_deterministic_algorithms_enabled()
    try:
        train(settings(deterministic=True, epochs=1), tmp_path / "a", on_step=look)
    except KeyError:
        assert fails
    assert all(seen)
    assert torch.are_deterministic_algorithms_enabled() is before is False
    seen.clear()
    train(settings(epochs=1), tmp_path / "b", on_step=lambda *_: look(*_) if not fails else None)
    assert not any(seen)


def test_a_run_of_images_finds_them_again_after_they_have_moved(tmp_path):
    folder = cifar_binary(tmp_path / "here", count=10)
    images: dict[str, Any] = {
        "data": "cifar10",
        "data_kwargs": {"verify": False},
        "model": "cnn",
        "model_kwargs": {"width": 1},
        "augment": "crop_flip",
        "batch_size": 50,
        "epochs": 1,
        "device": "cpu",
    }
    config = TrainingConfig(**images, data_root=str(tmp_path / "here"))
    outcome = train(config, tmp_path / "run")
    assert checkpoints.load(outcome.checkpoint).build_data().train.samples == 50
    (tmp_path / "there").mkdir()
    folder.rename(tmp_path / "there" / folder.name)
    with pytest.raises(DataError, match="no CIFAR-10"):
        train(dataclasses.replace(config, epochs=2), tmp_path / "run", resume=True)
    moved = dataclasses.replace(config, epochs=2, data_root=str(tmp_path / "there"))
    assert train(moved, tmp_path / "run", resume=True).epochs_run == 1
    assert checkpoints.load(outcome.checkpoint).build_data().train.samples == 50
    (tmp_path / "there" / folder.name / "data_batch_1.bin").write_bytes(bytes(30730))
    with pytest.raises(CheckpointError, match="other data"):
        train(dataclasses.replace(moved, epochs=3), tmp_path / "run", resume=True)


def test_a_root_is_given_once_and_only_to_data_from_files(tmp_path):
    with pytest.raises(InvalidArgumentError, match="data_root does not apply to gaussians"):
        train(settings(data_root="x"), tmp_path)
    config = TrainingConfig(data="mnist", data_root="x", data_kwargs={"root": "y"})
    with pytest.raises(InvalidArgumentError, match="one of `data_root` and the data argument root"):
        train(config, tmp_path)
    with pytest.raises(InvalidArgumentError, match="augment flip needs images"):
        train(settings(augment="flip"), tmp_path / "run")
    assert not list(tmp_path.glob("*.pt"))


def test_short_epochs_leave_the_files_out_but_the_first_kept_and_last(tmp_path, monkeypatch):
    written, plain = [], run._write
    monkeypatch.setattr(
        run,
        "_write",
        lambda plan, target, *rest: written.append(target.name) or plain(plan, target, *rest),
    )
    few, cut = tmp_path / "few", tmp_path / "cut"
    config = settings(epochs=7, save_every=3)
    outcome = train(config, few, save_seconds=1000.0)
    names = ["ckpt.pt", "epoch-0003.pt", "ckpt.pt", "epoch-0006.pt", "ckpt.pt", "ckpt.pt"]
    assert written == names and len(outcome.history) == 7

    def stop(row):
        if row.epoch == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, cut, save_seconds=1000.0, on_epoch=stop)
    assert len(read_history(cut / "history.json")) == 3
    train(config, cut, resume=True, save_seconds=1000.0)
    np.testing.assert_equal(weights(cut / "ckpt.pt"), weights(few / "ckpt.pt"))
