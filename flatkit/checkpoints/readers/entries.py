"""Which part of a file holds the weights: the whole of it, or an entry of a training checkpoint."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flatkit.checkpoints.readers.arrays import array_of
from flatkit.checkpoints.readers.foreign import (
    first_object,
    is_module,
    is_tensor,
    refusal_of_object,
    tensor_in_words,
)
from flatkit.checkpoints.readers.stored import AnyTensor, AssembledTensor, StoredTensor
from flatkit.errors import CheckpointError, InvalidArgumentError
from flatkit.files.plain_pickle import Record

_WEIGHTS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "app.model",
)
"""Names of the weights that were trained, the first that is there is taken."""
_NEVER = (
    "optim",
    "sched",
    "scaler",
    "rng",
    "random",
    "callback",
    "loop",
    "hyper",
    "args",
    "config",
)
# Enough for {"app": {"model": ...}} of torch.distributed, and one level more.
_DEPTH = 3


@dataclass(frozen=True)
class Weights:
    """The tensors of one model.

    Attributes:
        entry: where they are in the file, e.g. `model`; empty for the whole of it.
        tensors: name -> tensor, still in the file.
        others: further entries that hold weights, e.g. `ema`.
        beside: what else the file holds, by name: numbers and texts of its top level.
        unread: name -> what it is, of tensors among them that flatkit does not read.
        versions: module -> what torch noted of it beside its tensors, e.g. its `version`.
        extra: what modules saved by `get_extra_state`, where it is plain data.
    """

    entry: str
    tensors: Mapping[str, AnyTensor]
    others: tuple[str, ...]
    beside: Mapping[str, Any]
    unread: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


def weights_of(content: Any, path: str, entry: str | None = None, *, kind: str = "") -> Weights:
    """Return the weights that a file holds.

    Args:
        content: of the file.
        path: for the messages.
        entry: which entry, where there are several; a well-known name is taken by itself.
        kind: of the file, e.g. `pickle`.

    Raises:
        CheckpointError: there are no weights, none that are read, or several and none of a
            well-known name.
        InvalidArgumentError: `entry` is none of them.
    """
    found = dict(_entries(content, "", _DEPTH))
    # Arrays of NumPy and tensors without names are weights only where nothing else is.
    if not any(_readable(part) for part in found.values()):
        found |= dict(_entries(_with_arrays(content, _DEPTH + 1), "", _DEPTH))
    if entry is not None:
        chosen = _named(entry, found, content)
    else:
        chosen = _choose(found, content, path, kind)
    part = found[chosen]
    readable = _readable(part)
    unread = {name: tensor_in_words(item) for name, item in part.items() if is_tensor(item)}
    if not readable:
        name, words = next(iter(unread.items()))
        raise CheckpointError(f"{path} is refused: {name} is {words}")
    others = tuple(name for name in found if name and name != chosen and _readable(found[name]))
    beside = {
        str(key): value
        for key, value in (content.items() if isinstance(content, Mapping) else ())
        # An epoch, an accuracy, a name; a whole configuration as text is none.
        if isinstance(value, (bool, int, float, str)) and len(str(value)) <= 200
    }
    own = _at(content, chosen)
    extra = {name: value for name, value in _pairs(own) if _is_extra(name)}
    plain = {name: value for name, value in extra.items() if _is_plain(value)}
    unread |= {name: "an object of another program" for name in extra if name not in plain}
    return Weights(chosen, readable, others, beside, unread, _versions(own), plain)


def looks_like(content: Any) -> str:
    """Return what a file without weights holds, in a few words."""
    if isinstance(content, (StoredTensor, AssembledTensor)):
        return f"a lone tensor of shape {list(content.shape)}"
    if not isinstance(content, Mapping):
        return f"a lone {type(content).__name__}"
    keys = ", ".join(str(key)[:60] for key in list(content)[:4])
    return f"a dictionary of {keys}{', ...' if len(content) > 4 else ''}" if keys else "nothing"


def _choose(found: Mapping[str, Mapping[str, Any]], content: Any, path: str, kind: str) -> str:
    readable = [name for name in found if _readable(found[name])]
    if not readable:
        return _refuse_unread(found, content, path, kind)
    nested = [name for name in readable if name]
    # More tensors at the top than below: one state dict, and what is nested belongs to it.
    whole = isinstance(content, Mapping) and len(_readable(found.get("", {}))) > sum(
        len(_readable(found[name])) for name in nested
    )
    known = [name for name in _WEIGHTS if name in nested]
    if len(readable) == 1:
        chosen = readable[0]
    elif whole:
        chosen = ""
    elif known:
        chosen = known[0]
    elif len(nested) == 1:
        chosen = nested[0]
    else:
        raise CheckpointError(
            f"{path} holds several sets of weights: {', '.join(nested)}; "
            f"choose one with `entry`, e.g. {nested[0]}"
        )
    _refuse_second_best(chosen, found, content, path, kind)
    return chosen


def _refuse_second_best(
    chosen: str, found: Mapping[str, Mapping[str, Any]], content: Any, path: str, kind: str
) -> None:
    """Refuse to take an average or the like where the weights themselves stand there unread."""
    if not isinstance(content, Mapping):
        return
    # Only names that would have been taken before it.
    before = _WEIGHTS[: _WEIGHTS.index(chosen)] if chosen in _WEIGHTS else _WEIGHTS
    for name in before:
        item = content.get(name)
        way_out = f"; or choose what can be read with `entry`, e.g. {chosen}" if chosen else ""
        if is_module(item):
            raise CheckpointError(refusal_of_object(path, item, name, kind) + way_out)
        if name in found and not _readable(found[name]):
            first, words = next(iter(found[name].items()))
            raise CheckpointError(
                f"{path} is refused: {first} of {name} is {tensor_in_words(words)}{way_out}"
            )


def _refuse_unread(
    found: Mapping[str, Mapping[str, Any]], content: Any, path: str, kind: str
) -> str:
    """Return the one entry of tensors that are not read, or refuse."""
    if found:
        return next(iter(found))
    if (record := first_object(content, _WEIGHTS)) is not None:
        raise CheckpointError(refusal_of_object(path, record[1], record[0], kind))
    own = "is a pickle that torch did not write, and " if kind == "pickle" else ""
    raise CheckpointError(
        f"{path} {own}holds no weights: it is {looks_like(content)}; "
        "save a state_dict (name -> tensor)"
    )


def _named(entry: str, found: dict[str, Mapping[str, Any]], content: Any) -> str:
    """Return the entry that a caller names, also one whose weights lie deeper, nested."""
    if entry in found:
        return entry
    below = {
        f"{name[len(entry) + 1 :]}.{key}": item
        for name, part in found.items()
        if name.startswith(f"{entry}.")
        for key, item in part.items()
    }
    if not below:
        there = ", ".join(name or "(the whole file)" for name in found) or "none"
        raise InvalidArgumentError(f"entry must be one of {there}, got {entry!r}")
    found[entry] = below
    return entry


def _entries(content: Any, name: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Return entry -> its tensors, read or not, of dictionaries and lists down to a depth."""
    own = {
        key: value
        for key, value in _pairs(content)
        if isinstance(key, str)
        and (isinstance(value, (StoredTensor, AssembledTensor)) or is_tensor(value))
    }
    # Both, as a state dict may itself hold entries: `_choose` decides by the number of tensors.
    if own:
        yield name, own
    if depth:
        for key, value in _pairs(content):
            part = str(key)
            if isinstance(key, (str, int)) and not part.lower().startswith(_NEVER):
                yield from _entries(value, f"{name}.{part}" if name else part, depth - 1)


