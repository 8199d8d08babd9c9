"""The samples of an objective: drawn from any kind of data, with their numbers.

What counts as data: a pair of tensors (inputs, targets), a dictionary or a longer tuple of tensors,
a map-style data set of samples, an iterable one, or a `DataLoader` over either. Batches that cannot
be cut into samples are taken as the loader makes them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from flatkit.checks import check_count
from flatkit.errors import InvalidArgumentError, NonDeterministicError
from flatkit.objective.pytree import Bundle, Tree, join, leaves, plain, tensors_in
from flatkit.objective.reading.batches import (
    counted,
    divided,
    inputs_in,
    targets_in,
    way_out,
)
from flatkit.objective.reading.making import (
    Making,
    can_be_cut,
    check_repeats,
    collated,
    held_alone,
    unknown_to_torch,
)
from flatkit.objective.reading.randomness import undisturbed
from flatkit.objective.reading.sample_set import Drawn, Samples
from flatkit.objective.reading.samplers import Chosen, chosen_by, processes_of
from flatkit.objective.reading.stream import goes_its_own_way, stream_of
from flatkit.objective.users_code import users_code

Data: TypeAlias = Any
"""Tensors, a data set or a DataLoader: what `collect` takes."""

_ENDLESS = 2**20
"""Samples of data without a length after which they are taken for endless."""
_KINDS = (
    "two tensors (inputs, targets), a dictionary or a longer tuple of tensors, a data set or a "
    "DataLoader"
)


class TooFewSamplesError(InvalidArgumentError):
    """More samples are asked for than the data hold.

    Attributes:
        available: how many they hold.
    """

    def __init__(self, samples: int, available: int) -> None:
        super().__init__(
            f"samples must be at most {available}, the size of the data, got {samples}"
        )
        self.available = available


def collect(data: Any, *, samples: int | None, seed: int, cut: bool = True) -> Samples:
    """Return all or some samples of any kind of data.

    From data with a length, `samples` are drawn at random without replacement, and only these are
    read. From an iterable, the first ones are taken. Every sample counts once, in whatever order a
    loader gives them; its `collate_fn` makes one batch of all of them.

    Args:
        data: see the module.
        samples: how many; all by default.
        seed: of the draw.
        cut: whether batches are cut into samples where they can be; else a row is a batch, with all
            that is in it.

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
        return _draw_rows(_as_rows(data, len(next(leaves(data)))), samples, seed)
    loader = data if isinstance(data, DataLoader) else None
    source: Any = data.dataset if isinstance(data, DataLoader) else data
    with undisturbed(loader.generator if loader is not None else None), users_code("the data set"):
        # Such a loader may do anything between its data
        # set and its batches: these alone are asked for.
        if loader is not None and goes_its_own_way(loader):
            return _from_batches(loader, samples, cut=cut)
        if _has_length(source):
            found = _from_map(source, loader, samples, seed, cut=cut)
            return replace(found, processes=processes_of(loader))
        if loader is not None and loader.batch_size is not None:
            return _from_batches(loader, samples, cut=cut)
        return _from_items(source if loader is None else loader, samples, cut=cut)


def check_data(name: str, data: Any) -> None:
    """Refuse what is no kind of data, without reading any.

    Raises:
        InvalidArgumentError: it is none, or its tensors are not of one length above 0.
    """
    if isinstance(data, (Samples, DataLoader, IterableDataset)):
        return
    if _is_batch(data):
        _refuse_what_has_no_rows(name, data)
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
        raise InvalidArgumentError(
            f"{name} must be {_KINDS}, got {type(data).__name__}{way_out(data)}"
        )


def _refuse_what_has_no_rows(name: str, data: Any) -> None:
    """Refuse tensors that are not plain arrays of numbers: of them no samples can be taken."""
    for tensor in tensors_in(data):
        if tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized):
            continue
        what = "meta tensor, which has no values" if tensor.is_meta else str(tensor.layout)
        raise InvalidArgumentError(
            f"{name} must hold plain tensors, got a {what.removeprefix('torch.')}; make a sparse "
            "one dense, tensor.to_dense(), pad a nested one, tensor.to_padded_tensor(0), and let "
            "one that belongs to all samples (an adjacency) be a buffer of the model"
        )


