"""Names that become builders, so that a file can say how to rebuild a thing without holding code.

No builder is imported before it is asked for: listing the names costs no `import torch`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

from flatkit.checks import check_choice, nearest
from flatkit.errors import InvalidArgumentError


@dataclass(frozen=True)
class Registry:
    """Builders of one kind by name, each imported when it is first used; a collection of names.

    Attributes:
        kind: what the builders build, for messages, e.g. `model`.
        homes: name -> `module:function`; the function takes keyword arguments only.

    >>> laws = Registry("law", {"normal": "statistics:NormalDist"})
    >>> laws.names
    ('normal',)
    >>> laws.build("normal", mu=0.0, sigma=2.0).variance
    4.0
    """

    kind: str
    homes: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order of registration."""
        return tuple(self.homes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def build(self, name: str, **kwargs: Any) -> Any:
        """Call the builder.

        Raises:
            InvalidArgumentError: no such name; an argument is missing, unknown or out of range.
        """
        builder = self._builder(name)
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
        builder = self._builder(name)
        self._check_arguments(name, builder, kwargs)
        complete = {
            key: kwargs.get(key, parameter.default)
            for key, parameter in _parameters(builder).items()
        }
        return plain(complete, f"the arguments of {self.kind} {name}")

    def _builder(self, name: str) -> Callable[..., Any]:
        check_choice(self.kind, name, self.names)
        module, _, function = self.homes[name].partition(":")
        return getattr(import_module(module), function)

    def _check_arguments(
        self, name: str, builder: Callable[..., Any], kwargs: Mapping[str, Any]
    ) -> None:
        allowed = _parameters(builder)
        for key in kwargs:
            if key not in allowed:
                hint = nearest(key, allowed)
                raise InvalidArgumentError(
                    f"{self.kind} {name} has no argument {key!r}; "
                    f"it takes {', '.join(allowed) or 'none'}" + (f"; {hint}" if hint else "")
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
