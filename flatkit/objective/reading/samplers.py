"""Which samples a `DataLoader` goes through, asked of its sampler without disturbing it."""

import copy
import random
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, WeightedRandomSampler

from flatkit.errors import InvalidArgumentError
from flatkit.objective.reading.randomness import seed_all, undisturbed
from flatkit.objective.users_code import users_code

_OFTEN = 8
"""A sampler that draws more than so many times the data set is taken for endless."""
_TINY = 8
"""Of so few samples two draws with replacement may be the same ones by chance."""
_ADVICE = (
    "give the data set itself (every sample once), a Subset of it, or `samples` for a fixed draw"
)
_WEIGHTS = "where samples are to count differently, a batch that is a dict with an entry `weight`"
_RANDOM = (random.Random, numpy.random.RandomState, numpy.random.Generator)

Draws: TypeAlias = list[list[int]]
"""The positions of each batch, or, of a sampler, one position each."""


class Chosen(NamedTuple):
    """What a loader goes through in one pass.

    Attributes:
        rows: positions in the data set, each once, ascending, int64 [N].
        batches: the positions of each batch as the loader makes them; None where it mixes them
            anew on every pass.
    """

    rows: Tensor
    batches: Draws | None


def chosen_by(loader: DataLoader[Any], length: int) -> Chosen:
    """Return which samples of a map-style data set a loader goes through.

    Samplers are asked twice, in other random states, and as copies: the generators, lists and
    counters of the user's own stay as they are.

    Args:
        loader: one that makes batches, by a `batch_size` or a batch sampler.
        length: of its data set.

    Raises:
        InvalidArgumentError: the samples are not the same on every pass, or some are drawn more
            often than others.
        UserCodeError: a sampler fails.

    >>> chosen_by(DataLoader(range(9), sampler=[7, 2, 4], batch_size=2), 9)
    Chosen(rows=tensor([2, 4, 7]), batches=[[7, 2], [4]])
    >>> chosen_by(DataLoader(range(3), shuffle=True), 3)
    Chosen(rows=tensor([0, 1, 2]), batches=None)
    """
    plan: Any = loader.batch_sampler
    # The exact class: one derived from it may yield other batches than its sampler and size say.
    if type(plan) is not BatchSampler:
        passes = _passes(plan, length, _each)
        rows = _once(passes, length, f"batch sampler {type(plan).__name__}")
        return Chosen(rows, passes[0] if _alike(passes) else None)
    sampler: Any = plan.sampler
    # These need not be asked: a pass over a million draws would take seconds.
    if type(sampler) in (RandomSampler, WeightedRandomSampler):
        return Chosen(_of_random(sampler, length), None)
    passes = _passes(sampler, length, lambda row: [row])
    rows = _once(passes, length, f"sampler {type(sampler).__name__}")
    if not _alike(passes):  # others are dropped as a last, smaller batch on every pass: none is
        return Chosen(rows, None)
    order, size = [row for (row,) in passes[0]], plan.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    if plan.drop_last and batches and len(batches[-1]) < size:
        batches.pop()
        rows = _in_range(batches, length, "sampler")
    return Chosen(rows, batches)


def processes_of(loader: DataLoader[Any] | None) -> int:
    """Return among how many processes a sampler of a loader shares out the samples.

    >>> processes_of(DataLoader(range(3)))
    1
    """
    asked = (getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None))
    found = [getattr(sampler, "num_replicas", 1) for sampler in asked]
    return max(n if isinstance(n, int) else 1 for n in found)


def _of_random(sampler: RandomSampler | WeightedRandomSampler, length: int) -> Tensor:
    """Return the positions that torch's own random samplers go through, without any draw."""
    name = type(sampler).__name__
    weighted = isinstance(sampler, WeightedRandomSampler)
    available = len(sampler.weights if weighted else sampler.data_source)
    if sampler.replacement:
        raise InvalidArgumentError(
            f"the {name} of the DataLoader draws with replacement, other samples on every pass; "
            f"{_ADVICE}{', or ' + _WEIGHTS if weighted else ''}"
        )
    # So many draws are whole permutations of the data, or else some samples are left out.
    if sampler.num_samples % max(1, available):
        raise InvalidArgumentError(
            f"the {name} of the DataLoader draws {sampler.num_samples} of {available} samples, "
            f"others on every pass; {_ADVICE}"
        )
    return _in_range([[row] for row in range(available)], length, name)


def _passes(asked: Any, length: int, rows_of: Callable[[Any], Any]) -> list[Draws]:
    """Return what a sampler gives on several passes."""
    name = type(asked).__name__
    # An iterator of C, as `iter(list)`, cannot be copied: to look at it would use it up.
    if not hasattr(asked, "__dict__") and iter(asked) is asked:
        raise _read_once(name)
    with undisturbed(), users_code(f"the sampler {name} of the DataLoader"):
        private, passes = _private(asked, {}), list[Draws]()
        # Two random orders of very few samples may be the same by chance.
        for seed in range(2 if length > _TINY else 6):
            seed_all(seed)
            passes.append(_read(private, length, rows_of))
    # A generator gives its samples once and then nothing, without an error.
    if passes[0] and not any(passes[1:]):
        raise _read_once(name)
    return passes


