import json
from typing import Any

import pytest
import torch

from flatkit.errors import InvalidArgumentError
from flatkit.optim import ASAM, GAM, GSAM, SAM, PerturbedOptimizer
from flatkit.optim.settings import Settings
from flatkit.training import TrainingConfig
from flatkit.training.optimizers import build_optimizer
from flatkit.training.schedules import learning_rate


def test_defaults_are_those_of_the_chosen_optimizer():
    assert TrainingConfig().momentum == 0.9
    adamw = TrainingConfig(optimizer="sam", base="adamw")
    assert (adamw.lr, adamw.momentum, adamw.weight_decay, adamw.rho) == (1e-3, None, 1e-2, 0.05)
    exact = TrainingConfig(optimizer="gam", gam_mode="exact")
    assert (exact.rho_prime, exact.beta, exact.gamma) == (None, None, None)


@pytest.mark.parametrize("mode", [{}, {"gam_mode": "accelerated"}, {"gam_mode": "exact"}])
def test_defaults_of_sam_and_gam_are_those_of_the_optimizers(mode):
    base = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    optimizer = GAM(base, mode=mode["gam_mode"]) if mode else SAM(base)
    config = TrainingConfig(optimizer="gam" if mode else "sam", **mode).to_dict()
    for name in ("rho", "rho_prime", "alpha", "beta", "gamma"):
        assert config[name] == optimizer.param_groups[0].get(name), name


@pytest.mark.parametrize("name", ["asam", "gsam", "gam"])
def test_defaults_of_the_relatives_are_those_of_the_optimizers(name):
    base = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    kind: Any = {"asam": ASAM, "gsam": GSAM, "gam": GAM}[name]
    extra: dict[str, Any] = {"oracle": "sam"} if name == "gam" else {}
    group = kind(base, **extra).param_groups[0]
    config = TrainingConfig(optimizer=name, **extra).to_dict()
    for option in ("rho", "rho_prime", "rho_sam", "alpha", "beta", "gamma"):
        assert config[option] == group.get(option), option
    assert config["eta"] == (Settings().eta if name == "asam" else None)
    assert config["every"] == Settings().every


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "lr": 0.3, "momentum": 0.5, "weight_decay": 0.01},
        {"optimizer": "adamw", "lr": 0.3, "weight_decay": 0.2},
        {"optimizer": "sam", "base": "adamw", "rho": 0.3, "lr": 0.2, "weight_decay": 0.1},
        {"optimizer": "gam", "gam_mode": "exact", "rho": 0.3, "alpha": 0.7, "momentum": 0.5},
        {"optimizer": "gam", "rho": 0.3, "rho_prime": 0.1, "alpha": 0.7, "beta": 0.4, "gamma": 0.2},
        {"optimizer": "gam", "oracle": "sam", "rho_sam": 0.3},
        {"optimizer": "gsam", "rho": 0.3, "alpha": 0.7},
        {"optimizer": "asam", "rho": 0.3, "momentum": 0.5},
    ],
)
def test_every_setting_reaches_the_optimizer(settings):
    config = TrainingConfig(**settings)
    optimizer = build_optimizer(config, torch.nn.Linear(1, 1))
    kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "sam": SAM, "gam": GAM}
    kinds |= {"asam": ASAM, "gsam": GSAM}
    assert type(optimizer) is kinds[config.optimizer]
    if isinstance(optimizer, PerturbedOptimizer):
        assert type(optimizer.base) is kinds[config.base_optimizer]
    assert getattr(optimizer, "mode", None) == config.gam_mode
    assert getattr(optimizer, "oracle", None) == config.oracle
    expected = {key: value for key, value in settings.items() if isinstance(value, float)}
    assert {key: optimizer.param_groups[0][key] for key in expected} == expected


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"optimizer": "sgd", "optimizer_kwargs": {"nesterov": True}}, {"nesterov": True}),
        ({"optimizer": "adamw", "optimizer_kwargs": {"eps": 1e-5}}, {"eps": 1e-5}),
    ],
)
def test_further_arguments_reach_the_optimizer(settings, found):
    group = build_optimizer(TrainingConfig(**settings), torch.nn.Linear(1, 1)).param_groups[0]
    assert {name: group[name] for name in found} == found


