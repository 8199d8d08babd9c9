"""Settings as fields of dataclasses: what each means, what it may be, and how it is asked for.

A setting is written once, as a field made by `setting`. The check of its value, the line of the
class's docstring, and the option of the command line are all made from that field.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, cast

from flatkit.checks import check_choice

T = TypeVar("T")
Check = Callable[[str, Any], Any]
"""(name, value) -> value, or an `InvalidArgumentError`; see `flatkit.checks`."""


@dataclass(frozen=True)
class Setting:
    """What is known of one setting beside its name, type and default.

    Attributes:
        help: one sentence, for the docstring and for the help of the command line.
        check: of the value, or of each of several; None is not checked.
        choices: the values that are allowed, if they are names.
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


def check_settings(settings: Any) -> None:
    """Check every value that is not None by what its field says; of sequences, every entry.

    Raises:
        InvalidArgumentError: a value is not allowed.
    """
    for name, known in settings_of(type(settings)).items():
        value = getattr(settings, name)
        for entry in _entries(value):
            if known.choices:
                check_choice(name, entry, known.choices)
            if known.check is not None:
                known.check(name, entry)


def described(cls: type[T]) -> type[T]:
    """Add a line for each setting to the docstring of a dataclass."""
    lines = [f"    {name}: {known.help}" for name, known in settings_of(cls).items()]
    cls.__doc__ = "\n".join([(cls.__doc__ or "").rstrip(), "", "Attributes:", *lines])
    return cls


def _entries(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)
