"""Subsets, validation splits, wrong labels, warm-up and gradient norms of a training."""

import math

import pytest
import torch

from flatkit.checkpoints import load
from flatkit.data import DATASETS
from flatkit.data.derived import derived
from flatkit.errors import InvalidArgumentError
from flatkit.measures import analyze
from flatkit.training import TrainingConfig, read_history, train
from flatkit.training.schedules import learning_rate

BLOBS = DATASETS.build("gaussians", samples=500, classes=5)


def rows(split):
    return {tuple(row) for row in split.inputs.tolist()}


@pytest.mark.parametrize("noise", [0.1, 0.4, 1.0])
def test_exactly_the_share_of_labels_is_wrong_and_evenly_so(noise):
    noisy = derived(BLOBS, label_noise=noise)
    wrong = noisy.train.targets != BLOBS.train.targets
    assert int(wrong.sum()) == round(noise * BLOBS.train.samples)
    assert noisy.clean_targets is not None
    assert torch.equal(noisy.clean_targets, BLOBS.train.targets)
    assert torch.equal(noisy.test.targets, BLOBS.test.targets)
    steps = (noisy.train.targets - BLOBS.train.targets)[wrong] % 5
    counts = torch.bincount(steps, minlength=5)[1:].double()
    assert int(counts.sum()) == int(wrong.sum())
    expected = counts.sum() / 4
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.3  # chi², 3 degrees, 0.1 %


def test_splits_are_disjoint_whole_and_hold_the_share_of_every_class():
    made = derived(BLOBS, train_samples=300, validation_samples=60, label_noise=0.2)
    train_rows, held = rows(made.train), rows(made.validation)
    assert not train_rows & held
    assert len(train_rows) == 240
    assert len(held) == 60
    assert train_rows | held <= rows(BLOBS.train)
    assert made.clean_targets is not None
    assert torch.bincount(made.clean_targets).tolist() == [48] * 5
    assert torch.equal(made.test.inputs, BLOBS.test.inputs)


def test_draws_follow_their_own_seed_alone():
    settings = {"train_samples": 200, "validation_samples": 50, "label_noise": 0.3}
    once, again = derived(BLOBS, **settings), derived(BLOBS, **settings)
    other = derived(BLOBS, **settings, data_seed=1)
    assert once.sha256() == again.sha256() != other.sha256()
    assert derived(BLOBS) is BLOBS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_samples": 401}, "train_samples must be at most the 400"),
        ({"train_samples": 3}, "every one of the 5 classes"),
        ({"validation_samples": 400}, "must leave samples to train on"),
        ({"validation_samples": -1}, "validation_samples"),
        ({"label_noise": 1.5}, "label_noise"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(InvalidArgumentError, match=message):
        derived(BLOBS, **settings)


def test_a_checkpoint_is_measured_on_the_labels_that_it_was_trained_on(tmp_path):
    config = TrainingConfig(
        data="gaussians",
        data_kwargs={"samples": 500, "classes": 5},
        train_samples=300,
        validation_samples=60,
        label_noise=0.4,
        gradient_norms=True,
        epochs=2,
        device="cpu",
    )
    outcome = train(config, tmp_path)
    row = outcome.history[-1]
    report = analyze(outcome.checkpoint, measures=["loss", "accuracy", "gradient_norm"])
    assert report.objective["samples"] == 240
    assert report.result("loss", split="train").value == pytest.approx(row.train_loss, rel=1e-6)
    assert report.result("loss", split="test").value == pytest.approx(row.test_loss, rel=1e-6)
    assert report.result("gradient_norm").value == pytest.approx(row.train_gradient_norm, rel=1e-5)
    assert row.validation_accuracy is not None
    assert row.clean_train_accuracy is not None and row.train_accuracy is not None
    made = derived(
        DATASETS.build("gaussians", samples=500, classes=5),
        **load(outcome.checkpoint).data["changes"],
    )
    model = load(outcome.checkpoint).build_model().eval()
    right = (model(made.train.inputs).argmax(1) == made.clean_targets).double().mean()
    assert row.clean_train_accuracy == pytest.approx(float(right))
    assert row.clean_train_accuracy > row.train_accuracy


def test_a_resumed_run_has_the_same_data_and_bits(tmp_path):
    settings = {"data": "gaussians", "train_samples": 100, "label_noise": 0.3, "device": "cpu"}
    settings |= {"validation_samples": 20, "schedule": "none", "warmup": 3}
    whole = train(TrainingConfig(**settings, epochs=4), tmp_path / "whole")
    train(TrainingConfig(**settings, epochs=2), tmp_path / "parts")
    parts = train(TrainingConfig(**settings, epochs=4), tmp_path / "parts", resume=True)
    one, two = (load(run.checkpoint).state_dict for run in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)
    losses = [[row.validation_loss for row in run.history] for run in (whole, parts)]
    assert losses[0] == losses[1]
    assert read_history(tmp_path / "parts" / "history.json") == parts.history


def test_the_rate_rises_evenly_to_its_schedule():
    config = TrainingConfig(lr=1.0, epochs=10, warmup=4, schedule="none")
    rates = [learning_rate(config, epoch) for epoch in range(1, 11)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 6)
    cosine = TrainingConfig(lr=1.0, epochs=10, warmup=4)
    assert learning_rate(cosine, 2) == pytest.approx(0.4 * (1 + math.cos(math.pi / 10)) / 2)
