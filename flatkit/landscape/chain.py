"""A network whose parameters enter through linear layers alone, as steps that take many points.

`Chain.of` walks the graph of a model backwards from its output and forwards again. What does not
depend on the parameters is computed once for all points. Of the rest only operations are taken that
treat every sample by itself, in tensors [samples, features]; where there is another one, an error
names it. Nothing is tried out: what is taken is right at every point.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from flatkit.errors import FlatkitError
from flatkit.hessian.layers.operations import ACTIVATION_FUNCTIONS, ACTIVATIONS, rows
from flatkit.hessian.layers.trace import Network, trace
from flatkit.hessian.unsupported import UnsupportedError
from flatkit.objective.parameters import ParameterSpace


class CannotStackError(FlatkitError):
    """Several points cannot go through at once; the message says why."""


IN_PLACE: Mapping[Any, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu, "relu"), torch.relu_),
    **dict.fromkeys((nn.Tanh, F.tanh, torch.tanh, "tanh"), torch.tanh_),
    **dict.fromkeys((nn.Sigmoid, F.sigmoid, torch.sigmoid, "sigmoid"), torch.sigmoid_),
    **dict.fromkeys((nn.SiLU, F.silu), partial(F.silu, inplace=True)),
}
"""Activations, and what does the same without new memory; no further argument changes either."""

_EACH_ENTRY: Mapping[Any, Callable[..., Tensor]] = {
    **dict.fromkeys((operator.add, torch.add, "add"), torch.add),
    **dict.fromkeys((operator.sub, torch.sub, "sub"), torch.sub),
    **dict.fromkeys((operator.mul, torch.mul, "mul"), torch.mul),
    **dict.fromkeys((operator.truediv, torch.div, "div"), torch.div),
    **dict.fromkeys((operator.neg, torch.neg, "neg"), torch.neg),
    **dict.fromkeys((operator.pow, torch.pow, "pow"), torch.pow),
    **dict.fromkeys((torch.square, "square"), torch.square),
    **dict.fromkeys((torch.abs, "abs"), torch.abs),
    **dict.fromkeys((torch.exp, "exp"), torch.exp),
    **dict.fromkeys((torch.sin, "sin"), torch.sin),
    **dict.fromkeys((torch.cos, "cos"), torch.cos),
}
"""What acts on every entry by itself, beside activations."""

_ALONG_FEATURES: Mapping[Any, Callable[..., Any]] = {
    **dict.fromkeys((F.softmax, torch.softmax, "softmax"), torch.softmax),
    **dict.fromkeys((F.log_softmax, torch.log_softmax, "log_softmax"), torch.log_softmax),
}
"""Functions of (tensor, dim) that mix the features of a sample."""

_CUTS: Mapping[Any, Callable[..., Any]] = {
    **dict.fromkeys((torch.chunk, "chunk"), torch.chunk),
    **dict.fromkeys((torch.split, "split"), torch.split),
}
"""Functions of (tensor, parts, dim) that return several tensors."""

_SAME = (nn.Identity, nn.Dropout, nn.AlphaDropout)
"""Modules that return their input where nothing is trained."""

_OF_FEATURES = (1, -1)
"""How a model names the dimension of the features of [samples, features]."""

Run: TypeAlias = Callable[["Layer", Tensor | None], Tensor]
"""Returns the outputs [K, out, B] of a layer at K points from its inputs [K, in, B].

