"""Many points of a plane in one pass through a network of linear layers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from flatkit.losses import CrossEntropy
from flatkit.objective import Chunk, Objective
from flatkit.passes import arguments
from flatkit.trees import leaves

MEMORY = 2**21
"""Bytes of the widest layer's outputs of all points in a pass: they then stay in the cache.

Two points go through at once also beyond it where the first layer is most of the network.
"""
FIRST_LAYERS = 2**28
"""Bytes that the outputs of the first layer may take, for all samples and directions."""
_ROWS = 256
"""So many samples, where there are as many, keep the products of matrices at full speed."""
_MOST = 64
_ENOUGH = 4


class StackedLinear:
    """K copies of the weights as matrices [K, out, in]; the first layer as an affine function.

    Made by `of`, which returns None where it does not apply: parameters that enter through
    anything but `linear`, a loss without a value per sample, or a pass so large that stacking
    gains nothing. Whether the values are right is checked by the engine against the plain way.
    """

    def __init__(self, objective: Objective, theta: Tensor, directions: Tensor, model: Any) -> None:
        self._objective, self._theta, self._directions = objective, theta, directions
        self._model = model
        self.names = {id(p): name for name, p in model.named_parameters()}
        widest, first = self._watch()
        space, size = objective.space, theta.element_size()
        self._buffers: dict[tuple[int | str, int], Tensor] = {}
        later = sum(n for key, n in zip(space.names, space.sizes, strict=True) if key not in first)
        self.first_share = 1 - later / space.size
        samples = min(objective.chunk_size, objective.num_samples)
        fitting = MEMORY // (widest * size)  # samples times points
        least = 2 if self.first_share >= 0.5 else 1
        batch = max(least, fitting // min(samples, _ROWS))
        self.batch = min(_MOST, batch, 64 * MEMORY // max(later * size, 1))
        self._rows = min(samples, max(_ROWS, fitting // max(self.batch, 1)))
        self._once = first

    @classmethod
    def of(
        cls, objective: Objective, theta: Tensor, directions: Tensor, model: Any
    ) -> "StackedLinear | None":
        """Return one that applies, or None.

        Args:
            objective: L.
            theta: the centre [P].
            directions: [D, P].
            model: a private copy of the objective's; what its parameters hold does not matter.
        """
        try:
            with torch.no_grad():
                stacked = cls(objective, theta, directions, model)
                if stacked.batch < 2 or (stacked.batch < _ENOUGH and stacked.first_share < 0.5):
                    return None  # a pass is arithmetic already: nothing to gain
                stacked._split()
                stacked._record()
        except (_NotLinear, RuntimeError, ValueError, TypeError, AttributeError):
            return None
        finite = all(t.isfinite().all() for first in stacked._first for t in first.values())
        return stacked if finite else None

    @torch.no_grad()
    def values(
        self, steps: Sequence[Sequence[float]], *, with_accuracy: bool = True, fill: bool = True
    ) -> list[dict[str, float]]:
        """Return loss and accuracy at points [n, D].

        Args:
            steps: of the points, at most `batch`.
            with_accuracy: also the accuracy, of a classifier.
            fill: with the centre up to `batch`, so that a value does not depend on how many points
                are measured together.
        """
        count = len(steps)
        size = self.batch if fill else count
        filled = [*steps, *[[0.0] * len(self._directions)] * (size - count)]
        t = torch.tensor(filled, dtype=self._theta.dtype, device=self._theta.device)  # [K, D]
        stacked = self._weights(t)
        sums = torch.zeros(2, size, dtype=torch.float64)  # losses, and what is classified correctly
        for chunk, first in zip(self._chunks, self._first, strict=True):
            outputs = self._run(chunk, first, t, stacked)
            with_accuracy = with_accuracy and _is_classifier(outputs, chunk.targets)
            sums += self._sums(outputs, chunk.targets, with_accuracy).double().cpu()
        self._objective.tally.losses += sum(any(point) for point in steps)
        losses, correct = sums[:, :count].tolist()
        if not with_accuracy:
            return [{"loss": loss} for loss in losses]
        samples = self._objective.num_samples
        return [
            {"loss": loss, "accuracy": hits / samples}
            for loss, hits in zip(losses, correct, strict=True)
        ]

    @torch.no_grad()
    def outputs(self, steps: Sequence[Sequence[float]]) -> tuple[Chunk, Tensor]:
        """Return the first samples, and what the model gives for them at points [n, D]."""
        t = torch.tensor(steps, dtype=self._theta.dtype, device=self._theta.device)
        chunk, first = self._chunks[0], self._first[0]
        return chunk, self._run(chunk, first, t, self._weights(t))

    def buffer(self, name: int | str, points: int, width: int, rows: int) -> Tensor:
        """Return memory [K, width, B] for a call of `linear`, the same every time.

        Fresh memory of this size costs more than what is computed in it.
        """
        kept = self._buffers.get((name, rows))
        if kept is None:
            kept = self._buffers[name, rows] = self._theta.new_empty(self.batch, width, rows)
        return kept[:points]

    def _run(
        self, chunk: Chunk, first: Mapping[int, Tensor], t: Tensor, stacked: Mapping[str, Tensor]
    ) -> Tensor:
        with _Stack(t, first, stacked, self):
            args, kwargs = arguments(chunk.inputs)
            return self._model(*args, **kwargs)

    def _weights(self, t: Tensor) -> dict[str, Tensor]:
        """Return the parameters of all but first layers at points with steps [K, D], by name."""
        if not self._later.numel():
            return {}
        torch.addmm(self._later[0], t, self._later[1:], out=self._place[: len(t)])
        if len(t) == self.batch:
            return self._stacked
        return {name: matrices[: len(t)] for name, matrices in self._stacked.items()}

    def _sums(self, outputs: Tensor, targets: Tensor, with_accuracy: bool) -> Tensor:
        """Return what samples add to the loss, and how many are correct, at every point [2, K]."""
        loss, total = self._objective.loss_function, self._objective.total_weight
        if isinstance(loss, CrossEntropy) and _is_classifier(outputs, targets):
            columns = outputs.transpose(1, 2).contiguous()  # [K, C, B]
            spare = self.buffer("softmax", *columns.shape)
            values, hits = _cross_entropy(columns, targets, loss.label_smoothing, spare)
            return torch.stack([values.sum(1) / total, hits])
        repeated = targets.repeat(len(outputs), *[1] * (targets.ndim - 1))
        values = loss(outputs.flatten(0, 1), repeated).view(len(outputs), len(targets))
        hits = values.new_zeros(len(values))
        if with_accuracy:
            hits = (outputs.argmax(2) == targets).sum(1).to(hits)
        return torch.stack([values.sum(1) / total, hits])

    def _split(self) -> None:
        """Lay out the parameters of all but first layers, as views [K, ...] of one memory."""
        space = self._objective.space
        parts = torch.stack([self._theta, *self._directions]).split(space.sizes, dim=1)
        rest = [n for n, name in enumerate(space.names) if name not in self._once]
        self._later = torch.cat([parts[n] for n in rest] or [self._theta[:0]], dim=-1)
        self._place = self._theta.new_empty(self.batch, self._later.shape[-1])
        places = self._place.split([space.sizes[n] for n in rest], dim=1) if rest else ()
        self._stacked = {
            space.names[n]: place.view(-1, *space.shapes[n])
            for n, place in zip(rest, places, strict=True)
        }

    def _watch(self) -> tuple[int, set[str]]:
        """Return the largest width that moves, and which parameters are only in first layers.

        Raises:
            _NotLinear: parameters enter otherwise than through `linear`.
        """
        recorder = self._pass(next(self._objective.chunks(_ROWS)))
        self.in_place = recorder.in_place
        return recorder.widest, recorder.firsts - recorder.others

    def _record(self) -> None:
        """Keep what the first layers give for θ and for each direction.

        Raises:
            _NotLinear: it takes too much memory.
        """
        self._chunks = list(self._objective.chunks(self._rows))
        self._first: list[dict[int, Tensor]] = []
        taken = 0
        for chunk in self._chunks:
            first = self._pass(chunk).first
            taken += sum(t.numel() * t.element_size() for t in first.values())
            if taken > FIRST_LAYERS:
                raise _NotLinear
            self._first.append(first)

    def _pass(self, chunk: Chunk) -> "_Recorder":
        """Watch a pass over some samples."""
        if not (isinstance(chunk.inputs, Tensor) and isinstance(chunk.targets, Tensor)):
            raise _NotLinear
        vectors = [self._theta, *self._directions]
        recorder = _Recorder([self._objective.space.unflatten(v) for v in vectors])
        with recorder:
            outputs = functional_call(self._model, recorder.tables[0], *arguments(chunk.inputs))
        recorder.uses[id(outputs)] = 2  # its activation stays
        loss = self._objective.loss_function
        if not isinstance(outputs, Tensor) or not recorder.first:
            raise _NotLinear
        if loss(outputs, chunk.targets).ndim != 1:
            raise _NotLinear
        if isinstance(loss, CrossEntropy) and chunk.targets.min() < 0:
            raise _NotLinear  # a sample that does not count
        return recorder


def _is_classifier(outputs: Tensor, targets: Tensor) -> bool:
    return outputs.ndim == 3 and targets.ndim == 1 and not targets.is_floating_point()


def _cross_entropy(
    outputs: Tensor, targets: Tensor, smoothing: float, spare: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the losses [K, B] of outputs [K, C, B], and how many samples are correct [K].

    Args:
        outputs: logits; with the classes apart in memory, the sums run over many samples at once.
        targets: classes [B].
        smoothing: of labels.
        spare: memory [K, C, B].
    """
    chosen = targets.long().expand(len(outputs), 1, -1)
    top = outputs.amax(1, keepdim=True)  # [K, 1, B]
    below = torch.sub(outputs, top, out=spare)
    own = below.gather(1, chosen).squeeze(1)  # [K, B], 0 where the target is a largest one
    hits = (own == 0).sum(1)
    ties = int((below == 0).count_nonzero()) != top.numel()
    if ties or not bool(top.isfinite().all()):  # one that has no 0 could hide one that has two
        hits = (outputs.argmax(1) == targets).sum(1)  # slow, and right: the first of equal ones
    spread = below.sum(1) if smoothing else None
    logarithm = below.exp_().sum(1).log_()
    values = logarithm - own
    if spread is not None:
        values = (1 - smoothing) * values + smoothing * (logarithm - spread / outputs.shape[1])
    return values, hits.to(values)


