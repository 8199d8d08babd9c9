"""Which settings apply to which optimizer and schedule, and their defaults there."""

from collections.abc import Mapping
from typing import Any

from flatkit.checks import check_choice
from flatkit.errors import InvalidArgumentError

BASES: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
    "adamw": {"lr": 1e-3, "weight_decay": 1e-2},
}
WRAPPERS: dict[str, dict[str, Any]] = {
    "sam": {"rho": 0.05},
    "asam": {"rho": 0.5, "eta": 0.01},
    "gsam": {"rho": 0.05, "alpha": 0.4},
    "gam": {},
}
OPTIMIZERS = (*BASES, *WRAPPERS)
# Published for CIFAR-100 with ResNets (Zhang et al. 2023, appendix).
GAM_MODES: dict[str, dict[str, Any]] = {
    "accelerated": {"rho": 0.2, "rho_prime": 0.02, "alpha": 0.6, "beta": 0.5, "gamma": 0.03},
    "exact": {"rho": 0.2, "alpha": 0.6},
}
GAM_ORACLES: dict[str, dict[str, Any]] = {"loss": {}, "sam": {"rho_sam": 0.05}}
SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {},
    "step": {"milestones": (0.5, 0.75), "decay": 0.1},
    "none": {},
}
RHO_SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "cosine": {"rho_final": 0.0},
    "proportional": {"rho_final": 0.0},
}
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("float32", "bfloat16", "float16")
AUGMENTATIONS = ("none", "flip", "crop", "crop_flip")

_OPTIONAL = ("base", "gam_mode", "oracle", "rho", "rho_prime", "rho_sam", "alpha", "beta", "gamma")
_OPTIONAL += (
    "rho_schedule",
    "rho_final",
    "eta",
    "every",
    "lr",
    "momentum",
    "weight_decay",
    "milestones",
    "decay",
)


def applicable_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the optional settings that apply: as given, or the default.

    Args:
        given: all settings, `None` for those left open; optimizer and schedule are checked.

    Raises:
        InvalidArgumentError: a setting was given that does not apply.

    >>> applicable_settings({"optimizer": "adamw", "schedule": "none", "lr": 0.01})
    {'lr': 0.01, 'weight_decay': 0.01}
    """
    optimizer, chosen = given["optimizer"], f"optimizer {given['optimizer']}"
    defaults: dict[str, Any] = {}
    base = optimizer
    if optimizer in WRAPPERS:
        base = defaults["base"] = check_choice("base", given.get("base") or "sgd", BASES)
        chosen += f" over {base}"
        defaults |= {"every": 1, **WRAPPERS[optimizer]}
    if optimizer == "gam":
        mode = check_choice("gam_mode", given.get("gam_mode") or "accelerated", GAM_MODES)
        oracle = check_choice("oracle", given.get("oracle") or "loss", GAM_ORACLES)
        defaults |= {"gam_mode": mode, "oracle": oracle, **GAM_MODES[mode], **GAM_ORACLES[oracle]}
        chosen += f" ({mode}, oracle {oracle})"
    chosen += f", schedule {given['schedule']}"
    if optimizer in WRAPPERS:
        kind = _rho_schedule(given)
        defaults |= {"rho_schedule": kind, **RHO_SCHEDULES[kind]}
        chosen += f", rho_schedule {kind}"
    defaults |= BASES[base] | SCHEDULES[given["schedule"]]
    _refuse_others(given, defaults, chosen)
    return {
        name: default if given.get(name) is None else given[name]
        for name, default in defaults.items()
    }


def _rho_schedule(given: Mapping[str, Any]) -> str:
    kind = "constant" if given.get("rho_schedule") is None else given["rho_schedule"]
    check_choice("rho_schedule", kind, RHO_SCHEDULES)
    if kind == "proportional" and given["schedule"] == "none":
        raise InvalidArgumentError(
            "rho_schedule proportional follows the learning rate, which schedule none keeps as it "
            "is; choose rho_schedule cosine or constant, or schedule cosine or step"
        )
    return kind


def _refuse_others(given: Mapping[str, Any], allowed: Mapping[str, Any], chosen: str) -> None:
    for name in _OPTIONAL:
        if given.get(name) is not None and name not in allowed:
            raise InvalidArgumentError(
                f"{name} does not apply to {chosen}; remove it (it is {given[name]!r} here), "
                "or choose what it belongs to"
            )