A first layer has None for inputs, which are the same at all points.
"""


@dataclass(frozen=True)
class Layer:
    """A call of `linear`.

    Attributes:
        name: of the call.
        source: what its inputs are called.
        weight: the name of the matrix.
        bias: the name of the bias, or None.
        is_first: whether the inputs do not depend on the parameters.
    """

    name: str
    source: str
    weight: str
    bias: str | None
    is_first: bool


@dataclass(frozen=True)
class Operation:
    """Something that treats every sample by itself.

    Attributes:
        name: what the result is called.
        sources: what the tensors are called that the function takes.
        function: of tensors [K, features, B].
        is_view: whether the result lies in the memory of a source.
    """

    name: str
    sources: tuple[str, ...]
    function: Callable[..., Any]
    is_view: bool = False


@dataclass(frozen=True)
class Chain:
    """The steps through a network.

    Attributes:
        network: the graph.
        plain: the nodes that do not depend on the parameters, in order.
        steps: those that do, in order.
        kept: of the plain nodes, those that operations take; True if they depend on the samples.
        output: what the outputs are called.
    """

    network: Network
    plain: Sequence[fx.Node]
    steps: Sequence[Layer | Operation]
    kept: Mapping[str, bool]
    output: str

    @classmethod
    def of(cls, model: nn.Module, space: ParameterSpace) -> "Chain":
        """Return the steps through a model.

        Raises:
            CannotStackError: parameters enter otherwise than through linear layers, samples are
                not treated by themselves, or the model is no fixed graph.

        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
        >>> chain = Chain.of(model, ParameterSpace.of(dict(model.named_parameters())))
        >>> [type(step).__name__ for step in chain.steps]
        ['Layer', 'Operation']
        """
        for name, shape in zip(space.names, space.shapes, strict=True):
            if len(shape) > 2:  # before the model is copied and traced
                raise CannotStackError(f"{name} is no matrix of a linear layer")
        try:
            network = trace(model)
            walk = _Walk(network, set(space.names))
        except UnsupportedError as error:
            raise CannotStackError(str(error)) from error
        return walk.chain()

    @property
    def layers(self) -> list[Layer]:
        """The calls of `linear`, in order."""
        return [step for step in self.steps if isinstance(step, Layer)]

    @torch.enable_grad()
    def plain_values(self, inputs: Tensor) -> dict[str, Any]:
        """Return what does not depend on the parameters, by name, from the inputs [B, ...].

        Gradients are recorded, as they are where the whole model runs: it may ask for that.
        """
        values: dict[str, Any] = {}
        for node in self.plain:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda used: values[used.name])
            if node.op == "placeholder":
                values[node.name] = inputs
            elif node.op == "get_attr":
                constant = self.network.tensor(str(node.target))[1]
                if not isinstance(constant, Tensor):  # a generator draws others in every call
                    raise CannotStackError(f"the model holds a {type(constant).__name__}")
                values[node.name] = constant.detach()
            elif node.op == "call_module":
                values[node.name] = self.network.modules[str(node.target)](*args, **kwargs)
            elif node.op == "call_method":
                values[node.name] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                values[node.name] = node.target(*args, **kwargs)  # type: ignore[operator]
        return {
            name: value.detach() if isinstance(value, Tensor) else value
            for name, value in values.items()
        }

    def run(self, run: Run, kept: Mapping[str, Any]) -> Tensor:
        """Return the outputs [K, out, B].

        Args:
            run: gives the outputs of layers.
            kept: the tensors of `kept` by name, as [features, B] or [features, 1].
        """
        values: dict[str, Any] = dict(kept)
        for step in self.steps:
            if isinstance(step, Layer):
                values[step.name] = run(step, None if step.is_first else values[step.source])
            else:
                values[step.name] = step.function(*[values[name] for name in step.sources])
        return values[self.output]


class _Walk:
    """One walk through a graph, node by node.

    Args:
        network: the graph.
        free: names of the parameters that move.
    """

    def __init__(self, network: Network, free: set[str]) -> None:
        self._network, self._free = network, free
        self._live = _live_nodes(network.graph)
        self._weights: dict[fx.Node, str] = {}
        self._plain: list[fx.Node] = []
        self._of_samples: set[fx.Node] = set()
        self._names: dict[fx.Node, str] = {}  # of what moves; several nodes may be one tensor
        self._steps: dict[str, Layer | Operation] = {}
        self._kept: dict[str, bool] = {}

    def chain(self) -> Chain:
        """Return the steps."""
        for node in self._network.graph.nodes:
            if node in self._live and node.op != "output":
                self._visit(node)
        (output,) = self._network.graph.find_nodes(op="output")
        made = output.args[0]
        if not isinstance(made, fx.Node) or made not in self._names:
            raise CannotStackError("the model returns no single tensor that the parameters make")
        steps = list(self._steps.values())
        if not any(isinstance(step, Layer) and step.is_first for step in steps):
            raise CannotStackError("no linear layer takes the inputs")
        return Chain(self._network, self._plain, steps, self._kept, self._names[made])

    def _visit(self, node: fx.Node) -> None:
        if node.op == "get_attr" and self._network.tensor(str(node.target))[0] in self._free:
            self._weights[node] = self._network.tensor(str(node.target))[0]
            return
        if self._takes_parameters(node):
            self._linear(node)
        elif any(used in self._names for used in node.all_input_nodes):
            self._operation(node)
        else:
            self._plain.append(node)
            used = node.all_input_nodes
            if node.op == "placeholder" or any(each in self._of_samples for each in used):
                self._of_samples.add(node)

    def _takes_parameters(self, node: fx.Node) -> bool:
        own = self._own_parameters(node)
        return bool(own & self._free) or any(x in self._weights for x in node.all_input_nodes)

    def _own_parameters(self, node: fx.Node) -> set[str]:
        if node.op != "call_module":
            return set()
        module = self._network.modules[str(node.target)]
        return set(self._network.parameter_names(module).values())

    def _linear(self, node: fx.Node) -> None:
        """Add a call of `linear`."""
        if node.op == "call_module":
            module = self._network.modules[str(node.target)]
            if type(module) is not nn.Linear or not self._own_parameters(node) <= self._free:
                raise CannotStackError(
                    f"{node.target} ({type(module).__name__}) is no linear layer that moves whole"
                )
            names = self._network.parameter_names(module)
            weight, bias = names["weight"], names.get("bias")
            source = node.args[0]
        else:
            source, weight, bias = self._arguments_of_linear(node)
        assert isinstance(source, fx.Node)
        is_first = source not in self._names
        name = source.name if is_first else self._names[source]
        self._add(node, Layer(node.name, name, weight, bias, is_first))

    def _arguments_of_linear(self, node: fx.Node) -> tuple[fx.Node, str, str | None]:
        given = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
        source, weight, bias = (given.get(key) for key in ("input", "weight", "bias"))
        moves = [x is None or x in self._weights for x in (weight, bias)]
        if node.target is not F.linear or not all(moves) or source in self._weights:
            moved = ", ".join(self._weights[x] for x in node.all_input_nodes if x in self._weights)
            raise CannotStackError(f"{moved} enters through {_word(node)}, not as a linear layer")
        assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
        bias_name = self._weights[bias] if isinstance(bias, fx.Node) else None
        return source, self._weights[weight], bias_name

    def _add(self, node: fx.Node, step: Layer | Operation) -> None:
        self._names[node] = step.name
        self._steps[step.name] = step

    def _operation(self, node: fx.Node) -> None:
        """Add what treats every sample by itself, or nothing where it changes nothing."""
        key = self._key(node)
        tensors = [x for x in _flat(node.args) if isinstance(x, fx.Node)]
        if self._changes_nothing(node, key):
            self._names[node] = self._names[tensors[0]]
            return
        function = None if _takes_tensors_by_name(node) else self._function(node, key)
        if function is None:
            raise CannotStackError(f"{_word(node)} is not known to treat every sample by itself")
        sources = tuple(self._source(node, x) for x in tensors)
        if key in IN_PLACE and self._is_last_use(tensors[0]):
            function = IN_PLACE[key]
        is_view = key in _CUTS or key is operator.getitem
        self._add(node, Operation(node.name, sources, function, is_view))

    def _changes_nothing(self, node: fx.Node, key: Any) -> bool:
        """Whether an operation returns its input [samples, features], outside of training."""
        if (
            key in _SAME
            or key is rows
            or (key is F.dropout and _argument(node, 2, "training") is False)
        ):
            return True
        if key is nn.Flatten:
            return bool(self._network.modules[str(node.target)].start_dim == 1)
        return key in (torch.flatten, "flatten") and _argument(node, 1, "start_dim") == 1

    def _function(self, node: fx.Node, key: Any) -> Callable[..., Any] | None:
        """Return an operation as a function of its tensors [K, features, B]; None if unknown."""
        if node.op == "call_module":
            module = self._network.modules[str(node.target)]
            if key in ACTIVATIONS:
                return module
            function = {nn.Softmax: torch.softmax, nn.LogSoftmax: torch.log_softmax}.get(key)
            return partial(function, dim=1) if function and module.dim in _OF_FEATURES else None
        if key in ACTIVATION_FUNCTIONS:
            options = {name: x for name, x in node.kwargs.items() if name != "inplace"}
            return _bound(partial(ACTIVATION_FUNCTIONS[key], **options), node.args)
        if key in _EACH_ENTRY and not node.kwargs:
            return _bound(_EACH_ENTRY[key], node.args)
        if key in _ALONG_FEATURES and _argument(node, 1, "dim") in _OF_FEATURES:
            # Features are second here, in [K, features, B], and in [samples, features] as well.
            return partial(_ALONG_FEATURES[key], dim=1) if len(node.args) < 3 else None
        if key in _CUTS and _argument(node, 2, "dim") in _OF_FEATURES:
            cut, parts = _CUTS[key], node.args[1]
            return lambda tensor: cut(tensor, parts, 1)
        if key in (torch.cat, torch.concat) and _argument(node, 1, "dim") in _OF_FEATURES:
            return lambda *tensors: torch.cat(tensors, 1)
        if key is operator.getitem and isinstance(node.args[1], int) and self._is_cut(node):
            return operator.itemgetter(node.args[1])
        return None

    def _is_cut(self, node: fx.Node) -> bool:
        """Whether an item is taken of several tensors, not of one."""
        return isinstance(node.args[0], fx.Node) and self._key(node.args[0]) in _CUTS

    def _source(self, node: fx.Node, used: fx.Node) -> str:
        if used in self._names:
            return self._names[used]
        if node.target not in _EACH_ENTRY:
            raise CannotStackError(f"{_word(node)} joins what moves with what does not")
        # What does not depend on the samples is one row for all of them, and is not cut with them.
        self._kept[used.name] = used in self._of_samples
        return used.name

    def _is_last_use(self, used: fx.Node) -> bool:
        """Whether nothing else takes what an activation is about to overwrite."""
        name = self._names[used]
        step = self._steps[name]
        same = [node for node, other in self._names.items() if other == name]
        # `same`: names of one tensor, as of Identity or Dropout, which read nothing by themselves.
        takers = {user for node in same for user in node.users if user in self._live} - set(same)
        return len(takers) == 1 and not (isinstance(step, Operation) and step.is_view)

    def _key(self, node: fx.Node) -> Any:
        """Return what an operation is known by: the type of a module, a function, a name."""
        if node.op == "call_module":
            return type(self._network.modules[str(node.target)])
        return node.target


def _live_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that the output depends on."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or any(user in live for user in node.users):
            live.add(node)
    return live


def _flat(arguments: Sequence[Any]) -> Sequence[Any]:
    """Return positional arguments, where the first may be a list of tensors."""
    return arguments[0] if arguments and isinstance(arguments[0], list | tuple) else arguments


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _takes_tensors_by_name(node: fx.Node) -> bool:
    return any(isinstance(x, fx.Node) for x in node.kwargs.values())


def _bound(function: Callable[..., Any], arguments: Sequence[Any]) -> Callable[..., Any]:
    """Return a function of the tensors among its arguments alone."""
    places = [place for place, x in enumerate(arguments) if isinstance(x, fx.Node)]
    if places == list(range(len(arguments))):
        return function

    def call(*tensors: Any) -> Any:
        filled = list(arguments)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return function(*filled)

    return call


def _word(node: fx.Node) -> str:
    """Return what an operation is called in a message."""
    return str(node.target) if isinstance(node.target, str) else node.target.__name__
