"""A network at one point and one chunk of samples: recorded once, then multiplied from."""

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from flatkit.hessian.layers.affine import Affine, Convolution, Normalisation, NormalisedLinear
from flatkit.hessian.layers.layer import Layer, Sum, added
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
    UntraceableError,
)
from flatkit.parameters import ParameterSpace

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_DROPOUTS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


class _Step(NamedTuple):
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
class Tape:
    """The layers of a network with their inputs and first derivatives at θ.

    The loss on top is any twice differentiable function of the outputs: its own curvature is left
    to autograd, where it is cheap.

    Args:
        network: what is recorded.
        space: names and shapes of the free parameters.
        theta: the point [P].
        inputs: of the chunk.
        loss: outputs -> the chunk's part of the loss, a scalar.

    Attributes:
        gradient: of that part, [P].
        takes_blocks: whether K > 1 directions go through at once.

    Raises:
        UntraceableError: a layer has no rule here.

    >>> from flatkit.hessian.layers.trace import trace
    >>> model, x = nn.Linear(1, 1, bias=False), torch.tensor([[3.0]])
    >>> space = ParameterSpace.of({"weight": model.weight})
    >>> tape = Tape(trace(model), space, torch.tensor([2.0]), x, lambda y: (y**2).sum())
    >>> tape.gradient, tape.product(torch.tensor([[1.0]]))  # L = 9 w²
    (tensor([36.]), tensor([[18.]]))
    """

    def __init__(
        self,
        network: Network,
        space: ParameterSpace,
        theta: Tensor,
        inputs: Tensor,
        loss: Callable[[Tensor], Tensor],
    ) -> None:
        self._network, self._space = network, space
        self._parameters = {**network.constants, **space.unflatten(theta)}
        self._values: dict[fx.Node, Any] = {}
        self._alias: dict[fx.Node, fx.Node] = {}
        self._depends: set[fx.Node] = set()
        self._steps: list[_Step] = []
        with torch.no_grad():
            self._record(inputs)
            self._record_loss(loss)
            self.gradient = self._record_backward()
        self._values.clear()
        self.takes_blocks = all(step.layer.takes_blocks for step in self._steps)

    @torch.no_grad()
    def product(self, vectors: Tensor, *, gauss_newton: bool = False) -> Tensor:
        """Return the products [K, P] of ∇² of the part (or of its Gauss-Newton) with V [K, P]."""
        directions = self._views(vectors)
        pushed: dict[fx.Node, Tensor | None] = {}
        for step in self._steps:
            given = [pushed.get(node) for node in step.inputs]
            pushed[step.output] = step.layer.push(given, directions)
        last = self._bend_loss(pushed.get(self._output), len(vectors))
        return self._pull(last, len(vectors), curved=not gauss_newton)

    @torch.no_grad()
    def fisher_product(self, vector: Tensor, values: Callable[[Tensor], Tensor]) -> Tensor:
        """Return Σₙ gₙ gₙᵀ v [P], gₙ the gradient of the n-th of the values [B] of the outputs."""
        directions = self._views(vector[None])
        pushed: dict[fx.Node, Tensor | None] = {}
        for step in self._steps:
            given = [pushed.get(node) for node in step.inputs]
            pushed[step.output] = step.layer.push(given, directions)
        along = pushed.get(self._output)
        if along is None:
            return torch.zeros_like(vector)
        with torch.enable_grad():
            outputs = self._outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(values(outputs).sum(), outputs)
        rates = (slope * along).flatten(1).sum(1)  # gₙ·v, [B]
        weighted = slope * rates.view(-1, *[1] * (slope.ndim - 1))
        return self._pull(weighted, 1, curved=False)[0]

    def _pull(self, last: Tensor | None, count: int, *, curved: bool) -> Tensor:
        out = self.gradient.new_empty(count, self._space.size)
        total = Sum(self._views(out))
        gradients: dict[fx.Node, Tensor | None] = {self._output: last}
        for step in reversed(self._steps):
            below = step.layer.pull(gradients.pop(step.output, None), total, curved=curved)
            for node, part in zip(step.inputs, below, strict=True):
                if node in self._depends:
                    gradients[node] = added(gradients.get(node), part)
        total.close()
        return out

    def _views(self, vectors: Tensor) -> dict[str, Tensor]:
        parts = vectors.split(self._space.sizes, dim=1)
        return {
            name: part.view(len(vectors), *shape)
            for name, part, shape in zip(self._space.names, parts, self._space.shapes, strict=True)
        }

    def _record_loss(self, loss: Callable[[Tensor], Tensor]) -> None:
        with torch.enable_grad():
            self._outputs = self._values[self._output].detach().requires_grad_()
            part = loss(self._outputs)
            (self._slope,) = torch.autograd.grad(part, self._outputs, create_graph=True)

    def _bend_loss(self, direction: Tensor | None, count: int) -> Tensor | None:
        """Return ∇²ℓ ẏ with respect to the outputs, for each of the directions."""
        if direction is None or not self._slope.requires_grad:
            return None
        shape = self._outputs.shape
        parts = direction.view(shape[0], count, *shape[1:]).unbind(1)
        bent = [
            torch.autograd.grad(self._slope, self._outputs, part, retain_graph=True)[0]
            for part in parts
        ]
        return torch.stack(bent, dim=1).view_as(direction) if count > 1 else bent[0]

    def _record_backward(self) -> Tensor:
        out = torch.empty(1, self._space.size, dtype=self._slope.dtype, device=self._slope.device)
        total = Sum(self._views(out))
        gradients: dict[fx.Node, Tensor | None] = {self._output: self._slope.detach()}
        for step in reversed(self._steps):
            gradient = gradients.pop(step.output, None)
            if gradient is None:  # nothing depends on it
                gradient = torch.zeros_like(self._values[step.output])
            below = step.layer.record_backward(gradient, total)
            for node, part in zip(step.inputs, below, strict=True):
                if node in self._depends:
                    gradients[node] = added(gradients.get(node), part)
        total.close()
        return out[0]

    def _record(self, inputs: Tensor) -> None:
        for node in self._network.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = _in_fast_order(inputs, self._network)
            elif node.op == "output":
                self._output = self._resolve(node.args[0])
            elif node.op == "get_attr":
                self._values[node] = _Named(*self._network.tensor(str(node.target)))
            elif node.op == "call_module":
                self._record_module(node)
            else:
                self._record_function(node)

    def _resolve(self, node: Any) -> fx.Node:
        if not isinstance(node, fx.Node):
            raise UntraceableError("the model does not return one tensor")
        node = self._alias.get(node, node)
        if not isinstance(self._values.get(node), Tensor):
            raise UntraceableError("the model does not return one tensor")
        return node

    def _record_module(self, node: fx.Node) -> None:
        module = self._network.modules[str(node.target)]
        if node in self._alias:  # a normalisation that was folded in
            return
        arguments = [self._alias.get(a, a) for a in node.args if isinstance(a, fx.Node)]
        tensors = all(isinstance(self._values.get(a), Tensor) for a in arguments)
        if not tensors or len(arguments) != len(node.args) or node.kwargs or not arguments:
            raise UntraceableError(f"{node.target} is called with more than tensors")
        source = arguments[0]
        if type(module) in _DROPOUTS and not module.training:
            self._alias[node] = source
        elif type(module) in _CONVOLUTIONS and _is_plain(module):
            self._add_affine(node, source, self._convolution(node, module))
        elif type(module) is nn.Linear:
            self._add_affine(node, source, self._linear(node, source, module))
        elif type(module) in ACTIVATIONS:
            self._add(node, [source], Activation(module))
        elif type(module) in LINEAR_MODULES:
            flat = type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)
            self._add(node, [source], LinearMap(module, takes_blocks=flat))
        elif type(module) is nn.MaxPool2d and not module.return_indices:
            names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
            settings = {name: getattr(module, name) for name in names}
            self._add(node, [source], max_pooling(**settings))
        else:
            self._add_opaque_module(node, arguments, module)

    def _add_opaque_module(
        self, node: fx.Node, arguments: list[fx.Node], module: nn.Module
    ) -> None:
        names = self._network.parameter_names(module)

        def call(*inputs: Tensor, **given: Tensor) -> Tensor:
            own = {name: given[canonical] for name, canonical in names.items()}
            return functional_call(module, own, inputs)

        self._add(node, arguments, Opaque(call, tuple(dict.fromkeys(names.values()))))

    def _record_function(self, node: fx.Node) -> None:
        key = node.target
        if key in SPLITTING and isinstance(node.args[0], fx.Node):
            source = self._alias.get(node.args[0], node.args[0])
            self._values[node] = _Parts(self._bound(node, [source]), source)
            return
        sources = list(dict.fromkeys(self._alias.get(n, n) for n in node.all_input_nodes))
        values = [self._values[source] for source in sources]
        if key is operator.getitem and isinstance(values[0], _Parts):
            parts, index = values[0], node.args[1]
            take = LinearMap(lambda x: parts.function(x)[index])
            self._add(node, [parts.source], take)
            return
        if any(isinstance(value, _Parts) for value in values):
            raise UntraceableError(f"{key} takes several tensors at once")
        tensors = [s for s, v in zip(sources, values, strict=True) if isinstance(v, Tensor)]
        named = {s: v.name for s, v in zip(sources, values, strict=True) if isinstance(v, _Named)}
        if not any(source in self._depends for source in tensors) and not named:
            self._values[node] = self._bound(node, tensors)(*(self._values[s] for s in tensors))
            return
        self._add(node, tensors, self._function_layer(node, tensors, named))

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
            shapes = {self._values[source].shape for source in tensors}
            if len(node.args) == 2 and not node.kwargs and len(shapes) == 1:
                return Addition()
        names = tuple(dict.fromkeys(named.values()))
        needed = {self._alias.get(source, source) for source in node.all_input_nodes}
        values, alias = {n: self._values[n] for n in needed if n not in tensors}, self._alias

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
        return _fill_in(node, tensors, {**self._values, **(parameters or {})}, self._alias)

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

    def _linear(self, node: fx.Node, source: fx.Node, module: nn.Linear) -> Layer:
        weight, bias = self._own_names(module)
        norm = self._following_norm(node) if self._values[source].ndim == 2 else None
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

    def _add_affine(self, node: fx.Node, source: fx.Node, layer: Any) -> None:
        layer.needs_input_gradient = source in self._depends
        self._add(node, [source], layer)

    def _add(self, node: fx.Node, sources: list[fx.Node], layer: Layer) -> None:
        value = layer.record([self._values[source] for source in sources], self._parameters)
        if not isinstance(value, Tensor):
            raise UntraceableError(f"{node.target} returns several tensors")
        self._values[node] = value
        names = set(_parameter_names(layer))
        if names & set(self._space.names) or any(source in self._depends for source in sources):
            self._depends.add(node)
            self._steps.append(_Step(layer, tuple(sources), node))


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


def _in_fast_order(inputs: Tensor, network: Network) -> Tensor:
    """Return images with the channels last in memory, where convolutions are faster on a CPU."""
    images = inputs.ndim == 4 and inputs.is_floating_point()
    if images and any(type(module) is nn.Conv2d for module in network.modules.values()):
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs
