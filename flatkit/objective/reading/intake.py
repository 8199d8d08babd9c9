"""How data come into an objective: collected, divided between model and loss, tried, converted."""

from collections.abc import Callable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from flatkit.errors import (
    FlatkitError,
    InvalidArgumentError,
    NonAdditiveLossError,
    UserCodeError,
)
from flatkit.objective.pytree import Bundle, Tree, first_unit, map_object, take
from flatkit.objective.reading.division import (
    InputWay,
    Pick,
    TargetWay,
    input_ways,
    missing_names,
    num_needed,
    spread,
    target_ways,
)
from flatkit.objective.reading.randomness import undisturbed
from flatkit.objective.reading.sample_set import Samples, default_chunk_size
from flatkit.objective.reading.samples import Data, collect
from flatkit.objective.reading.targets import fitted
from flatkit.objective.reading.unit_means import check_unit_means
from flatkit.objective.reading.weighted_samples import (
    Weighted,
    WeightedTargets,
    check_weights,
    weighted,
)
from flatkit.objective.users_code import own_weights, users_code


class _FilledUpError(Exception):
    """A sample has another loss alone than filled up to the longest of its batch."""


class Taken(NamedTuple):
    """Samples as model and loss take them.

    Attributes:
        samples: on the device of the computation, in its dtype.
        loss: of (outputs, targets) as they now are.
        trial: what the model made of the first few.
    """

    samples: Samples
    loss: Any
    trial: Any


@dataclass(frozen=True)
class Taker:
    """What takes samples.

    Attributes:
        model: whose arguments say what it takes.
        loss: of (outputs, targets), or of more arguments.
        run: inputs of some samples -> outputs of the model.
        dtype: of the computation.
        device: of the computation.
        at_once: how many samples the statistics of a batch need; None where they need none.
    """

    model: nn.Module
    loss: Any
    run: Callable[[Tree], Any]
    dtype: torch.dtype
    device: torch.device
    at_once: int | None


def take_in(data: Data, taker: Taker, *, samples: int | None, seed: int) -> Taken:
    """Return samples whose inputs the model and whose targets the loss takes.

    Args:
        data: as of `Objective`.
        taker: the model and the loss.
        samples: how many; all by default.
        seed: of their draw.

    Raises:
        InvalidArgumentError: the data are none, or do not fit the model or the loss.
        UserCodeError: data set, model or loss raises, in every way that data can be given to them;
            the error is that of the usual way.
    """
    drawn = collect(data, samples=samples, seed=seed)
    try:
        return _first_that_fits(drawn, taker)
    except _FilledUpError:  # how far they are depends on their batch, which so is part of L
        whole = collect(data, samples=samples, seed=seed, cut=False)
        if whole.mixed:
            raise NonAdditiveLossError(_FILLED_UP) from None
        return _first_that_fits(whole, taker)
    except FlatkitError as error:
        first = error
    if drawn.counts is None and _leaves_out(data):
        # What is no tensor was left out, and the model or the loss may need it.
        whole = collect(data, samples=samples, seed=seed, cut=False)
        try:
            return _first_that_fits(whole, taker)
        except FlatkitError:
            first = _with_text(first, first_unit(whole.whole))
    raise first


def _with_text(error: FlatkitError, batch: Any) -> FlatkitError:
    """Return the error of what was taken from a batch, which also names text that was left out."""
    parts = batch.values() if isinstance(batch, Mapping) else batch
    parts = parts if isinstance(parts, (list, tuple, ValuesView)) else ()
    firsts = [p[0] if isinstance(p, (list, tuple)) and p else p for p in parts]
    text = [part for part in firsts if isinstance(part, str)]
    if not text or not isinstance(error, InvalidArgumentError):
        return error
    told = InvalidArgumentError(
        f"the samples hold text, e.g. {text[0][:20]!r}, which no model or loss took, and without "
        f"it {error}; give labels as whole numbers"
    )
    told.__cause__ = error
    return told


def _leaves_out(data: Data) -> bool:
    """Whether batches may hold more than the tensors that were taken from them."""
    return not isinstance(data, (tuple, dict, Samples))


