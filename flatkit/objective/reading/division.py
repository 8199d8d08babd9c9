"""How a batch is divided between a model and a loss: the ways there are, the usual one first.

Which one it is shows in what model and loss take: by their signatures, and by trying them.
"""

from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter, Signature, signature
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from flatkit.objective.model.habits import Around, Guarded
from flatkit.objective.pytree import Tree, Whole
from flatkit.objective.reading.batches import labels_in, weights_of

Pick = Callable[[Any], Any]
"""A batch -> a part of it."""


class InputWay(NamedTuple):
    """One way to give a batch to a model.

    Attributes:
        inputs: of a batch.
        rest: what is left for the loss.
    """

    inputs: Pick
    rest: Pick


class TargetWay(NamedTuple):
    """One way to give the rest of a batch to a loss.

    Attributes:
        targets: of the rest.
        loss: of (outputs, targets).
        weights: of the rest; None where it has none for flatkit.
    """

    targets: Pick
    loss: Any
    weights: Pick | None = None


class Spread(Around):
    """A loss of several arguments after the outputs, which are given to it by position or name.

    >>> Spread(lambda outputs, targets, weight: (targets, weight))(0, (1, 2))
    (1, 2)
    """

    def __call__(self, outputs: Any, targets: Any) -> Any:
        """Return the loss."""
        if isinstance(targets, Mapping):
            return self.loss(outputs, **targets)
        return self.loss(outputs, *targets)


def spread(loss: Any) -> Any:
    """Return a loss of (outputs, targets) from one of several arguments after the outputs.

    >>> spread(lambda outputs, a, b: a + b)(0, (1, 2))
    3
    """
    inner = _inner(loss)
    return loss if isinstance(inner, Spread) else Guarded(Spread(inner))


def input_ways(batch: Any, model: nn.Module, loss: Any) -> Iterator[InputWay]:
    """Yield the ways to give a batch to a model.

    A dictionary goes by name where it holds all that the model needs; a tuple by position, as many
    of its first parts as the model takes and the loss leaves; both also as one argument, and so
    does anything else.

    >>> ways = input_ways((1, 2, 3), nn.Linear(1, 1), lambda outputs, targets, weight: 0)
    >>> way = next(ways)
    >>> way.inputs((1, 2, 3)), way.rest((1, 2, 3))
    (1, (2, 3))
    """
    if isinstance(batch, (list, tuple)) and not isinstance(batch, PackedSequence) and len(batch):
        if len(batch) == 1:
            yield from (
                InputWay(_of_only(way.inputs), _of_only(way.rest))
                for way in input_ways(batch[0], model, loss)
            )
            return
        # For the loss: as many parts as its signature needs, then the last one, then ever more.
        # The first way that runs is taken, so that the usual one stands first.
        sizes = [len(batch) - max(1, _extra(loss)), len(batch) - 1]
        sizes += range(len(batch) - 2, 0, -1)
        for size in dict.fromkeys(size for size in sizes if size > 0):
            yield from _by_position(batch, size, model)
        yield InputWay(Whole, _itself)
    else:
        for pick in _part_ways(batch, model):
            yield InputWay(pick, _itself)


def target_ways(rest: Any, loss: Any) -> Iterator[TargetWay]:
    """Yield the ways to give a loss what a model leaves.

    >>> next(target_ways({"x": 1, "label": 2}, lambda outputs, targets: 0)).targets({"label": 2})
    2
    """
    names = _names(loss)
    if _extra(loss) > 1:
        of_parts = spread(loss)
        if isinstance(rest, Mapping) and names and set(names) <= set(rest):
            yield TargetWay(lambda part: {name: part[name] for name in names}, of_parts)
        if isinstance(rest, tuple) and len(rest) == _extra(loss):
            yield TargetWay(_itself, of_parts)
    if isinstance(rest, (Tensor, list, tuple)):
        yield TargetWay(_itself, loss)
        if isinstance(rest, (list, tuple)) and sum(isinstance(x, Tensor) for x in rest) == 1:
            yield TargetWay(lambda part: next(x for x in part if isinstance(x, Tensor)), loss)
        return
    key = weights_of(rest)
    if labels_in(rest) is not rest:
        yield TargetWay(labels_in, loss, (lambda part: part[key]) if key else None)
    yield TargetWay(_itself, loss)


