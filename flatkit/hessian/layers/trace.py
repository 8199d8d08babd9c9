"""A model as a graph of layers, where `torch.fx` can follow it."""

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, fx, nn

from flatkit.hessian.layers.aliases import without_writing
from flatkit.hessian.layers.operations import name_of, rows
from flatkit.hessian.layers.shapes import ShapedTracer
from flatkit.hessian.layers.tracer import QuietTracer, ValuesError
from flatkit.hessian.unsupported import UnsupportedError
from flatkit.objective.model.copier import duplicate
from flatkit.objective.passes import arguments
from flatkit.objective.reading.randomness import undisturbed

Names: TypeAlias = tuple[str | None, ...]
"""What the inputs of a model are called; None for those that are given by position."""


@final
class Network:
    """The graph of a model in eval mode, and the canonical names of its parameters.

    Where the model's code asks for shapes that `torch.fx` leaves open, there is a graph for every
    shape of inputs, made when they are met.

    Attributes:
        modules: by path.
        constants: frozen parameters and buffers by name.
        names: id of a parameter -> its name; tied parameters have one.
    """

    def __init__(self, model: nn.Module, inputs: Names = (None,)) -> None:
        self._module, self._inputs = duplicate(model), inputs
        # `nn.ReLU(inplace=True)` would overwrite a tensor that the tape holds for derivatives.
        self._in_place = {
            path for path, m in self._module.named_modules() if getattr(m, "inplace", False)
        }
        for path in self._in_place:
            self._module.get_submodule(path).inplace = False  # type: ignore[assignment]
        self.modules = dict(self._module.named_modules())
        self.names = {id(p): name for name, p in self._module.named_parameters()}
        every = [*self._module.named_parameters(), *self._module.named_buffers()]
        self.constants = {name: tensor.detach() for name, tensor in every}
        self._graphs: dict[Any, fx.Graph] = {}
        self._graph = self._traced(QuietTracer())  # or why there is none

    @property
    def graph(self) -> fx.Graph:
        """The nodes in the order of execution, for inputs of any number of samples.

        Raises:
            UnsupportedError: there is no such graph.
        """
        if isinstance(self._graph, str):
            raise UnsupportedError(self._graph)
        return self._graph

    def graph_of(self, inputs: Sequence[Tensor]) -> fx.Graph:
        """Return the nodes in the order of execution, for inputs of these shapes.

        Cost: where there is no common graph, the loss of the inputs, once for each shape.

        Raises:
            UnsupportedError: `torch.fx` cannot follow the model.
        """
        if isinstance(self._graph, fx.Graph):
            return self._graph
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self._graphs:
            with undisturbed():  # the user's forward runs
                found = self._traced(ShapedTracer(duplicate(self._module), inputs))
            if isinstance(found, str):
                raise UnsupportedError(found)
            self._graphs[key] = found
        return self._graphs[key]

    def _traced(self, tracer: QuietTracer) -> fx.Graph | str:
        """Return the graph, or why there is none."""
        try:
            graph = tracer.graph_of(self._module, self._inputs)
        # Final, where any other failure may be cured by a tracer that knows shapes.
        except ValuesError as error:
            raise UnsupportedError(_refusal(error)) from error
        except Exception as error:  # the user's forward runs with proxies: anything may be raised
            return _refusal(error)
        without_writing(graph, self.modules, self._in_place)
        _name_reshapes(graph)
        return graph

    @property
    def nbytes(self) -> int:
        """The bytes of the network's own copies of parameters and buffers."""
        return sum(map(_bytes_of, self.constants.values()))

    def tensor(self, target: str) -> tuple[str, Any]:
        """Return the canonical name and the value of a parameter, buffer or constant by path."""
        path, _, leaf = target.rpartition(".")
        value = getattr(self.modules[path], leaf)
        return self.names.get(id(value), target), value

    def parameter_names(self, module: nn.Module) -> dict[str, str]:
        """Return the module's own names of its parameters -> canonical names."""
        own = module.named_parameters(remove_duplicate=False)
        return {name: self.names[id(p)] for name, p in own}


def _bytes_of(tensor: Tensor) -> int:
    if tensor.is_sparse:  # torch counts those of its parts alone
        return tensor._indices().nbytes + tensor._values().nbytes
    return tensor.nbytes


def trace(model: nn.Module, inputs: Names = (None,)) -> Network:
    """Return the graph of a model.

    Args:
        model: in eval mode.
        inputs: what its inputs are called; see `names_of_inputs`.

    Raises:
        UnsupportedError: control flow that depends on values, hooks, or something else that no
            graph can hold. What else `torch.fx` cannot follow is said when a graph is asked for.

    >>> network = trace(nn.Sequential(nn.Linear(2, 3), nn.Tanh()))
    >>> [node.op for node in network.graph.nodes]
    ['placeholder', 'call_module', 'call_module', 'output']
    """
    _refuse_hooks(model)
    with undisturbed():  # the user's forward runs
        network = Network(model, inputs)
    if any(tensor.is_complex() for tensor in network.constants.values()):
        raise UnsupportedError("complex numbers have no rule here")
    if any(isinstance(module, nn.DataParallel) for module in network.modules.values()):
        raise UnsupportedError("a layer is inside of DataParallel")
    return network


def names_of_inputs(inputs: Any) -> Names:
    """Return what the inputs of a model are called.

    Raises:
        UnsupportedError: one of them is no tensor.

    >>> names_of_inputs(torch.ones(2)), names_of_inputs({"x": torch.ones(2)})
    ((None,), ('x',))
    """
    args, kwargs = arguments(inputs)
    if not all(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
        raise UnsupportedError("the model takes more than tensors")
    return (*(None for _ in args), *kwargs)


def _refusal(error: Exception) -> str:
    return f"torch.fx cannot follow the model: {type(error).__name__}: {error}"


def _refuse_hooks(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        if any(getattr(module, kind) for kind in kinds):  # torch has no public name for them
            raise UnsupportedError(f"{name or 'the model'} has hooks")


def _name_reshapes(graph: fx.Graph) -> None:
    """Write `x.view(x.shape[0], -1)` as `rows(x)`, and every other view as a reshape.

    A derivative need not lie in memory as its tensor does: where one is a view, the other may have
    to be copied.
    """
    for node in reversed(list(graph.nodes)):
        name = name_of(node.target)
        if name not in ("view", "reshape") or not node.args or node.kwargs:
            continue
        first, *sizes = node.args
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = [*sizes[0]]
        if len(sizes) == 2 and sizes[1] == -1 and _is_length(sizes[0], first):
            node.op, node.target, node.args = "call_function", rows, (first,)
        elif name == "view" and not any(isinstance(size, torch.dtype) for size in sizes):
            node.target = "reshape"
    for node in reversed(list(graph.nodes)):  # the questions that nobody asks any more
        if not node.users and _is_question(node):
            graph.erase_node(node)


def _is_length(size: Any, of: Any) -> bool:
    """Whether a node is the first size of another one."""
    if not isinstance(size, fx.Node) or not size.args:
        return False
    if size.target is operator.getitem:
        shape, place = size.args
        return isinstance(shape, fx.Node) and bool(place == 0) and _is_shape(shape, of)
    if size.target == "size":
        return size.args == (of, 0)
    return size.target is len and size.args == (of,)


def _is_shape(node: fx.Node, of: Any) -> bool:
    if node.target is getattr:
        return node.args == (of, "shape")
    return node.target == "size" and node.args == (of,) and not node.kwargs


def _is_question(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _is_question(node.args[0])
    return node.target in ("size", len) or (node.target is getattr and node.args[1] == "shape")
