"""Cross-entropy over many classes, of which no more than a block is copied at a time.

`F.cross_entropy` keeps the logarithm of the softmax beside the outputs, and makes two more such
tensors on the way back. For a language model with 50,000 words these are the largest tensors of
all. Here a pass keeps the outputs, which are there anyway, and two numbers a row; on the way back
their gradient is made, and nothing else of that size.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore
from torch.autograd import Function, forward_ad

MANY_CLASSES = 4096
"""Classes from which on it is computed in blocks; below, one call of torch is as small and faster
(`python -m benchmarks.vocabulary`)."""
_BLOCK = 2**18
"""Numbers of a block: 1 MB in 32 bits, which stays in the cache of a core."""


def cross_entropy(
    scores: Tensor, classes: Tensor, *, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Tensor:
    """Return the cross-entropy of every row, 0 where it does not count; as `F.cross_entropy`.

    Of many classes it is computed in blocks: right are the first and the second derivative in the
    scores, of a third there is none. Memory beside the scores: two numbers a row and two blocks of
    1 MB; on the way back also their gradient. Where torch takes derivatives forwards it is
    `F.cross_entropy`, and keeps more. Scores of 16 bits are computed with in 32.

    Args:
        scores: [B, C, ...].
        classes: [B, ...], whole numbers.
        ignore_index: rows of this class do not count.
        label_smoothing: s; the target is (1 - s) of its class and s/C of each.

    Returns:
        [B, ...], in float32 or float64.

    >>> cross_entropy(torch.zeros(2, 8), torch.tensor([3, -100]))  # log 8, and nothing
    tensor([2.0794, 0.0000])
    """
    classes = classes.long()
    wide = torch.promote_types(scores.dtype, torch.float32)
    if scores.shape[1] < MANY_CLASSES or _is_forward(scores):
        return F.cross_entropy(
            scores.to(wide),
            classes,
            reduction="none",
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
        )
    counts = counted(classes, ignore_index)
    rows = scores.movedim(1, -1)
    # Class 0 stands in for a label that does not count: -100 is no place to gather from.
    return _Value.apply(rows, classes.where(counts, 0), counts, label_smoothing)[0]


def counted(classes: Tensor, ignore_index: int) -> Tensor:
    """Return which labels count.

    >>> counted(torch.tensor([156, 3], dtype=torch.uint8), -100)
    tensor([True, True])
    """
    return classes.long() != ignore_index  # to labels of 8 bits, -100 is 156


def _is_forward(scores: Tensor) -> bool:
    """Whether a transform of torch.func or forward-mode AD is around."""
    if is_functorch_wrapped_tensor(scores):
        return True
    return forward_ad.unpack_dual(scores).tangent is not None


def _blocks(scores: Tensor) -> Iterator[tuple[Any, Tensor]]:
    """Yield parts of scores [..., C] as (place, rows [..., C]); views, whatever the strides are."""
    rows = max(1, _BLOCK // scores.shape[-1])
    if scores.ndim == 2:
        for start in range(0, len(scores), rows):
            yield slice(start, start + rows), scores[start : start + rows]
        return
    # Rows within one entry of the first dimension; of
    # more than a block, that dimension is cut again.
    whole = scores[0].numel() // scores.shape[-1] if len(scores) else 1
    if whole <= rows:
        step = max(1, rows // max(1, whole))
        for start in range(0, len(scores), step):
            yield slice(start, start + step), scores[start : start + step]
        return
    for number, part in enumerate(scores):
        for place, inner in _blocks(part):
            yield (number, *(place if isinstance(place, tuple) else (place,))), inner


class _Value(Function):
    """ℓ = log Σ exp z − (1 − s) z_t − s z̄, and of each row m = max z and log Σ exp (z − m).

    Their sum would be rounded as m is, which may be a thousand times ℓ: all is computed of z − m.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, classes: Tensor, counts: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Return the values [...], and the two numbers of each row [..., 2]."""
        wide = torch.promote_types(scores.dtype, torch.float32)
        sums = torch.empty(*classes.shape, 2, dtype=wide, device=scores.device)
        values, room = sums.new_empty(classes.shape), _Room(sums)
        for place, part in _blocks(scores):
            # The largest score is taken off first, or exp overflows beyond 88 in 32 bits.
            top = part.amax(-1).to(wide)
            rows = room.below(part, top)
            right = rows.gather(-1, classes[place].unsqueeze(-1)).squeeze(-1)
            mean = rows.mean(-1) if smoothing else 0.0
            # In place, after `right` and `mean` have been read: z − m is gone from here on.
            log = rows.exp_().sum(-1).log_()
            values[place] = log - (1 - smoothing) * right - smoothing * mean
            sums[place] = torch.stack([top, log], -1)
        ctx.save_for_backward(scores, classes, counts, sums)
        ctx.smoothing = smoothing
        # Of the two numbers no derivative is taken: those of the values are written out below.
        ctx.mark_non_differentiable(sums)
        return values.where(counts, 0), sums

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        """Return the gradient in the scores, which can be differentiated once more."""
        scores, classes, counts, sums = ctx.saved_tensors
        # The values of such rows were put to 0 above: nothing comes back through them.
        weights = slopes[0].where(counts, 0)
        return _Slope.apply(scores, classes, sums, weights, ctx.smoothing), None, None, None


class _Slope(Function):
    """w (p − q), p the softmax and q the target: the gradient of Σ w ℓ."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, classes: Tensor, sums: Tensor, weights: Tensor, smoothing: float
    ) -> Tensor:
        """Return it, of the shape of the scores."""
        found, room = torch.empty_like(scores), _Room(sums)
        for place, part in _blocks(scores):
            share, right = room.softmax(part, sums[place]), classes[place].unsqueeze(-1)
            if smoothing:
                # p − q, q being s/C everywhere and (1 − s) more at the class: the next line.
                share -= smoothing / part.shape[-1]
            share.scatter_add_(-1, right, room.filled(right, smoothing - 1))
            torch.mul(share, weights[place].unsqueeze(-1), out=share)
            found[place] = share
        ctx.save_for_backward(scores, classes, sums, weights)
        ctx.smoothing = smoothing
        return found

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> Any:
        """Return its derivatives along a direction in the scores and the weights."""
        bent, slopes = _Bend.apply(*ctx.saved_tensors, along[0], ctx.smoothing)
        return bent, None, None, slopes, None


