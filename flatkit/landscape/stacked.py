"""Many points of a plane in one pass through a network of linear layers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flatkit.landscape.chain import CannotStackError, Chain, Layer
from flatkit.objective.function import Objective
from flatkit.objective.losses import CrossEntropy, MeanSquared, WeightedMean
from flatkit.objective.passes import Chunk

MEMORY = 2**20
"""Bytes of the widest layer's outputs of all points in a pass: they then stay in the cache.

Two points go through at once also beyond it where the first layer is most of the network.
`python -m benchmarks.landscape small` chose this and the numbers below.
"""
FIRST_LAYERS = 2**28
"""Bytes that the outputs of the first layer may take, for all samples and directions."""
_ROWS = 256
"""So many samples, where there are as many, keep the products of matrices at full speed."""
_MOST = 64
"""Points in a pass."""
_ENOUGH = 4
"""Fewer points in a pass gain nothing, unless the first layer is most of the network."""
_WATCHED = 16
"""So many samples show which shapes a network and its loss have."""
_OF_EACH_SAMPLE = (CrossEntropy, MeanSquared, WeightedMean)
"""Losses of which the value of a sample depends on no other sample."""


@dataclass(frozen=True)
class Plan:
    """How points and samples are cut.

    Attributes:
        batch: points in a pass, K.
        rows: samples in a part, B.
        once: names of the parameters that are in first layers alone.
    """

    batch: int
    rows: int
    once: frozenset[str]


class StackedPoints:
    """K copies of the weights as matrices [K, out, in]; the first layer as an affine function.

    (W + xD)a + b = Wa + b + x·Da, so that a first layer, whose inputs a are the same at all points,
    is not multiplied again.

    Args:
        objective: L.
        theta: the centre [P].
        directions: [D, P].

    Attributes:
        batch: how many points go through at once.

    Raises:
        CannotStackError: it does not apply, or gains nothing; the message says why.
    """

    @torch.no_grad()
    def __init__(self, objective: Objective, theta: Tensor, directions: Tensor) -> None:
        self._objective, self._theta, self._directions = objective, theta, directions
        watched = _watched_samples(objective)
        if objective.elsewhere is not None:
            raise CannotStackError("functions hold weights or constants of their own")
        if objective.reads_kept:
            raise CannotStackError("the loss may read what the forward pass keeps in the model")
        self._chain = Chain.of(objective.model, objective.space)
        _check_shapes(objective, self._chain, watched)
        self._plan = _plan(objective, self._chain)
        self.batch = self._plan.batch
        self._buffers = _Buffers(theta)
        self._lay_out_weights()
        self._parts = self._first_layers()

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
        # Filled up with the centre, so that every pass has the same shapes and memory.
        filled = [*steps, *[[0.0] * len(self._directions)] * (self.batch - count)]
        t = torch.tensor(filled, dtype=self._theta.dtype, device=self._theta.device)  # [K, D]
        points = _Points(t, self._weights(t), self._buffers)
        # Summed over parts and chunks in float64, whatever the dtype of the weights is.
        losses, correct = self._theta.new_zeros(2, self.batch, dtype=torch.float64)
        decision = self._objective.decision if with_accuracy else None
        for part in self._parts:
            columns = self._chain.run(partial(points.layer, part.first), part.kept)  # [K, C, B]
            columns = columns.contiguous()
            losses += self._losses(columns, part.targets).sum(1)
            if decision is not None:
                wanted = decision.wanted(part.targets)
                correct += (
                    _num_correct(columns, wanted, self._spare(columns))
                    if decision.threshold is None
                    else ((columns[:, 0] > decision.threshold) == wanted).sum(1)
                )
        # The centre, which fills a pass up, counts nothing.
        self._objective.count(losses=sum(any(point) for point in steps))
        found = [{"loss": x} for x in (losses / self._objective.total_weight)[:count].tolist()]
        if decision is not None:
            shares = (correct / self._objective.num_samples)[:count].tolist()
            for values, share in zip(found, shares, strict=True):
                values["accuracy"] = share
        return found

    def _weights(self, t: Tensor) -> dict[str, Tensor]:
        """Return the matrices and biases of later layers at points with steps [K, D], by name."""
        if self._later.numel():
            # θ + Σ tᵢ dᵢ at all K points: [K, D] times [D, P'], plus [P'].
            torch.addmm(self._later[0], t, self._later[1:], out=self._place)
        return self._stacked

    def _losses(self, columns: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every sample at every point [K, B] from outputs [K, C, B]."""
        loss = self._objective.loss_function
        if isinstance(loss, CrossEntropy):
            return _cross_entropy(columns, targets, loss.label_smoothing, self._spare(columns))
        outputs = columns.transpose(1, 2)  # [K, B, C]
        if not isinstance(loss, _OF_EACH_SAMPLE):
            return torch.stack([loss(point, targets) for point in outputs])
        repeated = targets.repeat(len(outputs), *[1] * (targets.ndim - 1))
        return loss(outputs.flatten(0, 1), repeated).view(len(outputs), len(targets))

    def _spare(self, columns: Tensor) -> Tensor:
        return self._buffers.get(" spare", columns.shape)  # no name of a layer

    def _lay_out_weights(self) -> None:
        """Lay out the parameters of all but first layers, as views of one memory.

        Matrices are [K, out, in], biases [K, out, 1].
        """
        space = self._objective.space
        parts = torch.stack([self._theta, *self._directions]).split(space.sizes, dim=1)
        rest = [n for n, name in enumerate(space.names) if name not in self._plan.once]
        self._later = torch.cat([parts[n] for n in rest] or [parts[0][:, :0]], dim=1)  # [1 + D, P']
        self._place = self._theta.new_empty(self.batch, self._later.shape[1])
        places = self._place.split([space.sizes[n] for n in rest], dim=1) if rest else ()
        self._stacked = {
            space.names[n]: place.view(
                self.batch, *space.shapes[n], *[1] * (2 - len(space.shapes[n]))
            )
            for n, place in zip(rest, places, strict=True)
        }

    def _first_layers(self) -> "list[_Part]":
        """Return what the first layers give for θ and for each direction, by parts of the samples.

        What comes before them sees the chunks of the objective, as it may mix their samples.
        """
        space = self._objective.space
        # A layer is affine in its weights: of a direction it gives what a step of 1 adds.
        points = [space.unflatten(point) for point in (self._theta, *self._directions)]
        parts: list[_Part] = []
        taken = 0
        for chunk in self._objective.chunks():
            plain = self._chain.plain_values(self._objective.inputs_of(chunk))
            for start in range(0, chunk.size, self._plan.rows):
                rows = slice(start, start + self._plan.rows)
                part = _part(self._chain, points, plain, chunk.targets, rows)
                taken += sum(t.numel() * t.element_size() for t in part.first.values())
                if taken > FIRST_LAYERS:
                    raise CannotStackError("the outputs of the first layers take too much memory")
                # Infinity times a step of 0 would be no number, at the centre as well.
                if not all(bool(t.isfinite().all()) for t in part.first.values()):
                    raise CannotStackError("the outputs of the first layers are not all finite")
                parts.append(part)
        return parts


