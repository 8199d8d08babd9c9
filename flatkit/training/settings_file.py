"""Settings of a run from a TOML file or from a recipe that comes along; needs no torch."""

import sys
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from flatkit.checks import nearest
from flatkit.errors import InvalidArgumentError
from flatkit.training.config import TrainingConfig


@dataclass(frozen=True)
class Shipped:
    """TOML files that come along in a folder of a package, and those of users.

    Attributes:
        package: in which the folder lies.
        folder: its name.
        what: one of them is called.

    >>> "cifar10-resnet18-gam" in RECIPES.names()
    True
    """

    package: str
    folder: str
    what: str

    def names(self) -> tuple[str, ...]:
        """Return the names of those that come along, sorted."""
        found = (entry.name for entry in self._place.iterdir())
        return tuple(sorted(n.removesuffix(".toml") for n in found if n.endswith(".toml")))

    def is_name(self, source: str | Path) -> bool:
        """Return whether a source names one that comes along, and no file.

        >>> RECIPES.is_name("gam"), RECIPES.is_name("gam.toml"), RECIPES.is_name("runs/gam")
        (True, False, False)
        """
        path = Path(source)
        # A folder or the ending tells a file from a name, whatever lies in the working directory.
        return isinstance(source, str) and path.name == source and path.suffix != ".toml"

    def read(self, source: str | Path) -> dict[str, Any]:
        """Return what a file holds.

        Args:
            source: a path; a text without a folder and without `.toml` is the name of one that
                comes along.

        Raises:
            InvalidArgumentError: there is none, it cannot be read, or it is not TOML.
        """
        text = self._text(source)
        try:
            # By name, as Python 3.10 has no `tomllib` and a checker knows only one of the two.
            return import_module("tomllib" if sys.version_info >= (3, 11) else "tomli").loads(text)
        except ValueError as error:  # TOMLDecodeError
            raise InvalidArgumentError(f"{source} is not TOML: {error}") from error

    @property
    def _place(self) -> Any:
        return files(self.package).joinpath(self.folder)

    def _text(self, source: str | Path) -> str:
        place = Path(source)
        if self.is_name(source):
            names = self.names()
            if source not in names:
                raise InvalidArgumentError(
                    f"there is no {self.what} {source!r}{nearest(source, names)}; there are "
                    f"{', '.join(names)}; the name of a file ends in .toml"
                )
            place = self._place.joinpath(f"{source}.toml")
        try:
            return place.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InvalidArgumentError(f"cannot read {source}: {reason}") from error


RECIPES = Shipped("flatkit.training", "recipes", "recipe")


def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes, sorted.

    >>> "cifar10-resnet18-gam" in recipe_names()
    True
    """
    return RECIPES.names()


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
    settings = RECIPES.read(source)
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
