"""Which layer each node of a network's graph is, with the values that flow between them."""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from flatkit.hessian.layers.affine import Affine, Convolution, Normalisation, NormalisedLinear
from flatkit.hessian.layers.arithmetic import Product, Terms, Weight
from flatkit.hessian.layers.calls import (
    Call,
    Slot,
    is_identity,
    is_of_containers,
    is_question,
    is_splitting,
    rule,
)
from flatkit.hessian.layers.channelwise import Channelwise
from flatkit.hessian.layers.layer import Layer
from flatkit.hessian.layers.linear import Linear
from flatkit.hessian.layers.opaque import Opaque, Piece
from flatkit.hessian.layers.operations import ACTIVATION_FUNCTIONS, ACTIVATIONS, LINEAR_MODULES
from flatkit.hessian.layers.pointwise import Activation, Addition, LinearMap, max_pooling
from flatkit.hessian.layers.standardised import Softmax, Standardised
from flatkit.hessian.layers.trace import Network
from flatkit.hessian.unsupported import UnsupportedError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_DROPOUTS = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)


class Step(NamedTuple):
    """A layer, the places whose tensors go into it, and the place of the one that it makes."""

    layer: Layer
    inputs: tuple[Slot, ...]
    output: Slot


@final
class Recording:
    """The nodes of a graph, visited in order, as layers with the tensors that go into them.

    Args:
        network: what is recorded.
        inputs: of the network.
        free: names of the parameters that are no constants.

    Attributes:
        tensors: of the places.
        depends: places whose tensors depend on free parameters.
        output: the place of the output, once all steps are done.

    Raises:
        UnsupportedError: by `steps` and `keep`, if a node has no rule here.
    """

    def __init__(self, network: Network, inputs: Sequence[Tensor], free: frozenset[str]) -> None:
        self._network, self._inputs, self._free = network, iter(inputs), free
        self._graph = network.graph_of(inputs)
        self._values: dict[fx.Node, Any] = {}
        self._folded: dict[fx.Node, fx.Node] = {}
        self.tensors: dict[Slot, Tensor] = {}
        self.depends: set[Slot] = set()

    def steps(self) -> Iterator[Step]:
        """Return the steps in order; each must be kept before the next one is asked for."""
        for node in self._graph.nodes:
            if node.op == "placeholder":
                self._values[node] = next(self._inputs)
            elif node.op == "output":
                self.output = self._result(node.args[0])
            elif node.op == "get_attr":
                yield from self._attribute(node)
            elif node in self._folded:
                self._values[node] = self._values[self._folded[node]]
            else:
                yield from self._call(node)
            self._check_shape(node)

    def keep(self, step: Step, value: Tensor) -> bool:
        """Keep the tensor that a layer recorded, and return whether it depends on parameters."""
        if value.is_complex():
            raise UnsupportedError("an operation returns complex numbers")
        self.tensors[step.output] = value
        free = any(name in self._free for name in _parameter_names(step.layer))
        smooth = not isinstance(step.layer, Opaque) or step.layer.is_smooth
        smooth = smooth and value.numel() > 0  # of no samples, as of an expert nobody is sent to
        if smooth and (free or any(source in self.depends for source in step.inputs)):
            self.depends.add(step.output)
        return step.output in self.depends

    def _check_shape(self, node: fx.Node) -> None:
        """Refuse a shape that the model's code has met otherwise."""
        value = self._tensor(self._values.get(node))
        if "shape" in node.meta and value.shape != node.meta["shape"]:
            raise UnsupportedError("the model's code depends on shapes that depend on values")

    def _tensor(self, value: Any) -> Any:
        return self.tensors[value] if type(value) is Slot else value

    def _slot(self, value: Any) -> Slot:
        """Return the place of a tensor, a new one for a constant."""
        if type(value) is Slot:
            return value
        slot = Slot()
        self.tensors[slot] = value
        return slot

    def _result(self, node: Any) -> Slot:
        value = self._values.get(node) if isinstance(node, fx.Node) else None
        if not isinstance(self._tensor(value), Tensor):
            raise UnsupportedError("the model does not return one tensor")
        return self._slot(value)

    def _attribute(self, node: fx.Node) -> Iterator[Step]:
        name, value = self._network.tensor(str(node.target))
        if not isinstance(value, Tensor):  # torch.fx keeps other constants too, as generators are
            raise UnsupportedError(f"the model gives a {type(value).__name__} to an operation")
        self._values[node] = value.detach()
        if name in self._free:
            yield from self._made(node, Weight(name), ())

    def _names_in(self, module: nn.Module) -> dict[str, str]:
        return self._network.parameter_names(module)

    def _made(self, node: fx.Node, layer: Layer, inputs: Sequence[Slot]) -> Iterator[Step]:
        """Return the step that makes the tensor of a node, and know what came out."""
        slot = Slot()
        yield Step(layer, tuple(inputs), slot)
        self._values[node] = slot if slot in self.depends else self.tensors.pop(slot)

    def _call(self, node: fx.Node) -> Iterator[Step]:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda used: self._values[used])
        is_module = node.op == "call_module"
        module = self._network.modules[str(node.target)] if is_module else None
        call = Call(node, args, kwargs, module)
        if is_of_containers(call):
            self._values[node] = call.run()
        elif is_question(call):
            self._values[node] = call.run(self._tensor)
        elif node.meta["constant"]:
            self._values[node] = self._constant(call)
        elif module is not None:
            yield from self._module(node, call, module)
        elif not call.slots:
            self._values[node] = call.run()
        elif is_identity(call):
            self._values[node] = call.args[0]
        elif node.target == "detach" or (node.target is getattr and call.args[1] == "data"):
            self._values[node] = self._tensor(call.args[0])
        else:
            yield from self._function(node, call)

    def _constant(self, call: Call) -> Any:
        """Return what a call returns where the model has switched gradients off."""
        if call.module is not None and self._free & set(self._names_in(call.module).values()):
            raise UnsupportedError(f"{call.node.target} is called without gradients")
        return call.run(self._tensor)

    def _function(self, node: fx.Node, call: Call) -> Iterator[Step]:
        if is_splitting(call):
            yield from self._parts(node, call)
            return
        if node.target is F.layer_norm and type(call.argument(0, "input")) is Slot:
            yield from self._layer_norm(node, call, None)
            return
        found = rule(call, self._tensor)
        if found is None:
            yield from self._opaque(node, call, {})
            return
        layer, slots = found
        if isinstance(layer, Terms) and layer.signs == [1, 1]:
            first, second = (self.tensors[slot].shape for slot in slots)
            layer = Addition() if first == second else layer
        yield from self._made(node, layer, slots)

    def _parts(self, node: fx.Node, call: Call) -> Iterator[Step]:
        """Return the steps of the parts of one tensor."""
        # A step a part, each the whole call and a choice: views, which cost nothing.
        function, slots = call.of(call.slots), call.slots
        parts = [Slot() for _ in function(self.tensors[slots[0]])]
        for place, part in enumerate(parts):
            take = LinearMap(lambda x, place=place: function(x)[place])
            yield Step(take, tuple(slots), part)
        self._values[node] = tuple(parts)

    def _opaque(self, node: fx.Node, call: Call, names: dict[str, str]) -> Iterator[Step]:
        """Return the steps of what only torch knows the derivatives of."""
        slots = call.slots
        if str(getattr(node.target, "__module__", "")).startswith("torch.autograd"):
            raise UnsupportedError("the model takes derivatives inside its forward pass")
        layer, whole = Opaque(call.of(slots, names), tuple(dict.fromkeys(names.values()))), Slot()
        yield Step(layer, tuple(slots), whole)
        pieces: list[tuple[Slot, Piece]] = []

        def place(leaf: Any) -> Any:
            if not isinstance(leaf, Piece):
                return leaf
            if whole not in self.depends:
                return leaf.of(self.tensors[whole])
            if leaf.place is None:
                return whole
            pieces.append((Slot(), leaf))
            return pieces[-1][0]

        self._values[node] = map_aggregate(layer.outputs, place)
        for slot, piece in pieces:
            yield Step(LinearMap(piece.of), (whole,), slot)

    def _module(self, node: fx.Node, call: Call, module: nn.Module) -> Iterator[Step]:
        names = self._names_in(module)
        free = {own: name for own, name in names.items() if name in self._free}
        if not free and not call.slots:
            self._values[node] = call.run()
            return
        if type(module) is nn.LayerNorm and len(call.args) == 1:
            yield from self._layer_norm(node, call, module)
            return
        plain = len(call.args) == 1 and not call.kwargs
        if plain and isinstance(self._tensor(call.args[0]), Tensor):
            if type(module) in _DROPOUTS and not module.training:
                self._values[node] = call.args[0]
                return
            source = self._slot(call.args[0])
            layer = self._module_layer(node, source, module)
            if layer is not None:
                yield from self._made(node, layer, (source,))
                return
        yield from self._opaque(node, call, free)

    def _layer_norm(self, node: fx.Node, call: Call, module: nn.LayerNorm | None) -> Iterator[Step]:
        """Return the steps of a layer norm: standardised, times a weight, plus a bias."""
        if module is None:
            shape, eps = call.argument(1, "normalized_shape"), call.argument(4, "eps", 1e-5)
            affine = call.argument(2, "weight"), call.argument(3, "bias")
        else:
            shape, eps = module.normalized_shape, module.eps
            affine = yield from self._parameters(module.weight, module.bias)
        place = Slot()
        yield Step(Standardised(shape, eps), (self._slot(call.argument(0, "input")),), place)
        for own, kind in zip(affine, (Product, Terms), strict=True):
            if own is None:
                continue
            inputs, constant = ((place, own), None) if isinstance(own, Slot) else ((place,), own)
            layer: Layer = Product(None, constant)
            if kind is Terms:
                layer = Terms(_sum_with(constant), [1] * len(inputs))
            place = Slot()
            yield Step(layer, inputs, place)
        self._values[node] = place if place in self.depends else self.tensors[place]

    def _parameters(
        self, *tensors: Tensor | None
    ) -> Generator[Step, None, list[Slot | Tensor | None]]:
        """Return parameters of a module, the free ones as places, after the steps of these."""
        found: list[Slot | Tensor | None] = []
        for tensor in tensors:
            name = None if tensor is None else self._network.names[id(tensor)]
            if tensor is None or name not in self._free:
                found.append(None if tensor is None else tensor.detach())
                continue
            place = Slot()
            found.append(place)
            yield Step(Weight(name), (), place)
        return found

    def _module_layer(self, node: fx.Node, source: Slot, module: nn.Module) -> Layer | None:
        """Return the rule for a module of one input, or None if there is none."""
        # `type(...) is`: a subclass may have a `forward` of its own.
        dims = self.tensors[source].ndim
        if type(module) in _CONVOLUTIONS and _is_plain(module, dims):
            layer = self._convolution(node, module)
            layer.needs_input_gradient = source in self.depends
            return layer
        if type(module) is nn.Linear:
            layer = self._linear(node, source, module)
            layer.needs_input_gradient = source in self.depends
            return layer
        if type(module) is nn.Hardsigmoid:
            return Activation(ACTIVATION_FUNCTIONS[F.hardsigmoid])
        if type(module) in ACTIVATIONS:
            return Activation(module)
        if _is_fixed(module):
            return Channelwise(self._normalisation(module))
        if type(module) is nn.Softmax and module.dim is not None:
            return Softmax(module, module.dim)
        if type(module) in LINEAR_MODULES:
            flat = type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)
            return LinearMap(module, takes_blocks=flat)
        if type(module) is nn.MaxPool2d and not module.return_indices and dims == 4:
            names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
            return max_pooling(**{name: getattr(module, name) for name in names})
        return None

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

    def _linear(self, node: fx.Node, source: Slot, module: nn.Linear) -> Linear | NormalisedLinear:
        weight, bias = self._own_names(module)
        # Of [B, L, C] BatchNorm1d normalises the second dimension, which this layer does not make.
        norm = self._following_norm(node) if self.tensors[source].ndim == 2 else None
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
        if user.args != (node,) or user.kwargs or not _is_fixed(norm):
            return None
        # The norm's node then has the value of the layer's: `steps` passes over it.
        self._folded[user] = node
        return self._normalisation(norm)

    def _normalisation(self, norm: Any) -> Normalisation:
        weight, bias = self._own_names(norm) if norm.affine else (None, None)
        deviation = (norm.running_var + norm.eps).sqrt()
        return Normalisation(weight, bias, norm.running_mean, deviation)


def _sum_with(constant: Tensor | None) -> Callable[..., Tensor]:
    """Return the sum of two tensors, or of one and a constant."""
    return torch.add if constant is None else lambda x: x + constant


def _is_fixed(module: Any) -> bool:
    """Whether a module is a BatchNorm with running statistics."""
    return type(module) in _NORMS and not module.training and module.running_var is not None


def _parameter_names(layer: Layer) -> list[str]:
    if isinstance(layer, Linear):
        return [name for name in (layer.weight, layer.bias) if name]
    if isinstance(layer, Affine):
        return sorted(layer.names)
    if isinstance(layer, Weight):
        return [layer.name]
    return list(layer.names) if isinstance(layer, (Opaque, Channelwise)) else []


def _is_plain(module: Any, dims: int) -> bool:
    """Whether a convolution of a tensor of so many dimensions has its rule here."""
    batched = dims == module.weight.ndim
    return batched and module.padding_mode == "zeros" and not isinstance(module.padding, str)
