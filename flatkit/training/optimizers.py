"""The table of optimizers: what each is built by, and which settings belong to it; needs no torch.

Training, its help, recipes and checkpoints take all they know of an optimizer from here. A new one
is its file in `flatkit/optim` and an entry here. Another package adds one by an entry point that
names an `OptimizerEntry`:

    [project.entry-points."flatkit.optimizers"]
    lion = "my_package:LION"
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from flatkit.checks import check_choice, nearest
from flatkit.errors import InvalidArgumentError
from flatkit.registry import Registry

if TYPE_CHECKING:
    from torch import nn, optim

    from flatkit.training.config import TrainingConfig


@dataclass(frozen=True)
class OptimizerEntry:
    """What is known of an optimizer without importing it.

    Attributes:
        home: `module:class`; it is called with the parameters of the model, or with the optimizer
            that it wraps, and with settings by name.
        settings: the fields of `TrainingConfig` that belong to it, with their defaults.
        modes: fields that choose a mode -> mode -> the settings that belong to it; the first mode
            is the default.
        wraps: it wraps a base and takes `model`, `every` and `max_norm`, as all do that are
            derived from `flatkit.optim.PerturbedOptimizer`. Its radii follow `rho_schedule`.
        arguments: field -> its name among the arguments, where it differs.

    >>> OPTIMIZERS.load("gam").modes["oracle"]
    {'loss': {}, 'sam': {'rho_sam': 0.05}}
    """

    home: str
    settings: Mapping[str, Any]
    modes: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    wraps: bool = False
    arguments: Mapping[str, str] = field(default_factory=dict)

    @property
    def all_settings(self) -> dict[str, Any]:
        """All settings that may belong to it, with their defaults."""
        found = dict(self.settings)
        for name, modes in self.modes.items():
            found[name] = next(iter(modes))
            for special in modes.values():
                found |= special
        return found


# The rates, momenta and decays are those of the paper's training of SGD, and torch's of AdamW. The
# settings of gam are published for CIFAR-100 with ResNets (Zhang et al. 2023, appendix).
_OWN: dict[str, OptimizerEntry] = {
    "sgd": OptimizerEntry("torch.optim:SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}),
    "adamw": OptimizerEntry("torch.optim:AdamW", {"lr": 1e-3, "weight_decay": 1e-2}),
    "sam": OptimizerEntry("flatkit.optim.sam:SAM", {"rho": 0.05}, wraps=True),
    "asam": OptimizerEntry("flatkit.optim.sam:ASAM", {"rho": 0.5, "eta": 0.01}, wraps=True),
    "gsam": OptimizerEntry("flatkit.optim.sam:GSAM", {"rho": 0.05, "alpha": 0.4}, wraps=True),
    "gam": OptimizerEntry(
        "flatkit.optim.gam:GAM",
        {"rho": 0.2, "alpha": 0.6},
        modes={
            "gam_mode": {
                "accelerated": {"rho_prime": 0.02, "beta": 0.5, "gamma": 0.03},
                "exact": {},
            },
            "oracle": {"loss": {}, "sam": {"rho_sam": 0.05}},
        },
        wraps=True,
        arguments={"gam_mode": "mode"},
    ),
}
OPTIMIZERS: Registry[OptimizerEntry] = Registry("optimizer", _OWN, group="flatkit.optimizers")
BASES = tuple(name for name, entry in _OWN.items() if not entry.wraps)
"""The optimizers of flatkit that can be wrapped."""

_OF_WRAPPERS: dict[str, Any] = {"base": "sgd", "every": 1}
SETTINGS_OF_OPTIMIZERS = {*_OF_WRAPPERS, *(key for e in _OWN.values() for key in e.all_settings)}
"""The settings of which each optimizer has some."""


def belonging_settings(optimizer: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the settings that belong to an optimizer, with their defaults; and it in words.

    Args:
        optimizer: its name.
        given: all settings, `None` for those left open.

    Raises:
        InvalidArgumentError: there is no such optimizer, base or mode.

    >>> belonging_settings("sam", {"base": "adamw"})
    ({'rho': 0.05, 'base': 'adamw', 'every': 1, 'lr': 0.001, 'weight_decay': 0.01},
     'optimizer sam over adamw')
    """
    entry, text = OPTIMIZERS.load(optimizer), f"optimizer {optimizer}"
    found, modes = dict(entry.settings), list[str]()
    if entry.wraps:
        base = given.get("base") or _OF_WRAPPERS["base"]
        # The base's own defaults come along: SAM over AdamW has the rate of AdamW.
        found |= {**_OF_WRAPPERS, "base": base, **_base(base).settings}
        text += f" over {base}"
    for name, known in entry.modes.items():
        mode = check_choice(name, given.get(name) or next(iter(known)), known)
        found |= {name: mode, **known[mode]}
        modes.append(mode if name == f"{optimizer}_mode" else f"{name} {mode}")
    return found, text + (f" ({', '.join(modes)})" if modes else "")


