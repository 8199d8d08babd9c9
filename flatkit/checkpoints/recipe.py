"""Recipes: the names and arguments from which model, data and loss are built. Never code."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from flatkit.data import DATASETS
from flatkit.data.dataset import Dataset
from flatkit.data.derived import with_changes
from flatkit.models import MODELS
from flatkit.objective.losses import Loss
from flatkit.objective.names import LOSSES

Recipe: TypeAlias = Mapping[str, Any]
"""`{"name", "kwargs"}` of an entry of a registry; of data also the `sha256` of their tensors and,
where they were derived from these, the `changes`."""


def build_model(recipe: Recipe) -> nn.Module:
    """Return a model in eval mode, with initial weights; random states are untouched.

    Raises:
        InvalidArgumentError: no such model, or an argument is missing, unknown or out of range.

    >>> build_model({"name": "mlp", "kwargs": {"in_shape": [2], "classes": 3, "hidden": []}})[1]
    Linear(in_features=2, out_features=3, bias=True)
    """
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = MODELS.build(recipe["name"], **recipe["kwargs"])
    return model.eval()


def build_data(recipe: Recipe, *, root: str | None = None) -> Dataset:
    """Return a data set, read from the folder `root` if one is given.

    Raises:
        InvalidArgumentError: no such data set, or an argument is missing, unknown or out of range.
        DataError: its files are missing or damaged.
        MissingDependencyError: a package that holds it is not installed.
    """
    moved = {} if root is None else {"root": root}
    dataset: Dataset = DATASETS.build(recipe["name"], **{**recipe["kwargs"], **moved})
    return with_changes(dataset, recipe.get("changes", {}))


def build_loss(recipe: Recipe) -> Loss:
    """Return a loss.

    Raises:
        InvalidArgumentError: no such loss, or an argument is missing, unknown or out of range.

    >>> build_loss({"name": "mse", "kwargs": {}})
    MeanSquared()
    """
    return LOSSES.build(recipe["name"], **recipe["kwargs"])


def model_recipe(name: str, arguments: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Return the recipe of a model; what the data know (`in_shape`, `classes`) comes from them.

    Raises:
        InvalidArgumentError: no such model, or an argument is missing or unknown.
    """
    # What the user gives wins over what the data say.
    known = {"in_shape": dataset.in_shape, "classes": dataset.classes}
    return {"name": name, "kwargs": MODELS.complete(name, **{**known, **arguments})}


def data_recipe(dataset: Dataset) -> dict[str, Any]:
    """Return the recipe of a data set, with the digest of its tensors.

    >>> blobs = DATASETS.build("gaussians", samples=50, classes=2)
    >>> data_recipe(blobs)["name"], len(data_recipe(blobs)["sha256"])
    ('gaussians', 64)
    """
    changes = {"changes": dict(dataset.changes)} if dataset.changes else {}
    own = {"name": dataset.name, "kwargs": dict(dataset.kwargs), **changes}
    return {**own, "sha256": dataset.sha256()}