def test_further_arguments_reach_what_wraps_and_not_its_base():
    config = TrainingConfig(optimizer="sam", optimizer_kwargs={"adaptive": True})
    optimizer = build_optimizer(config, torch.nn.Linear(1, 1))
    assert isinstance(optimizer, SAM) and optimizer._settings.adaptive
    assert "adaptive" not in optimizer.base.param_groups[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer_kwargs": {"nestrov": 1}}, "no further argument 'nestrov'.*mean 'nesterov'"),
        ({"optimizer": "sam", "optimizer_kwargs": {"nesterov": 1}}, "takes adaptive, batch, eps"),
        ({"optimizer": "gam", "optimizer_kwargs": {"mode": "exact"}}, "no further argument 'mode'"),
        ({"optimizer": "sam", "optimizer_kwargs": {"rho": 1.0}}, "no further argument 'rho'"),
    ],
)
def test_further_arguments_that_nothing_takes_are_named(settings, message):
    with pytest.raises(InvalidArgumentError, match=message):
        build_optimizer(TrainingConfig(**settings), torch.nn.Linear(1, 1))


def test_settings_of_runs_before_further_arguments_existed_still_load():
    stored = TrainingConfig(optimizer="gam", epochs=3).to_dict()
    del stored["optimizer_kwargs"]
    assert TrainingConfig.from_dict(stored) == TrainingConfig(optimizer="gam", epochs=3)


def test_settings_survive_json():
    config = TrainingConfig(
        optimizer="gam",
        schedule="step",
        milestones=(0.25, 0.5),
        model_kwargs={"hidden": (8, 8)},
        data_kwargs={"split_seed": 3},
    )
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": 0.1}, "rho does not apply to optimizer sgd"),
        ({"base": "sgd"}, "base does not apply to optimizer sgd"),
        ({"optimizer": "adamw", "momentum": 0.9}, "momentum does not apply to optimizer adamw"),
        ({"optimizer": "sam", "alpha": 0.5}, "alpha does not apply to optimizer sam over sgd"),
        ({"optimizer": "sam", "gam_mode": "exact"}, "gam_mode does not apply"),
        ({"every": 2}, "every does not apply to optimizer sgd"),
        ({"optimizer": "sam", "eta": 0.1}, "eta does not apply to optimizer sam over sgd"),
        ({"optimizer": "gam", "rho_sam": 0.1}, "rho_sam does not apply to .*oracle loss"),
        ({"optimizer": "gam", "oracle": "asam"}, "oracle must be one of loss, sam"),
        ({"optimizer": "gam", "every": 0}, "every must be"),
        ({"optimizer": "asam", "eta": 0.0}, "eta must be"),
        ({"optimizer": "gsam", "alpha": 1.5}, "alpha must be"),
        ({"max_norm": 0.0}, "max_norm must be"),
        ({"rho_schedule": "cosine"}, "rho_schedule does not apply to optimizer sgd"),
        ({"optimizer": "gam", "rho_schedule": "cosin"}, "rho_schedule must be.*mean 'cosine'"),
        ({"optimizer": "sam", "rho_schedule": ""}, "rho_schedule must be one of"),
        ({"optimizer": "sam", "rho_final": 0.1}, "rho_final does not apply.*rho_schedule constant"),
        (
            {"optimizer": "sam", "rho_schedule": "cosine", "rho_final": 1.5},
            r"rho_final must be a number in \[0, 1\]",
        ),
        (
            {"optimizer": "sam", "rho_schedule": "proportional", "schedule": "none"},
            "rho_schedule proportional follows the learning rate, which `schedule` none keeps",
        ),
        ({"accumulate": 0}, "accumulate must be a whole number >= 1"),
        ({"accumulate": 65}, "accumulate must be at most `batch_size`, which is 64, got 65"),
        (
            {"optimizer": "gam", "gam_mode": "exact", "accumulate": 2},
            "accumulate does not apply to `gam_mode` exact",
        ),
        ({"precision": "fp16"}, "precision must be one of bfloat16, float16, float32, got 'fp16'"),
        (
            {"optimizer": "gam", "gam_mode": "exact", "beta": 0.1},
            r"beta does not apply to optimizer gam over sgd \(exact, oracle loss\)",
        ),
        ({"optimizer": "gam", "base": "adamw", "momentum": 0.5}, "momentum does not apply"),
        ({"decay": 0.1}, "decay does not apply to optimizer sgd, schedule cosine"),
        ({"schedule": "none", "milestones": (0.5,)}, "milestones does not apply"),
        ({"optimizer": "sdg"}, "did you mean 'sgd'"),
        ({"optimizer": "sam", "base": "gam"}, "base must be one of adamw, sgd"),
        ({"optimizer": "gam", "gam_mode": "fast"}, "gam_mode must be one of"),
        ({"data": "digit"}, "did you mean 'digits'"),
        ({"model": "resnet"}, "model must be one of cnn, mlp"),
        ({"augment": "crop-flip"}, "did you mean 'crop_flip'"),
        ({"log": ["json"]}, "log must be one of csv, tensorboard"),
        ({"log": "csv"}, "log must be a list, got 'csv'"),
        ({"optimizer": "sam", "rho": [0.1]}, "rho must be a finite number >= 0"),
        ({"ema": 1.0}, "ema must be below 1"),
        ({"ema": -0.1}, "ema must be a number in"),
        ({"deterministic": "yes"}, "deterministic must be true or false"),
        ({"evaluate_every": 0}, "evaluate_every must be"),
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"schedule": ["step"]}, r"schedule must be one of .*, got \['step'\]"),
        ({"optimizer": "sam", "rho_schedule": ["cosine"]}, "rho_schedule must be one of"),
        ({"device": "tpu"}, "device must be one of"),
        ({"optimizer": "sam", "rho": -0.1}, "rho must be a finite number >= 0"),
        ({"optimizer": "sam", "rho": float("nan")}, "rho must be a finite number >= 0"),
        ({"optimizer": "gam", "rho_prime": -0.1}, "rho_prime must be"),
        ({"optimizer": "gam", "alpha": 1.5}, r"alpha must be a number in \[0, 1\]"),
        ({"optimizer": "gam", "beta": -0.5}, "beta must be"),
        ({"optimizer": "gam", "gamma": -0.5}, "gamma must be"),
        ({"lr": 0.0}, "lr must be a finite number > 0"),
        ({"lr": float("inf")}, "lr must be a finite number > 0"),
        ({"momentum": 1.5}, "momentum must be"),
        ({"weight_decay": -1e-4}, "weight_decay must be"),
        ({"epochs": 0}, "epochs must be a whole number >= 1"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"save_every": -1}, "save_every must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**64}, "seed must be at most"),
        ({"label_smoothing": 2.0}, "label_smoothing must be"),
        ({"schedule": "step", "milestones": (0.5, 0.25)}, "milestones must be growing"),
        ({"schedule": "step", "milestones": (1.0,)}, "milestones must be growing"),
        ({"model_kwargs": {"hidden": {1}}}, "model_kwargs, hidden must be numbers"),
    ],
)
def test_settings_that_are_wrong_or_do_not_apply_are_named(settings, message):
    with pytest.raises(InvalidArgumentError, match=message):
        TrainingConfig(**settings)


