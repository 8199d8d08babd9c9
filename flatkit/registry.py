"""Names that become things, so that a file can say how to rebuild one without holding code.

Nothing is imported before it is asked for: listing the names costs no `import torch`. Other
packages add names by entry points, e.g. in their pyproject.toml:

    [project.entry-points."flatkit.models"]
    perceptron = "my_package.models:build_perceptron"
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from flatkit.checks import check_choice, nearest
from flatkit.errors import InvalidArgumentError, PluginError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """Things of one kind by name, each imported when it is first used; a collection of the names.

    Attributes:
        kind: what they are, or what their builders build, for messages, e.g. `model`.
        homes: name -> `module:attribute`, or the thing itself; a builder takes keyword arguments.
        group: of the entry points by which other packages add to it.

    >>> laws = Registry("law", {"normal": "statistics:NormalDist"})
    >>> laws.names, "normal" in laws
    (('normal',), True)
    >>> laws.build("normal", mu=0.0, sigma=2.0).variance
    4.0
    """

    kind: str
    homes: Mapping[str, str | T]
    group: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order of registration; those of other packages last.

        Raises:
            PluginError: two packages add the same name.
        """
        return (*self.homes, *self._plugins)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def load(self, name: str) -> T:
        """Import and return what has a name.

        Raises:
            InvalidArgumentError: no such name.
            PluginError: the package that it comes from cannot be imported.
        """
        check_choice(self.kind, name, self.names)
        if name not in self.homes:
            return _load(self.kind, self._plugins[name])
        home = self.homes[name]
        if not isinstance(home, str):
            return home
        module, _, attribute = home.partition(":")
        return getattr(import_module(module), attribute)

    def package(self, name: str) -> str:
        """Return the package that adds a name; empty if none does."""
        return _package(self._plugins[name]) if name in self._plugins else ""

    def origin(self, name: str) -> str:
        """Return where a name comes from, in words: an entry point, a file, or a registration.

        >>> Registry("law", {"normal": "statistics:NormalDist"}).origin("normal")
        'statistics:NormalDist'
        """
        if name in self._plugins:
            return (
                f"the entry point {self._plugins[name].value} of the package {self.package(name)}"
            )
        home = self.homes[name]
        return home if isinstance(home, str) else "what was registered"

    def build(self, name: str, **kwargs: Any) -> Any:
        """Call the builder.

        Raises:
            InvalidArgumentError: no such name; an argument is missing, unknown or out of range.
        """
        builder = cast("Callable[..., Any]", self.load(name))
        self._check_arguments(name, builder, kwargs)
        return builder(**kwargs)

    def complete(self, name: str, **kwargs: Any) -> dict[str, Any]:
        """Return plain `kwargs` with the builder's defaults filled in.

        Saved in a file they rebuild the same thing although a default may change one day.

        Raises:
            InvalidArgumentError: as `build`, but ranges are not checked.

        >>> Registry("law", {"normal": "statistics:NormalDist"}).complete("normal", sigma=2.0)
        {'mu': 0.0, 'sigma': 2.0}
        """
        builder = cast("Callable[..., Any]", self.load(name))
        self._check_arguments(name, builder, kwargs)
        complete = {
            key: kwargs.get(key, parameter.default)
            for key, parameter in _parameters(builder).items()
        }
        return plain(complete, f"the arguments of {self.kind} {name}")

    @property
    def _plugins(self) -> "Mapping[str, EntryPoint]":
        # Found anew where the path has changed: each look costs 15 ms with 100 packages.
        return _found(self.group, tuple(self.homes), tuple(sys.path)) if self.group else {}

    def _check_arguments(
        self, name: str, builder: Callable[..., Any], kwargs: Mapping[str, Any]
    ) -> None:
        allowed = _parameters(builder)
        for key in kwargs:
            if key not in allowed:
                raise InvalidArgumentError(
                    f"{self.kind} {name} has no argument {key!r}; "
                    f"it takes {', '.join(allowed) or 'none'}{nearest(key, allowed)}"
                )
        missing = [
            key
            for key, parameter in allowed.items()
            if parameter.default is Parameter.empty and key not in kwargs
        ]
        if missing:
            raise InvalidArgumentError(f"{self.kind} {name} needs {', '.join(missing)}")


def plain(value: Any, where: str = "value") -> Any:
    """Return `value` as JSON knows it: tuples become lists, mappings become dicts.

    Raises:
        InvalidArgumentError: it holds something that neither JSON nor a safe file can hold.

    >>> plain({"hidden": (64, 64)})
    {'hidden': [64, 64]}
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}, {key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, where) for item in value]
    raise InvalidArgumentError(
        f"{where} must be numbers, strings, None, or lists and dicts of them, got {value!r}"
    )


def call_text(name: str, kwargs: Mapping[str, Any]) -> str:
    """Return `name` with its arguments as one would write the call.

    >>> call_text("cross_entropy", {"label_smoothing": 0.1})
    'cross_entropy(label_smoothing=0.1)'
    """
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in kwargs.items())})"


def _parameters(builder: Callable[..., Any]) -> dict[str, Parameter]:
    return dict(signature(builder).parameters)


@lru_cache
def _found(group: str, own: tuple[str, ...], path: tuple[str, ...]) -> "Mapping[str, EntryPoint]":
    """Return the entry points of a group by name, without importing what they name."""
    from importlib.metadata import entry_points  # 30 ms, which `flatkit --help` does not pay

    owners = dict.fromkeys(own, "flatkit")
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        if point.name in owners:
            raise PluginError(
                f"{point.name!r} of {group} is added by {owners[point.name]} and by "
                f"{_package(point)}; one of them must give it another name, or be uninstalled"
            )
        owners[point.name], found[point.name] = _package(point), point
    return found


def _load(kind: str, point: "EntryPoint") -> Any:
    try:
        return point.load()
    except Exception as error:  # the code of others, which may raise anything
        raise PluginError(
            f"{kind} {point.name} comes from the package {_package(point)}, which cannot be "
            f"imported: {type(error).__name__}: {error}; repair or uninstall it"
        ) from error


def _package(point: "EntryPoint") -> str:
    return point.dist.name if point.dist is not None else point.module
