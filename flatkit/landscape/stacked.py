"""Many points of a plane in one pass through a network of linear layers."""

import copy
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from flatkit.losses import CrossEntropy
from flatkit.objective import Objective
from flatkit.passes import arguments

MEMORY = 2**20
"""Bytes of the widest layer's outputs of all points in a pass: they then stay in the cache.

Two points go through at once also beyond it where the first layer is most of the network.
"""
FIRST_LAYERS = 2**28
"""Bytes that the outputs of the first layer may take, for all samples and directions."""
_MOST = 64
_ENOUGH = 4


class StackedLinear:
    """K copies of the weights as matrices [K, out, in]; the first layer as an affine function.

    Made by `of`, which returns None where it does not apply: parameters that enter through
    anything but `linear`, a loss without a value per sample, or a pass so large that stacking
    gains nothing. Whether the values are right is checked by the engine against the plain way.
    """

    def __init__(self, objective: Objective, theta: Tensor, directions: Tensor) -> None:
        self._objective, self._theta, self._directions = objective, theta, directions
        self._model = copy.deepcopy(objective.model)
        self._first: list[dict[int, Tensor]] = []
        widest = self._record()
        rows = min(objective.chunk_size, objective.num_samples)
        pass_bytes = rows * widest * theta.element_size()
        stack_bytes = objective.num_parameters * theta.element_size()
        self.first_share = prod(objective.space.shapes[0]) / objective.space.size
        fitting = MEMORY // max(pass_bytes, 1)
        least = 2 if self.first_share >= 0.5 else 1
        self.batch = min(_MOST, max(least, fitting), 64 * MEMORY // stack_bytes)

    @classmethod
    def of(cls, objective: Objective, theta: Tensor, directions: Tensor) -> "StackedLinear | None":
        """Return one that applies, or None."""
        try:
            with torch.no_grad():
                stacked = cls(objective, theta, directions)
        except (_NotLinear, RuntimeError, ValueError, TypeError, AttributeError):
            return None
        if stacked.batch < _ENOUGH and stacked.first_share < 0.5:
            return None  # a pass is arithmetic already: nothing to gain
        finite = all(t.isfinite().all() for first in stacked._first for t in first.values())
        return stacked if stacked.batch >= 2 and finite else None

    @torch.no_grad()
    def values(self, steps: Sequence[Sequence[float]]) -> list[dict[str, float]]:
        """Return loss and accuracy at points [n, D]; filled up to `batch` with the centre."""
        count, size = len(steps), self.batch
        filled = [*steps, *[[0.0] * len(self._directions)] * (size - count)]
        t = torch.tensor(filled, dtype=self._theta.dtype, device=self._theta.device)  # [K, D]
        points = torch.addmm(self._theta, t, self._directions)  # [K, P]
        stacked = self._split(points)
        loss = torch.zeros(size, dtype=torch.float64)
        correct: Tensor | None = torch.zeros(size, dtype=torch.float64)
        for number, chunk in enumerate(self._objective.chunks()):
            with _Stack(t, self._first[number]):
                outputs = functional_call(self._model, stacked, *arguments(chunk.inputs))
            values = self._losses(outputs, chunk.targets)  # [K, B] of outputs [K, B, C]
            loss += (values.sum(1) / self._objective.total_weight).double().cpu()
            if outputs.ndim != 3 or chunk.targets.ndim != 1 or chunk.targets.is_floating_point():
                correct = None
            elif correct is not None:
                hits = outputs.argmax(2) == chunk.targets
                correct += hits.sum(1).double().cpu()
        self._objective.tally.losses += sum(any(point) for point in steps)
        found: list[dict[str, float]] = [{"loss": value} for value in loss[:count].tolist()]
        if correct is not None:
            for row, hits in zip(found, correct[:count].tolist(), strict=True):
                row["accuracy"] = hits / self._objective.num_samples
        return found

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every sample at every point [K, B]."""
        loss, size = self._objective.loss_function, len(outputs)
        if isinstance(loss, CrossEntropy):
            # With the classes apart in memory, the softmax runs over many samples at once.
            return F.cross_entropy(
                outputs.transpose(1, 2).contiguous(),
                targets.expand(size, -1),
                reduction="none",
                label_smoothing=loss.label_smoothing,
            )
        repeated = targets.repeat(size, *[1] * (targets.ndim - 1))
        return loss(outputs.flatten(0, 1), repeated).view(size, len(targets))

    def _split(self, points: Tensor) -> dict[str, Tensor]:
        space = self._objective.space
        parts = points.split(space.sizes, dim=1)
        return {
            name: part.reshape(len(points), *shape)
            for name, part, shape in zip(space.names, parts, space.shapes, strict=True)
        }

    def _record(self) -> int:
        """Keep what the first layers give for θ and for each direction; return the largest width.

        Raises:
            _NotLinear: parameters enter otherwise, or these outputs take too much memory.
        """
        vectors = [self._theta, *self._directions]
        widest, taken = 1, 0
        for chunk in self._objective.chunks():
            if not (isinstance(chunk.inputs, Tensor) and isinstance(chunk.targets, Tensor)):
                raise _NotLinear
            recorder = _Recorder([self._objective.space.unflatten(v) for v in vectors])
            parameters = recorder.tables[0]
            with recorder:
                outputs = functional_call(self._model, parameters, *arguments(chunk.inputs))
            if self._objective.loss_function(outputs, chunk.targets).ndim != 1:
                raise _NotLinear
            widest = max(widest, recorder.widest)
            taken += sum(t.numel() * t.element_size() for t in recorder.first.values())
            if taken > FIRST_LAYERS or not recorder.first:
                raise _NotLinear
            self._first.append(recorder.first)
        return widest


class _NotLinear(Exception):
    """The network is none that can be stacked."""


class _Recorder(TorchFunctionMode):
    """Watch one pass: which calls of `linear` see plain inputs, and that nothing else has weights.

    `first[n]` holds, for the n-th call of `linear`, its outputs [1 + D, B, out] under θ and under
    each direction in place of θ.
    """

    def __init__(self, tables: Sequence[Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.tables: list[dict[str, Tensor]] = [dict(table) for table in tables]
        self.first: dict[int, Tensor] = {}
        self.widest = 1
        self._names = {id(tensor): name for name, tensor in self.tables[0].items()}
        self._moved: dict[int, Tensor] = {}  # kept alive, so that an id is not used again
        self._calls = -1

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if func is F.linear:
            return self._linear(*args, **kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and any(id(a) in self._names for a in given):
            raise _NotLinear
        if isinstance(result, Tensor) and any(id(a) in self._moved for a in given):
            self._moved[id(result)] = result
        return result

    def _linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        self._calls += 1
        names = [None if t is None else self._names.get(id(t)) for t in (weight, bias)]
        if names[0] is None or (bias is not None and names[1] is None):
            raise _NotLinear  # frozen, or computed from parameters
        outputs = F.linear(inputs, weight, bias)
        if outputs.ndim != 2:
            raise _NotLinear
        self.widest = max(self.widest, outputs.shape[1], inputs.shape[1])
        self._moved[id(outputs)] = outputs
        if id(inputs) not in self._moved:
            parts = [
                F.linear(inputs, table[names[0]], None if names[1] is None else table[names[1]])
                for table in self.tables
            ]
            self.first[self._calls] = torch.stack(parts)
        return outputs


class _Stack(TorchFunctionMode):
    """Run `linear` for K points: the first layers by their steps, the others as products."""

    def __init__(self, steps: Tensor, first: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._steps, self._first, self._calls = steps, first, -1

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is not F.linear:
            return func(*args, **(kwargs or {}))
        return self._linear(*args, **(kwargs or {}))

    def _linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        self._calls += 1
        kept = self._first.get(self._calls)
        if kept is not None:
            flat = torch.addmm(kept[0].flatten(), self._steps, kept[1:].flatten(1))
            return flat.view(len(self._steps), *kept.shape[1:])  # [K, B, out]
        if bias is None:
            return torch.bmm(inputs, weight.transpose(1, 2))
        return torch.baddbmm(bias.unsqueeze(1), inputs, weight.transpose(1, 2))