@dataclass(frozen=True, eq=False)
class _Part:
    """What is the same at all points, of some of the samples.

    Attributes:
        targets: [B, ...].
        first: by the names of first layers, their outputs [1 + D, out, B].
        kept: what later operations take, as [features, B], or as it is.
    """

    targets: Tensor
    first: Mapping[str, Tensor]
    kept: Mapping[str, Any]


def _part(
    chain: Chain,
    points: Sequence[Mapping[str, Tensor]],
    plain: Mapping[str, Any],
    targets: Tensor,
    rows: slice,
) -> _Part:
    """Return a part of the samples of a chunk.

    Args:
        chain: the network.
        points: the parameters at θ, and the directions.
        plain: what does not depend on the parameters, of the whole chunk.
        targets: of the whole chunk.
        rows: which of its samples.
    """
    first = {
        layer.name: torch.stack(
            [
                F.linear(
                    plain[layer.source][rows],
                    point[layer.weight],
                    None if layer.bias is None else point[layer.bias],
                ).T
                for point in points
            ]
        )
        for layer in chain.layers
        if layer.is_first
    }
    kept = {
        name: _columns(plain[name], rows if of_samples else slice(None))
        for name, of_samples in chain.kept.items()
    }
    return _Part(targets[rows], first, kept)


