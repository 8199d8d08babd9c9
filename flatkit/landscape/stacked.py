"""Many points of a plane in one pass through a network of linear layers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flatkit.landscape.chain import Layer, NotLinear, Recorder, Run, Stack, follow
from flatkit.objective.function import Chunk, Objective
from flatkit.objective.losses import CrossEntropy
from flatkit.objective.passes import arguments
from flatkit.objective.private_model import run_with

MEMORY = 2**20
"""Bytes of the widest layer's outputs of all points in a pass: they then stay in the cache.

Two points go through at once also beyond it where the first layer is most of the network.
"""
FIRST_LAYERS = 2**28
"""Bytes that the outputs of the first layer may take, for all samples and directions."""
_ROWS = 256
"""So many samples, where there are as many, keep the products of matrices at full speed."""
_MOST = 64
_ENOUGH = 4
_WATCHED = 16
"""So many samples show of which operations the network consists."""


class StackedLinear:
    """K copies of the weights as matrices [K, out, in]; the first layer as an affine function.

    Made by `of`, which returns None where it does not apply: parameters that enter through
    anything but `linear`, a loss without a value per sample, or a pass so large that stacking
    gains nothing. Whether the values are right is checked by the engine against the plain way.
    """

    def __init__(self, objective: Objective, theta: Tensor, directions: Tensor, model: Any) -> None:
        self._objective, self._theta, self._directions = objective, theta, directions
        self._model = model
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._buffers = _Buffers(theta)
        self._watch()
        space, size = objective.space, theta.element_size()
        later = sum(
            n for name, n in zip(space.names, space.sizes, strict=True) if name not in self._once
        )
        self.first_share = 1 - later / space.size
        samples = min(objective.chunk_size, objective.num_samples)
        fitting = MEMORY // (self._widest * size)  # samples times points
        least = 2 if self.first_share >= 0.5 else 1
        batch = max(least, fitting // min(samples, _ROWS))
        self.batch = min(_MOST, batch, 64 * MEMORY // max(later * size, 1))
        self._rows = min(samples, max(_ROWS, fitting // max(self.batch, 1)))

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
        except (NotLinear, RuntimeError, ValueError, TypeError, AttributeError):
            return None
        largest = (t.abs().max() for first in stacked._first for t in first.values())
        finite = all(math.isfinite(value) for value in largest)
        return stacked if finite else None

    @torch.no_grad()
    def values(
        self, steps: Sequence[Sequence[float]], *, with_accuracy: bool = True
    ) -> list[dict[str, float]]:
        """Return loss and accuracy at points [n, D].

        The centre fills them up to `batch`, so that a value does not depend on how many points are
        measured together, though it may in its last bits on its place among them.

        Args:
            steps: of the points, at most `batch`.
            with_accuracy: also the accuracy, of a classifier.
        """
        count = len(steps)
        filled = [[0.0] * len(self._directions)] * (self.batch - count)
        losses, correct = self._theta.new_zeros(2, self.batch, dtype=torch.float64)
        classifier = False
        for chunk, outputs, values in self.parts([*steps, *filled]):
            losses += values.sum(1)
            classifier = with_accuracy and _is_classifier(outputs, chunk.targets)
            if classifier:
                columns = outputs.transpose(1, 2).contiguous()  # [K, C, B]
                correct += _num_correct(
                    columns, chunk.targets, self._buffers.get("spare", columns.shape)
                )
        self._objective.count(losses=sum(any(point) for point in steps))
        losses = (losses / self._objective.total_weight)[:count].tolist()
        if not classifier:
            return [{"loss": loss} for loss in losses]
        shares = (correct / self._objective.num_samples)[:count].tolist()
        return [
            {"loss": loss, "accuracy": share} for loss, share in zip(losses, shares, strict=True)
        ]

    def parts(self, steps: Sequence[Sequence[float]]) -> Iterator[tuple[Chunk, Tensor, Tensor]]:
        """Yield the samples in parts, what the model gives for them at points [K, D], their losses.

        The outputs [K, B, ...] are in memory that the next part uses again; losses are [K, B].
        """
        t = torch.tensor(steps, dtype=self._theta.dtype, device=self._theta.device)
        points = _Points(t, self._weights(t), self._buffers)
        for chunk, first in zip(self._chunks, self._first, strict=True):
            outputs = self._outputs(chunk, partial(points.layer, first))
            yield chunk, outputs, self._losses(outputs, chunk.targets)

    def _outputs(self, chunk: Chunk, run: Run) -> Tensor:
        """Return the outputs [K, B, ...] from those of the layers."""
        if self._chain is not None:
            return follow(self._chain, run, chunk.inputs).transpose(1, 2)
        with Stack(run, self._names, self._in_place):
            args, kwargs = arguments(chunk.inputs)
            return self._model(*args, **kwargs)

    def _weights(self, t: Tensor) -> dict[str, Tensor]:
        """Return what `_split` lays out, at points with steps [K, D], by name."""
        if not self._later.numel():
            return {}
        torch.addmm(self._later[0], t, self._later[1:], out=self._place[: len(t)])
        if len(t) == self.batch:
            return self._stacked
        return {name: matrices[: len(t)] for name, matrices in self._stacked.items()}

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every sample at every point [K, B]."""
        loss = self._objective.loss_function
        if isinstance(loss, CrossEntropy) and _is_classifier(outputs, targets):
            columns = outputs.transpose(1, 2).contiguous()  # [K, C, B]
            return _cross_entropy(
                columns, targets, loss.label_smoothing, self._buffers.get("spare", columns.shape)
            )
        repeated = targets.repeat(len(outputs), *[1] * (targets.ndim - 1))
        return loss(outputs.flatten(0, 1), repeated).view(len(outputs), len(targets))

    def _split(self) -> None:
        """Lay out the parameters of all but first layers, as views of one memory.

        Matrices are [K, out, in], biases [K, out, 1].
        """
        space = self._objective.space
        parts = torch.stack([self._theta, *self._directions]).split(space.sizes, dim=1)
        rest = [n for n, name in enumerate(space.names) if name not in self._once]
        self._later = torch.cat([parts[n] for n in rest] or [self._theta[:0]], dim=-1)
        self._place = self._theta.new_empty(self.batch, self._later.shape[-1])
        places = self._place.split([space.sizes[n] for n in rest], dim=1) if rest else ()
        self._stacked = {
            space.names[n]: place.view(-1, *space.shapes[n], *[1] * (2 - len(space.shapes[n])))
            for n, place in zip(rest, places, strict=True)
        }

    def _watch(self) -> None:
        """Find the widest layer, and which parameters are only in first layers.

        Raises:
            NotLinear: parameters enter otherwise than through `linear`.
        """
        recorder, outputs = self._pass(next(self._objective.chunks(_WATCHED)), [self._theta])
        self._in_place, self._widest = recorder.in_place, recorder.widest
        self._once = recorder.once
        self._chain = recorder.chain(outputs)

    def _record(self) -> None:
        """Keep what the first layers give for θ and for each direction.

        Raises:
            NotLinear: it takes too much memory, or the samples are not treated alike.
        """
        self._chunks = list(self._objective.chunks(self._rows))
        self._first: list[dict[int, Tensor]] = []
        taken = 0
        for chunk in self._chunks:
            recorder, outputs = self._pass(chunk, [self._theta, *self._directions])
            taken += sum(t.numel() * t.element_size() for t in recorder.first.values())
            alike = (recorder.once, recorder.in_place) == (self._once, self._in_place)
            if taken > FIRST_LAYERS or not alike:
                raise NotLinear
            if recorder.chain(outputs) != self._chain:
                self._chain = None
            self._first.append(recorder.first)

    def _pass(self, chunk: Chunk, points: Sequence[Tensor]) -> tuple[Recorder, Tensor]:
        """Watch a pass over some samples with the first of several parameters [P]."""
        if not (isinstance(chunk.inputs, Tensor) and isinstance(chunk.targets, Tensor)):
            raise NotLinear
        recorder = Recorder([self._objective.space.unflatten(point) for point in points])
        with recorder:
            outputs = run_with(self._model, recorder.tables[0], *arguments(chunk.inputs))
        recorder.keep(outputs)
        loss = self._objective.loss_function
        if not isinstance(outputs, Tensor) or not recorder.first:
            raise NotLinear
        if loss(outputs, chunk.targets).ndim != 1:
            raise NotLinear
        if isinstance(loss, CrossEntropy) and chunk.targets.min() < 0:
            raise NotLinear  # a sample that does not count
        return recorder, outputs