def _read_once(name: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the sampler of the DataLoader is a {name}, which can be read only once; give a list"
    )


def _alike(passes: list[Draws]) -> bool:
    return all(draws == passes[0] for draws in passes)


def _read(asked: Iterable[Any], length: int, rows_of: Callable[[Any], Any]) -> Draws:
    draws, count = Draws(), 0
    for draw in asked:
        draws.append([_position(row, asked) for row in rows_of(draw)])
        count += len(draws[-1])
        if count > _OFTEN * length:
            raise InvalidArgumentError(
                f"the sampler {type(asked).__name__} of the DataLoader draws more than {_OFTEN} "
                f"times the {length} samples of the data set; {_ADVICE}"
            )
    return draws


def _each(draw: Any) -> Any:
    if not isinstance(draw, Iterable):
        raise InvalidArgumentError(
            f"the batch sampler of the DataLoader yields a {type(draw).__name__}, where a list of "
            "positions is needed for each batch"
        )
    return draw


def _position(row: Any, asked: Any) -> int:
    try:
        return row.__index__()
    except (AttributeError, TypeError) as error:  # the user's sampler may yield anything
        raise InvalidArgumentError(
            f"the sampler {type(asked).__name__} of the DataLoader yields {row!r}, where whole "
            "numbers, positions in the data set, are needed"
        ) from error


def _once(passes: list[Draws], length: int, name: str) -> Tensor:
    """Return the positions of equal passes, each once."""
    name = f"{name} of the DataLoader"
    rows = _in_range(passes[0], length, name)
    if not all(torch.equal(rows, _in_range(draws, length, name)) for draws in passes[1:]):
        raise InvalidArgumentError(
            f"which samples the {name} draws is not fixed: two passes differ; {_ADVICE}"
        )
    drawn = [row for draw in passes[0] for row in draw]
    # Negative positions count from the end, as those of Python's lists.
    times = torch.tensor(drawn, dtype=torch.int64).remainder(length).bincount()
    often = times[times > 0]
    # Twice each is a mean over the same samples as once each.
    if len(often) and int(often.min()) != int(often.max()):
        raise InvalidArgumentError(
            f"the {name} draws sample {int(times.argmax())} {int(often.max())} times and others "
            f"{int(often.min())} times, and each is to count once; {_ADVICE} (a Subset counts a "
            f"sample as often as it lists it), or {_WEIGHTS}"
        )
    return rows


def _ascending(batches: Draws) -> Tensor:
    return torch.tensor(sorted(row for batch in batches for row in batch), dtype=torch.int64)


def _in_range(draws: Draws, length: int, name: str) -> Tensor:
    """Return the positions of some draws, each once, ascending; negative ones from the end."""
    rows = _ascending(draws)
    if len(rows) and not (-length <= int(rows[0]) and int(rows[-1]) < length):
        raise InvalidArgumentError(
            f"the {name} draws sample {int(rows[-1] if int(rows[-1]) >= length else rows[0])}, "
            f"and the data set has {length}"
        )
    return rows.remainder(length).unique() if len(rows) else rows


def _private(part: Any, known: dict[int, Any]) -> Any:
    """Return a copy of a sampler that shares only its data with it.

    Copied are samplers inside it, generators, and containers that a pass may reorder; a data set,
    which may be large, is not.

    Args:
        part: a sampler, or what it holds.
        known: copies by the ids of what they are of.
    """
    if isinstance(part, (int, str, range)) or part is None:
        return part
    if id(part) in known:
        return known[id(part)]
    if isinstance(part, torch.Generator):
        clone = torch.Generator(part.device)
        known[id(part)] = clone.set_state(part.get_state())
    elif isinstance(part, (Tensor, numpy.ndarray, set, *_RANDOM)):
        known[id(part)] = copy.deepcopy(part)
    elif isinstance(part, (list, dict)):
        entries = list(part.items() if isinstance(part, dict) else enumerate(part))
        clone = known[id(part)] = copy.copy(part)
        for key, entry in entries:
            clone[key] = _private(entry, known)
    elif isinstance(part, Iterable) and hasattr(part, "__dict__") and not _is_data(part):
        clone = known[id(part)] = copy.copy(part)
        for name, entry in vars(part).items():
            # Not setattr, which a frozen dataclass or a property of the user would refuse.
            object.__setattr__(clone, name, _private(entry, known))
    return known.get(id(part), part)


def _is_data(part: Any) -> bool:
    return isinstance(part, type) or hasattr(part, "__getitem__")
