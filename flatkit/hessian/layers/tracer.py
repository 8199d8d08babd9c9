"""A tracer that leaves the process alone: stand-ins lie in the instances that it traces.

`torch.fx` traces by replacing methods of `nn.Module` and functions of `math` in the whole process:
models that run in other threads land in the tracer. Here the copy that is traced gets them instead:
its parameters are proxies, its modules have a `forward` of their own, and its functions find the
stand-ins among their globals.
"""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType, MethodType, SimpleNamespace
from typing import Any

import torch
from torch import fx, nn
from torch.fx._symbolic_trace import _wrapped_fns_to_patch  # pyright: ignore
from torch.fx.proxy import TraceError

from flatkit.hessian.layers.operations import FACTS, IN_PLACE, QUERIES, name_of


class ValuesError(TraceError):
    """The code of a model asks for entries of a tensor: no graph can hold it."""


class StandIn(fx.Proxy):
    """A proxy that records `x += 1` as what writes into x; `fx.Proxy` makes `x = x + 1` of it."""

    def __index__(self) -> int:
        """Refuse to be a number."""
        if is_of_shapes(self.node):
            raise TraceError("the model's control flow depends on shapes")
        raise ValuesError("the model's control flow depends on values")

    __int__ = __float__ = __complex__ = __bool__ = __index__  # type: ignore[assignment]


def is_of_shapes(node: fx.Node) -> bool:
    """Whether the value of a node depends on nothing but shapes."""
    if node.target is len or name_of(node.target) in QUERIES:
        return True
    if node.target is getattr:
        return node.args[1] in FACTS or is_of_shapes(node.all_input_nodes[0])
    return bool(node.all_input_nodes) and all(map(is_of_shapes, node.all_input_nodes))


