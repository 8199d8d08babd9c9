"""A call of a function, method or module, and the rule that it has as a layer."""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.node import map_aggregate

from flatkit.hessian.layers.arithmetic import (
    Joining,
    MatrixProduct,
    Product,
    Quotient,
    Terms,
)
from flatkit.hessian.layers.layer import Layer
from flatkit.hessian.layers.operations import (
    ACTIVATION_FUNCTIONS,
    DROPPING,
    ENTRY_BY_ENTRY,
    FACTS,
    JOINING,
    LINEAR,
    QUERIES,
    RESHAPING,
    SPLITTING,
    name_of,
    rows,
)
from flatkit.hessian.layers.pointwise import Activation, LinearMap, max_pooling
from flatkit.hessian.layers.standardised import Softmax


class Slot:
    """The place of a tensor on a tape."""


@dataclass(frozen=True)
class Call:
    """A call with its arguments: numbers, constant tensors, slots, and lists of these.

    Attributes:
        node: of the graph.
        args: by position.
        kwargs: by name.
        module: that is called, or None.
    """

    node: fx.Node
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    module: nn.Module | None = None

    @property
    def slots(self) -> list[Slot]:
        """The places among the arguments, each once."""
        return list(dict.fromkeys(x for x in leaves((self.args, self.kwargs)) if type(x) is Slot))

    @property
    def name(self) -> str | None:
        """What torch calls the function or method; None of any other one and of modules."""
        if self.node.target is rows:
            return "rows"
        return None if self.module is not None else name_of(self.node.target)

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """Return an argument by place or name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def run(self, tensor: Callable[[Any], Any] | None = None) -> Any:
        """Return what the call returns.

        Args:
            tensor: what is to stand in the place of a leaf; by default, itself.
        """
        args, kwargs = self.args, dict(self.kwargs)
        if tensor is not None:
            args, kwargs = map_aggregate(args, tensor), map_aggregate(kwargs, tensor)
        return _ran(self.module or self.node.target, args, kwargs)

    def of(
        self, slots: Sequence[Slot], names: Mapping[str, str] | None = None
    ) -> Callable[..., Any]:
        """Return the call as a function of what stands in some places.

        Args:
            slots: the places; there are no others.
            names: what the module calls its parameters -> what the function calls them.
        """
        args, kwargs, module, target = self.args, self.kwargs, self.module, self.node.target

        def call(*tensors: Tensor, **parameters: Tensor) -> Any:
            given = dict(zip(slots, tensors, strict=True))

            def look(leaf: Any) -> Any:
                return given.get(leaf, leaf) if type(leaf) is Slot else leaf

            filled, options = map_aggregate(args, look), map_aggregate(dict(kwargs), look)
            if module is not None:
                own = {name: parameters[other] for name, other in (names or {}).items()}
                return functional_call(module, own, filled, options)
            return _ran(target, filled, options)

        return call


def _ran(target: Any, args: Any, kwargs: Any) -> Any:
    if isinstance(target, str):
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


def leaves(tree: Any) -> Iterator[Any]:
    """Return what stands in lists, tuples, dictionaries and slices.

    >>> list(leaves((1, [slice(2, None)], {"a": 3})))
    [1, 2, None, None, 3]
    """
    found: list[Any] = []
    map_aggregate(tree, found.append)
    return iter(found)


def is_of_containers(call: Call) -> bool:
    """Whether a call takes something out of a container of tensors, or puts containers together."""
    if call.module is not None or not call.args:
        return False
    plain = (operator.getitem, operator.add, len, getattr)
    function = isinstance(call.node.target, str) or call.node.target in plain
    return function and isinstance(call.args[0], (tuple, list, dict))


def is_question(call: Call) -> bool:
    """Whether a call asks for what does not depend on the entries of a tensor."""
    if call.node.target is getattr:
        return call.args[1] in FACTS
    return call.node.target is len or call.name in QUERIES


def is_identity(call: Call) -> bool:
    """Whether a call returns its first argument outside of training."""
    return call.name in DROPPING and call.argument(2, "training", default=True) is False


def is_splitting(call: Call) -> bool:
    """Whether a call returns several linear parts of one tensor, its first argument."""
    return call.name in SPLITTING and _is_of_first(call)


def rule(call: Call, tensor: Callable[[Any], Any]) -> tuple[Layer, list[Slot]] | None:
    """Return the layer of a call of a function or method with the places of its inputs.

    None where there is no such rule.

    Args:
        call: has slots.
        tensor: slot -> its tensor; other things -> themselves.
    """
    for find in (_entry_by_entry, _softmax, _pooling, _linear, _joining, _terms, _product, _choice):
        found = find(call, tensor)
        if found is not None:
            return found
    return None


_Found = tuple[Layer, list[Slot]] | None


def _is_of_first(call: Call) -> bool:
    """Whether the first argument alone is a slot."""
    return bool(call.args) and call.slots == [call.args[0]] and _count(call) == 1


def _count(call: Call) -> int:
    """Return how many arguments are slots."""
    return sum(type(leaf) is Slot for leaf in leaves((call.args, call.kwargs)))


def _entry_by_entry(call: Call, tensor: Callable[[Any], Any]) -> _Found:
    target: Any = call.node.target
    known = target in ACTIVATION_FUNCTIONS or call.name in ENTRY_BY_ENTRY
    others = [x for x in leaves((call.args, call.kwargs)) if type(x) is not Slot]
    if not known or _count(call) != 1 or any(isinstance(x, Tensor) for x in others):
        return None
    function = call.of(call.slots)
    if target in ACTIVATION_FUNCTIONS and call.args:
        plain, rest = ACTIVATION_FUNCTIONS[target], call.args[1:]
        options = {name: x for name, x in call.kwargs.items() if name != "inplace"}
        if type(call.args[0]) is Slot:
            return Activation(lambda x: plain(x, *rest, **options)), call.slots
    return Activation(function), call.slots


def _softmax(call: Call, tensor: Callable[[Any], Any]) -> _Found:
    dim = call.argument(1, "dim")
    whole = len(call.args) <= 2 and set(call.kwargs) <= {"dim", "_stacklevel", "dtype"}
    if call.name != "softmax" or not _is_of_first(call) or not whole or not isinstance(dim, int):
        return None
    if call.kwargs.get("dtype") is not None:
        return None
    return Softmax(call.of(call.slots), dim), call.slots


def _pooling(call: Call, tensor: Callable[[Any], Any]) -> _Found:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    if call.name != "max_pool2d" or not _is_of_first(call) or tensor(call.args[0]).ndim != 4:
        return None
    given = {**dict(zip(names, call.args[1:], strict=False)), **call.kwargs}
    return None if given.pop("return_indices", False) else (max_pooling(**given), call.slots)


def _linear(call: Call, tensor: Callable[[Any], Any]) -> _Found:
    if call.node.target is getattr and call.args[1] in ("T", "mT"):
        return LinearMap(call.of(call.slots)), call.slots
    if call.name in _STACKING and isinstance(call.args[0], (tuple, list)):
        whole = len(call.slots) == len(call.args[0]) == _count(call)
        return (LinearMap(call.of(call.slots)), call.slots) if whole else None
    if not _is_of_first(call) or any(isinstance(x, torch.dtype) for x in leaves(call.args)):
        return None
    if call.name == "pad":
        # With another value than 0 it is affine.
        if call.argument(2, "mode", "constant") == "constant" and call.argument(3, "value"):
            return None
    elif call.name not in LINEAR and call.name != "rows":
        return None
    flat = call.name == "rows" or (
        call.name == "flatten" and (*call.args[1:], *call.kwargs.values()) == (1,)
    )
    back = _transposed(call)
    return LinearMap(call.of(call.slots), transposed=back, takes_blocks=flat), call.slots


def _transposed(call: Call) -> Callable[[Tensor, Sequence[int]], Tensor] | None:
    """Return the transpose of a linear map of (gradient, shape of the input), where it is known."""
    if call.name in RESHAPING:
        return lambda gradient, shape: gradient.reshape(shape)
    function = call.of(call.slots)
    if call.name in ("transpose", "swapaxes", "swapdims"):
        return lambda gradient, _: function(gradient)
    dims = call.args[1] if isinstance(call.args[-1], (tuple, list)) else call.args[1:]
    if call.name == "permute" and dims and not call.kwargs:
        count = len(dims)
        back = sorted(range(count), key=lambda place: dims[place] % count)
        return lambda gradient, _: gradient.permute(back)
    return None


_STACKING = ("stack", "hstack", "vstack", "dstack", "column_stack")


def _joining(call: Call, tensor: Callable[[Any], Any]) -> _Found:
    parts, dim = call.argument(0, "tensors"), call.argument(1, "dim", 0)
    if call.name not in JOINING or not isinstance(parts, (list, tuple)) or "out" in call.kwargs:
        return None
    if "axis" in call.kwargs or not isinstance(dim, int) or not _one_dtype(parts, tensor):
        return None
    fixed = [None if type(part) is Slot else part for part in parts]
    return Joining(fixed, dim), [part for part in parts if type(part) is Slot]


def _terms(call: Call, tensor: Callable[[Any], Any]) -> _Found:
    signs = {"add": 1, "sub": -1, "subtract": -1, "rsub": -1}
    operands = call.args
    if call.name not in signs or call.kwargs or len(operands) != 2:
        return None
    if not _one_dtype(operands, tensor):
        return None
    both = (-1, 1) if call.name == "rsub" else (1, signs[call.name])
    pairs = [(x, sign) for x, sign in zip(operands, both, strict=True) if type(x) is Slot]
    function = _by_operand(call)
    return Terms(function, [sign for _, sign in pairs]), [x for x, _ in pairs]


def _by_operand(call: Call) -> Callable[..., Any]:
    """Return a function of the positional arguments that are slots, one of which may come twice."""
    if len(call.slots) == _count(call):
        return call.of(call.slots)
    # `x + x`: one slot in two places, which gets a direction in each.
    function = call.of(call.slots)
    return lambda *tensors: function(tensors[0])


def _product(call: Call, tensor: Callable[[Any], Any]) -> _Found:
    operands = call.args
    if call.kwargs or len(operands) != 2 or not _one_dtype(operands, tensor):
        return None
    a, b = (None if type(x) is Slot else x for x in operands)
    slots = [x for x in operands if type(x) is Slot]
    if call.name in ("mul", "multiply"):
        return Product(a, b), slots
    if call.name in ("truediv", "div", "divide") and b is not None:
        return Quotient(b=b), slots
    if call.name in ("matmul", "bmm", "mm"):
        # `matmul` drops a dimension of vectors, and `MatrixProduct` swaps two.
        return (MatrixProduct(a, b), slots) if min(tensor(x).ndim for x in operands) > 1 else None
    return None


def _one_dtype(operands: Sequence[Any], tensor: Callable[[Any], Any]) -> bool:
    """Whether all operands are tensors of one dtype, or numbers."""
    found = [tensor(x) for x in operands]
    dtypes = {x.dtype for x in found if isinstance(x, Tensor)}
    numbers = all(isinstance(x, (Tensor, int, float)) for x in found)
    return numbers and len(dtypes) == 1


def _choice(call: Call, tensor: Callable[[Any], Any]) -> _Found:
    """Return the rule of what takes entries of some tensors at constant places."""
    slots = call.slots
    if call.name == "masked_fill" and _is_of_first(call) and len(call.args) == 3:
        x, mask, _ = call.args
        # The filled entries are constants: their directions are zeros, whatever the value is.
        return LinearMap(call.of([x]), lambda x: x.masked_fill(mask, 0.0)), slots
    if call.name == "where" and len(call.args) == 3 and _one_dtype(call.args[1:], tensor):
        condition, *sources = call.args
        if not isinstance(condition, Tensor) or len(slots) != _count(call):
            return None

        def linear(*tensors: Tensor) -> Tensor:
            given = dict(zip(slots, tensors, strict=True))
            first, second = (given.get(x, tensors[0].new_zeros(())) for x in sources)
            return torch.where(condition, first, second)

        return LinearMap(call.of(slots), linear), slots
    return None
