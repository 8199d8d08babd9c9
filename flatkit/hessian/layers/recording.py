"""Which layer each node of a network's graph is, with the values that flow between them."""

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from flatkit.hessian.layers.affine import Affine, Convolution, Normalisation, NormalisedLinear
from flatkit.hessian.layers.layer import Layer
from flatkit.hessian.layers.linear import Linear
from flatkit.hessian.layers.opaque import Opaque
from flatkit.hessian.layers.pointwise import Activation, Addition, LinearMap, max_pooling
from flatkit.hessian.layers.trace import (
    ACTIVATION_FUNCTIONS,
    ACTIVATIONS,
    LINEAR_FUNCTIONS,
    LINEAR_MODULES,
    SPLITTING,
    Network,
)
from flatkit.hessian.unsupported import UnsupportedError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_DROPOUTS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


class Step(NamedTuple):
    """A layer, the nodes whose values go into it, and the node whose value it makes."""

    layer: Layer
    inputs: tuple[fx.Node, ...]
    output: fx.Node


class _Parts(NamedTuple):
    """What a splitting function returned, not yet taken apart."""

    function: Callable[[Tensor], Any]
    source: fx.Node


class _Named(NamedTuple):
    """A parameter or buffer that a function takes directly."""

    name: str
    value: Tensor


@final
class Recording:
    """The nodes of a graph, visited in order, as layers with the values that go into them.

    Args:
        network: what is recorded.
        inputs: of the network.
        free: names of the parameters that are no constants.

    Attributes:
        values: node -> what it was found to be; a tensor, of most.
        depends: nodes that depend on free parameters.

    Raises:
        UnsupportedError: by `step` and `keep`, if a node has no rule here.
    """

    def __init__(self, network: Network, inputs: Tensor, free: frozenset[str]) -> None:
        self._network, self._inputs, self._free = network, inputs, free
        self._alias: dict[fx.Node, fx.Node] = {}
        self.values: dict[fx.Node, Any] = {}
        self.depends: set[fx.Node] = set()

    def step(self, node: fx.Node) -> Step | None:
        """Return the layer of a node that is still to be recorded; None if its value is known."""
        if node.op == "call_module":
            return self._module(node)
        if node.op in ("call_function", "call_method"):
            return self._function(node)
        if node.op == "placeholder":
            self.values[node] = self._inputs
        elif node.op == "output":
            self.output = self._tensor_node(node.args[0])
        else:  # get_attr
            self.values[node] = _Named(*self._network.tensor(str(node.target)))
        return None

    def keep(self, step: Step, value: Any) -> bool:
        """Keep the value that a layer recorded, and return whether it depends on parameters."""
        if not isinstance(value, Tensor):
            raise UnsupportedError(f"{step.output.target} returns several tensors")
        if value.is_complex():
            raise UnsupportedError(f"{step.output.target} returns complex numbers")
        self.values[step.output] = value
        names = set(_parameter_names(step.layer))
        if names & self._free or any(source in self.depends for source in step.inputs):
            self.depends.add(step.output)
        return step.output in self.depends

    def _tensor_node(self, node: Any) -> fx.Node:
        if not isinstance(node, fx.Node):
            raise UnsupportedError("the model does not return one tensor")
        node = self._alias.get(node, node)
        if not isinstance(self.values.get(node), Tensor):
            raise UnsupportedError("the model does not return one tensor")
        return node

    def _module(self, node: fx.Node) -> Step | None:
        module = self._network.modules[str(node.target)]
        if node in self._alias:  # a normalisation that was folded in
            return None
        arguments = [self._alias.get(a, a) for a in node.args if isinstance(a, fx.Node)]
        tensors = all(isinstance(self.values.get(a), Tensor) for a in arguments)
        if not tensors or len(arguments) != len(node.args) or node.kwargs or not arguments:
            raise UnsupportedError(f"{node.target} is called with more than tensors")
        source = arguments[0]
        if type(module) in _DROPOUTS and not module.training:
            self._alias[node] = source
            return None
        layer = self._module_layer(node, source, module)
        if layer is not None:
            return Step(layer, (source,), node)
        return Step(self._opaque_module(module), tuple(arguments), node)

    def _module_layer(self, node: fx.Node, source: fx.Node, module: nn.Module) -> Layer | None:
        """Return the rule for a module of one input, or None if there is none."""
        if type(module) in _CONVOLUTIONS and _is_plain(module):
            layer = self._convolution(node, module)
            layer.needs_input_gradient = source in self.depends
            return layer
        if type(module) is nn.Linear:
            layer = self._linear(node, source, module)
            layer.needs_input_gradient = source in self.depends
            return layer
        if type(module) in ACTIVATIONS:
            return Activation(module)
        if type(module) in LINEAR_MODULES:
            flat = type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)
            return LinearMap(module, takes_blocks=flat)
        if type(module) is nn.MaxPool2d and not module.return_indices:
            names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
            return max_pooling(**{name: getattr(module, name) for name in names})
        return None

    def _opaque_module(self, module: nn.Module) -> Opaque:
        names = self._network.parameter_names(module)

        def call(*inputs: Tensor, **given: Tensor) -> Tensor:
            own = {name: given[canonical] for name, canonical in names.items()}
            return functional_call(module, own, inputs)

        return Opaque(call, tuple(dict.fromkeys(names.values())))

    def _function(self, node: fx.Node) -> Step | None:
        key = node.target
        first = node.args[0] if node.args else None
        if key in SPLITTING and isinstance(first, fx.Node):
            source = self._alias.get(first, first)
            self.values[node] = _Parts(self._bound(node, [source]), source)
            return None
        sources = list(dict.fromkeys(self._alias.get(n, n) for n in node.all_input_nodes))
        values = [self.values[source] for source in sources]
        if key is operator.getitem and isinstance(values[0], _Parts):
            parts, index = values[0], node.args[1]
            take = LinearMap(lambda x: parts.function(x)[index])
            return Step(take, (parts.source,), node)
        if any(isinstance(value, _Parts) for value in values):
            raise UnsupportedError(f"{key} takes several tensors at once")
        tensors = [s for s, v in zip(sources, values, strict=True) if isinstance(v, Tensor)]
        named = {s: v.name for s, v in zip(sources, values, strict=True) if isinstance(v, _Named)}
        if not any(source in self.depends for source in tensors) and not named:
            self.values[node] = self._bound(node, tensors)(*(self.values[s] for s in tensors))
            return None
        return Step(self._function_layer(node, tensors, named), tuple(tensors), node)

    def _function_layer(
        self, node: fx.Node, tensors: list[fx.Node], named: Mapping[fx.Node, str]
    ) -> Layer:
        key: Any = "getitem" if node.target is operator.getitem else node.target
        first: Any = node.args[0] if node.args else None
        single = len(tensors) == 1 and not named and isinstance(first, fx.Node)
        single = single and self._alias.get(first, first) is tensors[0]
        if single and key in ACTIVATION_FUNCTIONS:
            options = {k: v for k, v in node.kwargs.items() if k != "inplace"}
            function = ACTIVATION_FUNCTIONS[key]
            return Activation(lambda x: function(x, *node.args[1:], **options))
        if single and key in LINEAR_FUNCTIONS:
            flat = key in ("flatten", torch.flatten) and (*node.args[1:], *node.kwargs) == (1,)
            return LinearMap(self._bound(node, tensors), takes_blocks=flat)
        if key in (operator.add, operator.iadd, torch.add, "add") and len(tensors) == 2:
            shapes = {self.values[source].shape for source in tensors}
            if len(node.args) == 2 and not node.kwargs and len(shapes) == 1:
                return Addition()
        names = tuple(dict.fromkeys(named.values()))
        needed = {self._alias.get(source, source) for source in node.all_input_nodes}
        values, alias = {n: self.values[n] for n in needed if n not in tensors}, self._alias

        def call(*inputs: Tensor, **given: Tensor) -> Tensor:
            parameters = {source: given[name] for source, name in named.items()}
            return _fill_in(node, tensors, {**values, **parameters}, alias)(*inputs)

        return Opaque(call, names)

    def _bound(
        self,
        node: fx.Node,
        tensors: list[fx.Node],
        parameters: Mapping[fx.Node, Tensor] | None = None,
    ) -> Callable[..., Any]:
        return _fill_in(node, tensors, {**self.values, **(parameters or {})}, self._alias)

    def _convolution(self, node: fx.Node, module: Any) -> Affine:
        weight, bias = self._own_names(module)
        return Convolution(
            weight,
            bias,
            self._following_norm(node),
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            groups=module.groups,
        )

    def _linear(
        self, node: fx.Node, source: fx.Node, module: nn.Linear
    ) -> Linear | NormalisedLinear:
        weight, bias = self._own_names(module)
        norm = self._following_norm(node) if self.values[source].ndim == 2 else None
        return Linear(weight, bias) if norm is None else NormalisedLinear(weight, bias, norm)

    def _own_names(self, module: Any) -> tuple[str, str | None]:
        bias = None if module.bias is None else self._network.names[id(module.bias)]
        return self._network.names[id(module.weight)], bias

    def _following_norm(self, node: fx.Node) -> Normalisation | None:
        """Return the BatchNorm that alone uses the output of a node, and mark it as done."""
        if len(node.users) != 1:
            return None
        (user,) = node.users
        norm: Any = (
            self._network.modules.get(str(user.target)) if user.op == "call_module" else None
        )
        if type(norm) not in _NORMS or norm.training or norm.running_var is None:
            return None
        self._alias[user] = node
        weight, bias = self._own_names(norm) if norm.affine else (None, None)
        deviation = (norm.running_var + norm.eps).sqrt()
        return Normalisation(weight, bias, norm.running_mean, deviation)


