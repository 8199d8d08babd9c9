"""Put stored tensors into a model, all of them, or say what does not fit and what would help."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from flatkit.checkpoints.mismatch import Mismatch
from flatkit.errors import InvalidArgumentError, MismatchError

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Segments that wrappers of torch put into names, anywhere."""
_COUNTERS = ("num_batches_tracked", "n_averaged")
"""Buffers that count steps; no output depends on them."""
# Deep enough for `module.model.backbone.encoder.` of wrapped models; each prefix costs a comparison
# of all names.
_PREFIX_DEPTH = 4


@dataclass(frozen=True)
class Match:
    """Which tensor of the file goes where.

    Attributes:
        sources: name in the model -> name in the file.
        notes: what was done to make the names fit, a line each.
        mismatch: what is left over.
    """

    sources: Mapping[str, str]
    notes: Sequence[str]
    mismatch: Mismatch


def load_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    where: str,
    rename: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
) -> list[str]:
    """Copy the tensors of `state` into `model`, which takes their floating-point dtype.

    Of mixed precision, the model takes the widest, in which all of them are exact.

    Args:
        model: changed in place, only if everything fits.
        state: name -> tensor.
        where: the two parties, for the message.
        rename: beginnings of names in the file -> what they become.
        ignore: shell patterns of names that may be in only one of the two.

    Returns:
        What was done to make the names fit, a line each.

    Raises:
        MismatchError: tensors that are missing, unexpected or of another shape, as a table with
            what would help.
        InvalidArgumentError: `rename` or `ignore` concern no name.

    >>> load_state(nn.Linear(2, 1), {"module.weight": torch.ones(1, 2)}, where="a.pt and Linear")
    Traceback (most recent call last):
    flatkit.errors.MismatchError: a.pt and Linear do not fit: 1 missing
      missing  bias  [1]  -
    with the prefix 'module.' taken off
    """
    found = match(model, state, rename=rename, ignore=ignore)
    if found.mismatch:
        lines = found.mismatch.lines(state, model.state_dict())
        raise MismatchError(
            f"{where} do not fit: {found.mismatch.summary()}", "\n".join([*lines, *found.notes])
        )
    dtype = _widest(state[name].dtype for name in found.sources.values())
    if dtype is not None:
        model.to(dtype)
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    with torch.no_grad():
        for name, source in found.sources.items():
            own[name].copy_(state[source])
    return list(found.notes)


def match(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    rename: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
) -> Match:
    """Return which tensor goes where; nothing is changed.

    Raises:
        InvalidArgumentError: `rename` or `ignore` concern no name.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    names, notes = _renamed(list(state), rename or {})
    names, more = _aligned(names, state, own)
    notes += more
    sources = {new: old for old, new in names.items() if new in own}
    shapes = [name for name, old in sources.items() if state[old].shape != own[name].shape]
    missing = [name for name in own if name not in sources]
    missing = [name for name in missing if not _is_tied(own, name, sources)]
    unexpected = [old for old, new in names.items() if new not in own]
    for pattern in ignore:
        if not any(fnmatchcase(name, pattern) for name in [*own, *state]):
            raise InvalidArgumentError(f"ignore {pattern!r} matches no name in file or model")

    def kept(name: str) -> bool:
        ignored = any(fnmatchcase(name, pattern) for pattern in ignore)
        return not ignored and name.rpartition(".")[2] not in _COUNTERS

    left = [n for n in [*missing, *unexpected] if any(fnmatchcase(n, p) for p in ignore)]
    if left:
        notes.append(f"ignored: {', '.join(left[:6])}{', ...' if len(left) > 6 else ''}")
    mismatch = Mismatch(
        missing=[name for name in missing if kept(name)],
        unexpected=[name for name in unexpected if kept(name)],
        misshaped=[(sources[name], name) for name in shapes],
    )
    return Match(sources, notes, mismatch)


def _renamed(names: Sequence[str], rename: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return old -> new names after the caller's own wishes."""
    result, used = {}, set()
    for name in names:
        beginnings = [old for old in rename if name.startswith(old)]
        longest = max(beginnings, key=len, default=None)
        result[name] = name if longest is None else rename[longest] + name[len(longest) :]
        used.add(longest)
    for old in rename:
        if old not in used:
            first = ", ".join(list(names)[:4])
            raise InvalidArgumentError(
                f"rename {old!r}: no name in the file begins so; it holds {first}, ..."
            )
    _refuse_collisions(result)
    return result, [f"renamed: {old!r} to {new!r}" for old, new in rename.items()]


def _aligned(
    names: Mapping[str, str], state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, str], list[str]]:
    """Return old -> new names with wrappers and prefixes put right, as far as more then fit."""
    plain = {_unwrapped(name): name for name in own}

    def fitting(candidate: Mapping[str, str]) -> int:
        return sum(
            new in plain and state[old].shape == own[plain[new]].shape
            for old, new in candidate.items()
        )

    bare = {old: _unwrapped(new) for old, new in names.items()}
    # Two names that become one: the words of wrappers are words of this model.
    if len(set(bare.values())) < len(bare) or len(plain) < len(own):
        return dict(names), []
    best, note, most = bare, "", fitting(bare)
    if most < len(own):
        for strip in _prefixes(bare.values()):
            stripped = {
                old: new[len(strip) :] if new.startswith(strip) else new
                for old, new in bare.items()
            }
            if len(set(stripped.values())) == len(stripped) and fitting(stripped) > most:
                best, most = stripped, fitting(stripped)
                note = f"with the prefix {strip!r} taken off"
        for add in _prefixes(plain):
            longer = {old: add + new for old, new in bare.items()}
            if fitting(longer) > most:
                best, most, note = longer, fitting(longer), f"with the prefix {add!r} put before"
    notes = [note] if note else []
    if any(bare[old] != new for old, new in names.items()):
        notes.insert(0, "with the names that wrappers add taken out")
    return {old: plain.get(new, new) for old, new in best.items()}, notes


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return the beginnings `a.`, `a.b.`, ... of dotted names, the shorter ones first."""
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        for depth in range(1, min(_PREFIX_DEPTH, len(parts) - 1) + 1):
            found[".".join(parts[:depth]) + "."] = None
    return sorted(found, key=len)


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _is_tied(own: Mapping[str, Tensor], name: str, sources: Mapping[str, str]) -> bool:
    """Whether a tensor shares its memory with one that the file gives."""
    tensor = own[name]
    return any(
        other != name
        and own[other].data_ptr() == tensor.data_ptr()
        and tensor.numel() > 0
        and own[other].shape == tensor.shape
        for other in sources
    )


def _refuse_collisions(names: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    for old, new in names.items():
        if new in seen:
            raise InvalidArgumentError(f"rename makes {seen[new]} and {old} both {new}")
        seen[new] = old


def _widest(dtypes: Iterable[torch.dtype]) -> torch.dtype | None:
    """Return the floating dtype in which all values are exact, or None."""
    found = {dtype for dtype in dtypes if dtype.is_floating_point}
    # Models do not compute in 8 bits: such a file is widened too.
    if len(found) <= 1 and all(dtype.itemsize > 1 for dtype in found):
        return next(iter(found), None)
    return torch.float64 if torch.float64 in found else torch.float32
