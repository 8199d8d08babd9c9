"""What landscape to measure; no torch, so that the command line can check its options at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from flatkit.checks import check_count, check_positive
from flatkit.errors import InvalidArgumentError
from flatkit.landscape.directions import kind_named
from flatkit.objective.settings import ObjectiveSettings
from flatkit.settings import check_settings, described, setting

Normalization: TypeAlias = Literal["filter", "layer", "none"]
OneDimensional: TypeAlias = Literal["zero", "whole"]
Quantity: TypeAlias = Literal["loss", "accuracy", "gradient_norm", "top_eigenvalue"]
Split: TypeAlias = Literal["train", "test"]
Statistics: TypeAlias = Literal["fixed", "reestimate", "interpolate"]

POINTS = {1: 51, 2: 21}
"""Steps along an axis by default: of a line, and of a plane."""


def _check_range(name: str, value: Any) -> tuple[float, float]:
    """Return the first and the last step, which must be finite and in this order."""
    try:
        low, high = (float(step) for step in value)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{name} must be two numbers, got {value!r}") from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        reason = ": it has no width" if low == high else ""
        raise InvalidArgumentError(
            f"{name} must go from a smaller to a larger finite number, got ({low}, {high}){reason}"
        )
    return low, high


_check_refine = partial(
    check_positive, hint="the miss that is small enough, as a share of the range, e.g. 0.02"
)


@described
@dataclass(frozen=True, kw_only=True)
class LandscapeSettings(ObjectiveSettings):
    """Settings of `flatkit.landscape.measure_landscape`.

    `samples` counts for each split; of a test split with fewer, all are taken.

    Raises:
        InvalidArgumentError: one of them is out of range, or does not apply.

    >>> LandscapeSettings(dimensions=1).quantities
    ('loss', 'accuracy', 'gradient_norm')
    >>> LandscapeSettings(x_range=(1.0, 1.0))
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: x_range must go from a smaller to a larger finite number,
    got (1.0, 1.0): it has no width
    """

    directions: str = setting(
        "random",
        "Kind of the directions, or a .npy file with them.",
        group="Directions",
        metavar="KIND",
    )
    dimensions: int = setting(
        2,
        "1 for a line, 2 for a plane; between checkpoints it follows from their number.",
        group="Directions",
    )
    vectors: str | Path | None = setting(
        None, "A .npy file with one or two rows of P numbers.", group="Directions"
    )
    normalization: Normalization | None = setting(
        None,
        "How random or given directions are scaled, like the filters or layers of the weights; "
        "the other kinds never are.",
        group="Directions",
        default_text="filter; given ones stay as they are",
    )
    one_dimensional: OneDimensional | None = setting(
        None,
        "Whether random directions leave biases and BatchNorm parameters alone (zero), or move "
        "them by the norm that they have (whole).",
        group="Directions",
        flags=("--biases",),
        default_text="zero",
    )
    points: int | None = setting(
        None,
        "Steps along an axis; a few more where checkpoints would lie between.",
        check=partial(check_count, minimum=3),
        group="Grid",
        metavar="N",
        default_text="51 on a line, else 21",
    )
    x_range: tuple[float, float] | None = setting(
        None,
        "First and last step on each axis.",
        group="Grid",
        flags=("--range",),
        default_text="-1 to 1; with eigenvectors until the quadratic model has risen by 1; "
        "around the checkpoints",
    )
    y_range: tuple[float, float] | None = setting(
        None,
        "Of the second axis, where it differs.",
        group="Grid",
    )
    refine: float | None = setting(
        None,
        "Measure finer only where interpolation would miss by more than this share of the range, "
        "which is logarithmic, e.g. 0.02.",
        check=_check_refine,
        group="Grid",
        metavar="MISS",
        default_text="every point",
    )
    quantities: Sequence[Quantity] = setting(
        ("loss", "accuracy", "gradient_norm"),
        f"Of {', '.join(get_args(Quantity))}.",
        group="Quantities",
    )
    splits: Sequence[Split] = setting(
        ("train",),
        "train, test or train,test.",
        group="Quantities",
    )
    statistics: Statistics | None = setting(
        None,
        "Of BatchNorm at every point: those of the centre, new ones from one more pass over the "
        "samples, or moved between checkpoints so that each has its own loss.",
        group="Quantities",
        default_text="interpolate between checkpoints, else fixed",
    )

    def __post_init__(self) -> None:
        """Check everything."""
        if self.dimensions not in (1, 2):
            raise InvalidArgumentError(f"dimensions must be 1 or 2, got {self.dimensions!r}")
        for name in ("quantities", "splits"):
            given = tuple(dict.fromkeys(getattr(self, name)))
            if not given:
                raise InvalidArgumentError(f"{name} must name at least one, got none")
            object.__setattr__(self, name, given)
        for name in ("x_range", "y_range"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _check_range(name, getattr(self, name)))
        check_settings(self)
        # Widths, barriers and the colours of most pictures are of the loss.
        if "loss" not in self.quantities:
            object.__setattr__(self, "quantities", ("loss", *self.quantities))
        if self.y_range is not None and self.dimensions == 1:
            raise InvalidArgumentError("y_range does not apply to a line; give `x_range` alone")
        self._check_directions()

    def _check_directions(self) -> None:
        """Refuse what does not apply to the kind of directions."""
        kind = kind_named(self.directions)
        if (self.vectors is not None) != kind.takes_vectors:
            raise InvalidArgumentError(
                "directions='given' and a file of vectors belong together, got "
                f"directions={self.directions!r} and vectors={self.vectors!r}"
            )
        for name in ("normalization", "one_dimensional"):
            if getattr(self, name) is not None and not kind.can_be_scaled:
                raise InvalidArgumentError(
                    f"{name} does not apply to {self.directions}: rescaled, they would no longer "
                    "be what they are; remove it"
                )
        if self.statistics == "interpolate" and not kind.moves_buffers:
            raise InvalidArgumentError(
                "statistics='interpolate' needs the line or plane of directions='checkpoints'; "
                "choose fixed or reestimate"
            )
