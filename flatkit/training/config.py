"""The settings of a training run: checked at once, complete, and plain data in a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from flatkit.checks import (
    check_count,
    check_fraction,
    check_non_negative,
    check_positive,
)
from flatkit.data import DATASETS
from flatkit.errors import InvalidArgumentError
from flatkit.models import MODELS
from flatkit.registry import plain
from flatkit.settings import check_settings, described, setting
from flatkit.training.limits import (
    check_decay_of_average,
    check_milestones,
    check_seed,
    check_task,
    check_whole,
)
from flatkit.training.logs import LOGS
from flatkit.training.optimizers import BASES, OPTIMIZERS, defaults_in_words, users_in_words
from flatkit.training.schedules import RHO_SCHEDULES, SCHEDULES, applicable_settings

Device: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]
Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]
Augment: TypeAlias = Literal["none", "flip", "crop", "crop_flip"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_FREE = ("data_root", "log")
"""What may differ on resumption: neither changes the weights."""
_NONE: dict[str, Any] = {}
_GAM = OPTIMIZERS.load("gam").modes


def _of_some(name: str, help: str, check: Any, **more: Any) -> Any:
    """Return a field of a setting that belongs to some optimizers, which the help names."""
    return setting(
        None,
        f"{help}, of {users_in_words(name)}.",
        check=check,
        group="Optimizer",
        default_text=defaults_in_words(name),
        **more,
    )


@described
@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of a run. `None` stands for the default of the chosen optimizer or schedule.

    A setting that does not apply to the chosen optimizer stays `None`; giving one is an error, so
    that no experiment believes in a setting that was never used.

    The meaning of `alpha` differs between gsam and gam, and between the modes of gam. One factor
    of the schedule multiplies `rho`, `rho_prime` and `rho_sam`.

    With `accumulate`, SAM and GAM perturb once for the whole batch. BatchNorm normalizes each part
    by itself, and its running statistics move once a part; a smaller last batch has fewer parts
    where one of a single sample would be left. Exact `gam` needs the graphs of all parts at once,
    and so refuses it. With the precision float16 a step whose gradients overflow is not made.
    Weights, losses, evaluations and checkpoints are float32 always.

    `task` is run under the seed of the run, from which the initial weights follow unless the
    function sets a seed itself.

    `augment` moves training images: `crop` pads them by an eighth of the side, `flip` mirrors left
    and right. The moves are the same in all passes of a step.

    Raises:
        InvalidArgumentError: a setting is out of range or does not apply.

    >>> TrainingConfig(optimizer="sam").rho
    0.05
    >>> TrainingConfig(optimizer="sgd", rho=0.1)
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: rho does not apply to optimizer sgd, schedule cosine;
    remove it (it is 0.1 here)...
    """

    task: str | None = setting(
        None,
        "Your function that returns flatkit.Task(model, loss, data, test_data), in place of data "
        "and model by name; its code is run.",
        group="Data",
        metavar="FILE.py:FUNCTION",
    )
    data: str | None = setting(
        None, "Data set.", choices=DATASETS, group="Data", default_text="digits"
    )
    data_kwargs: Mapping[str, Any] = setting(
        _NONE,
        "Argument of the data set, e.g. test_fraction=0.3.",
        group="Data",
        flags=("--data-arg",),
    )
    data_root: str | None = setting(
        None,
        "Folder of cifar10, cifar100, mnist and fashion_mnist.",
        group="Data",
        metavar="DIR",
        default_text="$FLATKIT_DATA_ROOT, or data",
    )
    train_samples: int | None = setting(
        None,
        "Use so many training samples, with the same share of every class.",
        check=check_count,
        group="Data",
        metavar="N",
        default_text="all",
    )
    validation_samples: int = setting(
        0,
        "So many of these are for choosing settings, not for training; the history has their loss "
        "and accuracy.",
        check=check_whole,
        group="Data",
        metavar="N",
        default_text="0: none",
    )
    label_noise: float = setting(
        0.0,
        "Share of the training labels that are made wrong, each another class; the test labels "
        "stay right.",
        check=check_fraction,
        group="Data",
    )
    data_seed: int = setting(
        0,
        "Seed of the subset, of the wrong labels and of the validation split.",
        check=check_seed,
        group="Data",
    )
    augment: Augment = setting("none", "Random moves of images.", group="Data")
    model: str | None = setting(None, "Model.", choices=MODELS, group="Model", default_text="mlp")
    model_kwargs: Mapping[str, Any] = setting(
        _NONE,
        "Argument of the model, beside those that the data give, e.g. hidden=64,64 or "
        "batchnorm=false.",
        group="Model",
        flags=("--model-arg",),
    )
    label_smoothing: float = setting(
        0.0, "Label smoothing of the cross-entropy.", check=check_fraction, group="Model"
    )
    optimizer: str = setting("sgd", "Optimizer.", choices=OPTIMIZERS, group="Optimizer")
    optimizer_kwargs: Mapping[str, Any] = setting(
        _NONE,
        "Further argument of the optimizer, e.g. nesterov=true.",
        group="Optimizer",
        flags=("--optimizer-arg",),
    )
    base: str | None = setting(
        None,
        f"Optimizer that {users_in_words('rho')} wrap.",
        group="Optimizer",
        metavar=f"[{'|'.join(BASES)}]",
        default_text="sgd",
    )
    lr: float | None = setting(
        None,
        "Learning rate before the schedule.",
        check=check_positive,
        group="Optimizer",
        default_text=defaults_in_words("lr"),
    )
    momentum: float | None = _of_some("momentum", "Momentum", check_fraction)
    weight_decay: float | None = setting(
        None,
        "Weight decay, decoupled with adamw.",
        check=check_non_negative,
        group="Optimizer",
        default_text=defaults_in_words("weight_decay"),
    )
    gam_mode: str | None = setting(
        None,
        "GAM with four gradients a step, or exact with Hessian-vector products.",
        choices=tuple(_GAM["gam_mode"]),
        group="Optimizer",
        default_text=defaults_in_words("gam_mode"),
    )
    oracle: str | None = setting(
        None,
        "The loss under gam: the plain one, or that of sam.",
        choices=tuple(_GAM["oracle"]),
        group="Optimizer",
        default_text=defaults_in_words("oracle"),
    )
    rho: float | None = _of_some("rho", "Radius of the ball", check_non_negative)
    rho_prime: float | None = _of_some(
        "rho_prime", "Second radius, accelerated", check_non_negative
    )
    rho_sam: float | None = _of_some(
        "rho_sam", "Radius of sam under the oracle sam", check_non_negative
    )
    alpha: float | None = _of_some("alpha", "Weight alpha", check_non_negative)
    beta: float | None = _of_some("beta", "Weight beta, accelerated", check_fraction)
    gamma: float | None = _of_some("gamma", "Weight gamma, accelerated", check_non_negative)
    eta: float | None = _of_some("eta", "Added to the sizes of the weights", check_positive)
    every: int | None = setting(
        None,
        "Perturb in every N-th step only; the base steps in the others.",
        check=check_count,
        group="Optimizer",
        metavar="N",
        default_text="1",
    )
    max_norm: float | None = setting(
        None,
        "Shorten the gradient that the base uses to this norm.",
        check=check_positive,
        group="Optimizer",
        default_text="none",
    )
    epochs: int = setting(
        60, "Passes over the training data.", check=check_count, group="Schedule", metavar="N"
    )
    batch_size: int = setting(
        64,
        "Samples a step; the last batch of an epoch may be smaller.",
        check=check_count,
        group="Schedule",
        metavar="N",
    )
    accumulate: int = setting(
        1,
        "Parts of a batch, each in memory by itself; their gradients add up to the batch's.",
        check=check_count,
        group="Schedule",
        metavar="N",
    )
    schedule: str = setting(
        "cosine", "Learning rate over the epochs.", choices=tuple(SCHEDULES), group="Schedule"
    )
    milestones: Sequence[float] | None = setting(
        None,
        "Fractions of the epochs at which the schedule step lowers the rate.",
        group="Schedule",
        metavar="F,F,...",
        default_text="0.5,0.75",
    )
    decay: float | None = setting(
        None,
        "Factor of the schedule step.",
        check=check_positive,
        group="Schedule",
        default_text="0.1",
    )
    warmup: int = setting(
        0,
        "Epochs over which the learning rate rises evenly to its schedule.",
        check=check_whole,
        group="Schedule",
        metavar="N",
    )
    rho_schedule: str | None = setting(
        None,
        "The radii over the epochs: as they are, along half a cosine, or proportional to the "
        "learning rate.",
        choices=tuple(RHO_SCHEDULES),
        group="Schedule",
        default_text="constant",
    )
    rho_final: float | None = setting(
        None,
        "Share of the radii that the cosine, or a rate of 0, leaves.",
        check=check_fraction,
        group="Schedule",
        default_text="0.0",
    )
    precision: Precision = setting(
        "float32",
        "Of the training passes, by autocast, with scaled losses in float16; weights and "
        "evaluations stay float32.",
        group="Run",
    )
    ema: float = setting(
        0.0,
        "Decay of a moving average of weights and buffers, kept in ema.pt.",
        check=check_decay_of_average,
        group="Run",
        default_text="0: none",
    )
    seed: int = setting(
        0, "Seed of weights, data order and augmentation.", check=check_seed, group="Run"
    )
    device: Device = setting("auto", "auto takes cuda, then mps, then cpu.", group="Run")
    deterministic: bool = setting(
        False, "Only kernels that repeat themselves bit for bit; slower on a GPU.", group="Run"
    )
    evaluate_every: int = setting(
        1,
        "Epochs between evaluations on all data; the last is always evaluated.",
        check=check_count,
        group="Run",
        metavar="N",
    )
    gradient_norms: bool = setting(
        False,
        "Also the gradient norms on all training and all test samples, in each evaluation.",
        group="Run",
    )
    save_every: int = setting(
        0,
        "Keep epoch-NNNN.pt every so many epochs; 0: none.",
        check=check_whole,
        group="Run",
        metavar="N",
    )
    log: Sequence[str] = setting(
        (), "Also write history.csv or a folder for TensorBoard.", choices=LOGS, group="Run"
    )

    def __post_init__(self) -> None:
        """Fill in the defaults that apply, then check everything."""
        if self.task is None:
            object.__setattr__(self, "data", self.data or "digits")
            object.__setattr__(self, "model", self.model or "mlp")
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        # Before the checks, so that defaults are checked as what is given.
        for name, value in applicable_settings(given).items():
            object.__setattr__(self, name, value)
        for name in ("data_kwargs", "model_kwargs", "optimizer_kwargs", "milestones", "log"):
            object.__setattr__(self, name, plain(getattr(self, name), name))
        check_settings(self)
        if self.task is not None:
            check_task(given)
        self._check_accumulate()
        if self.alpha is not None and _alpha_is_a_share(self.optimizer, self.gam_mode):
            check_fraction("alpha", self.alpha)
        if self.milestones is not None:
            check_milestones(self.milestones)

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
        `seed` is 1 in the run, 2 was asked for; ...
        """
        stored = self.to_dict()
        asked = {name: plain(value, name) for name, value in given.items()}
        differing = [
            f"`{name}` is {stored.get(name)!r} in the run, {value!r} was asked for"
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

    def _check_accumulate(self) -> None:
        parts = self.accumulate
        if parts > self.batch_size:
            raise InvalidArgumentError(
                f"accumulate must be at most `batch_size`, which is {self.batch_size}, "
                f"got {parts}: each part of a batch needs a sample"
            )
        if parts > 1 and self.gam_mode == "exact":
            raise InvalidArgumentError(
                f"accumulate does not apply to `gam_mode` exact, got {parts}: its Hessian-vector "
                "products need the graphs of all parts at once; leave it out, or choose `gam_mode` "
                "accelerated"
            )


def _alpha_is_a_share(optimizer: str, mode: str | None) -> bool:
    return optimizer == "gsam" or (optimizer == "gam" and mode == "accelerated")