def missing_names(batch: Any, model: nn.Module) -> tuple[list[str], list[str]] | None:
    """Return the entries of a batch and the arguments of a model, where names do not fit.

    >>> missing_names({"pixels": 1}, nn.Linear(1, 1))
    (['pixels'], ['input'])
    """
    if not isinstance(batch, Mapping) or _names_taken(batch, model):
        return None
    return [str(key) for key in batch], list(signature(model.forward).parameters)


def num_needed(model: nn.Module) -> int:
    """Return how many arguments a model cannot do without.

    >>> num_needed(nn.Bilinear(1, 1, 1))
    2
    """
    return sum(map(_is_needed, signature(model.forward).parameters.values()))


def _by_position(batch: Any, size: int, model: nn.Module) -> Iterator[InputWay]:
    def rest(whole: Any) -> Any:
        return whole[size] if size == len(whole) - 1 else tuple(whole[size:])

    if size > 1:
        if _binds(model, size):
            yield InputWay(lambda whole: tuple(whole[:size]), rest)
        return
    for pick in _part_ways(batch[0], model):
        yield InputWay(lambda whole, pick=pick: pick(whole[0]), rest)


def _part_ways(part: Any, model: nn.Module) -> Iterator[Pick]:
    """Yield the ways to give the inputs alone to a model."""
    if isinstance(part, Tensor):
        yield _itself
    elif isinstance(part, Mapping):
        # A dictionary that fits by name is hardly ever meant as one argument.
        names = _names_taken(part, model)
        if names:
            yield lambda given: {name: given[name] for name in names}
        yield Whole
    elif isinstance(part, (list, tuple)) and not isinstance(part, PackedSequence):
        if _binds(model, len(part)):
            yield tuple
        yield Whole
    else:
        yield _itself


def _names_taken(entries: Mapping[Any, Any], model: nn.Module) -> list[str]:
    """Return the entries that a model takes by name, if they are all that it needs."""
    parameters = signature(model.forward).parameters.values()
    # Who takes **kwargs takes all entries, the labels too.
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
        return list(entries)
    found = [p.name for p in parameters if p.name in entries]
    needed = [p.name for p in parameters if _is_needed(p)]
    return found if set(needed) <= set(found) else []


def _binds(model: nn.Module, number: int) -> bool:
    """Whether a model takes so many arguments by position."""
    try:
        signature(model.forward).bind(*range(number))
    except TypeError:  # the answer of `bind` for arguments that do not fit
        return False
    return True


def _extra(loss: Any) -> int:
    """Return how many arguments a loss needs after the outputs."""
    return len(_names(loss))


def _names(loss: Any) -> list[str]:
    inner = _inner(loss)
    # Not of the module: its `__call__` takes any arguments.
    own = _signature(inner.forward if isinstance(inner, nn.Module) else inner)
    return [] if own is None else [p.name for p in own.parameters.values() if _is_needed(p)][1:]


def _inner(loss: Any) -> Any:
    return loss.inner if isinstance(loss, Guarded) else loss


def _signature(function: Any) -> Signature | None:
    try:
        return signature(function)
    except (TypeError, ValueError):  # functions written in C have none
        return None


def _is_needed(parameter: Parameter) -> bool:
    variable = parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return parameter.default is Parameter.empty and not variable


def _itself(part: Tree) -> Tree:
    return part


def _of_only(pick: Pick) -> Pick:
    return lambda batch: pick(batch[0])