def _from_map(
    source: Any, loader: DataLoader[Any] | None, samples: int | None, seed: int, *, cut: bool
) -> Samples:
    # Before any sample is read: a sampler that is refused costs nothing.
    found = _chosen(loader, len(source))
    chosen, collate = found.rows, default_collate if loader is None else loader.collate_fn
    if samples is not None:
        if samples > len(chosen):
            raise TooFewSamplesError(samples, len(chosen))
        chosen = chosen[_random_rows(len(chosen), samples, seed)]
    if not len(chosen):
        raise InvalidArgumentError("the data hold no samples")
    drawn: Drawn = "all" if samples is None or samples == len(source) else "random"
    # Rows of tensors are taken at once: one by one a million of them takes long.
    if cut and collate is default_collate and _is_of_tensors(source):
        batch = [tensor[chosen].contiguous() for tensor in source.tensors]
        return replace(_as_rows(batch, len(source), chosen), drawn=drawn)
    making = Making(source, collate, by_loader=loader is not None)
    _check_items(making, chosen)
    batches = found.batches if samples is None else None
    mixed = found.batches is None
    if batches is None and loader is not None:
        batches = [part.tolist() for part in chosen.split(_batch_size(loader))]
    if cut and can_be_cut(making, chosen[:2].tolist()):
        made = _rows_of(making, chosen, batches, mixed=mixed)
        if made is not None:
            return replace(made, drawn=drawn)
    if batches is None:
        units = [making.unit(index) for index in chosen.tolist()]
        counts = [counted(unit, 1) for unit in units]
        return _as_units(units, counts, chosen, len(source), drawn)
    units = [making.batch(batch) for batch in batches]
    counts = [counted(unit, len(batch)) for unit, batch in zip(units, batches, strict=True)]
    made = _as_units(units, counts, _positions(batches, making), len(source), drawn)
    # Two samples together and apart show whether the loss of a batch is the mean of theirs.
    two = chosen[:2].tolist()
    if len(two) < 2 or max(counts) < 2:
        return made
    probe = Bundle([making.batch(rows) for rows in (two, two[:1], two[1:])])
    return replace(made, probe=probe, mixed=mixed)


def _rows_of(
    making: Making, chosen: Tensor, batches: list[list[int]] | None, *, mixed: bool
) -> Samples | None:
    """Return samples as rows, made in one batch; in the loader's where they depend on these.

    Args:
        making: of batches.
        chosen: the positions of the samples.
        batches: those of each batch of the loader; None without one.
        mixed: whether it makes other batches on every pass.

    Returns:
        None where the batches are no trees of rows of one shape.

    Raises:
        NonDeterministicError: samples depend on their batch, which is another on every pass.
    """
    tree = plain(making.batch(chosen.tolist()), len(chosen))
    if tree is None:
        return None
    alone = held_alone(making, chosen, tree)
    if not alone.coupled or batches is None:
        probe = Bundle(alone.filled) if alone.filled else None
        return replace(_as_rows(tree, len(making.source), chosen), probe=probe)
    if mixed:
        raise NonDeterministicError(
            "what the collate_fn of the DataLoader, or the data set, makes of a sample depends on "
            "the others of its batch, and batches are mixed anew on every pass; give "
            "shuffle=False, so that they are part of what is measured"
        )
    parts = [plain(making.batch(batch), len(batch)) for batch in batches]
    if not _joinable(parts):
        return None
    return _as_rows(join(parts), len(making.source), _positions(batches, making))


def _joinable(parts: list[Tree | None]) -> bool:
    """Whether batches are trees of rows of one shape."""
    if any(part is None for part in parts):
        return False
    return len({tuple(leaf.shape[1:] for leaf in leaves(part)) for part in parts}) == 1


def _positions(batches: list[list[int]], making: Making) -> Tensor:
    return torch.tensor([row % len(making.source) for batch in batches for row in batch])


def _is_of_tensors(source: Any) -> bool:
    """Whether a data set is of torch's own class, whose rows are those of plain tensors."""
    return type(source) is TensorDataset and all(
        type(tensor) is Tensor and tensor.layout == torch.strided and not tensor.is_nested
        for tensor in source.tensors
    )


def _chosen(loader: DataLoader[Any] | None, length: int) -> Chosen:
    """Return the positions that a loader goes through."""
    if loader is None:
        return Chosen(torch.arange(length), None)
    if loader.batch_sampler is None:
        raise InvalidArgumentError(
            "the DataLoader has batch_size=None: its data set makes the batches; give a batch_size"
        )
    return chosen_by(loader, length)


def _batch_size(loader: DataLoader[Any]) -> int:
    """Return how many samples go into a batch, for those that are made anew."""
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    return size if isinstance(size, int) else 1


def _check_items(making: Making, chosen: Tensor) -> None:
    """Refuse items that are no samples, and those that differ when they are asked for again."""
    (first,) = making.items(chosen[:1].tolist())
    sample = isinstance(first, (Mapping, Sequence, Tensor)) and not isinstance(first, str)
    if making.collate is default_collate and not (sample or tensors_in(first)):
        raise InvalidArgumentError(
            f"data must be {_KINDS}, got a {type(making.source).__name__} of "
            f"{type(first).__name__}{way_out(first)}"
        )
    _refuse_what_has_no_rows("the data set", first)
    check_repeats(making, chosen)


