"""Settings as fields of dataclasses: what each means, what it may be, and how it is asked for.

A setting is written once, as a field made by `setting`. The check of its value, the line of the
class's docstring, and the option of the command line are all made from that field.
"""

import inspect
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, wraps
from numbers import Integral, Real
from typing import (
    Any,
    Literal,
    TypeAlias,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from flatkit.checks import check_choice, nearest
from flatkit.errors import InvalidArgumentError

T = TypeVar("T")
Check = Callable[[str, Any], Any]
"""(name, value) -> value, or an `InvalidArgumentError`, like the functions of `flatkit.checks`."""

Shape: TypeAlias = Literal["one", "several", "pair", "mapping"]


@dataclass(frozen=True)
class Setting:
    """What is known of one setting beside its name, type and default.

    Attributes:
        help: one sentence, for the docstring and for the help of the command line.
        check: of the value, or of each of several; None is not checked.
        choices: the values that are allowed, if they are names; those of a `Literal` are known
            from the annotation.
        group: the heading under which the command line lists it.
        flags: names of the option other than `--name-of-the-field`.
        metavar: what the help shows in place of the value.
        default_text: the default in words, where it is not the value itself.
    """

    help: str
    check: Check | None = None
    choices: Collection[str] = ()
    group: str = ""
    flags: Sequence[str] = ()
    metavar: str | None = None
    default_text: str = ""


@dataclass(frozen=True)
class Kind:
    """What the annotation of a setting says of its values.

    Attributes:
        entry: the type of the value, or of each of several.
        shape: `one` value, `several` in a sequence, a `pair`, or a `mapping` of names.
        choices: the values that are allowed, if they are names.
    """

    entry: type
    shape: Shape = "one"
    choices: Collection[str] = ()


def setting(default: T, help: str, **more: Any) -> T:
    """Return a field of a settings dataclass; `more` are further attributes of `Setting`.

    >>> from flatkit.checks import check_count
    >>> @described
    ... @dataclass(frozen=True)
    ... class Walk:
    ...     '''A walk.'''
    ...     steps: int = setting(3, "How many steps.", check=check_count)
    ...     def __post_init__(self) -> None:
    ...         check_settings(self)
    >>> Walk().steps, settings_of(Walk)["steps"].help
    (3, 'How many steps.')
    >>> Walk(steps=0)
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: steps must be a whole number >= 1, got 0
    """
    metadata = {"setting": Setting(help, **more)}
    if isinstance(default, dict | list):  # each instance gets its own
        made = field(default_factory=lambda: type(default)(default), metadata=metadata)
    else:
        made = field(default=default, metadata=metadata)
    return cast("T", made)


def settings_of(cls: type) -> Mapping[str, Setting]:
    """Return the settings of a dataclass by name, in order."""
    return {item.name: item.metadata["setting"] for item in fields(cls) if item.metadata}


@cache
def kinds_of(cls: type) -> Mapping[str, Kind]:
    """Return what the annotations of a dataclass say of its settings, by name.

    >>> @dataclass
    ... class Walk:
    ...     places: Sequence[Literal["wood", "lake"]] | None = setting(None, "Where to.")
    >>> kinds_of(Walk)
    {'places': Kind(entry=<class 'str'>, shape='several', choices=('wood', 'lake'))}
    """
    hints = get_type_hints(cls)
    return {name: _kind(hints[name], known.choices) for name, known in settings_of(cls).items()}


def check_made(name: str, value: Any, cls: type[T]) -> T:
    """Return settings if they are of a class; a mapping is answered with what makes them.

    Raises:
        InvalidArgumentError: they are something else.

    >>> check_made("config", {"steps": 3}, Setting)
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: config must be a Setting, got a dict; write
    Setting(**config)
    """
    if isinstance(value, cls):
        return value
    fix = f"; write {cls.__name__}(**{name})" if isinstance(value, Mapping) else ""
    raise InvalidArgumentError(
        f"{name} must be a {cls.__name__}, got a {type(value).__name__}{fix}"
    )


def check_settings(settings: Any) -> None:
    """Check every value that is not None by what its field says; of sequences, every entry.

    Raises:
        InvalidArgumentError: a value is not allowed.
    """
    cls = type(settings)
    check_values(cls, {name: getattr(settings, name) for name in settings_of(cls)})


def check_values(cls: type, values: Mapping[str, Any]) -> None:
    """Check values for fields of a class as `check_settings` does, before there is an instance.

    Raises:
        InvalidArgumentError: a value is not allowed.

    >>> @dataclass
    ... class Walk:
    ...     pace: float = setting(1.0, "How fast.")
    >>> check_values(Walk, {"pace": "fast"})
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: pace must be a number, got 'fast'
    """
    kinds, known = kinds_of(cls), settings_of(cls)
    for name, value in values.items():
        kind = kinds[name]
        if value is None:
            continue
        for entry in (value,) if kind.shape in ("one", "mapping") else _entries(name, value):
            if kind.choices:
                check_choice(name, entry, kind.choices)
            check = known[name].check
            if check is not None:
                check(name, entry)
            if kind.shape != "mapping":
                _check_type(name, entry, kind.entry)


def described(cls: type[T]) -> type[T]:
    """Add a line for each setting to the docstring of a dataclass, and help to its constructor.

    A name that it does not know is answered with the nearest, a value in the place of a list with
    the list.

    >>> @described
    ... @dataclass
    ... class Walk:
    ...     places: Sequence[str] = setting((), "Where to.")
    >>> Walk(place=["wood"])
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: Walk has no setting 'place'; did you mean 'places'?
    >>> Walk(places="wood")
    Traceback (most recent call last):
    flatkit.errors.InvalidArgumentError: places must be a list, got 'wood'; write places=['wood']
    """
    lines = [f"    {name}: {known.help}" for name, known in settings_of(cls).items()]
    cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Attributes:", *lines])
    plain_init: Callable[..., None] = cls.__init__

    @wraps(plain_init)
    def init(self: Any, *values: Any, **given: Any) -> None:
        check_names(type(self), given)
        plain_init(self, *values, **given)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


def check_names(cls: type, given: Mapping[str, Any]) -> None:
    """Refuse what is no setting of a dataclass, and a value in the place of a list of them.

    Raises:
        InvalidArgumentError: there is one; the message names the nearest setting, or the list.
    """
    known = [item.name for item in fields(cls) if item.init]
    for name in given:
        if name not in known:
            raise InvalidArgumentError(
                f"{cls.__name__} has no setting {name!r}{nearest(name, known)}"
            )
    for name, kind in kinds_of(cls).items():
        if kind.shape == "several" and given.get(name) is not None:
            _entries(name, given[name])


def _kind(hint: Any, choices: Collection[str]) -> Kind:
    """Return the kind of an annotation; `X | None` is that of X."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint, *_) = [part for part in get_args(hint) if part is not type(None)]
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return Kind(type(inner[0]), choices=choices or inner)
    if origin is None:
        return Kind(hint, choices=choices)
    if issubclass(origin, Mapping):
        return Kind(inner[1] if inner[1] is not Any else object, "mapping")
    of_entries = _kind(inner[0], choices)
    pair = origin is tuple and inner[-1] is not Ellipsis
    return Kind(of_entries.entry, "pair" if pair else "several", of_entries.choices)


def _check_type(name: str, value: Any, wanted: type) -> None:
    words = {bool: "true or false", int: "a whole number", float: "a number"}
    kinds = {bool: bool, int: Integral, float: Real}
    wrong = wanted in kinds and not isinstance(value, kinds[wanted])
    if wrong or (wanted in (int, float) and isinstance(value, bool)):
        raise InvalidArgumentError(f"{name} must be {words[wanted]}, got {value!r}")


def _entries(name: str, value: Any) -> Collection[Any]:
    if isinstance(value, str) or not isinstance(value, Collection):  # a text is one of letters
        raise InvalidArgumentError(
            f"{name} must be a list, got {value!r}; write {name}=[{value!r}]"
        )
    return cast("Collection[Any]", value)
