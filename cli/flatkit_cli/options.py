"""Options made from the fields of settings, and commands whose help lists them under headings."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flatkit.checks import nearest
from flatkit.settings import Kind, Setting, kinds_of, settings_of
from flatkit_cli.assignments import (
    parse_assignments,
    parse_numbers,
    parse_renames,
    split_entries,
)
from flatkit_cli.launched import refuse_launcher

if TYPE_CHECKING:
    _Choice = click.Choice[str]
    _Type = click.ParamType[Any]
else:  # not generic in the oldest click that will do
    _Choice, _Type = click.Choice, click.ParamType

F = TypeVar("F", bound=Callable[..., Any])


class Command(click.Command):
    """A command whose help lists the options under their headings."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, in the only process.

        Raises:
            InvalidArgumentError: a launcher started several.
        """
        refuse_launcher(self.name)
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those without a heading last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and not isinstance(param, click.Argument):
                groups.setdefault(getattr(param, "group", ""), []).append(record)
        rest = groups.pop("", [])
        for heading, records in [*groups.items(), ("Options", rest)]:
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


class Option(click.Option):
    """An option with a heading.

    Args:
        declarations: its names.
        group: the heading.
        kind: of the setting that it gives, if it is one of several values.
        unseen: further names that the help does not list.
        more: see `click.Option`.
    """

    def __init__(
        self,
        declarations: Sequence[str],
        *,
        group: str = "",
        kind: Kind | None = None,
        unseen: Sequence[str] = (),
        **more: Any,
    ) -> None:
        super().__init__([*declarations, *unseen], **more)
        self.group, self._kind, self._unseen = group, kind, unseen

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the line of the help."""
        # Only while the help is written: click knows no option that is taken and not shown.
        whole = self.opts
        self.opts = [name for name in whole if name not in self._unseen]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = whole

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Return the value; of several texts the entries of all; None where it was not given."""
        found = super().type_cast_value(ctx, value)
        if self._kind is None or not self.multiple:
            return found
        if not found:
            return None
        if self._kind.shape == "several":
            return [entry for part in found for entry in part]
        # Names are texts; arguments of models may be numbers, lists and truth values.
        parse = parse_renames if self._kind.entry is str else parse_assignments
        return parse(found, self.opts[0])


class Names(_Choice):
    """A name out of several; another one is answered with the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name."""
        if value not in self.choices:
            hint = nearest(value, self.choices)
            self.fail(f"{value!r} is not one of {', '.join(self.choices)}{hint}", param, ctx)
        return value


class CommaList(_Type):
    """Entries that commas separate.

    Args:
        kind: of the setting.
    """

    name = "list"

    def __init__(self, kind: Kind) -> None:
        self._kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[Any]:
        """Return the entries.

        Raises:
            InvalidArgumentError: they must be numbers, and are not, or one is empty.
        """
        if not isinstance(value, str):
            return list(value)
        option = param.opts[0] if param is not None else "value"
        if self._kind.entry is float:
            return list(parse_numbers(value, option))
        names = split_entries(value, option)
        choices = self._kind.choices
        return [Names(choices).convert(x, param, ctx) for x in names] if choices else names


def option(*declarations: str, group: str = "", **more: Any) -> Callable[[F], F]:
    """Return a decorator that adds one option under a heading; see `click.option`."""
    return click.option(*declarations, cls=Option, group=group, **more)


def setting_options(
    cls: type,
    *,
    only: Collection[str] = (),
    omit: Collection[str] = (),
    defaults: Mapping[str, str] = MappingProxyType({}),
) -> Callable[[F], F]:
    """Return a decorator that adds an option for every setting of a dataclass.

    What is not given stays None: the default is the dataclass's, and a command knows what was
    given. `take_settings` takes these options out of all of a command.

    Args:
        cls: the dataclass; its fields are made by `flatkit.settings.setting`.
        only: names of the settings; all by default.
        omit: names of settings that are no options.
        defaults: in words, of settings whose default is another one in this command.
    """
    known, kinds = settings_of(cls), kinds_of(cls)
    chosen = [
        item
        for item in fields(cls)
        if item.name in known and item.name not in omit and (not only or item.name in only)
    ]

    def decorate(command: F) -> F:
        # Decorators apply from the last to the first, and the help shows the order of the fields.
        for item in reversed(chosen):
            words = defaults.get(item.name)
            setting = (
                known[item.name] if words is None else replace(known[item.name], default_text=words)
            )
            command = _option(item, setting, kinds[item.name])(command)
        return command

    return decorate


def take_settings(cls: type, options: dict[str, Any]) -> dict[str, Any]:
    """Take the settings of a dataclass out of the options, and return those that were given.

    >>> from flatkit.objective.settings import ObjectiveSettings
    >>> options = {"samples": 3, "dtype": None, "out": "plane"}
    >>> take_settings(ObjectiveSettings, options), options
    ({'samples': 3}, {'out': 'plane'})
    """
    taken = {name: options.pop(name, None) for name in settings_of(cls)}
    return {name: value for name, value in taken.items() if value is not None}


def in_flags(text: str, flags: Mapping[str, str]) -> str:
    """Return a text with flags in the place of the arguments that stand in backticks.

    >>> in_flags("pass `overwrite`, or `x_range`", {"x_range": "--range"})
    'pass --overwrite, or --range'
    """
    return re.sub(r"`(\w+)`", lambda m: flags.get(m[1], f"--{m[1].replace('_', '-')}"), text)


def _option(item: "Field[Any]", known: Setting, kind: Kind) -> Callable[[F], F]:
    dashed = item.name.replace("_", "-")
    names = known.flags or (f"--{dashed}",)
    more: dict[str, Any] = {"metavar": known.metavar or _metavar(kind)}
    if kind.entry is bool:
        names = known.flags or (f"--{dashed}/--no-{dashed}",)
        more = {"is_flag": True}
    elif kind.shape == "one":
        more["type"] = Names(tuple(kind.choices)) if kind.choices else kind.entry
    elif kind.shape == "mapping":
        more |= {"multiple": True}
    else:
        more |= {"type": CommaList(kind), "multiple": kind.shape == "several"}
    repeatable = " Repeatable." if more.get("multiple") else ""
    text = f"{in_flags(known.help, {})}{repeatable}{_default(item, known, kind)}"
    if f"--{dashed}" not in " ".join(names).replace("/", " ").split():
        more["unseen"] = [f"--{dashed}"]  # who comes from Python writes the name of the setting
    # The default is None for all: what was given must be told from what was not.
    return option(*names, item.name, group=known.group, kind=kind, default=None, help=text, **more)


def _metavar(kind: Kind) -> str | None:
    if kind.shape == "several":
        word = "|".join(kind.choices) or ("NUMBER" if kind.entry in (int, float) else "NAME")
        return f"{word}[,...]"
    if kind.shape == "mapping":
        return "OLD=NEW" if kind.entry is str else "NAME=VALUE"
    return "LOW,HIGH" if kind.shape == "pair" else None


def _default(item: "Field[Any]", known: Setting, kind: Kind) -> str:
    value = item.default if item.default is not MISSING else None
    text = known.default_text
    # Of a pair --x/--no-x the help says which is usual; a lone flag is off without words.
    if kind.entry is bool and not value:
        text = text or (f"no-{item.name.replace('_', '-')}" if not known.flags else "")
    elif isinstance(value, tuple | list):
        text = text or ", ".join(map(str, value))  # pyright: ignore[reportUnknownArgumentType]
    elif value is not None:
        text = text or str(value)
    return f"  [default: {text}]" if text else ""


def flags_of(command: click.Command) -> Mapping[str, str]:
    """Return the first flag of every option of a command, by the name of its argument.

    >>> flags_of(click.Command("walk", params=[click.Option(["--steps", "num_steps"])]))
    {'num_steps': '--steps'}
    """
    return {
        str(param.name): param.opts[0]
        for param in command.params
        if isinstance(param, click.Option)
    }