def test_unknown_stored_settings_are_named():
    with pytest.raises(InvalidArgumentError, match="unknown training settings: colour, taste"):
        TrainingConfig.from_dict({"taste": 1, "colour": 2})


def test_a_resumed_run_may_only_grow():
    stored = TrainingConfig(optimizer="sam", epochs=5, model_kwargs={"hidden": (8,)})
    assert stored.resumed_with({}) == stored
    assert stored.resumed_with(stored.to_dict()) == stored
    assert stored.resumed_with({"model_kwargs": {"hidden": (8,)}, "epochs": 9}).epochs == 9
    with pytest.raises(InvalidArgumentError) as caught:
        stored.resumed_with({"epochs": 4, "rho": 0.5, "optimizer": "sgd", "lr": 0.1})
    message = str(caught.value)
    assert "`epochs` is 5 in the run, 4 was asked for" in message
    assert "`rho` is 0.05 in the run, 0.5 was asked for" in message
    assert "`optimizer` is 'sam' in the run, 'sgd' was asked for" in message
    assert "lr is" not in message


def test_a_resumed_run_may_find_its_data_elsewhere_and_log_otherwise():
    stored = TrainingConfig(data="cifar10", data_root="here")
    resumed = stored.resumed_with({"data_root": "there", "log": ("csv",)})
    assert (resumed.data_root, list(resumed.log)) == ("there", ["csv"])
    with pytest.raises(InvalidArgumentError, match=r"`ema` is 0\.0 in the run, 0\.9 was asked for"):
        stored.resumed_with({"ema": 0.9})


def test_the_cosine_schedule_is_that_of_torch():
    config = TrainingConfig(lr=0.3, epochs=7)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    for epoch in range(1, 8):
        assert learning_rate(config, epoch) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_the_step_schedule_drops_after_each_milestone():
    config = TrainingConfig(lr=1.0, epochs=10, schedule="step", milestones=(0.3, 0.7), decay=0.5)
    rates = [learning_rate(config, epoch) for epoch in range(1, 11)]
    assert rates == [1.0] * 3 + [0.5] * 4 + [0.25] * 3


def test_a_milestone_is_met_although_its_product_is_not_whole_in_binary():
    assert 0.07 * 100 > 7
    config = TrainingConfig(lr=1.0, epochs=100, schedule="step", milestones=(0.07,), decay=0.5)
    assert [learning_rate(config, epoch) for epoch in (7, 8)] == [1.0, 0.5]


def test_without_a_schedule_the_rate_stays():
    config = TrainingConfig(lr=0.2, schedule="none", epochs=3)
    assert {learning_rate(config, epoch) for epoch in (1, 2, 3)} == {0.2}
