"""Settings of a run from a TOML file or from a recipe that comes along; needs no torch."""

import sys
from dataclasses import fields
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from flatkit.checks import nearest
from flatkit.errors import InvalidArgumentError
from flatkit.training.config import TrainingConfig


def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes, sorted.

    >>> "cifar10-resnet18-gam" in recipe_names()
    True
    """
    entries = files("flatkit.training").joinpath("recipes").iterdir()
    names = (entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml"))
    return tuple(sorted(names))


def read_settings(source: str | Path) -> dict[str, Any]:
    """Return the settings in a TOML file, or of a recipe: keyword arguments of `TrainingConfig`.

    Args:
        source: a path; a text without a folder and without `.toml` is the name of a recipe.

    Raises:
        InvalidArgumentError: no such file or recipe, not TOML, or an unknown setting.

    >>> settings = read_settings("cifar10-resnet18-gam")
    >>> settings["rho"], settings["epochs"]
    (0.2, 200)
    """
    text = _text(source)
    try:
        settings = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli").loads(text)
    except ValueError as error:  # TOMLDecodeError
        raise InvalidArgumentError(f"{source} is not TOML: {error}") from error
    known = [item.name for item in fields(TrainingConfig)]
    for name in settings:
        if name not in known:
            raise InvalidArgumentError(
                f"{source} has an unknown setting {name!r}{nearest(name, known)}"
            )
    for name in (name for name in known if name.endswith("_kwargs")):
        if not isinstance(settings.get(name, {}), dict):
            raise InvalidArgumentError(f"{name} in {source} must be a table, [{name}]")
    return settings


def _text(source: str | Path) -> str:
    path = Path(source)
    if isinstance(source, str) and path.name == source and path.suffix != ".toml":
        if source not in recipe_names():
            names = recipe_names()
            raise InvalidArgumentError(
                f"there is no recipe {source!r}{nearest(source, names)}; there are "
                f"{', '.join(names)}; the name of a file ends in .toml"
            )
        path = files("flatkit.training").joinpath("recipes").joinpath(f"{source}.toml")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidArgumentError(f"cannot read {source}: {reason}") from error