class _Bend(Function):
    """w p ∘ (u − pᵀu) and (p − q)ᵀu, for a direction u of the scores."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        classes: Tensor,
        sums: Tensor,
        weights: Tensor,
        along: Tensor,
        smoothing: float,
    ) -> tuple[Tensor, Tensor]:
        """Return them, of the shapes of the scores and the weights."""
        bent, slopes, room = torch.empty_like(scores), torch.empty_like(weights), _Room(sums)
        for (place, part), (_, u) in zip(_blocks(scores), _blocks(along), strict=True):
            share, u = room.softmax(part, sums[place]), u.to(sums.dtype)
            mean = torch.linalg.vecdot(share, u).unsqueeze(-1)
            right = u.gather(-1, classes[place].unsqueeze(-1))
            slope = mean - (1 - smoothing) * right
            if smoothing:
                slope -= smoothing * u.mean(-1, keepdim=True)
            slopes[place] = slope.squeeze(-1)
            turned = torch.sub(u, mean, out=room.other(share))
            share.mul_(turned).mul_(weights[place].unsqueeze(-1))
            bent[place] = share
        return bent, slopes

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> Any:
        """Raise: a derivative of zero would be wrong.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("cross-entropy over many classes has no third derivative")


class _Room:
    """Two blocks that are written again and again, as memory that is new costs more than sums."""

    def __init__(self, like: Tensor) -> None:
        self._one = self._two = like.new_empty(0)

    def softmax(self, part: Tensor, sums: Tensor) -> Tensor:
        """Return the softmax of a block, given the two numbers of each row, in the first one."""
        top, log = sums.unbind(-1)
        return self.below(part, top).sub_(log.unsqueeze(-1)).exp_()

    def below(self, part: Tensor, top: Tensor) -> Tensor:
        """Return z − m of a block, in the first one."""
        if self._one.numel() < part.numel():
            self._one = self._one.new_empty(part.numel())
        rows = self._one[: part.numel()].view(part.shape)
        return torch.sub(part, top.unsqueeze(-1), out=rows)

    def other(self, share: Tensor) -> Tensor:
        """Return the second one, of the shape of a block."""
        if self._two.numel() < share.numel():
            self._two = self._two.new_empty(share.numel())
        return self._two[: share.numel()].view(share.shape)

    def filled(self, places: Tensor, value: float) -> Tensor:
        """Return a value for each place."""
        return torch.full_like(places, value, dtype=self._one.dtype)
