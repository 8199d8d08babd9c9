"""The calls of `linear` in a pass through a network: watched at one point, run at many."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from flatkit.objective.pytree import leaves

IN_PLACE: dict[Callable, Callable[[Tensor], Tensor]] = {
    F.relu: torch.relu_,
    torch.relu: torch.relu_,
    Tensor.relu: torch.relu_,
    torch.tanh: torch.tanh_,
    Tensor.tanh: torch.tanh_,
    torch.sigmoid: torch.sigmoid_,
    Tensor.sigmoid: torch.sigmoid_,
    F.silu: partial(F.silu, inplace=True),
}
"""Activations, and what does the same without new memory; no further argument changes either."""
_SHAPES = {
    Tensor.dim,
    Tensor.is_contiguous,
    Tensor.is_floating_point,
    Tensor.__len__,
    Tensor.numel,
    Tensor.size,
    Tensor.stride,
    torch.is_floating_point,
    torch.numel,
}
"""Questions that do not look at values; nor do those attributes that are no tensors."""


class NotLinear(Exception):
    """The network is none that can be stacked."""


class Layer(NamedTuple):
    """A call of `linear`.

    Attributes:
        number: 0 for the first call of a pass.
        weight: the name of the matrix.
        bias: the name of the bias, or None.
    """

    number: int
    weight: str
    bias: str | None


Step = Layer | Callable[[Tensor], Tensor]
"""A layer, or an activation in place."""
Run = Callable[[Layer, Tensor], Tensor]
"""Returns the outputs [K, out, B] of a layer at K points from its inputs [K, in, B].

Plain inputs, which are the same at all points, are [in, B].
"""


class Recorder(TorchFunctionMode):
    """Watch one pass: which calls of `linear` see plain inputs, and that nothing else has weights.

    Args:
        tables: parameters by name: those of the pass, and others that first layers see too.

    Attributes:
        first: for the n-th call of `linear`, if it is one on plain inputs, its outputs [T, out, B]
            under each of the T tables.
        widest: the largest number of inputs or outputs that a call has for a sample.
    """

    def __init__(self, tables: Sequence[Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.tables: list[dict[str, Tensor]] = [dict(table) for table in tables]
        self.first: dict[int, Tensor] = {}
        self._firsts: set[str] = set()
        self._others: set[str] = set()
        self.widest = 1
        self._uses: dict[int, int] = {}
        self._seen: list[Tensor] = []  # kept alive, so that an id is not used again
        self._activations: dict[int, int] = {}
        self._steps = -1
        self._names = {id(tensor): name for name, tensor in self.tables[0].items()}
        self._moved: dict[int, Tensor] = {}  # depend on parameters; kept alive as well
        self._outputs: set[int] = set()  # of `linear`
        self._calls = -1
        self._chain: list[Step] | None = []
        self._last: int | None = None  # the id of what the chain has made so far

    @property
    def once(self) -> set[str]:
        """The names of the parameters that are only in first layers."""
        return self._firsts - self._others

    @property
    def in_place(self) -> set[int]:
        """The steps of activations whose input, an output of `linear`, nothing else uses."""
        return {step for step, tensor in self._activations.items() if self._uses[tensor] == 1}

    def chain(self, outputs: Tensor) -> list[Step] | None:
        """Return the steps whose last makes the outputs and each other one the input of the next.

        None where anything else takes what depends on parameters: an operation that is no `Step`,
        a second use.
        """
        return self._chain if id(outputs) == self._last else None

    def keep(self, outputs: Tensor) -> None:
        """Take note that these are used once more."""
        self._uses[id(outputs)] = 2

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = list(leaves((args, kwargs)))
        self._steps += 1
        self._seen += given
        for tensor in given:
            self._uses[id(tensor)] = self._uses.get(id(tensor), 0) + 1
        if func is F.linear:
            return self._linear(*args, **kwargs)
        if func in IN_PLACE and len(given) == 1 and id(given[0]) in self._outputs:
            self._activations[self._steps] = id(given[0])
        result = func(*args, **kwargs)
        made = list(leaves(result))  # also of those that give several, such as chunk
        if made and any(id(a) in self._names for a in given):
            raise NotLinear
        if not any(id(a) in self._moved for a in given):
            return result
        if made:
            self._moved.update((id(tensor), tensor) for tensor in made)
            self._extend(IN_PLACE.get(func), given[0], result)
        elif func not in _SHAPES and func.__name__ != "__get__":
            raise NotLinear  # values become a number of Python, and those of K points only one
        return result

    def _linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        self._calls += 1
        names = [None if t is None else self._names.get(id(t)) for t in (weight, bias)]
        if names[0] is None or (bias is not None and names[1] is None):
            raise NotLinear  # frozen, or computed from parameters
        outputs = F.linear(inputs, weight, bias)
        if outputs.ndim != 2:
            raise NotLinear
        self.widest = max(self.widest, outputs.shape[1])
        self._extend(Layer(self._calls, names[0], names[1]), inputs, outputs)
        self._moved[id(outputs)] = outputs
        self._outputs.add(id(outputs))
        used = {name for name in names if name is not None}
        if id(inputs) in self._moved:
            self.widest = max(self.widest, inputs.shape[1])
            self._others |= used
            return outputs
        self._firsts |= used
        others = [
            F.linear(inputs, table[names[0]], None if names[1] is None else table[names[1]])
            for table in self.tables[1:]
        ]
        self.first[self._calls] = torch.stack([part.T for part in (outputs, *others)])
        return outputs

    def _extend(self, step: Step | None, inputs: Tensor, outputs: Any) -> None:
        """Add a step to the chain, or give it up where this one does not follow the last."""
        follows = id(inputs) == self._last if self._chain else id(inputs) not in self._moved
        if self._chain is None or step is None or not follows:
            self._chain = None
            return
        self._chain.append(step)
        self._last = id(outputs)


def follow(chain: Sequence[Step], run: Run, inputs: Tensor) -> Tensor:
    """Return the outputs [K, out, B] of a chain.

    Args:
        chain: see `Recorder.chain`.
        run: gives the outputs of its layers.
        inputs: of its first layer, for `run`.
    """
    outputs = inputs
    for step in chain:
        outputs = run(step, outputs) if isinstance(step, Layer) else step(outputs)
    return outputs


class Stack(TorchFunctionMode):
    """Run `linear` for K points.

    Outputs have the shape [K, B, out], and lie in memory as [K, out, B]: products are fast then
    also where a layer has few outputs, and so is the softmax.

    Args:
        run: gives the outputs of layers.
        names: of parameters, by their ids.
        in_place: steps, see `Recorder.in_place`.
    """

    def __init__(self, run: Run, names: Mapping[int, str], in_place: set[int]) -> None:
        super().__init__()
        self._run, self._names, self._in_place = run, names, in_place
        self._calls = self._step = -1

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self._step += 1
        if func is F.linear:
            return self._linear(*args, **(kwargs or {}))
        if self._step in self._in_place:
            return IN_PLACE[func](args[0])
        return func(*args, **(kwargs or {}))

    def _linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        self._calls += 1
        name = None if bias is None else self._names[id(bias)]
        layer = Layer(self._calls, self._names[id(weight)], name)
        return self._run(layer, inputs.mT).mT