class _Points:
    """What the calls of `linear` give at K points, in memory that the next pass uses again.

    Args:
        steps: of the points [K, D].
        weights: by name, matrices [K, out, in] and biases [K, out, 1].
        buffers: the memory.
    """

    def __init__(self, steps: Tensor, weights: Mapping[str, Tensor], buffers: "_Buffers") -> None:
        self._steps, self._weights, self._buffers = steps, weights, buffers
        self._columns = list(steps.T[..., None, None].unbind())  # D of [K, 1, 1]

    def layer(self, first: Mapping[int, Tensor], layer: Layer, inputs: Tensor) -> Tensor:
        """Return the outputs [K, out, B] of a call on inputs [K, in, B], or on plain ones.

        Args:
            first: of calls on plain inputs, by their numbers, see `Recorder.first`.
            layer: the call.
            inputs: of no use if they are plain.
        """
        kept = first.get(layer.number)
        if kept is not None:
            return self._affine(kept, self._out(layer.number, *kept.shape[1:]))
        matrix = self._weights[layer.weight]  # [K, out, in]
        out = self._out(layer.number, matrix.shape[1], inputs.shape[2])
        if layer.bias is None:
            return torch.bmm(matrix, inputs, out=out)
        return torch.baddbmm(self._weights[layer.bias], matrix, inputs, out=out)

    def _affine(self, kept: Tensor, out: Tensor) -> Tensor:
        """Return what a first layer gives at all points [K, out, B], written into `out`."""
        if len(self._columns) > 2:
            flat = out.view(len(out), -1)
            torch.addmm(kept[0].flatten(), self._steps, kept[1:].flatten(1), out=flat)
            return out
        torch.addcmul(kept[0], self._columns[0], kept[1], out=out)
        for number, column in enumerate(self._columns[1:], 2):
            out.addcmul_(column, kept[number])
        return out

    def _out(self, number: int, width: int, rows: int) -> Tensor:
        return self._buffers.get(number, (self._steps.shape[0], width, rows))


