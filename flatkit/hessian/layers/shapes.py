"""A tracer for models whose Python code asks for shapes: it runs them on the samples beside.

A loop over time steps, a comparison of heights, `torch.arange(x.shape[1])`: such code needs
numbers where `torch.fx` has symbols. Here every proxy knows the value for which it stands, and what
asks for a shape gets it. The graph holds for inputs of these shapes alone. What asks for entries of
a tensor is still refused: the way that it decides on may be another one at the next point.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.fx.proxy import Attribute

from flatkit.hessian.layers.operations import FACTS, QUERIES, name_of
from flatkit.hessian.layers.tracer import QuietTracer, StandIn


class Known(StandIn):
    """A proxy that knows its value, and answers questions that do not depend on entries."""

    known: Any

    def __getattr__(self, name: str) -> Any:
        """Return a fact, or a proxy of any other attribute."""
        if name == "known":  # not set yet
            raise AttributeError(name)
        if isinstance(self.known, Tensor) and name in FACTS:
            self.node.meta["shape"] = self.known.shape
            return getattr(self.known, name)
        found = getattr(self.known, name)
        if callable(found) and not isinstance(found, Tensor):
            return Attribute(self, name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __len__(self) -> int:
        """Return the length."""
        if isinstance(self.known, Tensor):
            self.node.meta["shape"] = self.known.shape
        return len(self.known)

    def __iter__(self) -> Iterator[Any]:
        """Return proxies of the items."""
        whole: Any = self
        return iter([whole[place] for place in range(len(self))])


class ShapedTracer(QuietTracer):
    """A tracer that knows values.

    Args:
        beside: a copy of the model that runs on the values.
        inputs: of the model, in the order of their names; they are not changed.
    """

    def __init__(self, beside: nn.Module, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._beside, self._inputs = beside, iter([tensor.clone() for tensor in inputs])

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for the value of a node."""
        return Known(node, self)

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *rest: Any,
        **more: Any,
    ) -> Any:
        """Return a proxy with its value, or the value itself where it is a fact about shapes."""
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        with torch.no_grad():
            value = self._value(kind, target, args, kwargs)
        if _is_fact(target, args, value):
            args[0].node.meta["shape"] = args[0].known.shape
            self.graph.erase_node(proxy.node)
            return value
        proxy.known = value  # type: ignore[attr-defined]
        return proxy

    def _value(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = (map_aggregate(each, _known) for each in (args, kwargs))
        if kind == "placeholder":
            return next(self._inputs)
        if kind == "get_attr":
            path, _, leaf = target.rpartition(".")
            return getattr(self._beside.get_submodule(path), leaf)
        if kind == "call_module":
            return self._beside.get_submodule(target)(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)


def _known(value: Any) -> Any:
    return value.known if isinstance(value, Known) else value


def _is_fact(target: Any, args: Any, value: Any) -> bool:
    """Whether a value says something about the shape of a tensor, and nothing of its entries."""
    first = args[0] if args else None
    if not isinstance(first, Known) or not isinstance(first.known, Tensor):
        return False
    return target is len or (name_of(target) in QUERIES and not isinstance(value, Tensor))
