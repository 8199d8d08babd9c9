"""Batches in parts, mixed precision and schedules of the radii, against loops written out here."""

import copy
import dataclasses
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatkit import checkpoints
from flatkit.data import DATASETS
from flatkit.data.dataset import Split
from flatkit.errors import InvalidArgumentError, TrainingDivergedError
from flatkit.models import MODELS
from flatkit.objective.losses import CrossEntropy
from flatkit.training import TrainingConfig, train
from flatkit.training.batches import epoch_batches
from flatkit.training.learner import Learner
from flatkit.training.optimizers import build_optimizer
from flatkit.training.precision import check_precision
from tests.training.small import SMALL

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
OVERFLOWING: dict[str, Any] = {
    "data_kwargs": {**SMALL["data_kwargs"], "spread": 50.0},
    "model_kwargs": {"hidden": (5,), "activation": "relu"},
    "lr": 1e-4,
}
"""Inputs whose gradients, scaled by 2¹⁶, do not fit into float16."""


def settings(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{**SMALL, **changes})


def state(path: Path) -> dict[str, Tensor]:
    return dict(checkpoints.load(path).state_dict)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def start(config: TrainingConfig) -> tuple[nn.Module, Split]:
    """Return the network before training and the training data."""
    torch.manual_seed(config.seed)
    model = MODELS.build("mlp", in_shape=(4,), classes=3, **config.model_kwargs)
    return model, DATASETS.build("gaussians", **config.data_kwargs).train


def batches(config: TrainingConfig, data: Split, epochs: int) -> list[tuple[Tensor, Tensor]]:
    order = []
    for epoch in range(1, epochs + 1):
        order += epoch_batches(
            samples=data.samples, batch_size=config.batch_size, seed=config.seed, epoch=epoch
        )
    return [(data.inputs[batch], data.targets[batch]) for batch in order]


@pytest.mark.parametrize(
    "chosen",
    [
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "max_norm": 0.1},
        {"optimizer": "sam"},
        {"optimizer": "asam", "base": "adamw"},
        {"optimizer": "gsam", "every": 2},
        {"optimizer": "gam", "max_norm": 0.1},
        {"optimizer": "gam", "oracle": "sam"},
    ],
)
def test_a_run_in_parts_equals_one_without_to_rounding(chosen):
    """In float64; 41 samples in batches of 16, 16 and 9, in parts of 6, 5, 5 and 3, 3, 3."""
    ends, counts = [], []
    for accumulate in (1, 3):
        config = settings(**chosen, accumulate=accumulate)
        model, data = start(config)
        model.double()
        split = Split(data.inputs.double(), data.targets)
        optimizer = build_optimizer(config, model)
        learner = Learner(model, optimizer, loss=CrossEntropy(), train=split, config=config)
        before = copy.deepcopy(model.state_dict())
        for epoch in (1, 2):
            learner.run_epoch(epoch)
        ends.append(model.state_dict())
        counts.append(learner.gradients)
        assert not same(before, ends[-1])
    assert counts[0] == counts[1]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-11, atol=1e-13)


def test_a_batch_is_given_to_the_network_in_even_parts():
    config = settings(optimizer="sam", accumulate=3)
    model, data = start(config)
    optimizer, sizes = build_optimizer(config, model), []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    Learner(model, optimizer, loss=CrossEntropy(), train=data, config=config).run_epoch(1)
    assert sizes == 2 * [6, 5, 5] + 2 * [6, 5, 5] + 2 * [3, 3, 3]


def test_a_last_batch_with_fewer_samples_than_parts_has_a_part_a_sample():
    config = settings(batch_size=20, accumulate=20)  # 41 samples: the last batch has one
    model, data = start(config)
    optimizer, sizes = build_optimizer(config, model), []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    Learner(model, optimizer, loss=CrossEntropy(), train=data, config=config).run_epoch(1)
    assert sizes == 41 * [1]


def test_parts_of_a_small_last_batch_have_samples_enough_for_batchnorm():
    config = settings(batch_size=18, accumulate=4)  # 41 samples: the last batch has five
    _, data = start(config)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    optimizer, sizes = build_optimizer(config, model), []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    Learner(model, optimizer, loss=CrossEntropy(), train=data, config=config).run_epoch(1)
    assert sizes == 2 * [5, 5, 4, 4] + [3, 2]


