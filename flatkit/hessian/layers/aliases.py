"""Writing in place: refused where it is seen elsewhere, and else made writing into new memory.

A graph of layers has values and no memory. What reads a tensor again that something has written
into reads what came out. What reads another view of the same memory is refused.
"""

import inspect
import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from flatkit.hessian.layers.operations import (
    FRESH,
    FRESH_ROOMS,
    IN_PLACE,
    IN_PLACE_METHODS,
    name_of,
)
from flatkit.hessian.layers.tracer import is_of_shapes
from flatkit.hessian.unsupported import UnsupportedError


def without_writing(graph: fx.Graph, modules: Mapping[str, nn.Module], writing: set[str]) -> None:
    """Let every node of a graph write into new memory, from which later nodes read.

    Args:
        graph: as the user wrote it; it is changed.
        modules: by path.
        writing: paths of modules that wrote into their input, and here do not.

    Raises:
        UnsupportedError: a tensor is used after something has written into its memory, which it
            shares with another one.
    """
    nodes = list(graph.nodes)
    order = {node: number for number, node in enumerate(nodes)}
    for node in nodes:
        if not _writes(node, writing):
            continue
        first = node.args[0]
        for user in [user for user in first.users if order[user] > order[node]]:
            user.replace_input_with(first, node)  # the same tensor under its old name
        for other in _sharing(first, modules, writing):
            if other.op == "get_attr":
                raise UnsupportedError(f"{_word(node)} changes {other.target} in place")
            if order[other] < order[node] and any(order[u] > order[node] for u in other.users):
                raise UnsupportedError(
                    f"{_word(node)} changes a tensor in place, and {other.name} is used after it"
                )
    for node in nodes:
        _make_plain(node)


def _writes(node: fx.Node, writing: set[str]) -> bool:
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.op == "call_module":
        return str(node.target) in writing
    if node.op not in ("call_function", "call_method"):
        return False
    name = _word(node)
    if name.endswith("_") and not name.endswith("__") and name not in IN_PLACE_METHODS:
        raise UnsupportedError(f"{name} changes a tensor in place")
    if name in _WRITING:
        raise UnsupportedError(f"{name} changes a tensor in place")
    return node.target in IN_PLACE or name in IN_PLACE_METHODS or bool(_flag(node))


_WRITING = {"__setitem__", *(f"__{function.__name__}__" for function in IN_PLACE)}


def _word(node: fx.Node) -> str:
    return name_of(node.target) or getattr(node.target, "__name__", str(node.target))


def _flag(node: fx.Node) -> Any:
    """Return the argument `inplace` of a node, None if it has none."""
    if "inplace" in node.kwargs:
        return node.kwargs["inplace"]
    place = _place_of_flag(node)
    return node.args[place] if place is not None and len(node.args) > place else None


def _place_of_flag(node: fx.Node) -> int | None:
    """Return which positional argument is `inplace`, of a Python function of torch."""
    if node.op != "call_function" or not inspect.isfunction(node.target):
        return None
    if node.target.__module__ != F.__name__:
        return None
    names = list(inspect.signature(node.target).parameters)
    return names.index("inplace") if "inplace" in names else None


def _sharing(first: fx.Node, modules: Mapping[str, nn.Module], writing: set[str]) -> set[fx.Node]:
    """Return the nodes that may share memory with one, itself among them."""
    found, left = {first}, [first]
    while left:
        node = left.pop()
        below = node.all_input_nodes if _may_share(node, modules, writing) else []
        above = [user for user in node.users if _may_share(user, modules, writing)]
        new = set(below) | set(above)
        left += new - found
        found |= new
    return found


def _may_share(node: fx.Node, modules: Mapping[str, nn.Module], writing: set[str]) -> bool:
    """Whether the result of a node may lie in the memory of its arguments."""
    if node.op == "call_module":
        path = str(node.target)
        room = type(modules[path]).__module__.rpartition(".")
        plain = room[2] in FRESH_ROOMS or isinstance(modules[path], nn.Linear)
        activation = room[2] == "activation"
        return path in writing or not (room[0] == "torch.nn.modules" and (plain or activation))
    if node.op in ("call_function", "call_method"):
        if is_of_shapes(node):
            return False
        return _turns(node) or name_of(node.target) not in FRESH or bool(_flag(node))
    return False


def _turns(node: fx.Node) -> bool:
    """Whether a node is an einsum of one tensor, as `"ij->ji"`, which returns a view of it."""
    operands: list[fx.Node] = []
    # Not `all_input_nodes`, which has the tensor of `einsum("ij,ij->i", x, x)` once.
    fx.map_arg(node.args, operands.append)
    return name_of(node.target) == "einsum" and len(operands) == 1


def _make_plain(node: fx.Node) -> None:
    """Change a node that writes in place into one that does not."""
    if node.op not in ("call_function", "call_method"):
        return
    if node.target in IN_PLACE:
        node.target = IN_PLACE[node.target]
        return
    name = name_of(node.target) or ""
    if name == "__getitem__":  # a tensor of the model at a place that depends on the inputs
        node.op, node.target = "call_function", operator.getitem
    if name in IN_PLACE_METHODS:
        plain = name.removesuffix("_")
        room: Any = torch if hasattr(torch, plain) else F
        node.target = plain if node.op == "call_method" else getattr(room, plain)
    if "inplace" in node.kwargs:
        node.kwargs = {**node.kwargs, "inplace": False}
    place = _place_of_flag(node)
    if place is not None and len(node.args) > place:
        node.args = (*node.args[:place], False, *node.args[place + 1 :])
