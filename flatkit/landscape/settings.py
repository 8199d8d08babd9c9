"""What landscape to measure; no torch, so that the command line can check its options at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from flatkit.checks import check_choice, check_count, check_positive
from flatkit.errors import InvalidArgumentError
from flatkit.objective.settings import ObjectiveSettings
from flatkit.settings import check_settings

Directions: TypeAlias = Literal["random", "eigenvectors", "pca", "checkpoints", "given"]
Normalization: TypeAlias = Literal["filter", "layer", "none"]
OneDimensional: TypeAlias = Literal["zero", "whole"]
Quantity: TypeAlias = Literal["loss", "accuracy", "gradient_norm", "top_eigenvalue"]
Split: TypeAlias = Literal["train", "test"]
Statistics: TypeAlias = Literal["fixed", "reestimate", "interpolate"]

_POINTS = {1: 51, 2: 21}


@dataclass(frozen=True, kw_only=True)
class LandscapeSettings(ObjectiveSettings):
    """Settings of `flatkit.landscape.measure_landscape`, beside those of `ObjectiveSettings`.

    `samples` counts for each split; of a test split with fewer, all are taken.

    Attributes:
        directions: `random`; `eigenvectors` of the Hessian, the largest eigenvalues first; `pca`
            of the checkpoints as a trajectory; `checkpoints`: the line through two, the plane
            through three; `given` by `vectors`.
        dimensions: 1 or 2; with `checkpoints` it follows from their number.
        vectors: a `.npy` file with one or two rows of P numbers.
        normalization: of random directions `filter` (by default), `layer` or `none`; of given
            ones none of these by default. The other kinds are never rescaled.
        one_dimensional: of random directions, whether biases and BatchNorm parameters stay
            (`zero`, by default) or move with the norm that they have (`whole`).
        points: steps along each axis; 51 on a line and 21 on a plane by default. A few more where
            checkpoints, which are always points of the grid, would lie between.
        x_range: first and last step along the first axis; by default ±1 with random and given
            directions, ±√(2/λ) with eigenvectors (the loss of the quadratic model rises by 1),
            and around the checkpoints otherwise.
        y_range: of the second axis; as `x_range` by default.
        quantities: of `loss`, `accuracy`, `gradient_norm` and `top_eigenvalue`.
        splits: of `train` and `test`.
        statistics: of BatchNorm; see `flatkit.landscape.evaluate.Engine`. By default `interpolate`
            between checkpoints, so that each has its own loss, else `fixed`.
        refine: None measures every point; a tolerance, as a share of the (logarithmic) range,
            measures a coarse grid first and goes on only where the surface misses its
            interpolation by more, see `flatkit.landscape.refinement`.

    Raises:
        InvalidArgumentError: one of them is out of range, or does not apply.

    >>> LandscapeSettings(dimensions=1).points
    51
    >>> LandscapeSettings(x_range=(1.0, 1.0))
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: x_range must go from a smaller to a larger finite number,
    got (1.0, 1.0): it has no width
    """

    directions: Directions = "random"
    dimensions: int = 2
    vectors: str | Path | None = None
    normalization: Normalization | None = None
    one_dimensional: OneDimensional | None = None
    points: int | None = None
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    quantities: Sequence[Quantity] = ("loss", "accuracy", "gradient_norm")
    splits: Sequence[Split] = ("train",)
    statistics: Statistics | None = None
    refine: float | None = None

    def __post_init__(self) -> None:
        """Check everything."""
        check_settings(self)
        check_choice("directions", self.directions, get_args(Directions))
        if self.dimensions not in (1, 2):
            raise InvalidArgumentError(f"dimensions must be 1 or 2, got {self.dimensions!r}")
        points = _POINTS[self.dimensions] if self.points is None else self.points
        object.__setattr__(self, "points", check_count("points", points, minimum=3))
        for name, kinds in (("quantities", Quantity), ("splits", Split)):
            given = tuple(dict.fromkeys(getattr(self, name)))
            if not given:
                raise InvalidArgumentError(f"{name} must name at least one, got none")
            for value in given:
                check_choice(name, value, get_args(kinds))
            object.__setattr__(self, name, given)
        if "loss" not in self.quantities:
            object.__setattr__(self, "quantities", ("loss", *self.quantities))
        self._check_scaling()
        for name in ("x_range", "y_range"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _check_range(name, getattr(self, name)))
        if self.y_range is not None and self.dimensions == 1:
            raise InvalidArgumentError("y_range does not apply to a line; give x_range alone")
        if self.statistics is not None:
            check_choice("statistics", self.statistics, get_args(Statistics))
        if self.statistics == "interpolate" and self.directions != "checkpoints":
            raise InvalidArgumentError(
                "statistics='interpolate' needs the line or plane of directions='checkpoints'; "
                "choose fixed or reestimate"
            )
        if self.refine is not None:
            check_positive(
                "refine",
                self.refine,
                hint="the miss that is small enough, as a share of the range, e.g. 0.02",
            )

    def _check_scaling(self) -> None:
        if (self.vectors is not None) != (self.directions == "given"):
            raise InvalidArgumentError(
                "directions='given' and a file of vectors belong together, got "
                f"directions={self.directions!r} and vectors={self.vectors!r}"
            )
        for name, kinds in (("normalization", Normalization), ("one_dimensional", OneDimensional)):
            value = getattr(self, name)
            if value is None:
                continue
            check_choice(name, value, get_args(kinds))
            if self.directions not in ("random", "given"):
                raise InvalidArgumentError(
                    f"{name} does not apply to {self.directions}: rescaled, they would no longer "
                    "be what they are; remove it"
                )


def _check_range(name: str, value: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = (float(x) for x in value)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{name} must be two numbers, got {value!r}") from error
    if not (abs(low) < float("inf") and abs(high) < float("inf") and low < high):
        reason = ": it has no width" if low == high else ""
        raise InvalidArgumentError(
            f"{name} must go from a smaller to a larger finite number, got ({low}, {high}){reason}"
        )
    return low, high
