"""What code computes with beside registered tensors: plain values, constants, its own code.

A margin of a loss, a scale of a model, a variable of a closure or a cell of a notebook shows in no
file and no buffer, and makes another function all the same.
"""

import dataclasses
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatkit.objective.model.captured import MOST_ENTRIES, defaults_of, enclosed_in, named_in

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype)
_REGISTERS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_DEEPEST = 6
"""Levels of objects that are looked through: settings lie near, and what lies far is a framework's,
with clocks and counters of its own."""
_LARGEST = 2**40
"""Whole numbers beyond it are addresses and hashes, as configurations of transformers keep one:
they differ from process to process."""
_LIBRARIES = ("torch", "flatkit", "builtins", "numpy", "logging")


def held_values(*things: Any) -> list[tuple[str, Any]]:
    """Return what functions, modules and objects hold, by name: plain values, tensors, digests.

    Tensors that require gradients, and those that modules register, are left out. Of globals only
    plain values count, of functions that no file holds also the code of others without a file.

    >>> held_values(types.SimpleNamespace(margin=0.5, modes=["sum"]))
    [('0.margin', '0.5'), ('0.modes.0', "'sum'")]
    """
    found: list[tuple[str, Any]] = []
    seen: dict[int, Any] = {}
    stack = [(str(place), thing, 0) for place, thing in enumerate(things)]
    while stack:
        name, thing, depth = stack.pop()
        if isinstance(thing, int) and abs(thing) > _LARGEST:
            continue
        if isinstance(thing, _PLAIN):
            found.append((name, repr(thing)))
        elif id(thing) in seen or depth > _DEEPEST:
            continue
        elif isinstance(thing, Tensor):
            if not thing.requires_grad:
                found.append((name, thing))
        else:
            seen[id(thing)] = thing  # kept, so that no id is used again
            parts = sorted(_parts(thing), key=lambda part: part[0])
            stack += [(f"{name}.{key}", part, depth + 1) for key, part in parts]
    return sorted(found, key=lambda pair: pair[0])


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, nn.Module):
        yield from _of_module(thing)
    elif isinstance(thing, types.FunctionType):
        yield from _of_function(thing)
    elif isinstance(thing, types.MethodType):
        yield from (("self", thing.__self__), ("function", thing.__func__))
    elif isinstance(thing, partial):
        yield from (("function", thing.func), ("args", thing.args), ("kwargs", thing.keywords))
    elif isinstance(thing, type):
        yield from _of_class(thing)
    elif isinstance(thing, dict):
        # Keys of hooks are numbers that count all hooks of the process.
        named = enumerate(_few(thing.items()))
        yield from ((key if isinstance(key, str) else f"{n}", part) for n, (key, part) in named)
    elif isinstance(thing, (list, tuple)):
        yield from ((str(place), part) for place, part in enumerate(_few(thing)))
    elif isinstance(thing, (set, frozenset)):
        yield "entries", str(sorted(map(repr, _few(thing))))
    elif not isinstance(thing, types.ModuleType) and not _is_of_library(type(thing)):
        yield from _of_object(thing)


def _few(entries: Any) -> Any:
    return entries if len(entries) <= MOST_ENTRIES else ()


def _of_object(thing: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(thing, "__dict__", {}).items()
    if dataclasses.is_dataclass(thing):  # also one with slots
        yield from ((field.name, getattr(thing, field.name)) for field in dataclasses.fields(thing))
    yield from _of_class(type(thing))


def _of_module(root: nn.Module) -> Iterator[tuple[str, Any]]:
    registered = {id(tensor) for tensor in (*root.parameters(), *root.buffers())}
    for path, module in root.named_modules():
        yield from _of_class(type(module))
        for key, part in vars(module).items():
            # The mode is that of the measurement; its flags stand among the settings.
            if key not in (*_REGISTERS, "training") and id(part) not in registered:
                yield f"{path}.{key}", part


def _of_class(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield what a class defines itself, where it is no library's: functions and plain values."""
    for base in kind.__mro__:
        if _is_of_library(base):
            continue
        for key, part in vars(base).items():
            if isinstance(part, types.FunctionType) or (
                isinstance(part, _PLAIN) and not key.startswith("__")
            ):
                yield f"{base.__qualname__}.{key}", part


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    if _is_of_library(function):
        return
    yield from enclosed_in(function)
    yield from defaults_of(function)
    in_file = Path(function.__code__.co_filename).is_file()
    if not in_file:
        yield "code", _told(function.__code__)
    for name, part in named_in(function):
        # Helpers of a notebook stand in no file either; those of a file are hashed with it.
        helps = isinstance(part, (types.FunctionType, type)) and not in_file
        if isinstance(part, _PLAIN) or helps:
            yield name, part


def _told(code: types.CodeType) -> str:
    """Return what code does, wherever it stands: its operations, names and constants."""
    constants = [
        _told(part)
        if isinstance(part, types.CodeType)
        # The order of a set differs from process to process.
        else str(sorted(map(repr, part)))
        if isinstance(part, frozenset)
        else repr(part)
        for part in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {constants}"


def _is_of_library(thing: Any) -> bool:
    module = getattr(thing, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] in _LIBRARIES