def _from_batches(loader: DataLoader[Any], samples: int | None, *, cut: bool) -> Samples:
    """Return the batches of a loader in its order, the first ones where `samples` are asked for."""
    raw: list[Any] = []
    counts: list[int] = []
    trees: list[Any] = []
    for size, batch in stream_of(loader):
        if samples is None and sum(counts) >= _ENDLESS:
            raise _endless()
        _refuse_what_has_no_rows("the batches", batch)
        tree = plain(batch, size) if cut else None
        raw.append(batch)
        trees.append(tree)
        counts.append(counted(batch, size) if tree is None else len(next(leaves(tree))))
        # Here and not after the loop, as the data may have no end.
        if samples is not None and sum(counts) >= samples:
            break
    if not raw:
        raise InvalidArgumentError("the data hold no samples")
    count = sum(counts)
    if samples is not None and count < samples:
        raise TooFewSamplesError(samples, count)
    if _joinable(trees):
        return _first(_as_rows(join(trees), count), samples)
    drawn: Drawn = "all" if samples is None else "first"
    known = count if samples is None else None
    return _as_units(raw, counts, torch.arange(count), known, drawn)


def _endless() -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the iterable data have {_ENDLESS:,} samples or more, or no end; say by `samples` how "
        "many of the first are to be measured"
    )


def _from_items(stream: Iterable[Any], samples: int | None, *, cut: bool) -> Samples:
    """Return the samples of an iterable data set."""
    if isinstance(iter(stream), type(stream)) and iter(stream) is stream:
        raise InvalidArgumentError("the data can be read only once; give a data set")
    items = list(islice(stream, samples or _ENDLESS))
    if samples is None and len(items) == _ENDLESS:
        raise _endless()
    if not items:
        raise InvalidArgumentError("the data hold no samples")
    if samples is not None and len(items) < samples:
        raise TooFewSamplesError(samples, len(items))
    if isinstance(stream, DataLoader) and all(_is_batch_of_several(item) for item in items):
        return _first(_as_rows(join([plain(item, None) for item in items]), 0), None)
    tree = None
    if cut and not unknown_to_torch(items[0], default_collate):
        tree = plain(collated(items, default_collate), len(items))
    if tree is not None:
        return _first(_as_rows(tree, len(items)), samples)
    counts = [counted(item, 1) for item in items]
    rows = torch.arange(len(items))
    known = len(items) if samples is None else None
    return _as_units(items, counts, rows, known, "all" if samples is None else "first")


def _first(found: Samples, samples: int | None) -> Samples:
    if samples is None:
        return replace(found, available=len(found))
    return replace(found.rows(slice(samples)), available=None, drawn="first")


def _is_batch_of_several(item: Any) -> bool:
    """Whether an item is a batch already: tensors of one length, none of them a number."""
    tree = plain(item, None) if isinstance(item, (Mapping, tuple, list)) else None
    numbers = isinstance(item, (tuple, list)) and not all(isinstance(x, Tensor) for x in item)
    return tree is not None and not numbers


def _as_rows(batch: Tree, available: int, indices: Tensor | None = None) -> Samples:
    """Return samples of a plain tree, each a row."""
    inputs, targets = divided(batch)
    if indices is None:
        indices = torch.arange(len(next(leaves(batch))))
    return Samples(inputs, targets, indices, available, "all", whole=batch)


def _as_units(
    batches: list[Any], counts: list[int], indices: Tensor, available: int | None, drawn: Drawn
) -> Samples:
    """Return samples of batches as they come, a row each."""
    whole = Bundle(batches)
    inputs, targets = (whole.map(part) for part in (inputs_in, targets_in))
    number = torch.tensor(counts, dtype=torch.int64)
    return Samples(inputs, targets, indices, available, drawn, whole=whole, counts=number)


def _draw_rows(whole: Samples, samples: int | None, seed: int) -> Samples:
    if samples is None or samples == len(whole):
        return whole
    if samples > len(whole):
        raise TooFewSamplesError(samples, len(whole))
    return replace(whole.rows(_random_rows(len(whole), samples, seed)), drawn="random")


def _random_rows(available: int, samples: int, seed: int) -> Tensor:
    if samples == available:
        return torch.arange(available)
    generator = torch.Generator().manual_seed(seed)
    # Sorted, as data sets on disk read faster in order, and the mean does not depend on it.
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