def _writing(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: StandIn, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return call


for _function in IN_PLACE:
    setattr(StandIn, f"__{_function.__name__}__", _writing(_function))


class QuietTracer(fx.Tracer):
    """`fx.Tracer` for a module that is nobody else's.

    >>> graph = QuietTracer().graph_of(nn.Sequential(nn.Linear(2, 3), nn.Tanh()))
    >>> [node.op for node in graph.nodes]
    ['placeholder', 'call_module', 'call_module', 'output']
    """

    def graph_of(self, root: Any, names: Sequence[str | None] = (None,)) -> fx.Graph:
        """Return the graph of a module; while it is traced it is of no other use.

        Args:
            root: the module.
            names: of its inputs, None for those that are given by position.
        """
        self.root = root
        self.root_module_name = type(root).__name__
        self.submodule_paths = {module: path for path, module in root.named_modules()}
        self.tensor_attrs = _plain_tensors(root)
        self.graph = fx.Graph(tracer_cls=type(self))
        forward = _with_stand_ins(type(root).forward, {})
        inputs = [self._input(place, name) for place, name in enumerate(names)]
        given = [(name, proxy) for name, proxy in zip(names, inputs, strict=True)]
        with self._standing_in(root), torch.enable_grad():
            made = forward(
                root,
                *(proxy for name, proxy in given if name is None),
                **{name: proxy for name, proxy in given if name is not None},
            )
            made = self.create_arg(made)
        self.create_node("output", "output", (made,), {})
        for node in self.graph.find_nodes(op="get_attr"):
            if not node.users:
                self.graph.erase_node(node)
        return self.graph

    def _input(self, place: int, name: str | None) -> Any:
        return self.create_proxy("placeholder", name or f"input_{place}", (), {})

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for the value of a node."""
        return StandIn(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Return a new node, which knows whether the model has switched gradients off there."""
        node = super().create_node(*args, **kwargs)
        node.meta["constant"] = not torch.is_grad_enabled()
        return node

    @contextmanager
    def _standing_in(self, root: nn.Module) -> Generator[None]:
        """Let proxies stand for parameters, and calls of modules come here."""
        kept = [(vars(m)["_parameters"], dict(vars(m)["_parameters"])) for m in root.modules()]
        named: list[tuple[dict[str, Any], str, Any]] = []
        proxies: dict[int, fx.Proxy] = {
            id(parameter): self._noted(self.create_proxy("get_attr", name, (), {}), parameter)
            for name, parameter in root.named_parameters()
        }
        try:
            for module in root.modules():
                stand_ins = self._stand_ins(module, is_root=module is root)
                attributes = vars(module)
                named += [(attributes, name, attributes.get(name)) for name in stand_ins]
                attributes.update(stand_ins)
                parameters: dict[str, Any] = attributes["_parameters"]
                for name, parameter in parameters.items():
                    if parameter is not None:
                        parameters[name] = proxies[id(parameter)]
            yield
        finally:
            for parameters, before in kept:
                parameters.update(before)
            for attributes, name, before in named:
                attributes.pop(name, None)
                attributes |= {} if before is None else {name: before}

    def _noted(self, proxy: fx.Proxy, parameter: nn.Parameter) -> fx.Proxy:
        """Return a proxy with what a library has noted on a parameter, constants of the graph."""
        vars(proxy).update({**vars(parameter), **vars(proxy)})
        return proxy

    def _stand_ins(self, module: nn.Module, *, is_root: bool) -> dict[str, Any]:
        """Return what is to stand for the methods of a module."""
        attributes, found = vars(module), dict[str, Any]()
        if not is_root:
            forward = attributes.get("forward") or _bound(type(module).forward, module)

            def call(*args: Any, **kwargs: Any) -> Any:
                return self.call_module(module, forward, args, kwargs)

            found["forward"] = call
        if not type(module).__module__.startswith("torch."):
            for name, function in _methods(type(module)).items():
                changed = _with_stand_ins(function, {})
                if changed is not function and name not in attributes:
                    found[name] = MethodType(changed, module)
        return found


def _plain_tensors(root: nn.Module) -> dict[Any, str]:
    """Return the tensors that are attributes, neither parameters nor buffers, and their paths."""
    return {
        value: f"{path}.{name}" if path else name
        for path, module in root.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    }


def _methods(kind: type) -> dict[str, FunctionType]:
    """Return the methods of a class and of those above it, but for those of `nn.Module`."""
    found: dict[str, FunctionType] = {}
    for each in kind.__mro__:
        if each is nn.Module:
            break
        for name, value in vars(each).items():
            if isinstance(value, FunctionType) and not name.startswith("__") and name != "forward":
                found.setdefault(name, value)
    return found


def _bound(function: Any, module: nn.Module) -> Callable[..., Any]:
    plain = isinstance(function, FunctionType)
    return MethodType(_with_stand_ins(function, {}) if plain else function, module)


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose calls with proxies become nodes of their graph."""

    def call(*args: Any, **kwargs: Any) -> Any:
        for given in (*args, *kwargs.values()):
            if isinstance(given, fx.Proxy):
                return given.tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return call


_MATH = SimpleNamespace(
    **{
        name: _recorded(value) if callable(value) else value
        for name, value in vars(math).items()
        if not name.startswith("_")
    }
)
_OF_MATH = {id(value): name for name, value in vars(math).items() if callable(value)}


def _with_stand_ins(function: FunctionType, known: dict[FunctionType, FunctionType]) -> Any:
    """Return a function that finds stand-ins for `math`, and what `fx.wrap` named, in its globals.

    Args:
        function: of the user.
        known: functions that were done, or are under way.
    """
    if function in known:
        return known[function]
    known[function] = function
    around, changed = function.__globals__, dict[str, Any]()
    for name in _names(function.__code__):
        value = around.get(name)
        if value is math:
            changed[name] = _MATH
        # Python wants a number of a proxy's `len`; a stand-in may return a node.
        elif value is None and name == "len":
            changed[name] = _recorded(len)
        elif id(value) in _OF_MATH:
            changed[name] = getattr(_MATH, _OF_MATH[id(value)])
        elif (id(around), name) in _wrapped_fns_to_patch and callable(value):
            changed[name] = _recorded(value)
        elif isinstance(value, FunctionType) and value.__globals__ is around:
            other = _with_stand_ins(value, known)
            changed |= {name: other} if other is not value else {}
    if changed:
        known[function] = _copy(function, {**around, **changed})
    return known[function]


def _copy(function: FunctionType, around: dict[str, Any]) -> FunctionType:
    copy = FunctionType(
        function.__code__, around, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _names(code: CodeType) -> set[str]:
    """Return the global names of a code and of the functions in it."""
    inner = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*inner)
