"""Slices and planes around the checkpoint."""

import math
from typing import Any

import torch
from torch import Tensor

from flatkit.landscape.directions import random_direction
from flatkit.landscape.old_surface import loss_plane, loss_slice, symmetric_grid
from flatkit.measures.session import Session
from flatkit.results import Result


def slice_of_loss(session: Session) -> list[Result]:
    """Return loss, accuracy and gradient norm along random filter-normalised directions."""
    settings, objective = session.settings, session.objective
    generator = session.generator("slice")
    directions = torch.stack(
        [
            random_direction(objective.space, objective.theta, generator=generator)
            for _ in range(settings.slice_directions)
        ]
    )
    with session.meter() as cost:
        found = loss_slice(
            objective,
            directions=directions,
            coordinate=symmetric_grid(settings.extent, settings.slice_points),
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
            settings=_direction_settings(session, directions),
            cost=spent,
        )
    ]


def plane_of_loss(session: Session) -> list[Result]:
    """Return loss and accuracy on the plane of two random filter-normalised directions."""
    settings, objective = session.settings, session.objective
    generator = session.generator("plane")
    first, second = (
        random_direction(objective.space, objective.theta, generator=generator) for _ in range(2)
    )
    steps = symmetric_grid(settings.extent, settings.plane_points)
    with session.meter() as cost:
        plane = loss_plane(
            objective,
            first=first,
            second=second,
            x=steps,
            y=steps,
            progress=lambda done, total: session.report("loss_plane", done, total),
        )
        spent = cost()
    value: dict[str, Any] = {"x": plane.x, "y": plane.y, "loss": plane.loss}
    if plane.accuracy is not None:
        value["accuracy"] = plane.accuracy
    cosine = float(first @ second) / float(first.norm() * second.norm())
    used = {**_direction_settings(session, torch.stack([first, second])), "cosine": cosine}
    return [Result("loss_plane", value, 0.0, settings=used, cost=spent)]


def _direction_settings(session: Session, directions: Tensor) -> dict[str, Any]:
    return {
        "normalization": "filter",
        "one_dimensional": "zero",
        "num_directions": len(directions),
        "direction_norms": directions.double().norm(dim=1).tolist(),
        "weight_norm": float(session.objective.theta.double().norm()),
        "seed": session.settings.seed,
    }


def _standard_errors(rows: list[list[float | None]]) -> list[float | None]:
    """Return, for each step, the standard error of the mean over the directions."""
    errors: list[float | None] = []
    for column in zip(*rows, strict=True):
        numbers = [x for x in column if x is not None and math.isfinite(x)]
        if len(numbers) < len(column):
            errors.append(None)
            continue
        spread = torch.tensor(numbers, dtype=torch.float64).std()
        errors.append(float(spread) / math.sqrt(len(numbers)))
    return errors
