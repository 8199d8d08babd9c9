"""The samples of an objective: drawn from any kind of data, in memory, with their numbers.

What counts as data: a pair of tensors (inputs, targets), a dictionary or a longer tuple of tensors,
a map-style data set of samples, an iterable one, or a `DataLoader` over either.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    default_collate,
)

from flatkit.checks import check_count
from flatkit.errors import FlatkitError, InvalidArgumentError, NonDeterministicError
from flatkit.objective.pytree import Tree, dtype_like, join, leaves, map_tree, same
from flatkit.objective.randomness import undisturbed
from flatkit.objective.samplers import chosen_by
from flatkit.objective.users_code import users_code, users_error

_CHUNK_ELEMENTS = 2**20
"""Input numbers a chunk, so that activations of common networks stay below a gigabyte or so."""
_WIDTH = 1024
"""A whole number is an index into a table of vectors: so many numbers are behind it."""

Data: TypeAlias = Any
"""Tensors, a data set or a DataLoader: what `collect` takes."""
Drawn: TypeAlias = Literal["all", "random", "first"]

_TARGETS = ("labels", "label", "targets", "target", "y")
_KINDS = (
    "two tensors (inputs, targets), a dictionary or a longer tuple of tensors, a data set or a "
    "DataLoader"
)


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
    """

    inputs: Tree
    targets: Tree
    indices: Tensor
    available: int | None
    drawn: Drawn
    converted: str = ""

    def __len__(self) -> int:
        return len(self.indices)

    def rows(self, rows: slice | Tensor) -> "Samples":
        """Return some of the samples."""
        return replace(
            self,
            inputs=map_tree(lambda leaf: leaf[rows], self.inputs),
            targets=map_tree(lambda leaf: leaf[rows], self.targets),
            indices=self.indices[rows.cpu() if isinstance(rows, Tensor) else rows],
        )

    def to(self, dtype: torch.dtype, device: torch.device) -> "Samples":
        """Return the samples on a device, with floating-point numbers in a dtype."""

        def convert(leaf: Tensor) -> Tensor:
            found = leaf.detach().to(device, dtype_like(leaf.dtype, dtype))
            # What the user holds is nobody's to change, nor a tensor of the inference mode of use.
            shared = found.data_ptr() == leaf.data_ptr() or found.is_inference()
            return found.clone() if shared else found

        return replace(
            self, inputs=map_tree(convert, self.inputs), targets=map_tree(convert, self.targets)
        )

    def laid_out(self, memory_format: torch.memory_format) -> "Samples":
        """Return the samples with images [N, C, H, W] in a memory format."""

        def convert(leaf: Tensor) -> Tensor:
            images = leaf.ndim == 4 and leaf.is_floating_point()
            return leaf.contiguous(memory_format=memory_format) if images else leaf

        return replace(self, inputs=map_tree(convert, self.inputs))

    def describe(self) -> dict[str, Any]:
        """Return which samples these are, ready for JSON."""
        return {
            "samples": len(self),
            "samples_available": self.available,
            "drawn": self.drawn,
            "indices": self.numbers(),
            "indices_sha256": hashlib.sha256(self.indices.numpy().tobytes()).hexdigest(),
            **({"targets_converted": self.converted} if self.converted else {}),
        }

    def numbers(self) -> str:
        """Return the indices as ranges.

        >>> collect((torch.ones(5), torch.ones(5)), samples=None, seed=0).numbers()
        '0-4'
        """
        found: list[list[int]] = []
        for index in self.indices.tolist():
            if found and index == found[-1][1] + 1:
                found[-1][1] = index
            else:
                found.append([index, index])
        return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in found)


def collect(data: Any, *, samples: int | None, seed: int) -> Samples:
    """Return all or some samples of any kind of data.

    From data with a length, `samples` are drawn at random without replacement, and only these are
    read. From an iterable, the first ones are taken. Every sample counts once, in whatever order a
    loader gives them; its `collate_fn` makes one batch of all of them.

    Args:
        data: see the module.
        samples: how many; all by default.
        seed: of the draw.

    Raises:
        InvalidArgumentError: another kind of data, too few, or samples that cannot be stacked.
        NonDeterministicError: a sample differs when it is asked for again.

    >>> pairs = [(torch.tensor([1.0]), 0), (torch.tensor([2.0]), 1), (torch.tensor([3.0]), 0)]
    >>> some = collect(pairs, samples=2, seed=0)
    >>> some.targets, some.available, some.numbers()
    (tensor([0, 0]), 3, '0,2')
    """
    if samples is not None:
        check_count("samples", samples)
    if isinstance(data, Samples):
        return data if samples is None else _draw_rows(data, samples, seed)
    check_data("data", data)
    if _is_batch(data):
        return _draw_rows(_samples(data, len(next(leaves(data)))), samples, seed)
    loader = data if isinstance(data, DataLoader) else None
    source = data.dataset if isinstance(data, DataLoader) else data
    with undisturbed(loader.generator if loader is not None else None), users_code("the data set"):
        if _has_length(source):
            return _from_map(source, loader, samples, seed)
        return _from_iterable(source, loader, samples)


