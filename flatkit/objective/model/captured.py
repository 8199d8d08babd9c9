"""What functions hold, and which leaves the graph of a loss has: nothing may be left out of θ."""

import types
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor, nn

from flatkit.objective.pytree import leaves

MOST_ENTRIES = 10_000
"""Entries of a collection up to which it is looked through: longer ones are data."""
_MOST_SEEN = 100_000
"""Objects that are looked at: names of what lies beyond are not known, but its leaves are found."""
_UNTOUCHED = (type(None), bool, int, float, complex, str, bytes, type, types.ModuleType)


def graph_leaves(roots: Iterable[Tensor], *, below: Collection[Any] = ()) -> list[Tensor]:
    """Return the leaves that tensors depend on by autograd, each once.

    Args:
        roots: where the graphs start.
        below: nodes of the graph that are not entered.

    >>> import torch
    >>> weight, other = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    >>> [leaf is weight for leaf in graph_leaves([(weight * 2 + other.detach()).exp()])]
    [True]
    """
    found = {id(root): root for root in roots if root.requires_grad and root.is_leaf}
    # A stack of our own: graphs of deep networks exceed the recursion limit of Python.
    seen, stack = set(below), [root.grad_fn for root in roots]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        # torch names the class of these nodes nowhere; `variable` is the leaf.
        if type(node).__name__ == "AccumulateGrad":
            leaf = node.variable  # pyright: ignore
            found[id(leaf)] = leaf
        stack.extend(below for below, _ in node.next_functions)
    return list(found.values())


def tensors_of(outputs: Any) -> list[Tensor]:
    """Return the tensors that a model gives, whatever holds them.

    >>> import torch
    >>> len(tensors_of({"logits": torch.ones(1), "hidden": (torch.ones(1), None)}))
    2
    """
    found = list(leaves(outputs))
    if not found and hasattr(outputs, "__dict__"):
        found = list(leaves(vars(outputs)))
    return found


def held_by(functions: Iterable[Any]) -> dict[str, nn.Module | Tensor]:
    """Return modules and tensors that functions hold, by the names that they have there.

    Looked through are closures, default values, globals that are named, what a method is bound to,
    `functools.partial`, and attributes of objects.

    >>> layer = nn.Linear(1, 1)
    >>> held_by([partial(print, end=layer)])
    {'end': Linear(in_features=1, out_features=1, bias=True)}
    """
    found: dict[str, nn.Module | Tensor] = {}
    for name, thing in _walked(functions):
        # Without a name it is the function itself, and nothing that it holds.
        if isinstance(thing, (nn.Module, Tensor)) and name:
            found.setdefault(name, thing)
    return found


def reached_by(functions: Iterable[Any]) -> list[Any]:
    """Return all that functions hold, and the modules inside of it, as of `held_by`.

    >>> layer = nn.Linear(1, 1)
    >>> layer in reached_by([partial(print, end=nn.Sequential(layer))])
    True
    """
    found: dict[int, Any] = {}
    for _, thing in _walked(functions):
        parts = thing.modules() if isinstance(thing, nn.Module) else [thing]
        found |= {id(part): part for part in parts}
    return list(found.values())


def _walked(functions: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield what functions hold, each once, with its name there."""
    seen: dict[int, Any] = {}
    stack: list[tuple[str, Any]] = [("", function) for function in functions]
    while stack and len(seen) < _MOST_SEEN:
        name, thing = stack.pop()
        if isinstance(thing, _UNTOUCHED) or id(thing) in seen:
            continue
        seen[id(thing)] = thing
        yield name, thing
        stack.extend(reversed(list(_parts(name, thing))))  # in their order


def enclosed_in(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the variables that a function has from around it, by name."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        try:
            yield name, cell.cell_contents
        except ValueError:  # a variable that was not assigned yet
            continue


def named_in(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the globals that the code of a function names, by name."""
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield name, function.__globals__[name]


def defaults_of(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the values that the arguments of a function have where none is given."""
    yield from ((f"default {n}", part) for n, part in enumerate(function.__defaults__ or ()))
    yield from (function.__kwdefaults__ or {}).items()


def functions_of(model: nn.Module) -> Iterator[Any]:
    """Yield the functions that run in a model: its methods, hooks, and those it keeps.

    >>> layer = nn.Linear(1, 1)
    >>> hook = layer.register_forward_hook(print)
    >>> print in list(functions_of(layer))
    True
    """
    for module in model.modules():
        if not _is_of_torch(type(module)):
            yield type(module).forward
        for value in vars(module).values():
            if isinstance(value, (types.FunctionType, types.MethodType, partial)):
                yield value
            elif isinstance(value, dict):
                yield from (part for part in value.values() if callable(part))  # pyright: ignore


def _parts(name: str, thing: Any) -> Iterable[tuple[str, Any]]:
    if _is_of_torch(thing):
        return ()
    if isinstance(thing, types.FunctionType):
        return _held_by_function(thing)
    if isinstance(thing, types.MethodType):
        return [(name or "self", thing.__self__), ("", thing.__func__)]
    if isinstance(thing, partial):
        given = chain(enumerate(thing.args), thing.keywords.items())
        return [("", thing.func), *((_joined(name, key), part) for key, part in given)]
    if isinstance(thing, nn.Module):
        return _held_by_module(name, thing)
    if isinstance(thing, Tensor):
        return ()
    if isinstance(thing, dict):
        few = len(thing) <= MOST_ENTRIES  # pyright: ignore[reportUnknownArgumentType]
        return [(_joined(name, key), part) for key, part in thing.items()] if few else ()
    if isinstance(thing, (list, tuple, set, frozenset)):
        few = len(thing) <= MOST_ENTRIES  # pyright: ignore[reportUnknownArgumentType]
        return [(_joined(name, key), part) for key, part in enumerate(thing)] if few else ()
    # Slots are left out: what lies there, the graph of the loss still shows as an unnamed leaf.
    held = getattr(thing, "__dict__", {})
    own = [(_joined(name or type(thing).__name__, key), part) for key, part in held.items()]
    return [*own, ("", getattr(type(thing), "__call__", None))]  # noqa: B004


def _held_by_module(name: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from (("", function) for function in functions_of(module))
    for path, part in module.named_modules(prefix=name):
        for key, value in vars(part).items():
            if key not in ("_parameters", "_buffers", "_modules"):
                yield _joined(path, key), value


def _held_by_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    yield from enclosed_in(function)
    yield from named_in(function)
    yield from defaults_of(function)


def _names(code: types.CodeType) -> set[str]:
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _is_of_torch(thing: Any) -> bool:
    module = getattr(thing, "__module__", None)
    known = isinstance(module, str) and module.split(".")[0] in ("torch", "flatkit", "builtins")
    return known and not isinstance(thing, (nn.Module, Tensor, partial))


def _joined(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