def _fill_in(
    node: fx.Node,
    tensors: list[fx.Node],
    values: Mapping[fx.Node, Any],
    alias: Mapping[fx.Node, fx.Node],
) -> Callable[..., Any]:
    """Return the function of a node with everything but some tensors filled in.

    It must not refer to the tape: a cycle would keep its memory until it is collected.
    """
    others = {alias.get(source, source) for source in node.all_input_nodes}
    plain = {source: values[source] for source in others if source not in tensors}

    def call(*inputs: Tensor) -> Any:
        given = {**plain, **dict(zip(tensors, inputs, strict=True))}

        def look(source: fx.Node) -> Any:
            return given[alias.get(source, source)]

        arguments: Any = fx.map_arg(node.args, look)
        options: Any = fx.map_arg(node.kwargs, look)
        if isinstance(node.target, str):
            return getattr(arguments[0], node.target)(*arguments[1:], **options)
        return node.target(*arguments, **options)  # type: ignore[operator]

    return call


def _parameter_names(layer: Layer) -> list[str]:
    if isinstance(layer, Linear):
        return [name for name in (layer.weight, layer.bias) if name]
    if isinstance(layer, Affine):
        return sorted(layer.names)
    return list(layer.names) if isinstance(layer, Opaque) else []


def _is_plain(module: Any) -> bool:
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)