def default_chunk_size(samples: Samples) -> int:
    """Return how many samples go through a model at once, by default.

    >>> default_chunk_size(collect((torch.ones(9, 2**18), torch.ones(9)), samples=None, seed=0))
    4
    """
    sizes = (
        leaf[0].numel() * (1 if leaf.is_floating_point() else _WIDTH)
        for leaf in leaves(samples.inputs)
    )
    return min(len(samples), max(1, _CHUNK_ELEMENTS // max(1, sum(sizes))))


def num_available(data: Any) -> int | None:
    """Return how many samples data hold; None where only reading them would tell.

    >>> num_available((torch.ones(5, 2), torch.ones(5))), num_available(DataLoader(range(3)))
    (5, 3)
    """
    if isinstance(data, DataLoader):
        known = num_available(data.dataset)
        return None if known is None else len(_sampled(data, known))
    if _is_batch(data):
        return len(next(leaves(data)))
    return len(data) if isinstance(data, Samples) or _has_length(data) else None


def check_data(name: str, data: Any) -> None:
    """Refuse what is no kind of data, without reading any.

    Raises:
        InvalidArgumentError: it is none, or its tensors are not of one length above 0.
    """
    if isinstance(data, (Samples, DataLoader, IterableDataset)):
        return
    if _is_batch(data):
        lengths = [len(leaf) if leaf.ndim else 0 for leaf in leaves(data)]
        if len(set(lengths)) != 1 or lengths[0] == 0:
            raise InvalidArgumentError(
                f"{name} must hold as many inputs as targets, at least one, "
                f"got {' and '.join(map(str, lengths))}"
            )
        return
    is_tensor = isinstance(data, Tensor) or (
        isinstance(data, (list, tuple)) and any(isinstance(part, Tensor) for part in data)
    )
    if isinstance(data, Iterator):
        raise InvalidArgumentError(
            f"{name} is a {type(data).__name__}, which can be read only once; give the data set "
            "or the DataLoader itself"
        )
    if (
        isinstance(data, (str, bytes, Mapping))
        or is_tensor
        or not (_has_length(data) or isinstance(data, Iterable))
    ):
        raise InvalidArgumentError(f"{name} must be {_KINDS}, got {type(data).__name__}")


def _from_map(
    source: Any, loader: DataLoader[Any] | None, samples: int | None, seed: int
) -> Samples:
    chosen = _sampled(loader, len(source))
    if samples is not None:
        if samples > len(chosen):
            raise _too_many(samples, len(chosen))
        chosen = chosen[_random_rows(len(chosen), samples, seed)]
    if not len(chosen):
        raise InvalidArgumentError("the data hold no samples")
    collate: Callable[[list[Any]], Any] = default_collate if loader is None else loader.collate_fn
    some = source[int(chosen[0])]
    if not isinstance(some, (Mapping, Sequence, Tensor)) or isinstance(some, str):
        raise InvalidArgumentError(
            f"data must be {_KINDS}, got a {type(source).__name__} of {type(some).__name__}"
        )
    first, again = (_stack([source[int(chosen[0])]], collate) for _ in range(2))
    if not same(first, again):
        raise NonDeterministicError(
            "the data set gives a different sample each time it is asked (random augmentation?); "
            "give the data without augmentation"
        )
    batch = _stack([source[index] for index in chosen.tolist()], collate)
    drawn: Drawn = "all" if samples is None or samples == len(source) else "random"
    return replace(_samples(batch, len(source)), indices=chosen, drawn=drawn)


def _sampled(loader: DataLoader[Any] | None, length: int) -> Tensor:
    """Return the positions that a loader goes through, ascending."""
    if loader is None:
        return torch.arange(length)
    if loader.batch_sampler is None:
        raise InvalidArgumentError(
            "the DataLoader has batch_size=None: its data set makes the batches; give a batch_size"
        )
    return chosen_by(loader, length).rows


def _from_iterable(source: Any, loader: DataLoader[Any] | None, samples: int | None) -> Samples:
    if isinstance(iter(source), type(source)) and iter(source) is source:
        raise InvalidArgumentError("the data can be read only once; give a data set")
    batched = loader is not None and loader.batch_size is not None
    stream: Iterable[Any] = source if loader is None else loader
    if batched:
        parts, count = [], 0
        for batch in stream:
            parts.append(_plain(batch))
            count += len(next(leaves(parts[-1])))
            if samples is not None and count >= samples:
                break
        if not parts:
            raise InvalidArgumentError("the data hold no samples")
        batch = join(parts)
    else:
        items = list(islice(stream, samples))
        if not items:
            raise InvalidArgumentError("the data hold no samples")
        batch = _stack(items, default_collate)
    count = len(next(leaves(batch)))
    if samples is not None and count < samples:
        raise _too_many(samples, count)
    if samples is None:
        return _samples(batch, count)
    kept = _samples(batch, count).rows(slice(samples))
    return replace(kept, available=None, drawn="first")


def _stack(items: list[Any], collate: Callable[[list[Any]], Any]) -> Tree:
    """Return samples as one batch of tensors."""
    try:
        return _plain(collate([_as_tensors(item) for item in items]))
    except FlatkitError:
        raise
    except Exception as error:  # whatever a collate function says to samples it cannot stack
        if collate is not default_collate:
            raise users_error("the collate_fn of the DataLoader", error) from error
        raise InvalidArgumentError(
            f"the samples cannot be stacked: {type(error).__name__}: {error}; give them one shape, "
            "or a DataLoader whose collate_fn pads them"
        ) from error


def _as_tensors(item: Any) -> Any:
    """Return a sample with the lists of numbers of a dictionary as tensors."""
    if not isinstance(item, Mapping):
        return item
    return {
        key: torch.as_tensor(value)
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], (int, float, list))
        else value
        for key, value in item.items()
    }