@pytest.mark.parametrize("optimizer", ["sgd", "gam"])
def test_batchnorm_statistics_move_once_a_part_of_the_first_pass(tmp_path, optimizer):
    config = TrainingConfig(
        optimizer=optimizer, model="cnn", model_kwargs={"width": 2}, epochs=1, batch_size=256,
        accumulate=4, device="cpu",
    )  # fmt: skip
    train(config, tmp_path)
    assert state(tmp_path / "ckpt.pt")["block1.batchnorm.num_batches_tracked"] == 4 * 6


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("max_norm", [None, 0.05])
def test_sgd_under_autocast_equals_the_loop_of_torch_bit_for_bit(tmp_path, precision, max_norm):
    config = settings(precision=precision, max_norm=max_norm, schedule="none", momentum=0.5)
    train(config, tmp_path)
    model, data = start(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5, weight_decay=5e-4)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "float16")
    for inputs, targets in batches(config, data, epochs=3):
        optimizer.zero_grad()
        with torch.autocast("cpu", HALF[precision]):
            outputs = model(inputs)
        scaler.scale(cross_entropy(outputs.float(), targets)).backward()
        if max_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        scaler.step(optimizer)
        scaler.update()
    found = state(tmp_path / "ckpt.pt")
    assert same(found, model.state_dict())
    assert {value.dtype for value in found.values()} == {torch.float32}
    train(settings(schedule="none", momentum=0.5, max_norm=max_norm), tmp_path / "float32")
    assert not same(found, state(tmp_path / "float32" / "ckpt.pt"))


def sam_by_hand(config: TrainingConfig, half: torch.dtype, scale: float) -> nn.Module:
    """Train by SAM without momentum and decay, with a loss scale that halves on overflow."""
    assert config.rho is not None and config.lr is not None
    model, data = start(config)
    for inputs, targets in batches(config, data, epochs=config.epochs):
        home = [parameter.detach().clone() for parameter in model.parameters()]
        gradients = _scaled_gradients(model, inputs, targets, half, scale)
        if all(part.isfinite().all() for part in gradients):
            length = torch.cat([part.flatten() for part in gradients]).norm()
            _move(model, gradients, config.rho / length)
            gradients = _scaled_gradients(model, inputs, targets, half, scale)
        _move(model, [h - p for h, p in zip(home, model.parameters(), strict=True)], 1.0)
        if all(part.isfinite().all() for part in gradients):
            _move(model, gradients, -config.lr)
        else:
            scale /= 2
    return model


@torch.no_grad()
def _move(model: nn.Module, direction: list[Tensor], way: Any) -> None:
    for parameter, part in zip(model.parameters(), direction, strict=True):
        parameter.add_(part * way)