def _first_that_fits(drawn: Samples, taker: Taker) -> Taken:
    of_model: list[FlatkitError] = []
    of_loss: list[FlatkitError] = []
    usual: Any = None
    example = drawn.whole.units[0] if isinstance(drawn.whole, Bundle) else drawn.whole
    for way in _input_ways(drawn, example, taker):
        given = _picked(drawn, way.inputs)
        try:
            rows, trial = _tried(drawn, given, taker)
        except UserCodeError as error:
            of_model.append(error)
            continue
        # Of several ways that fail the usual one is told: the others are guesses of ours.
        usual = way.rest(example) if usual is None else usual
        for ending in _target_ways(drawn, way.rest(example), taker):
            try:
                return _fitted(drawn, given, way, ending, rows, trial, taker)
            except FlatkitError as error:
                of_loss.append(error)
    if of_loss:
        raise _with_parts(of_loss[0], usual)
    raise _unfit(of_model[0], example, taker.model)


def _with_parts(error: FlatkitError, rest: Any) -> FlatkitError:
    """Return an error that also says that a loss was given several parts of a batch."""
    several = isinstance(rest, (tuple, list)) and len(rest) > 1
    if not several or not isinstance(error, InvalidArgumentError):
        return error
    told = InvalidArgumentError(
        f"{error}; of the batch {len(rest)} parts are left for the loss: give one that takes them, "
        "loss(outputs, a, b), or, where the last ones are weights, dictionaries with an entry "
        "`weight`"
    )
    told.__cause__ = error
    return told


def _input_ways(drawn: Samples, example: Any, taker: Taker) -> Iterator[InputWay]:
    if drawn.whole is None:  # samples that were divided before
        yield InputWay(lambda _: drawn.inputs, lambda _: drawn.targets)
    else:
        yield from input_ways(example, taker.model, taker.loss)


def _target_ways(drawn: Samples, rest: Any, taker: Taker) -> Iterator[TargetWay]:
    if drawn.whole is None:
        loss = taker.loss
        for wrap in drawn.around:
            loss = wrap(loss)
        yield TargetWay(lambda _: drawn.targets, loss)
    else:
        yield from target_ways(rest, taker.loss)


def _picked(drawn: Samples, pick: Pick) -> Tree:
    return drawn.whole.map(pick) if isinstance(drawn.whole, Bundle) else pick(drawn.whole)


def _tried(drawn: Samples, inputs: Tree, taker: Taker) -> tuple[slice, Any]:
    """Return the first rows that the model takes, and its outputs.

    Raises:
        UserCodeError: it takes none; of the last ones.
    """
    found = replace(drawn, inputs=inputs, targets=None)
    if drawn.counts is not None:
        sizes: Sequence[int] = [1]
    elif taker.at_once is not None:
        sizes = [taker.at_once]
    else:
        # Two first: a chunk of images takes long, and a way that does not fit fails at two as well.
        sizes = [2, default_chunk_size(found)]
    for last, size in enumerate(sizes, start=1):
        try:
            return slice(size), _outputs(found.rows(slice(size)), taker)
        except UserCodeError:  # a model may take no batch of so few
            if last == len(sizes):
                raise
    raise AssertionError


@torch.no_grad()
def _outputs(few: Samples, taker: Taker) -> Any:
    # Contiguous until it is known which layout is the faster one.
    few = few.to(taker.dtype, taker.device).laid_out(torch.contiguous_format)
    with undisturbed():
        inputs = map_object(torch.clone, few.inputs)  # the model may write into them
        return taker.run(inputs.units[0] if isinstance(inputs, Bundle) else inputs)


