"""Put stored tensors into a model, all of them, or say what does not fit and what would help.

torch itself does it, by `load_state_dict`, so that load hooks run: those of torch (old names of
`weight_norm`, counters of batches), of a library, and of the user's own modules. Around it stand
checks that torch does not make: of names that wrappers change, of dtypes, of values, of weights
that nothing would set. Whatever is refused leaves the model as it was.
"""

import re
import traceback
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from flatkit.checkpoints.conversions import (
    in_numbers,
    in_precision,
    is_in_precision,
    refuse_codes,
    refuse_lossy,
    unpruned,
    widest,
)
from flatkit.checkpoints.matching import Naming, Shape, check_ignored, namings
from flatkit.checkpoints.mismatch import Mismatch
from flatkit.checkpoints.undo import undone
from flatkit.errors import CheckpointError, MismatchError, NonFiniteWeightsError

_COUNTERS = ("num_batches_tracked", "n_averaged")
"""Buffers that count steps; no output depends on them."""
_EXTRA = "_extra_state"
"""What torch calls the state that a module gives by `get_extra_state`."""
_SIZES = re.compile(r"size mismatch for (\S+?):")  # in the message of `load_state_dict`


@dataclass(frozen=True)
class Stored:
    """What a file has for a model.

    Attributes:
        path: of the file, for the messages.
        tensors: name -> tensor.
        unread: name -> what it is, of tensors that were not read.
        versions: module -> what torch noted of it.
        extra: what modules saved by `get_extra_state`.
    """

    path: str
    tensors: Mapping[str, Tensor]
    unread: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Name -> shape, which is not known of what was not read."""
        known: dict[str, Shape] = {name: tuple(t.shape) for name, t in self.tensors.items()}
        return {**known, **dict.fromkeys([*self.unread, *self.extra])}

    def named(self, naming: Naming) -> dict[str, Tensor]:
        """Return name for the model -> tensor."""
        return {naming.names[name]: tensor for name, tensor in self.tensors.items()}


@dataclass(frozen=True)
class Wishes:
    """How a caller wants a file to be fitted.

    Attributes:
        rename: beginnings of names in the file -> what they become.
        ignore: shell patterns of names that may be in only one of file and model.
        allow_uninitialised: whether ignored weights of the model may stay as it was built.
        finite: whether parameters that are NaN or infinite are refused.
    """

    rename: Mapping[str, str] = field(default_factory=dict)
    ignore: Sequence[str] = ()
    allow_uninitialised: bool = False
    finite: bool = True

    def ignores(self, name: str) -> bool:
        """Whether a name may be in only one of the two."""
        return any(fnmatchcase(name, pattern) for pattern in self.ignore)


@dataclass(frozen=True)
class _Fit:
    """What became of one way to read the names.

    Attributes:
        naming: that way.
        tensors: name for the model -> tensor, pruned or not as the model is.
        missing: in the model alone, whatever the caller ignores.
        unexpected: names for the model that it does not have.
        misshaped: names for the model of another shape.
    """

    naming: Naming
    tensors: Mapping[str, Tensor]
    missing: Sequence[str]
    unexpected: Sequence[str]
    misshaped: Sequence[str]


def place(
    model: nn.Module, stored: Stored, wishes: Wishes | None = None, *, where: str
) -> list[str]:
    """Put the tensors of a file into a model, which takes their floating-point dtype.

    Of mixed precision, the model takes the widest, in which all of them are exact.

    Args:
        model: changed in place, only if everything fits.
        stored: of the file.
        wishes: of the caller.
        where: the two parties, for the message.

    Returns:
        What was done to make them fit, a line each.

    Raises:
        MismatchError: tensors that are missing, unexpected or of another shape, as a table with
            what would help.
        CheckpointError: codes of quantised weights, values that the model cannot hold or that are
            not finite, a model on the meta device, or weights that nothing would set.
        InvalidArgumentError: `rename` or `ignore` concern no name.

    >>> import torch
    >>> stored = Stored("a.pt", {"module.weight": torch.ones(1, 2)})
    >>> place(nn.Linear(2, 1), stored, where="a.pt and Linear")
    Traceback (most recent call last):
    flatkit.errors.MismatchError: a.pt and Linear do not fit: 1 missing
      missing  bias  [1]  -
    the file has nothing for what is missing: build the model that was saved
    with the prefix 'module.' taken off
    """
    wishes = wishes or Wishes()
    _refuse_unwritable(model)
    own = _own(model)
    ways = namings(model, _shapes(own), stored.shapes, wishes.rename)
    check_ignored([*own, *stored.shapes], wishes.ignore)
    tried: list[tuple[Mismatch, _Fit]] = []
    # The first way that fits stays; each is tried on the model, and undone if it does not.
    for naming in ways:
        with undone(model) as keep:
            fit = _try(model, own, stored, naming)
            mismatch = _mismatch(fit, stored, wishes)
            if not mismatch:
                left = _left(fit, own, wishes)
                _check_values(fit, model, own, stored, wishes)
                _check_left(left, wishes, where)
                _load_in_precision(model, fit, stored)
                keep()
                extra = _extra_left(model, naming, stored)
                return [*naming.notes, *_notes(fit, own, stored, wishes, left), *extra]
        tried.append((mismatch, fit))
    # Told is the way that comes closest, whose table is the shortest.
    mismatch, fit = min(tried, key=lambda pair: len(pair[0].missing) + len(pair[0].misshaped))
    refuse_codes(stored.path, stored.named(fit.naming), own)
    lines = mismatch.lines(_file_shapes(fit, stored), _shapes(own))
    raise MismatchError(
        f"{where} do not fit: {mismatch.summary()}", "\n".join([*lines, *fit.naming.notes])
    )


def _try(model: nn.Module, own: Mapping[str, Tensor], stored: Stored, naming: Naming) -> _Fit:
    """Load by one way to read the names, in the precision that the model has."""
    named = stored.named(naming)
    tensors = unpruned({name: in_numbers(tensor) for name, tensor in named.items()}, own)
    misshaped: list[str] = []
    while True:
        rest = {name: tensor for name, tensor in tensors.items() if name not in misshaped}
        missing, unexpected, sizes = _load(model, rest, naming, stored)
        if not sizes:
            break
        # torch then raises, and does not say what is missing: once more without these.
        misshaped += sizes
    missing = [
        name
        for name in missing
        if name not in misshaped and name in own and not _is_tied(own, name, tensors)
    ]
    return _Fit(naming, tensors, missing, unexpected, misshaped)


def _load(
    model: nn.Module, tensors: Mapping[str, Tensor], naming: Naming, stored: Stored
) -> tuple[list[str], list[str], list[str]]:
    """Return which names torch misses, does not expect, and finds of another shape."""
    # Copies: a hook may write into what it is given, and is asked more than once.
    state = OrderedDict((name, tensor.clone()) for name, tensor in tensors.items())
    extra = {naming.names[name]: value for name, value in stored.extra.items()}
    state.update({name: extra[name] for name in model.state_dict().keys() & extra.keys()})
    versions = {naming.module(name): dict(facts) for name, facts in stored.versions.items()}
    if versions:
        state._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    try:
        keys: Any = model.load_state_dict(state, strict=False)
    except Exception as error:  # of torch, or of the hooks of a user
        sizes = [name for name in _SIZES.findall(str(error)) if name in tensors]
        if not sizes:
            raise CheckpointError(_failure(stored.path, error)) from error
        return [], [], sizes
    if keys is None:  # a model whose own `load_state_dict` says nothing
        own = _own(model)
        return [n for n in own if n not in tensors], [n for n in tensors if n not in own], []
    return list(keys.missing_keys), list(keys.unexpected_keys), []


def _load_in_precision(model: nn.Module, fit: _Fit, stored: Stored) -> None:
    """Load once more where the model was narrower or wider than the file."""
    unexpected = set(fit.unexpected)
    used = [tensor.dtype for name, tensor in fit.tensors.items() if name not in unexpected]
    dtype = widest(used)
    if dtype is None or is_in_precision(model, dtype):
        return
    in_precision(model, dtype)
    tensors = {name: t for name, t in fit.tensors.items() if name not in fit.misshaped}
    _load(model, tensors, fit.naming, stored)


def _mismatch(fit: _Fit, stored: Stored, wishes: Wishes) -> Mismatch:
    """Return what is left over and not ignored, in names of the model, or else of the file."""
    names = fit.naming.names
    files = {new: old for old, new in names.items()}
    unread = {
        names[old]: words for old, words in stored.unread.items() if names[old] in fit.missing
    }

    def kept(name: str) -> bool:
        return not wishes.ignores(name) and name.rpartition(".")[2] not in (*_COUNTERS, _EXTRA)

    unexpected = [files.get(name, name) for name in fit.unexpected]
    unexpected += [name for name in stored.unread if names[name] not in unread]
    return Mismatch(
        missing=[name for name in fit.missing if kept(name) and name not in unread],
        unexpected=[name for name in unexpected if kept(name)],
        misshaped=[(files.get(name, name), name) for name in fit.misshaped if kept(name)],
        unread={name: words for name, words in unread.items() if kept(name)},
    )


def _left(fit: _Fit, own: Mapping[str, Tensor], wishes: Wishes) -> list[str]:
    """Return the weights that stay as the model was built, because the caller ignores them.

    Whole numbers and truth values (positions, masks) are no weights.
    """
    names = [name for name in [*fit.missing, *fit.misshaped] if wishes.ignores(name)]
    return [name for name in names if own[name].is_floating_point() or own[name].is_complex()]


def _check_left(left: Sequence[str], wishes: Wishes, where: str) -> None:
    """Refuse to leave weights at random, unless the caller has said that twice."""
    if left and not wishes.allow_uninitialised:
        raise CheckpointError(
            f"{where}: nothing in the file sets {', '.join(left)}, and `ignore` would leave "
            f"{'it' if len(left) == 1 else 'them'} as the model was built, often at random; if "
            "that is meant, say `allow_uninitialised` as well (from Python: "
            "allow_uninitialised=True)"
        )


def _notes(
    fit: _Fit, own: Mapping[str, Tensor], stored: Stored, wishes: Wishes, left: Sequence[str]
) -> list[str]:
    notes = []
    files = {new: old for old, new in fit.naming.names.items()}
    other = [name for name in fit.missing if name not in left] + [
        files.get(name, name) for name in fit.unexpected
    ]
    ignored = [name for name in [*other, *stored.unread] if wishes.ignores(name)]
    if ignored:
        notes.append(f"ignored: {', '.join(ignored[:6])}{', ...' if len(ignored) > 6 else ''}")
    if left:  # all of them: a report that leaves one out would hide it
        notes.append(f"left as the model was built: {', '.join(left)}")
    pruned = [name for name in fit.tensors if f"{name}_mask" in files and name in own]
    if pruned:
        notes.append(f"pruned: multiplied {', '.join(pruned[:6])} by its mask")
    return notes


def _extra_left(model: nn.Module, naming: Naming, stored: Stored) -> list[str]:
    """Return a note of the extra state that modules have, and the file does not give as data."""
    given = {naming.names[name] for name in [*stored.extra, *stored.tensors]}
    extra = [name for name in model.state_dict() if name.rpartition(".")[2] == _EXTRA]
    left = [name.rpartition(".")[0] or "(its own)" for name in extra if name not in given]
    return [f"extra state left as the model was built: {', '.join(left)}"] if left else []


def _check_values(
    fit: _Fit, model: nn.Module, own: Mapping[str, Tensor], stored: Stored, wishes: Wishes
) -> None:
    """Refuse codes, values that the model cannot hold, and weights that are not finite."""
    refuse_codes(stored.path, stored.named(fit.naming), own)
    _refuse_untied(fit, own, stored.path)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    unused = {*fit.unexpected, *fit.misshaped}
    for name, tensor in fit.tensors.items():
        if name in unused:
            continue
        if name in own:
            refuse_lossy(stored.path, name, tensor, own[name])
        if wishes.finite:
            is_weight = name not in own or name in parameters or "running_" in name
            _check_finite(stored.path, name, tensor, is_weight)


def _refuse_untied(fit: _Fit, own: Mapping[str, Tensor], path: str) -> None:
    """Refuse tensors of the file that differ where the model has one for both.

    torch would take the last of them for both, and say nothing.
    """
    places: dict[Any, str] = {}
    for name, tensor in fit.tensors.items():
        here = own.get(name)
        if here is None or name in fit.misshaped or is_lazy(here) or not here.numel():
            continue
        first = places.setdefault((here.data_ptr(), here.shape, here.stride()), name)
        if not _alike(fit.tensors[first], tensor):
            raise CheckpointError(
                f"{path}: {first} and {name} differ in the file, and the model has one tensor for "
                "both; build the model with the two apart (of transformers, with "
                "tie_word_embeddings=False)"
            )


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same values; NaN beside NaN is judged elsewhere."""
    other = other.to(one.dtype)
    return one.shape == other.shape and bool((one.eq(other) | (one.isnan() & other.isnan())).all())


