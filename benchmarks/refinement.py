"""The section `refined` of `python -m benchmarks.landscape`: what refinement saves and misses."""

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from flatkit import Objective, load
from flatkit.landscape import (
    LandscapeJob,
    Surface,
    Waypoint,
    axis_steps,
    plane_through,
    random_subspace,
)
from flatkit.training import TrainingConfig, train


def refined_lines() -> list[str]:
    """Count the points that refinement takes, and how wrong it is, on trained networks."""
    lines = [
        "Digits, 300 samples, trained for 20 epochs: random filter-normalised planes of an MLP",
        "64-64-64-10 and of a CNN with BatchNorm, and the plane through three MLPs; all of loss,",
        "accuracy and gradient norm. The error is the largest over all points, against the plane",
        "measured whole, as a share of the range (logarithmic over at most four decades; of",
        "accuracies: of 1). The tolerance is an aim, no bound: loss and gradient norm are within",
        "it, accuracies, which go in steps, within 2.6 times it. Points that were measured have",
        "the same bits in both.",
        "",
        "| plane | grid | tolerance | points measured | largest error: loss | accuracy "
        "| gradient norm |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, objective, subspace in _refined_cases():
        for points in (21, 51):
            whole = _plane(objective, subspace, points, None)
            for tolerance in (0.01, 0.03):
                found = _plane(objective, subspace, points, tolerance)
                errors = [_miss(found, whole, q) for q in whole.quantities]
                lines.append(
                    f"| {name} | {points}x{points} | {tolerance} | {found.measured.mean():.0%} | "
                    + " | ".join(f"{error:.4f}" for error in errors)
                    + " |"
                )
    return lines


def _refined_cases() -> Iterator[tuple[str, Objective, Any]]:
    """Yield the name, objective and subspace of each plane."""
    tasks = []
    for name, seed in (("mlp", 0), ("cnn", 0), ("mlp", 1), ("mlp", 2)):
        arguments = {"hidden": (64, 64)} if name == "mlp" else {"width": 4}
        config = TrainingConfig(
            data="digits", model=name, model_kwargs=arguments, epochs=20, seed=seed, device="cpu"
        )
        tasks.append(load(train(config, tempfile.mkdtemp() + "/run").checkpoint).task())
    objectives = [Objective(task.model, task.loss, task.data, samples=300) for task in tasks]
    for name, objective in zip(("mlp", "cnn"), objectives, strict=False):
        yield name, objective, random_subspace(objective.space, objective.theta)
    mlps = [objectives[number] for number in (0, 2, 3)]
    waypoints = [Waypoint(str(number), objective.theta) for number, objective in enumerate(mlps)]
    yield "between", mlps[0], plane_through(*waypoints)


def _miss(found: Surface, whole: Surface, quantity: str) -> float:
    """Return the largest error as a share of the range."""
    ours, right = found.quantities[quantity], whole.quantities[quantity]
    assert np.array_equal(ours[found.measured], right[found.measured])
    if quantity == "accuracy":
        return float(np.abs(ours - right).max())
    spread = np.log(min(right.max() / right.min(), 1e4))
    return float(np.abs(ours / right - 1).max() / spread)


def _plane(objective: Objective, subspace: Any, points: int, tolerance: float | None) -> Surface:
    reach = 1.0 if subspace.kind == "random" else 1.2 * max(subspace.markers[1]["at"])
    steps = axis_steps(-1.0 if subspace.kind == "random" else -0.2 * reach, reach, points)
    axes, quantities = {"x": steps, "y": steps}, ("loss", "accuracy", "gradient_norm")
    return LandscapeJob(
        {"train": objective}, subspace, axes, quantities=quantities, refine=tolerance
    ).measure()