def _fitted(
    drawn: Samples,
    inputs: Tree,
    way: InputWay,
    ending: TargetWay,
    rows: slice,
    trial: Any,
    taker: Taker,
) -> Taken:
    """Return samples whose targets are in a form that the loss takes."""
    targets = _picked(drawn, lambda batch: ending.targets(way.rest(batch)))
    found = replace(drawn, inputs=inputs, targets=targets)
    found = found.to(taker.dtype, taker.device).laid_out(torch.contiguous_format)
    bundled = isinstance(targets, Bundle)
    trees = list(found.targets.units) if bundled else [found.targets]
    few = trees[0] if bundled else take(trees[0], rows)
    form = fitted(ending.loss, trial, few, trees)
    loss, trees, around = ending.loss, form.targets, drawn.around
    if drawn.whole is not None and loss is not taker.loss:
        around = (*around, spread)
    if ending.weights is not None:
        pick = ending.weights
        weights = _picked(drawn, lambda batch: check_weights(pick(way.rest(batch))))
        of_each = weights.units if bundled else [weights]
        pairs = zip(trees, of_each, strict=True)
        trees = [WeightedTargets(tree, part.to(taker.device)) for tree, part in pairs]
        loss, around = weighted(loss), (*around, weighted)
        # Once more with the weights: a loss that returns one number is refused here.
        fitted(loss, trial, trees[0] if bundled else take(trees[0], rows), trees)
    if drawn.probe is not None:
        losses = partial(_probed, drawn, way, ending, loss, taker)
        if drawn.counts is None:
            _check_filling(losses, len(drawn.probe.units), taker)
        elif not (form.how or isinstance(loss, Weighted) or own_weights(loss)):
            # Else a loss of flatkit's own, or of targets in another form: one value a sample.
            _check_means(losses, drawn, taker)
    found = replace(found, converted=form.how or drawn.converted, around=around)
    return Taken(replace(found, targets=Bundle(trees) if bundled else trees[0]), loss, trial)


def _check_means(losses: Callable[[int], Any], drawn: Samples, taker: Taker) -> None:
    """Refuse batches whose loss is not the mean of those of their samples."""
    try:
        with users_code("the loss"):
            found = [losses(number) for number in range(3)]
    except UserCodeError:  # it may take no single samples, and then nothing is known
        return
    check_unit_means(found, fixed=not drawn.mixed, tolerance=_slack(taker))


def _check_filling(losses: Callable[[int], Any], count: int, taker: Taker) -> None:
    """Tell samples whose loss depends on how far their batch is filled up.

    Args:
        losses: number -> the loss of a batch of one sample: alone, then filled up, and so on.
        count: how many.
        taker: the model and the loss.

    Raises:
        _FilledUpError: one is another.
    """
    for number in range(0, count, 2):
        try:
            with users_code("the loss"):
                pair = [torch.as_tensor(losses(n)).double().mean() for n in (number, number + 1)]
        except UserCodeError:  # it may take no single samples, and then nothing is known
            return
        alone, filled = map(float, pair)
        if abs(alone - filled) > _slack(taker) * max(abs(alone), abs(filled)):
            raise _FilledUpError


def _slack(taker: Taker) -> float:
    return 1e3 * torch.finfo(taker.dtype).eps


def _probed(
    drawn: Samples, way: InputWay, ending: TargetWay, loss: Any, taker: Taker, number: int
) -> Any:
    """Return the loss of one of the batches of a probe."""
    picks: list[Pick] = [way.inputs, lambda batch: ending.targets(way.rest(batch))]
    inputs, targets = (drawn.probe.map(pick) for pick in picks)
    count = len(drawn.probe.units)
    probe = replace(drawn, inputs=inputs, targets=targets, counts=torch.ones(count).long())
    probe = replace(probe, indices=torch.arange(count)).rows(slice(number, number + 1))
    part = probe.to(taker.dtype, taker.device)
    with undisturbed():
        return loss(taker.run(part.inputs.units[0]), part.targets.units[0])


def _unfit(error: FlatkitError, example: Any, model: nn.Module) -> FlatkitError:
    """Return what is told of a model that takes a batch in no way."""
    names = missing_names(example, model)
    if names is None:
        needed = num_needed(model)
        if not isinstance(example, (tuple, list)) or needed < max(2, len(example)):
            return error
        told = InvalidArgumentError(
            f"the model needs {needed} inputs, and of the {len(example)} parts of a batch the last "
            f"is for the loss: give targets after the inputs, be they zeros. {error}"
        )
        told.__cause__ = error
        return told
    told = InvalidArgumentError(
        f"the batch has {', '.join(names[0])}, but the model takes {', '.join(names[1])}; name the "
        f"entries of the batch after the arguments of the model. As one argument: {error}"
    )
    told.__cause__ = error
    return told


_FILLED_UP = (
    "the loss of a sample depends on how far the collate_fn of the DataLoader fills up its batch "
    "(the model sees the padding), and batches are mixed anew on every pass; give shuffle=False, "
    "so that they are part of what is measured, or a model that leaves the padding out"
)
