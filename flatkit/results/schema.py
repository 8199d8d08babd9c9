"""The JSON of results: its schema, and numbers that JSON does not have.

JSON has no infinity: a point of a surface that left the float range is written as the string
"Infinity". A NaN is never a result; inside a grid, a point without a value is `None`.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from flatkit.errors import ResultError
from flatkit.version import __version__

SCHEMA = 1


def check_schema(data: Any, key: str, what: str) -> None:
    """Refuse what has no such key, or is of another schema.

    Args:
        data: as read from JSON.
        key: that it must have.
        what: it should be, for the message.

    Raises:
        ResultError: it is not.
    """
    if not isinstance(data, Mapping) or key not in data:
        raise ResultError(f"not {what}: the key {key!r} is missing")
    if data.get("schema") != SCHEMA:
        raise ResultError(
            f"schema {data.get('schema')!r} cannot be read by flatkit {__version__}, "
            f"which knows schema {SCHEMA}; measure again, or install the version that wrote it"
        )


def read_text(path: str | Path) -> str:
    """Return the text of a file.

    Raises:
        ResultError: it cannot be read.
    """
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ResultError(f"cannot read {path}: {reason}") from error


def parse(text: str, what: str) -> Any:
    """Return what JSON text holds.

    Raises:
        ResultError: it is malformed; `what` names it.
    """
    try:
        return json.loads(text)
    # Brackets by the thousand exceed the stack of Python's reader.
    except (json.JSONDecodeError, RecursionError) as error:
        raise ResultError(f"{what} is malformed JSON ({error})") from error


def check_kind(value: Any, kind: type | UnionType, where: str) -> Any:
    """Return a part of saved data, if it is of a kind.

    Raises:
        ResultError: it is not; `where` names it.

    >>> check_kind({}, dict, "checkpoint of a report")
    {}
    """
    # True and False are whole numbers to Python.
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = str(getattr(kind, "__name__", kind))
        raise ResultError(f"the {where} must be {wanted} in JSON, got {value!r}")
    return value


def json_text(data: Any) -> str:
    r"""Return data as the JSON text that is written.

    >>> json_text({"ρ": 1})
    '{\n "ρ": 1\n}'
    """
    # Standard JSON: NaN and Infinity as bare words stop the readers of other languages.
    return json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False)


def plain_value(value: Any, where: str) -> Any:
    """Return a value as JSON can hold it: numbers and arrays of NumPy and torch become plain.

    Measures of other packages give them; unchecked, the report would be lost when it is written.

    Raises:
        ResultError: something else is in it; `where` names the place.

    >>> import numpy
    >>> plain_value({"loss": numpy.float32(0.5), "curve": numpy.ones(2)}, "value")
    {'loss': 0.5, 'curve': [1.0, 1.0]}
    """
    if value is None or isinstance(value, (str, int, float)):
        return value
    if hasattr(value, "tolist"):
        return plain_value(value.tolist(), where)
    if isinstance(value, Mapping):
        return {key: plain_value(item, f"{where}, {key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(item, where) for item in value]
    raise ResultError(
        f"the {where} holds a {type(value).__name__}, and JSON numbers, texts, lists and "
        "dictionaries alone; convert it"
    )


def refuse_nan(value: Any, where: str) -> None:
    """Refuse a NaN anywhere in a value.

    Raises:
        ResultError: there is one; `where` names the place.
    """
    if isinstance(value, float) and math.isnan(value):
        raise ResultError(f"the {where} is NaN; a NaN is an error, never a result")
    if isinstance(value, Mapping):
        for key, item in value.items():
            refuse_nan(item, f"{where}, {key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            refuse_nan(item, where)


def encode(value: Any) -> Any:
    """Return a value with infinities as JSON can hold them.

    >>> encode([1.0, float("inf")])
    [1.0, 'Infinity']
    """
    if isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def decode(value: Any) -> Any:
    """Return what `encode` was given.

    >>> decode([1.0, "Infinity"])
    [1.0, inf]
    """
    if value in ("Infinity", "-Infinity"):
        return float(value)
    if isinstance(value, dict):
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return value
