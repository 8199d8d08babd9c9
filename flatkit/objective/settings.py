"""The settings that every measurement of a checkpoint shares; no torch, for the command line."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from flatkit.checks import check_count
from flatkit.settings import check_settings, described, setting

DType: TypeAlias = Literal["float32", "float64", "bfloat16"]


def _check_seed(name: str, value: int) -> int:
    return check_count(name, value, minimum=0)


@described
@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """Which function is measured, and where it is computed.

    Subclasses are the settings of the measurements; their command lines have these options.

    Raises:
        InvalidArgumentError: one of them is not allowed.

    >>> ObjectiveSettings(samples=100).batchnorm
    'eval'
    """

    samples: int | None = setting(
        None,
        "Use N random training samples, and at most so many of the test samples.",
        check=check_count,
        group="Objective",
        metavar="N",
        default_text="all",
    )
    test_samples: int | None = setting(
        None,
        "Use N random test samples.",
        check=check_count,
        group="Objective",
        metavar="N",
        default_text="as many as training samples, or all",
    )
    batchnorm: Literal["eval", "train"] = setting(
        "eval",
        "BatchNorm by its running statistics, or by those of each batch of `chunk_size`.",
        group="Objective",
    )
    chunk_size: int | None = setting(
        None,
        "Samples that go through the model at once.",
        check=check_count,
        group="Objective",
        flags=("--chunk-size", "--batch-size"),
        metavar="N",
        default_text="chosen by size",
    )
    dtype: DType | None = setting(
        None,
        "Compute in this type, also what the model does in 16 bits by itself; bfloat16 for the "
        "model alone, with its noise measured.",
        group="Objective",
        default_text="the checkpoint's",
    )
    device: str | None = setting(
        None,
        "cpu, cuda, mps or auto.",
        group="Objective",
        default_text="cuda if there is one, else cpu",
    )
    loss_parameters: bool = setting(
        False, "Parameters of the loss are part of θ too.", group="Objective"
    )
    seed: int = setting(0, "Of every random draw.", check=_check_seed, group="Objective")
    memory: int | None = setting(
        None,
        "Bytes that a Hessian-vector product may hold.",
        check=check_count,
        group="Objective",
        metavar="BYTES",
        default_text="no limit",
    )
    examine: bool = setting(
        True,
        "Prove first that this is one function of the weights, made of samples.",
        group="Objective",
    )

    def __post_init__(self) -> None:
        """Check them."""
        check_settings(self)