def _pairs(content: Any) -> Iterable[tuple[Any, Any]]:
    """Return what a dictionary or a list holds, by key or number; of an optimizer, nothing."""
    if isinstance(content, Record):  # of a dictionary or list of a class of its own
        content = content.items
    if isinstance(content, Mapping):
        return () if "param_groups" in content else content.items()
    return enumerate(content) if isinstance(content, (list, tuple)) else ()


def _readable(part: Mapping[str, Any]) -> dict[str, AnyTensor]:
    return {name: item for name, item in part.items() if not isinstance(item, Record)}


def _with_arrays(content: Any, depth: int) -> Any:
    """Return the content with tensors in place of arrays, and names in place of numbers."""
    array = array_of(content)
    if array is not None:
        return array
    pairs = _pairs(content)
    if not depth or not pairs:
        return content
    return {_text(key): _with_arrays(value, depth - 1) for key, value in pairs}


def _text(key: Any) -> Any:
    if isinstance(key, bytes):  # as Python 2 wrote names
        return key.decode("latin1")
    return str(key) if isinstance(key, int) else key


def _at(content: Any, entry: str) -> Any:
    """Return what stands under an entry; keys may have dots themselves."""
    if not entry:
        return content
    for key, value in _pairs(content):
        if str(key) == entry:
            return value
        if entry.startswith(f"{key}."):
            return _at(value, entry[len(str(key)) + 1 :])
    return None


def _is_extra(name: Any) -> bool:
    """Whether a module of torch saved this itself, by `get_extra_state`."""
    return isinstance(name, str) and name.rpartition(".")[2] == "_extra_state"


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple, dict)):
        return all(_is_plain(key) and _is_plain(part) for key, part in _pairs(value))
    tensors = (StoredTensor, AssembledTensor)
    return value is None or isinstance(value, (str, int, float, bytes, *tensors))


def _versions(part: Any) -> dict[str, dict[str, Any]]:
    """Return what torch noted of modules in a state dict, as far as it is plain."""
    state = getattr(part, "state", None)
    noted = state.get("_metadata") if isinstance(state, dict) else None
    return {
        module: {key: value for key, value in facts.items() if isinstance(value, (int, str))}
        for module, facts in (noted.items() if isinstance(noted, dict) else ())
        if isinstance(module, str) and isinstance(facts, dict)
    }
