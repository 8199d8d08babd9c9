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
        InvalidArgumentError: no `=`, no name, or a name given twice.

    >>> parse_assignments(["hidden=64,32", "activation=gelu", "batchnorm=false"], "--model-arg")
    {'hidden': [64, 32], 'activation': 'gelu', 'batchnorm': False}
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise InvalidArgumentError(f"{option} must be NAME=VALUE, got {text!r}")
        if name in arguments:
            raise InvalidArgumentError(f"{option} gives {name} twice")
        arguments[name] = parse_value(value.strip())
    return arguments


def parse_value(text: str) -> Any:
    """Return a number, truth value, None, list of them, or the text itself.

    >>> parse_value("64"), parse_value("64,"), parse_value("tanh"), parse_value("")
    (64, [64], 'tanh', '')
    """
    if "," in text and not text.startswith(("[", "{")):
        return [parse_value(part.strip()) for part in text.split(",") if part.strip()]
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
        if not equals or not old:
            raise InvalidArgumentError(f"{option} must be OLD=NEW, got {text!r}")
        renames[old] = new
    return renames


def parse_numbers(text: str, option: str) -> list[float]:
    """Return numbers that commas separate.

    Raises:
        InvalidArgumentError: something else is among them.

    >>> parse_numbers("0.5,0.75", "--milestones")
    [0.5, 0.75]
    """
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InvalidArgumentError(
            f"{option} must be numbers separated by commas, got {text!r}"
        ) from error