def _plain(batch: Any) -> Tree:
    """Return a batch without what is no tensor."""
    if isinstance(batch, Mapping):
        return {
            str(key): _plain(part) for key, part in batch.items() if any(True for _ in leaves(part))
        }
    if isinstance(batch, (list, tuple)):
        return tuple(_plain(part) for part in batch)
    if not isinstance(batch, Tensor):
        raise InvalidArgumentError(
            f"a batch must be tensors, or dictionaries and tuples of them, got "
            f"{type(batch).__name__}"
        )
    return batch


def _samples(batch: Tree, available: int) -> Samples:
    inputs, targets = _split(batch)
    sizes = {len(leaf) if leaf.ndim else 0 for tree in (inputs, targets) for leaf in leaves(tree)}
    if len(sizes) != 1 or 0 in sizes:
        raise InvalidArgumentError(
            f"all tensors of a batch must have one length above 0, got {sorted(sizes)}"
        )
    return Samples(inputs, targets, torch.arange(sizes.pop()), available, "all")


def _split(batch: Tree) -> tuple[Tree, Tree]:
    """Return what goes into the model and what the loss holds it against."""
    if isinstance(batch, Mapping):
        found = [key for key in _TARGETS if key in batch]
        return batch, batch[found[0]] if len(found) == 1 else batch
    if isinstance(batch, Tensor):
        return batch, batch
    if len(batch) == 1:
        return _split(batch[0])
    *first, targets = batch
    return first[0] if len(first) == 1 else tuple(first), targets


def _draw_rows(whole: Samples, samples: int | None, seed: int) -> Samples:
    if samples is None or samples == len(whole):
        return whole
    if samples > len(whole):
        raise _too_many(samples, len(whole))
    return replace(whole.rows(_random_rows(len(whole), samples, seed)), drawn="random")


def _random_rows(available: int, samples: int, seed: int) -> Tensor:
    if samples == available:
        return torch.arange(available)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(available, generator=generator)[:samples].sort().values


def _is_batch(data: Any) -> bool:
    """Whether data are tensors already: a dictionary, or a tuple or list of two or more."""
    if isinstance(data, Mapping):
        return bool(data) and all(isinstance(part, Tensor) for part in data.values())
    return (
        isinstance(data, Sequence)
        and not isinstance(data, str)
        and len(data) >= 2
        and all(isinstance(part, Tensor) for part in data)
    )


def _has_length(source: Any) -> bool:
    return hasattr(source, "__getitem__") and hasattr(source, "__len__")


def _too_many(samples: int, available: int) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"samples must be at most {available}, the size of the data, got {samples}"
    )