def _columns(value: Any, rows: slice) -> Any:
    """Return [B, features] as [features, B], [features] as [features, 1], a number as it is."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value[:, None] if value.ndim == 1 else value[rows].T.contiguous()


def _watched_samples(objective: Objective) -> Chunk:
    """Return a few samples, if they and their targets are single tensors."""
    chunk = next(objective.chunks(_WATCHED))
    if not (isinstance(chunk.inputs, Tensor) and isinstance(chunk.targets, Tensor)):
        raise CannotStackError("inputs or targets are more than one tensor")
    ignores = isinstance(objective.loss_function, CrossEntropy)
    if ignores and any(bool((chunk.targets < 0).any()) for chunk in objective.chunks()):
        raise CannotStackError("there are targets that do not count")
    return chunk


def _check_shapes(objective: Objective, chain: Chain, chunk: Chunk) -> None:
    """Refuse tensors that are not [samples, features], and losses that are one number."""
    plain = chain.plain_values(objective.inputs_of(chunk))
    of_samples = {layer.source: True for layer in chain.layers if layer.is_first}
    for name, rows in {**chain.kept, **of_samples}.items():
        value = plain[name]
        if isinstance(value, Tensor):
            fits = value.ndim == 2 and len(value) == (chunk.size if rows else 1)
            if not (fits or (value.ndim < 2 and not rows)):
                shape = list(value.shape)
                raise CannotStackError(f"{name} has the shape {shape}, not [samples, features]")
    outputs = objective.outputs(objective.theta, chunk)
    if objective.loss_function(outputs, chunk.targets).ndim != 1:
        raise CannotStackError("the loss is one number a batch, not one a sample")


def _plan(objective: Objective, chain: Chain) -> Plan:
    """Return how many points and samples go through at once."""
    space, size = objective.space, objective.theta.element_size()
    shapes = dict(zip(space.names, space.shapes, strict=True))
    names = {
        first: {n for x in chain.layers if x.is_first is first for n in (x.weight, x.bias) if n}
        for first in (True, False)
    }
    once = names[True] - names[False]
    widest = max(max(shapes[x.weight][: 1 if x.is_first else 2]) for x in chain.layers)
    sizes = zip(space.names, space.sizes, strict=True)
    later = sum(n for name, n in sizes if name not in once)
    mostly_first = later <= space.size / 2
    samples = min(objective.chunk_size, objective.num_rows)
    # Of another loss it is not known that a sample's value depends on no other: no chunk is cut.
    rows = min(samples, _ROWS) if isinstance(objective.loss_function, _OF_EACH_SAMPLE) else samples
    fitting = MEMORY // (widest * size)  # samples times points
    batch = max(2 if mostly_first else 1, fitting // rows)
    batch = min(_MOST, batch, 64 * MEMORY // max(later * size, 1))
    if batch < 2 or (batch < _ENOUGH and not mostly_first):
        raise CannotStackError("a pass is arithmetic already: several points at once gain nothing")
    return Plan(batch, min(samples, max(rows, fitting // batch)), frozenset(once))


class _Points:
    """What layers give at K points, in memory that the next pass uses again.

    Args:
        steps: of the points [K, D].
        weights: by name, matrices [K, out, in] and biases [K, out, 1].
        buffers: the memory.
    """

    def __init__(self, steps: Tensor, weights: Mapping[str, Tensor], buffers: "_Buffers") -> None:
        self._steps, self._weights, self._buffers = steps, weights, buffers
        self._columns = list(steps.T[..., None, None].unbind())  # D of [K, 1, 1]

    def layer(self, first: Mapping[str, Tensor], layer: Layer, inputs: Tensor | None) -> Tensor:
        """Return the outputs [K, out, B] of a layer.

        Args:
            first: of first layers, the outputs [1 + D, out, B] for θ and for each direction.
            layer: the call.
            inputs: [K, in, B]; None for a first layer.
        """
        if inputs is None:
            kept = first[layer.name]
            return self._affine(kept, self._out(layer.name, *kept.shape[1:]))
        matrix = self._weights[layer.weight]  # [K, out, in]
        out = self._out(layer.name, matrix.shape[1], inputs.shape[2])
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

    def _out(self, name: str, width: int, rows: int) -> Tensor:
        return self._buffers.get(name, (self._steps.shape[0], width, rows))


class _Buffers:
    """Memory by name, the same every time: fresh memory costs more than what is computed in it."""

    def __init__(self, kind: Tensor) -> None:
        self._kind = kind
        self._kept: dict[str, Tensor] = {}
        self._views: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
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


def _cross_entropy(outputs: Tensor, targets: Tensor, smoothing: float, spare: Tensor) -> Tensor:
    """Return the losses [K, B] of outputs [K, C, B].

    Args:
        outputs: logits; with the classes apart in memory, the sums run over many samples at once.
        targets: classes [B].
        smoothing: of labels.
        spare: memory [K, C, B].
    """
    # [K, 1, B]
    chosen = targets.long().expand(len(outputs), 1, -1)
    logarithms = torch.log_softmax(outputs, 1, out=spare)
    values = -logarithms.gather(1, chosen).squeeze(1)
    if smoothing:
        # Of smoothed labels (Szegedy et al., 2016): 1 − ε of the class, ε/C of each of the C.
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
