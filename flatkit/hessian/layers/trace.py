"""A model as a graph of layers, where `torch.fx` can follow it."""

import operator
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from flatkit.hessian.layers.tracer import QuietTracer
from flatkit.hessian.unsupported import UnsupportedError
from flatkit.objective.model.copier import duplicate
from flatkit.objective.reading.randomness import undisturbed


@final
class Network:
    """The graph of a model in eval mode, and the canonical names of its parameters.

    Attributes:
        graph: nodes in the order of execution.
        modules: by path.
        in_place: paths of modules that wrote into their input, and here do not.
        constants: frozen parameters and buffers by name.
        names: id of a parameter -> its name; tied parameters have one.

    Raises:
        UnsupportedError: `torch.fx` cannot follow the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._module = duplicate(model)
        self.in_place = {
            path for path, m in self._module.named_modules() if getattr(m, "inplace", False)
        }
        for path in self.in_place:
            self._module.get_submodule(path).inplace = False  # type: ignore[assignment]
        self.graph = _traced(self._module)
        self.modules = dict(self._module.named_modules())
        self.names = {id(p): name for name, p in self._module.named_parameters()}
        every = [*self._module.named_parameters(), *self._module.named_buffers()]
        self.constants = {name: tensor.detach() for name, tensor in every}
        for node in self.graph.nodes:  # tensors that are attributes, and no buffers
            if node.op == "get_attr":
                self.constants.setdefault(node.target, self.tensor(node.target)[1].detach())

    @property
    def nbytes(self) -> int:
        """The bytes of the network's own copies of parameters and buffers."""
        return sum(map(_bytes_of, self.constants.values()))

    def tensor(self, target: str) -> tuple[str, Tensor]:
        """Return the canonical name and the value of a parameter or buffer by path."""
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


def trace(model: nn.Module) -> Network:
    """Return the graph of a model.

    Raises:
        UnsupportedError: control flow that depends on values, hooks, or something else that a
            graph cannot hold.

    >>> network = trace(nn.Sequential(nn.Linear(2, 3), nn.Tanh()))
    >>> [node.op for node in network.graph.nodes]
    ['placeholder', 'call_module', 'call_module', 'output']
    """
    _refuse_hooks(model)
    with undisturbed():  # the user's forward runs
        network = Network(model)
    _refuse_unknown(network)
    _refuse_aliases(network)
    return network


def _traced(module: nn.Module) -> fx.Graph:
    try:
        return QuietTracer().trace(module)
    except Exception as error:  # it runs the user's forward with proxies: anything may be raised
        raise UnsupportedError(
            f"torch.fx cannot follow the model: {type(error).__name__}: {error}"
        ) from error


def _refuse_hooks(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        if any(getattr(module, kind) for kind in kinds):  # torch has no public name for them
            raise UnsupportedError(f"{name or 'the model'} has hooks")


def _refuse_unknown(network: Network) -> None:
    inputs = [node for node in network.graph.nodes if node.op == "placeholder"]
    if len([node for node in inputs if node.users]) != 1:
        raise UnsupportedError("the model takes more than one input")
    if any(tensor.is_complex() for tensor in network.constants.values()):
        raise UnsupportedError("complex numbers have no rule here")
    if any(isinstance(module, nn.DataParallel) for module in network.modules.values()):
        raise UnsupportedError("a layer is inside of DataParallel")
    for node in network.graph.nodes:
        name = getattr(node.target, "__name__", str(node.target))
        if node.op in ("call_function", "call_method") and name.endswith("_"):
            raise UnsupportedError(f"{name} changes a tensor in place")


def _refuse_aliases(network: Network) -> None:
    """Refuse tensors that are used again once something has written into them."""
    order = {node: number for number, node in enumerate(network.graph.nodes)}
    for node, number in order.items():
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node) or not _writes(network, node):
            continue
        if any(order[user] > number for user in first.users):
            raise UnsupportedError(f"{first.name} is used again after {node.name} wrote into it")


def _writes(network: Network, node: fx.Node) -> bool:
    """Whether a node changes its first argument, as the user wrote it."""
    if node.op == "call_module":
        return str(node.target) in network.in_place
    return bool(node.kwargs.get("inplace")) or node.target in _IN_PLACE


_IN_PLACE = frozenset(
    getattr(operator, name) for name in ("iadd", "isub", "imul", "itruediv", "ipow", "imatmul")
)


ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.LogSigmoid,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Softplus,
    nn.Softsign,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
)
"""Modules that act on every entry by itself."""

ACTIVATION_FUNCTIONS: Mapping[Any, Callable[..., Tensor]] = {
    **{
        function: function
        for function in (
            torch.relu,
            torch.tanh,
            torch.sigmoid,
            F.relu,
            F.relu6,
            F.leaky_relu,
            F.elu,
            F.gelu,
            F.silu,
            F.mish,
            F.softplus,
            F.tanh,
            F.sigmoid,
            F.hardtanh,
            F.hardswish,
        )
    },
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
"""Functions and methods that act on every entry by itself; in-place flags are dropped."""

LINEAR_MODULES: tuple[type[nn.Module], ...] = (
    nn.Flatten,
    nn.Unflatten,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.ZeroPad2d,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
)
"""Modules that are linear in their input and have no parameters."""

LINEAR_FUNCTIONS = frozenset(
    {
        torch.flatten,
        torch.reshape,
        torch.mean,
        torch.sum,
        torch.permute,
        torch.transpose,
        torch.squeeze,
        torch.unsqueeze,
        F.avg_pool2d,
        F.adaptive_avg_pool2d,
        F.pad,
        "flatten",
        "view",
        "reshape",
        "mean",
        "sum",
        "permute",
        "transpose",
        "squeeze",
        "unsqueeze",
        "contiguous",
        "getitem",
    }
)
"""Functions and methods that are linear in their first argument."""

SPLITTING = frozenset({torch.chunk, torch.split, torch.unbind, "chunk", "split", "unbind"})
"""Functions and methods that return several linear parts of one tensor."""
