"""Tables of vectors, so that what autograd calls their gradient is the derivative of what they do.

torch gives the vector at `padding_idx` no gradient, although a loss may depend on it, and scales
vectors longer than `max_norm` without telling autograd. Of bags of vectors it has no second
derivative.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def settle_tables(model: nn.Module) -> None:
    """Hold vectors of padding constant, and let those that `max_norm` scales be differentiated.

    The values stay those of torch. Training never moves the vectors of padding; where the weights
    of a table are also those of another layer, that layer still sees them move.

    Args:
        model: a private copy, changed in place.

    >>> table = nn.Embedding(2, 1, padding_idx=0)
    >>> settle_tables(table)
    >>> nn.init.constant_(table.weight, 5.0).flatten().tolist()
    [5.0, 5.0]
    >>> table(torch.tensor([0, 1])).flatten().tolist()
    [0.0, 5.0]
    """
    for module in model.modules():
        if type(module) is nn.EmbeddingBag:
            own: dict[str, Any] = {"__module__": nn.EmbeddingBag.__module__, "forward": _bags}
            module.__class__ = type("EmbeddingBag", (nn.EmbeddingBag,), own)
        if not isinstance(module, nn.Embedding) or type(module).forward is not nn.Embedding.forward:
            continue
        if module.padding_idx is not None or module.max_norm is not None:
            _settle(module)


def padded_tables(model: nn.Module) -> Iterator[str]:
    """Yield the names of the weights whose vectors of padding are held constant.

    >>> model = nn.Sequential(nn.Embedding(2, 1, padding_idx=1))
    >>> settle_tables(model)
    >>> list(padded_tables(model))
    ['0.weight']
    """
    for name, module in model.named_modules():
        if getattr(type(module), "is_settled", False) and module.padding_idx is not None:
            yield f"{name}.weight" if name else "weight"


def _settle(table: nn.Embedding) -> None:
    """Let a table look up by a forward pass that autograd sees whole."""
    kind, padding = type(table), None
    if table.padding_idx is not None:
        row = table.weight.detach()[table.padding_idx].clone()
        padding = _bounded(row, table.max_norm, table.norm_type)

    def forward(self: nn.Embedding, input: Tensor) -> Tensor:
        # Only the vectors that are looked up are scaled, as
        # torch does, and without writing into the table.
        found = _bounded(F.embedding(input, self.weight), self.max_norm, self.norm_type)
        if padding is None:
            return found
        return torch.where((input == self.padding_idx)[..., None], padding.to(found), found)

    # Of torch's own name, so that it is traced as a layer of torch.
    own: dict[str, Any] = {"__module__": kind.__module__, "forward": forward, "is_settled": True}
    table.__class__ = type(kind.__name__, (kind,), own)


def _bags(
    self: nn.EmbeddingBag,
    input: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    """Return the sum, mean or maximum of each bag of vectors, [B, D], by what autograd sees whole.

    Bags are the rows of the input [B, L], or pieces of a list of all that begin at the offsets.
    """
    found = _bounded(F.embedding(input, self.weight), self.max_norm, self.norm_type)
    counts = torch.ones_like(input, dtype=found.dtype)
    if self.padding_idx is not None:  # torch leaves it out of bags
        counts = (input != self.padding_idx).to(found)
    if input.ndim == 1:
        if offsets is None or self.mode == "max":
            return nn.EmbeddingBag.forward(self, input, offsets, per_sample_weights)
        bags = len(offsets) - self.include_last_offset
        # Of 32 bits where the offsets are: torch compares none of two kinds.
        places = torch.arange(len(input), device=input.device, dtype=offsets.dtype)
        of_bag = torch.searchsorted(offsets[:bags].contiguous(), places, right=True) - 1

        def add(rows: Tensor) -> Tensor:
            return rows.new_zeros(bags, *rows.shape[1:]).index_add(0, of_bag, rows)
    else:

        def add(rows: Tensor) -> Tensor:
            return rows.sum(1)

    if self.mode == "max":
        empty = counts.sum(1) == 0
        highest = found.masked_fill(counts[..., None] == 0, -torch.inf).amax(1)
        return torch.where(empty[:, None], 0.0, highest)
    weights = counts if per_sample_weights is None else counts * per_sample_weights
    whole = add(found * weights[..., None])
    # The mean of an empty bag is 0, as torch has it.
    return whole / add(counts).clamp(min=1)[:, None] if self.mode == "mean" else whole


def _bounded(found: Tensor, longest: float | None, order: float) -> Tensor:
    """Return vectors [..., D] of at most a length, as torch scales those that are longer."""
    if longest is None:
        return found
    beyond = torch.linalg.vector_norm(found.detach(), order, -1, keepdim=True) > longest
    safe = torch.where(beyond, found, 1.0)  # at 0 a norm has no second derivative
    scale = longest / (torch.linalg.vector_norm(safe, order, -1, keepdim=True) + 1e-7)
    return torch.where(beyond, found * scale, found)
