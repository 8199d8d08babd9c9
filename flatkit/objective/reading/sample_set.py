"""Samples in memory: what goes into the model, what the loss takes, and which they are."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from flatkit.objective.pytree import Bundle, Tree, dtype_like, leaves, map_tree, take

_CHUNK_ELEMENTS = 2**20
"""Input numbers a chunk, so that activations of common networks stay below a gigabyte or so."""
_WIDTH = 1024
"""A whole number is an index into a table of vectors: so many numbers are behind it."""

Drawn: TypeAlias = Literal["all", "random", "first"]


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples in memory.

    Attributes:
        inputs: a tree of tensors [N, ...]; a dict is passed to the model by name, a tuple by
            position.
        targets: a tree of tensors [N, ...], or the whole batch where none is told apart.
        indices: int64 [N], which of the data they are: positions in a map-style data set, numbers
            in the order of an iterable one.
        available: how many the data hold; None for an iterable of which only the first were read.
        drawn: `all`, `random` (without replacement) or `first` (of an iterable).
        converted: how the targets were changed into the form that the loss takes; empty if not.
        whole: the undivided batch that inputs and targets come from, until they are divided as the
            model and the loss take them.
        counts: of batches that cannot be cut, how many samples each holds, int64; a row is a batch.
        probe: of such, one of two samples, of the first and of the second; None if unknown.
        mixed: whether the batches are made anew on every pass of the loader.
        around: what goes around a loss, in order, so that it takes the targets as they are.
        processes: among how many a sampler shares out the data; these are the share of one.
    """

    inputs: Tree
    targets: Tree
    indices: Tensor
    available: int | None
    drawn: Drawn
    converted: str = ""
    whole: Tree = None
    counts: Tensor | None = None
    probe: Tree = None
    mixed: bool = False
    around: tuple[Callable[[Any], Any], ...] = ()
    processes: int = 1

    def __len__(self) -> int:
        """Return the number of rows: samples, or batches that cannot be cut."""
        return len(self.indices) if self.counts is None else len(self.counts)

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(self.indices)

    def rows(self, rows: slice | Tensor) -> "Samples":
        """Return some of the samples."""
        return replace(
            self,
            inputs=take(self.inputs, rows),
            targets=take(self.targets, rows),
            whole=take(self.whole, rows),
            **self._numbered(rows.cpu() if isinstance(rows, Tensor) else rows),
        )

    def _numbered(self, rows: slice | Tensor) -> dict[str, Any]:
        if self.counts is None:
            return {"indices": self.indices[rows]}
        # Rows are batches here: the numbers of their samples go along, as many as each has.
        parts = self.indices.split(self.counts.tolist())
        chosen = torch.arange(len(parts))[rows].tolist()
        # The empty start: `cat` refuses no tensors at all.
        indices = torch.cat([self.indices[:0], *(parts[row] for row in chosen)])
        return {"indices": indices, "counts": self.counts[rows]}

    def to(self, dtype: torch.dtype, device: torch.device) -> "Samples":
        """Return the samples on a device, with floating-point numbers in a dtype."""

        def convert(leaf: Tensor) -> Tensor:
            found = leaf.detach().to(device, dtype_like(leaf.dtype, dtype))
            # What the user holds is nobody's to change, nor a tensor of the inference mode of use.
            shared = found.data_ptr() == leaf.data_ptr() or found.is_inference()
            return found.clone() if shared else found

        return replace(
            self,
            inputs=map_tree(convert, self.inputs),
            targets=map_tree(convert, self.targets),
            whole=None,
        )

    def laid_out(self, memory_format: torch.memory_format) -> "Samples":
        """Return the samples with images [N, C, H, W] in a memory format."""
        if isinstance(self.inputs, Bundle):
            return self

        def convert(leaf: Tensor) -> Tensor:
            # Of whole numbers [N, C, H, W] are codes, which are looked up and not convolved.
            images = leaf.ndim == 4 and leaf.is_floating_point()
            return leaf.contiguous(memory_format=memory_format) if images else leaf

        return replace(self, inputs=map_tree(convert, self.inputs))

    def describe(self) -> dict[str, Any]:
        """Return which samples these are, ready for JSON."""
        return {
            "samples": self.count,
            "samples_available": self.available,
            "drawn": self.drawn,
            "indices": self.numbers(),
            "indices_sha256": hashlib.sha256(self.indices.numpy().tobytes()).hexdigest(),
            # Keys appear where they say something, so that
            # reports of before compare with those of today.
            **({} if self.counts is None else {"batches": len(self.counts)}),
            **({"share_of_one_process_in": self.processes} if self.processes > 1 else {}),
            **({"targets_converted": self.converted} if self.converted else {}),
        }

    def numbers(self) -> str:
        """Return the indices as ranges.

        >>> Samples(torch.ones(5), torch.ones(5), torch.arange(5), 5, "all").numbers()
        '0-4'
        """
        found: list[list[int]] = []
        for index in self.indices.tolist():
            if found and index == found[-1][1] + 1:
                found[-1][1] = index
            else:
                found.append([index, index])
        return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in found)


def default_chunk_size(samples: Samples) -> int:
    """Return how many samples go through a model at once, by default.

    >>> images = torch.ones(9, 2**18)
    >>> default_chunk_size(Samples(images, torch.ones(9), torch.arange(9), 9, "all"))
    4
    """
    if samples.counts is not None:
        return 1
    sizes = (
        leaf[0].numel() * (1 if leaf.is_floating_point() else _WIDTH)
        for leaf in leaves(samples.inputs)
    )
    return min(len(samples), max(1, _CHUNK_ELEMENTS // max(1, sum(sizes))))
