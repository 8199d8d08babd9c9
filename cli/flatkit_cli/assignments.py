"""Values in options: `hidden=64,64`, `batchnorm=false`, `0.5,0.75`."""

import json
from collections.abc import Sequence
from typing import Any

from flatkit.errors import InvalidArgumentError


def parse_assignments(texts: Sequence[str], option: str) -> dict[str, Any]:
    """Return `NAME=VALUE` texts as keyword arguments.

    A value is a JSON number, `true`, `false` or `null`; with commas a list of them (`64,` is a
    list of one); anything else is a string.

    Raises:
        InvalidArgumentError: no `=`, no name, a name given twice, or nothing between two commas.

    >>> parse_assignments(["hidden=64,32", "activation=gelu", "batchnorm=false"], "--model-arg")
    {'hidden': [64, 32], 'activation': 'gelu', 'batchnorm': False}
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        # Options are spelt with dashes, and names of Python are not.
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise InvalidArgumentError(f"{option} must be NAME=VALUE, got {text!r}")
        if name in arguments:
            raise InvalidArgumentError(f"{option} gives {name} twice")
        arguments[name] = parse_value(value.strip(), f"{option} {name}")
    return arguments


def parse_value(text: str, what: str = "value") -> Any:
    """Return a number, truth value, None, list of them, or the text itself.

    Raises:
        InvalidArgumentError: nothing stands between two commas; the message begins with `what`.

    >>> parse_value("64"), parse_value("64,"), parse_value("tanh"), parse_value("")
    (64, [64], 'tanh', '')
    """
    # Lists and objects of JSON have commas of their own.
    if "," in text and not text.startswith(("[", "{")):
        return [parse_value(part) for part in split_entries(text, what)]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def parse_renames(texts: Sequence[str], option: str) -> dict[str, str]:
    """Return `OLD=NEW` texts as a mapping; NEW may be empty.

    Raises:
        InvalidArgumentError: no `=`, or nothing before it.

    >>> parse_renames(["head.=2.", "net.="], "--rename")
    {'head.': '2.', 'net.': ''}
    """
    renames: dict[str, str] = {}
    for text in texts:
        old, equals, new = text.partition("=")
        # NEW may be empty, which takes a beginning off; OLD may not, as all names begin so.
        if not equals or not old:
            raise InvalidArgumentError(f"{option} must be OLD=NEW, got {text!r}")
        renames[old] = new
    return renames


def split_entries(text: str, what: str) -> list[str]:
    """Return what commas separate; one comma more may end the list.

    Raises:
        InvalidArgumentError: an entry is empty; the message begins with `what`.

    >>> split_entries("64, 32", "--hidden"), split_entries("64,", "--hidden")
    (['64', '32'], ['64'])
    """
    *parts, last = (part.strip() for part in text.split(","))
    if last:
        parts.append(last)
    if not all(parts) and parts != [""]:  # a comma alone is an empty list
        raise InvalidArgumentError(f"{what} must have an entry between two commas, got {text!r}")
    return [part for part in parts if part]


def parse_numbers(text: str, option: str) -> list[float]:
    """Return numbers that commas separate.

    Raises:
        InvalidArgumentError: something else is among them, or nothing between two commas.

    >>> parse_numbers("0.5,0.75", "--milestones")
    [0.5, 0.75]
    """
    entries = split_entries(text, option)
    try:
        return [float(entry) for entry in entries]
    except ValueError as error:
        raise InvalidArgumentError(
            f"{option} must be numbers separated by commas, got {text!r}"
        ) from error
