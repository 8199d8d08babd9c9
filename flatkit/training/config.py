"""The settings of a training run: checked at once, complete, and plain data in a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeAlias

from flatkit.checks import (
    check_choice,
    check_count,
    check_fraction,
    check_non_negative,
    check_positive,
)
from flatkit.data import DATASETS
from flatkit.errors import InvalidArgumentError
from flatkit.models import MODELS
from flatkit.registry import plain
from flatkit.training.applicable import (
    AUGMENTATIONS,
    DEVICES,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    applicable_settings,
)
from flatkit.training.logs import LOGS

Optimizer: TypeAlias = Literal["sgd", "adamw", "sam", "asam", "gsam", "gam"]
Base: TypeAlias = Literal["sgd", "adamw"]
GamMode: TypeAlias = Literal["accelerated", "exact"]
Oracle: TypeAlias = Literal["loss", "sam"]
Schedule: TypeAlias = Literal["cosine", "step", "none"]
RhoSchedule: TypeAlias = Literal["constant", "cosine", "proportional"]
Device: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]
Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]
Augment: TypeAlias = Literal["none", "flip", "crop", "crop_flip"]
Log: TypeAlias = Literal["csv", "tensorboard"]

_MAX_SEED = 2**63 - 1
_FREE = ("data_root", "log")
"""What may differ on resumption: neither changes the weights."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of a run. `None` stands for the default of the chosen optimizer or schedule.

    A setting that does not apply to the chosen optimizer stays `None`; giving one is an error, so
    that no experiment believes in a setting that was never used.

    Attributes:
        data: name in `flatkit.data.DATASETS`.
        data_kwargs: its keyword arguments.
        data_root: folder of the data sets that are read from files; see `flatkit.data`.
        model: name in `flatkit.models.MODELS`.
        model_kwargs: its keyword arguments, beside `in_shape` and `classes`, which the data give.
        optimizer: `sgd`, `adamw`, `sam`, `asam`, `gsam` or `gam`.
        base: the optimizer that the latter four wrap: `sgd` (default) or `adamw`.
        gam_mode: `accelerated` (default; four gradients a step) or `exact`.
        oracle: the loss under `gam`: the plain `loss` (default) or that of `sam`.
        rho: radius of the ball, of all four.
        rho_prime: second radius, of accelerated `gam`.
        rho_sam: radius of SAM, of `gam` with the oracle `sam`.
        rho_schedule: of the radii over the epochs, of all four: `constant` (default), `cosine`, or
            `proportional` to the learning rate. One factor for `rho`, `rho_prime` and `rho_sam`.
        rho_final: the share of the radii that is left where the cosine ends, or the rate is 0: 0.
        alpha: weight, of `gsam` and `gam`; its meaning differs between them and between the modes.
        beta: weight, of accelerated `gam`.
        gamma: weight, of accelerated `gam`.
        eta: added to the sizes of the weights, of `asam`.
        every: only each so many steps looks around; the others are those of the base.
        max_norm: the gradient that the base uses is shortened to this norm; None leaves it.
        epochs: passes over the training data.
        batch_size: samples a step; the last batch of an epoch may be smaller.
        accumulate: parts into which a batch is split, to need the memory of one; their gradients
            add up to those of the batch, and SAM and GAM perturb once for the whole. BatchNorm
            normalizes each part by itself, and its running statistics move once a part; a smaller
            last batch has fewer parts where one of a single sample would be left. Not for exact
            `gam`, whose products need the graphs of all parts at once.
        precision: `float32`, or of the model in training passes, by autocast, `bfloat16` or
            `float16`. The latter scales losses; a step whose gradients overflow is not made.
            Weights, losses, evaluations and checkpoints are float32 always.
        lr: learning rate before the schedule: 0.1 with sgd, 0.001 with adamw.
        momentum: of sgd, 0.9.
        weight_decay: 0.0005 with sgd, 0.01 (decoupled) with adamw.
        schedule: of the learning rate over the epochs: `cosine`, `step` or `none`.
        milestones: fractions of the epochs after which `step` lowers the rate: 0.5 and 0.75.
        decay: factor of `step`, 0.1.
        label_smoothing: of the cross-entropy.
        augment: random moves of training images: `crop` (padded by an eighth of the side), `flip`
            (left to right), `crop_flip` or `none`. The same in all passes of a step.
        ema: decay of an exponential moving average of weights and buffers, updated every step and
            kept in `ema.pt`; 0 keeps none.
        seed: of weights, data order and augmentation.
        device: `auto` takes cuda, then mps, then cpu.
        deterministic: only kernels that repeat themselves bit for bit; slower on a GPU.
        evaluate_every: epochs between evaluations on all data; the last is always evaluated.
        save_every: keep a checkpoint every so many epochs; 0 keeps the last alone.
        log: beside `history.json`, write `csv` (history.csv) or `tensorboard` (a folder).

    Raises:
        InvalidArgumentError: a setting is out of range or does not apply.

    >>> TrainingConfig(optimizer="sam").rho
    0.05
    >>> TrainingConfig(optimizer="sgd", rho=0.1)
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: rho does not apply to optimizer sgd, schedule cosine;
    remove it (it is 0.1 here)...
    """

    data: str = "digits"
    data_kwargs: Mapping[str, Any] = field(default_factory=dict)
    data_root: str | None = None
    model: str = "mlp"
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Optimizer = "sgd"
    base: Base | None = None
    gam_mode: GamMode | None = None
    oracle: Oracle | None = None
    rho: float | None = None
    rho_prime: float | None = None
    rho_sam: float | None = None
    rho_schedule: RhoSchedule | None = None
    rho_final: float | None = None
    alpha: float | None = None
    beta: float | None = None
    gamma: float | None = None
    eta: float | None = None
    every: int | None = None
    max_norm: float | None = None
    epochs: int = 60
    batch_size: int = 64
    accumulate: int = 1
    precision: Precision = "float32"
    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    schedule: Schedule = "cosine"
    milestones: Sequence[float] | None = None
    decay: float | None = None
    label_smoothing: float = 0.0
    augment: Augment = "none"
    ema: float = 0.0
    seed: int = 0
    device: Device = "auto"
    deterministic: bool = False
    evaluate_every: int = 1
    save_every: int = 0
    log: Sequence[Log] = ()

    def __post_init__(self) -> None:
        """Check the choices, fill in the defaults, then check the numbers."""
        check_choice("data", self.data, DATASETS.names)
        check_choice("model", self.model, MODELS.names)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("device", self.device, DEVICES)
        check_choice("augment", self.augment, AUGMENTATIONS)
        check_choice("precision", self.precision, PRECISIONS)
        for log in self.log:
            check_choice("log", log, LOGS)
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        for name, value in applicable_settings(given).items():
            object.__setattr__(self, name, value)
        for name in ("data_kwargs", "model_kwargs", "milestones", "log"):
            object.__setattr__(self, name, plain(getattr(self, name), name))
        self._check_numbers()

    @property
    def base_optimizer(self) -> str:
        """The torch optimizer that makes the step: `sgd` or `adamw`."""
        return self.base or self.optimizer

    @property
    def data_arguments(self) -> dict[str, Any]:
        """The keyword arguments of the data set, with the folder in which its files are."""
        return {**self.data_kwargs, **({} if self.data_root is None else {"root": self.data_root})}

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TrainingConfig":
        """Read settings back.

        Raises:
            InvalidArgumentError: an unknown setting, or one out of range.

        >>> config = TrainingConfig(optimizer="gam", epochs=3)
        >>> TrainingConfig.from_dict(config.to_dict()) == config
        True
        """
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise InvalidArgumentError(f"unknown training settings: {', '.join(unknown)}")
        return cls(**data)

    def resumed_with(self, given: Mapping[str, Any]) -> "TrainingConfig":
        """Return these settings for a resumed run, with the epochs that `given` asks for.

        Args:
            given: settings of the resumed run; all must agree but `epochs`, which may grow, and
                `data_root` and `log`, which do not change the weights.

        Raises:
            InvalidArgumentError: settings that contradict the run, each with both values.

        >>> TrainingConfig(epochs=3).resumed_with({"epochs": 5}).epochs
        5
        >>> TrainingConfig(seed=1).resumed_with({"seed": 2})
        Traceback (most recent call last):
        flatkit.errors.InvalidArgumentError: a resumed run keeps its settings (epochs may grow):
        seed is 1 in the run, 2 was asked for; ...
        """
        stored = self.to_dict()
        asked = {name: plain(value, name) for name, value in given.items()}
        differing = [
            f"{name} is {stored.get(name)!r} in the run, {value!r} was asked for"
            for name, value in asked.items()
            if value != stored.get(name)
            and name not in _FREE
            and not (name == "epochs" and value > self.epochs)
        ]
        if differing:
            raise InvalidArgumentError(
                "a resumed run keeps its settings (epochs may grow): "
                f"{'; '.join(differing)}; leave them out, or start a new run elsewhere"
            )
        return TrainingConfig.from_dict({**stored, **asked})

    def _check_numbers(self) -> None:
        check_count("epochs", self.epochs)
        check_count("batch_size", self.batch_size)
        self._check_accumulate()
        check_count("evaluate_every", self.evaluate_every)
        check_count("save_every", self.save_every, minimum=0)
        check_count("seed", self.seed, minimum=0)
        if self.seed > _MAX_SEED:
            raise InvalidArgumentError(f"seed must be at most {_MAX_SEED}, got {self.seed}")
        check_fraction("label_smoothing", self.label_smoothing)
        if check_fraction("ema", self.ema) == 1:
            raise InvalidArgumentError("ema must be below 1, or the average never moves")
        if not isinstance(self.deterministic, bool):
            raise InvalidArgumentError(
                f"deterministic must be true or false, got {self.deterministic!r}"
            )
        self._check("every", check_count)
        for name in ("lr", "decay", "eta", "max_norm"):
            self._check(name, check_positive)
        for name in ("rho", "rho_prime", "rho_sam", "weight_decay", "gamma", "alpha"):
            self._check(name, check_non_negative)
        for name in (
            "momentum",
            "beta",
            "rho_final",
            *([] if self.gam_mode == "exact" else ["alpha"]),
        ):
            self._check(name, check_fraction)
        if self.milestones is not None:
            _check_milestones(self.milestones)

    def _check_accumulate(self) -> None:
        parts = check_count("accumulate", self.accumulate)
        if parts > self.batch_size:
            raise InvalidArgumentError(
                f"accumulate must be at most batch_size, which is {self.batch_size}, got {parts}: "
                "each part of a batch needs a sample"
            )
        if parts > 1 and self.gam_mode == "exact":
            raise InvalidArgumentError(
                f"accumulate does not apply to gam_mode exact, got {parts}: its Hessian-vector "
                "products need the graphs of all parts at once; leave it out, or choose gam_mode "
                "accelerated"
            )

    def _check(self, name: str, check: Any) -> None:
        value = getattr(self, name)
        if value is not None:
            check(name, value)


def _check_milestones(milestones: Sequence[float]) -> None:
    inside = all(0 < milestone < 1 for milestone in milestones)
    if not inside or sorted(set(milestones)) != list(milestones):
        raise InvalidArgumentError(
            "milestones must be growing fractions of the epochs between 0 and 1, "
            f"e.g. 0.5,0.75, got {milestones}"
        )