def _check_finite(path: str, name: str, tensor: Tensor, is_weight: bool) -> None:
    """Refuse NaN, and infinite weights; a buffer may well be a mask of infinite values."""
    wrong = ~tensor.isfinite() if is_weight else tensor.isnan()
    if count := int(wrong.sum()):
        raise NonFiniteWeightsError(
            f"{path} cannot be analyzed: values of {name} that are NaN or infinite: {count}; "
            "use an earlier checkpoint of the run"
        )


def _own(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: None if is_lazy(t) else tuple(t.shape) for name, t in tensors.items()}


def _file_shapes(fit: _Fit, stored: Stored) -> dict[str, Shape]:
    """Return name -> shape of all that the file, or a hook of the model, may have named."""
    made: dict[str, Shape] = dict.fromkeys([*fit.unexpected, *stored.unread])
    return {**made, **{name: tuple(t.shape) for name, t in fit.tensors.items()}, **stored.shapes}


def _is_tied(own: Mapping[str, Tensor], name: str, given: Mapping[str, Tensor]) -> bool:
    """Whether a tensor shares its memory with one that the file gives."""
    tensor = own[name]
    if is_lazy(tensor) or not tensor.numel():
        return False
    others = [own[other] for other in given if other in own and other != name]
    return any(
        not is_lazy(other) and other.data_ptr() == tensor.data_ptr() and other.shape == tensor.shape
        for other in others
    )


def _refuse_unwritable(model: nn.Module) -> None:
    """Refuse models that would take what is stored and not keep it, or raise half-way."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise CheckpointError(
                f"{name} of the model lies on the meta device, where nothing can be stored; build "
                "the model outside of torch.device('meta'), or call model.to_empty(device='cpu') "
                "first, if the file has all of its tensors"
            )
        if not is_lazy(tensor) and tensor.is_inference():
            raise CheckpointError(
                f"{name} of the model was made under torch.inference_mode, and can be neither "
                "written nor differentiated; build the model outside of it"
            )


def _failure(path: str, error: Exception) -> str:
    """Return what torch or a hook of the user's says, with the line that said it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return (
        f"{path} cannot be loaded by the model's own load_state_dict: {type(error).__name__}: "
        f"{text} ({frame.filename}, line {frame.lineno})"
    )
