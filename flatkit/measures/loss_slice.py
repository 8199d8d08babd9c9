"""Loss, accuracy and gradient norm along random directions through the checkpoint."""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from flatkit.checks import check_count, check_odd, check_positive
from flatkit.measures.base import Measure
from flatkit.objective.settings import ObjectiveSettings
from flatkit.results import Result
from flatkit.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

    from flatkit.measures.session import Session


@dataclass(frozen=True, kw_only=True)
class ExtentSettings:
    """How far slices and planes reach."""

    extent: float = setting(
        1.0,
        "Slices and planes reach this many lengths of the weights to each side.",
        check=check_positive,
        group="Landscape",
    )


@dataclass(frozen=True, kw_only=True)
class SliceSettings:
    """The points of the slice."""

    slice_points: int = setting(31, "Steps of a slice, odd.", check=check_odd, group="Landscape")
    slice_directions: int = setting(
        5,
        "Random directions of the slice.",
        check=partial(check_count, minimum=2),
        group="Landscape",
    )


def run(session: "Session") -> list[Result]:
    """Return what was found along filter-normalised directions, with standard errors over them."""
    import torch

    from flatkit.landscape.directions import random_direction
    from flatkit.landscape.old_surface import loss_slice, symmetric_grid

    own, objective = session.own(SliceSettings), session.objective
    generator = session.generator("slice")
    directions = torch.stack(
        [
            random_direction(objective.space, objective.theta, generator=generator)
            for _ in range(own.slice_directions)
        ]
    )
    with session.meter() as cost:
        found = loss_slice(
            objective,
            directions=directions,
            coordinate=symmetric_grid(session.own(ExtentSettings).extent, own.slice_points),
            progress=lambda done, total: session.report("loss_slice", done, total),
        )
        spent = cost()
    quantities = {
        "loss": found.loss,
        "accuracy": found.accuracy,
        "gradient_norm": found.gradient_norm,
    }
    present = {name: rows for name, rows in quantities.items() if rows is not None}
    return [
        Result(
            "loss_slice",
            {"coordinate": found.coordinate, **present},
            {name: _standard_errors(rows) for name, rows in present.items()},
            error_kind="standard_error",
            settings=direction_settings(session, directions),
            cost=spent,
        )
    ]


def direction_settings(session: "Session", directions: "Tensor") -> dict[str, Any]:
    """Return how random directions [K, P] were made, ready for JSON."""
    return {
        "normalization": "filter",
        "one_dimensional": "zero",
        "num_directions": len(directions),
        "direction_norms": directions.double().norm(dim=1).tolist(),
        "weight_norm": float(session.objective.theta.double().norm()),
        "seed": session.own(ObjectiveSettings).seed,
    }


def _standard_errors(rows: "list[list[float | None]]") -> "list[float | None]":
    """Return, for each step, the standard error of the mean over the directions."""
    import torch

    errors: list[float | None] = []
    for column in zip(*rows, strict=True):
        numbers = [x for x in column if x is not None and math.isfinite(x)]
        if len(numbers) < len(column):
            errors.append(None)
            continue
        spread = torch.tensor(numbers, dtype=torch.float64).std()
        errors.append(float(spread) / math.sqrt(len(numbers)))
    return errors


def size(result: Result) -> str:
    """Return directions × steps."""
    return f"{len(result.value['loss'])} × {len(result.value['coordinate'])}"


MEASURE = Measure(
    "loss_slice",
    "loss, accuracy and gradient norm along random directions",
    run,
    settings=(SliceSettings, ExtentSettings),
    figures={"slice": "flatkit.render.figures.slices:slice_figure"},
    size=size,
)