def _scaled_gradients(
    model: nn.Module, inputs: Tensor, targets: Tensor, half: torch.dtype, scale: float
) -> list[Tensor]:
    with torch.autocast("cpu", half):
        outputs = model(inputs)
    loss = cross_entropy(outputs.float(), targets) * scale
    return [part / scale for part in torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("overflowing", [False, True])
def test_sam_in_float16_equals_a_loop_written_out(tmp_path, overflowing):
    config = settings(
        optimizer="sam", precision="float16", momentum=0.0, weight_decay=0.0, schedule="none",
        epochs=8, **(OVERFLOWING if overflowing else {}),
    )  # fmt: skip
    history = train(config, tmp_path).history
    expected = sam_by_hand(config, torch.float16, 65536.0).state_dict()
    begin = start(config)[0].state_dict()
    for name, value in state(tmp_path / "ckpt.pt").items():
        moved, wanted = value - begin[name], expected[name] - begin[name]
        assert wanted.norm() > 0
        assert (moved - wanted).norm() < 0.01 * wanted.norm(), name
    skipped = history[-1].skipped
    assert skipped is not None and (skipped > 0) is overflowing


@pytest.mark.parametrize("optimizer", ["sgd", "sam", "gsam", "gam"])
def test_a_step_that_overflows_is_counted_and_leaves_the_weights(tmp_path, optimizer):
    config = settings(optimizer=optimizer, precision="float16", **OVERFLOWING)
    seen = [start(config)[0]]
    outcome = train(config, tmp_path, on_step=lambda model, _: seen.append(copy.deepcopy(model)))
    kept = [same(a.state_dict(), b.state_dict()) for a, b in pairwise(seen)]
    assert outcome.history[-1].skipped == sum(kept)
    assert 0 < sum(kept) < len(kept)
    assert not all(kept[sum(kept) :])


def test_gradients_that_overflow_at_every_scale_stop_the_run(tmp_path):
    """Inputs beyond float16: tanh of infinity is finite, its gradient is not."""
    data = {**SMALL["data_kwargs"], "features": 1, "spread": 1e6}
    config = settings(data_kwargs=data, precision="float16", epochs=40)
    with pytest.raises(TrainingDivergedError, match=r"float16.*or choose precision bfloat16"):
        train(config, tmp_path)


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("optimizer", ["adamw", "sam", "asam", "gsam", "gam", "exact"])
def test_every_optimizer_learns_in_mixed_precision(tmp_path, optimizer, precision):
    chosen = {"optimizer": "gam", "gam_mode": "exact"} if optimizer == "exact" else {}
    lr = 0.01 if optimizer == "adamw" else 0.1
    changes = {"optimizer": optimizer, "lr": lr, "epochs": 15, **chosen}
    history = train(settings(precision=precision, **changes), tmp_path).history
    assert (history[-1].train_accuracy or 0) > 0.6
    assert (history[-1].skipped is None) is (precision == "bfloat16")


def test_evaluations_are_in_float32_whatever_the_precision(tmp_path):
    outcome = train(settings(precision="bfloat16"), tmp_path)
    task = checkpoints.load(outcome.checkpoint).task()
    with torch.no_grad():
        loss = cross_entropy(task.model(task.data[0]), task.data[1]).item()
    assert outcome.history[-1].train_loss == pytest.approx(loss, rel=1e-6)


def test_a_device_that_cannot_do_it_is_named_with_what_to_choose():
    for precision in HALF:
        check_precision(precision, torch.device("cpu"))
        message = rf"precision {precision} is not available on meta.*choose precision float32 or"
        with pytest.raises(InvalidArgumentError, match=message):
            check_precision(precision, torch.device("meta"))


@pytest.mark.parametrize("chosen", [{"optimizer": "sam"}, {"optimizer": "gam", "oracle": "sam"}])
@pytest.mark.parametrize("kind", ["cosine", "proportional"])
def test_all_radii_follow_the_schedule(tmp_path, chosen, kind):
    rates = {"cosine": "none", "proportional": "step"}
    config = settings(
        **chosen, rho_schedule=kind, rho_final=0.2, schedule=rates[kind], epochs=4, save_every=1
    )
    history = train(config, tmp_path).history
    if kind == "cosine":
        factors = [0.2 + 0.8 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    else:
        factors = [0.2 + 0.8 * rate for rate in (1.0, 1.0, 0.1, 0.01)]  # lowered at 0.5 and 0.75
    for row, factor in zip(history, factors, strict=True):
        stored = checkpoints.load(tmp_path / f"epoch-{row.epoch:04d}.pt").training_state
        group = stored["optimizer"]["param_groups"][0]
        radii = [n for n in ("rho", "rho_prime", "rho_sam") if getattr(config, n) is not None]
        for name in radii:
            assert group[name] == pytest.approx(getattr(config, name) * factor, rel=1e-12)
        assert row.rho == group["rho"]
    train(settings(**chosen, schedule=rates[kind], epochs=4), tmp_path / "constant")
    assert not same(state(tmp_path / "ckpt.pt"), state(tmp_path / "constant" / "ckpt.pt"))


def test_the_radius_stands_in_the_history_also_without_a_schedule(tmp_path):
    assert {row.rho for row in train(settings(optimizer="sam"), tmp_path / "a").history} == {0.05}
    assert {row.rho for row in train(settings(), tmp_path / "b").history} == {None}


RESUMED: dict[str, dict[str, Any]] = {
    "parts": {"optimizer": "gam", "accumulate": 3},
    "bfloat16": {"optimizer": "sam", "precision": "bfloat16"},
    "float16": {"precision": "float16", **OVERFLOWING},
    "float16 sam": {"optimizer": "sam", "precision": "float16", **OVERFLOWING},
    "cosine": {"optimizer": "gam", "rho_schedule": "cosine"},
    "proportional": {"optimizer": "asam", "rho_schedule": "proportional", "rho_final": 0.3},
}


@pytest.mark.parametrize("case", RESUMED)
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, case):
    config = settings(**RESUMED[case], epochs=4)

    def interrupt(row: Any) -> None:
        if row.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "a", on_epoch=interrupt)
    again = train(config, tmp_path / "a", resume=True).history
    whole = train(config, tmp_path / "b").history
    assert [dataclasses.replace(r, seconds=0.0) for r in again] == [
        dataclasses.replace(r, seconds=0.0) for r in whole
    ]
    a, b = (checkpoints.load(tmp_path / name / "ckpt.pt") for name in "ab")
    assert same(dict(a.state_dict), dict(b.state_dict))
    assert a.training_state.get("scaler") == b.training_state.get("scaler")
    groups = [c.training_state["optimizer"]["param_groups"] for c in (a, b)]
    assert groups[0] == groups[1]


def test_a_run_from_before_these_settings_goes_on(tmp_path):
    train(settings(optimizer="sam", schedule="none", epochs=1), tmp_path / "old")
    file = tmp_path / "old" / "ckpt.pt"
    content = torch.load(file, weights_only=True)
    for name in ("precision", "accumulate", "rho_schedule", "rho_final"):
        del content["config"][name]
    for row in content["history"]:
        del row["rho"], row["skipped"]
    torch.save(content, file)
    config = settings(optimizer="sam", schedule="none", epochs=2)
    assert train(config, tmp_path / "old", resume=True).epochs_run == 1
    train(config, tmp_path / "new")
    assert same(state(file), state(tmp_path / "new" / "ckpt.pt"))


def test_a_longer_run_says_that_the_schedule_of_the_radii_stretches(tmp_path):
    config = settings(optimizer="sam", rho_schedule="cosine", schedule="none", epochs=1)
    train(config, tmp_path)
    notes: list[str] = []
    train(dataclasses.replace(config, epochs=2), tmp_path, resume=True, on_note=notes.append)
    assert "the cosine rho schedule stretches from 1 to 2 epochs" in notes[0]
