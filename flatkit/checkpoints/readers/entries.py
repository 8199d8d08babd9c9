"""Which part of a file holds the weights: the whole of it, or an entry of a training checkpoint."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flatkit.checkpoints.readers.stored import AnyTensor, AssembledTensor, StoredTensor
from flatkit.errors import CheckpointError, InvalidArgumentError

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
    """

    entry: str
    tensors: Mapping[str, AnyTensor]
    others: tuple[str, ...]
    beside: Mapping[str, Any]


def weights_of(content: Any, path: str, entry: str | None = None) -> Weights:
    """Return the weights that a file holds.

    Args:
        content: of the file.
        path: for the messages.
        entry: which entry, where there are several; a well-known name is taken by itself.

    Raises:
        CheckpointError: there are no weights, or several and none of a well-known name.
        InvalidArgumentError: `entry` is none of them.
    """
    found = dict(_entries(content, "", _DEPTH))
    if entry is not None:
        if entry not in found:
            there = ", ".join(name or "(the whole file)" for name in found) or "none"
            raise InvalidArgumentError(f"entry must be one of {there}, got {entry!r}")
        chosen = entry
    else:
        chosen = _choose(found, content, path)
    others = tuple(name for name in found if name and name != chosen)
    beside = {
        str(key): value
        for key, value in (content.items() if isinstance(content, Mapping) else ())
        if isinstance(value, (bool, int, float, str)) and len(str(value)) <= 200
    }
    return Weights(chosen, found[chosen], others, beside)


def looks_like(content: Any) -> str:
    """Return what a file without weights holds, in a few words."""
    if isinstance(content, (StoredTensor, AssembledTensor)):
        return f"a lone tensor of shape {list(content.shape)}"
    if not isinstance(content, Mapping):
        return f"a lone {type(content).__name__}"
    keys = ", ".join(str(key)[:60] for key in list(content)[:4])
    return f"a dictionary of {keys}{', ...' if len(content) > 4 else ''}" if keys else "nothing"


def _choose(found: Mapping[str, Mapping[str, AnyTensor]], content: Any, path: str) -> str:
    if not found:
        raise CheckpointError(
            f"{path} holds no weights: it is {looks_like(content)}; "
            "save a state_dict (name -> tensor)"
        )
    if len(found) == 1:
        return next(iter(found))
    nested = [name for name in found if name]
    # More tensors at the top than below: one state dict, and what is nested belongs to it.
    whole = isinstance(content, Mapping) and len(found.get("", ())) > sum(
        len(found[name]) for name in nested
    )
    if whole:
        return ""
    for name in _WEIGHTS:
        if name in found:
            return name
    if len(nested) == 1:
        return nested[0]
    raise CheckpointError(
        f"{path} holds several sets of weights: {', '.join(nested)}; "
        f"choose one with `entry`, e.g. {nested[0]}"
    )


def _entries(content: Any, name: str, depth: int) -> Iterator[tuple[str, Mapping[str, AnyTensor]]]:
    if not isinstance(content, Mapping):
        return
    own = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, (StoredTensor, AssembledTensor))
    }
    if own:
        yield name, own
    if depth:
        for key, value in content.items():
            if isinstance(key, str) and not key.lower().startswith(_NEVER):
                yield from _entries(value, f"{name}.{key}" if name else key, depth - 1)