def users_in_words(setting: str) -> str:
    """Return which optimizers a setting belongs to.

    >>> users_in_words("alpha"), users_in_words("momentum")
    ('gsam and gam', 'sgd')
    """
    return _list(name for name, entry in _OWN.items() if setting in entry.all_settings)


def defaults_in_words(setting: str) -> str:
    """Return the defaults of a setting, each with its optimizers.

    >>> defaults_in_words("rho"), defaults_in_words("beta")
    ('0.05 with sam and gsam, 0.5 with asam, 0.2 with gam', '0.5')
    """
    users: dict[Any, list[str]] = {}
    for name, entry in _OWN.items():
        if setting in entry.all_settings:
            users.setdefault(entry.all_settings[setting], []).append(name)
    if len(users) == 1:
        return str(next(iter(users)))
    return ", ".join(f"{value} with {_list(names)}" for value, names in users.items())


def build_optimizer(config: "TrainingConfig", model: "nn.Module") -> "optim.Optimizer":
    """Return the optimizer that the settings name, around its base if it wraps one.

    A wrapper lets the buffers of the model, such as the statistics of BatchNorm, change in the
    first pass of a step only.

    Raises:
        InvalidArgumentError: `optimizer_kwargs` has an argument that it does not take.

    >>> from torch import nn
    >>> from flatkit.training.config import TrainingConfig
    >>> build_optimizer(TrainingConfig(optimizer="adamw"), nn.Linear(2, 1)).defaults["lr"]
    0.001
    """
    entry = OPTIMIZERS.load(config.optimizer)
    build = _load(entry)
    # `_check_further` sees to it that no setting is given twice.
    given = {**_given(entry, config), **config.optimizer_kwargs}
    _check_further(config.optimizer, entry, build, config.optimizer_kwargs)
    if not entry.wraps:
        return build(model.parameters(), **given)
    base = OPTIMIZERS.load(config.base_optimizer)
    shared = {"model": model, "every": config.every, "max_norm": config.max_norm}
    return build(_load(base)(model.parameters(), **_given(base, config)), **given, **shared)


def _load(entry: OptimizerEntry) -> Callable[..., "optim.Optimizer"]:
    module, _, name = entry.home.partition(":")
    return getattr(import_module(module), name)


def _given(entry: OptimizerEntry, config: "TrainingConfig") -> dict[str, Any]:
    values = {name: getattr(config, name) for name in entry.all_settings}
    return {entry.arguments.get(n, n): value for n, value in values.items() if value is not None}


def _check_further(
    name: str, entry: OptimizerEntry, build: Callable[..., Any], further: Mapping[str, Any]
) -> None:
    """Refuse further arguments that are settings already, or that nothing takes."""
    # The first is what it optimizes: parameters, or the base.
    _, *parameters = signature(build).parameters.values()
    allowed = {p.name for p in parameters if p.kind is not Parameter.VAR_KEYWORD}
    if entry.wraps and len(allowed) < len(parameters):  # the rest go to PerturbedOptimizer
        allowed |= import_module("flatkit.optim.settings").Keywords.__annotations__.keys()
    allowed -= {*entry.all_settings, *entry.arguments.values(), "model", "every", "max_norm"}
    for key in further:
        if key not in allowed:
            raise InvalidArgumentError(
                f"optimizer {name} has no further argument {key!r}; it takes "
                f"{', '.join(sorted(allowed)) or 'none'}{nearest(key, allowed)}"
            )


def _base(name: str) -> OptimizerEntry:
    if name not in BASES:  # another package's is asked whether it wraps one itself
        others = [other for other in OPTIMIZERS if other not in _OWN and not _wraps(other)]
        check_choice("base", name, [*BASES, *others])
    return OPTIMIZERS.load(name)


def _wraps(name: str) -> bool:
    return OPTIMIZERS.load(name).wraps


def _list(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