class _Buffers:
    """Memory by name, the same every time: fresh memory costs more than what is computed in it."""

    def __init__(self, kind: Tensor) -> None:
        self._kind = kind
        self._kept: dict[int | str, Tensor] = {}
        self._views: dict[tuple, Tensor] = {}

    def get(self, name: int | str, shape: tuple[int, ...]) -> Tensor:
        """Return memory of a name and of a shape."""
        view = self._views.get((name, shape))
        if view is None:
            size = math.prod(shape)
            kept = self._kept.get(name)
            if kept is None or kept.numel() < size:
                kept = self._kept[name] = self._kind.new_empty(size)
                self._views.clear()
            view = self._views[name, shape] = kept[:size].view(shape)
        return view


def _is_classifier(outputs: Tensor, targets: Tensor) -> bool:
    return outputs.ndim == 3 and targets.ndim == 1 and not targets.is_floating_point()


def _cross_entropy(outputs: Tensor, targets: Tensor, smoothing: float, spare: Tensor) -> Tensor:
    """Return the losses [K, B] of outputs [K, C, B].

    Args:
        outputs: logits; with the classes apart in memory, the sums run over many samples at once.
        targets: classes [B].
        smoothing: of labels.
        spare: memory [K, C, B].
    """
    chosen = targets.long().expand(len(outputs), 1, -1)
    logarithms = torch.log_softmax(outputs, 1, out=spare)
    values = -logarithms.gather(1, chosen).squeeze(1)
    if smoothing:
        values = (1 - smoothing) * values - smoothing / outputs.shape[1] * logarithms.sum(1)
    return values


def _num_correct(outputs: Tensor, targets: Tensor, spare: Tensor) -> Tensor:
    """Return how many samples are classified correctly [K] by outputs [K, C, B].

    Args:
        outputs: logits.
        targets: classes [B].
        spare: memory [K, C, B].
    """
    chosen = targets.long().expand(len(outputs), 1, -1)
    # 0 where an output is the largest of its sample, else −1; NaN where that is infinite or NaN.
    ranks = torch.sub(outputs, outputs.amax(1, keepdim=True), out=spare).sign_()
    exact = torch.promote_types(ranks.dtype, torch.float32)
    smaller = ranks.sum(1, dtype=exact)  # [K, B]
    if not bool((smaller == 1 - outputs.shape[1]).all()):
        return (outputs.argmax(1) == targets).sum(1)  # slow, and right: the first of equal ones
    return len(targets) + ranks.gather(1, chosen).sum((1, 2), dtype=exact)