_IN_PLACE: dict[Callable, Callable[[Tensor], Tensor]] = {
    F.relu: torch.relu_,
    torch.relu: torch.relu_,
    torch.tanh: torch.tanh_,
    torch.sigmoid: torch.sigmoid_,
}
"""Activations, and what does the same without new memory."""


class _NotLinear(Exception):
    """The network is none that can be stacked."""


class _Recorder(TorchFunctionMode):
    """Watch one pass: which calls of `linear` see plain inputs, and that nothing else has weights.

    `first[n]` holds, for the n-th call of `linear`, its outputs [1 + D, out, B] under θ and under
    each direction in place of θ; `firsts` and `others` name the parameters of such calls, and of
    all others.
    """

    def __init__(self, tables: Sequence[Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.tables: list[dict[str, Tensor]] = [dict(table) for table in tables]
        self.first: dict[int, Tensor] = {}
        self.firsts: set[str] = set()
        self.others: set[str] = set()
        self.widest = 1
        self.uses: dict[int, int] = {}
        self._activations: dict[int, int] = {}
        self._steps = -1
        self._names = {id(tensor): name for name, tensor in self.tables[0].items()}
        self._moved: dict[int, Tensor] = {}  # kept alive, so that an id is not used again
        self._outputs: set[int] = set()  # of `linear`
        self._calls = -1

    @property
    def in_place(self) -> set[int]:
        """The steps of activations whose input, an output of `linear`, nothing else uses."""
        return {step for step, tensor in self._activations.items() if self.uses[tensor] == 1}

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = list(leaves((args, kwargs)))
        self._steps += 1
        for tensor in given:
            self.uses[id(tensor)] = self.uses.get(id(tensor), 0) + 1
        if func is F.linear:
            return self._linear(*args, **kwargs)
        if func in _IN_PLACE and len(given) == 1 and id(given[0]) in self._outputs:
            self._activations[self._steps] = id(given[0])
        result = func(*args, **kwargs)
        made = list(leaves(result))  # also of those that give several, such as chunk
        if made and any(id(a) in self._names for a in given):
            raise _NotLinear
        if any(id(a) in self._moved for a in given):
            self._moved.update((id(tensor), tensor) for tensor in made)
        return result

    def _linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        self._calls += 1
        names = [None if t is None else self._names.get(id(t)) for t in (weight, bias)]
        if names[0] is None or (bias is not None and names[1] is None):
            raise _NotLinear  # frozen, or computed from parameters
        outputs = F.linear(inputs, weight, bias)
        if outputs.ndim != 2:
            raise _NotLinear
        self.widest = max(self.widest, outputs.shape[1])
        self._moved[id(outputs)] = outputs
        self._outputs.add(id(outputs))
        used = {name for name in names if name is not None}
        if id(inputs) in self._moved:
            self.widest = max(self.widest, inputs.shape[1])
            self.others |= used
            return outputs
        self.firsts |= used
        parts = [
            F.linear(inputs, table[names[0]], None if names[1] is None else table[names[1]])
            for table in self.tables
        ]
        self.first[self._calls] = torch.stack([part.T for part in parts])
        return outputs


class _Stack(TorchFunctionMode):
    """Run `linear` for K points: the first layers by their steps, the others as products.

    Outputs have the shape [K, B, out], and lie in memory as [K, out, B]: products are fast then
    also where a layer has few outputs, and so is the softmax.
    """

    def __init__(
        self,
        steps: Tensor,
        first: Mapping[int, Tensor],
        stacked: Mapping[str, Tensor],
        owner: StackedLinear,
    ) -> None:
        super().__init__()
        self._steps, self._first, self._stacked, self._owner = steps, first, stacked, owner
        self._calls = self._step = -1

    def __torch_function__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self._step += 1
        if func is F.linear:
            return self._linear(*args, **(kwargs or {}))
        if self._step in self._owner.in_place:
            return _IN_PLACE[func](args[0])
        return func(*args, **(kwargs or {}))

    def _linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        self._calls += 1
        kept = self._first.get(self._calls)
        if kept is not None:
            out = self._owner.buffer(self._calls, len(self._steps), *kept.shape[1:])
            return _affine(kept, self._steps, out).transpose(1, 2)
        names = self._owner.names
        matrix = self._stacked[names[id(weight)]]  # [K, out, in]
        columns = inputs.transpose(1, 2)  # [K, in, B]
        out = self._owner.buffer(self._calls, len(matrix), matrix.shape[1], columns.shape[2])
        if bias is None:
            return torch.bmm(matrix, columns, out=out).transpose(1, 2)
        offset = self._stacked[names[id(bias)]].unsqueeze(2)
        return torch.baddbmm(offset, matrix, columns, out=out).transpose(1, 2)


def _affine(kept: Tensor, steps: Tensor, out: Tensor) -> Tensor:
    """Return what a first layer gives at all points [K, out, B], written into `out`."""
    if len(kept) > 3:
        flat = out.view(len(steps), -1)
        torch.addmm(kept[0].flatten(), steps, kept[1:].flatten(1), out=flat)
        return out
    torch.addcmul(kept[0], steps[:, 0, None, None], kept[1], out=out)
    for number in range(2, len(kept)):
        out.addcmul_(steps[:, number - 1, None, None], kept[number])
    return out
