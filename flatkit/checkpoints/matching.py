"""Names of a file and names of a model: wrappers, prefixes and the caller's own wishes."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn

from flatkit.errors import InvalidArgumentError

Shape: TypeAlias = tuple[int, ...] | None
"""Of a tensor; None for one of a lazy layer, which takes any."""

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Segments that wrappers of torch put into names, anywhere."""
# Deep enough for `module.model.backbone.encoder.` of wrapped models.
_PREFIX_DEPTH = 4
# Where load hooks of the model rename as well, no count of names tells which prefix is right, and
# each is tried by loading; more than these few were never needed.
_TRIALS = 8


@dataclass(frozen=True)
class Naming:
    """One way to read the names of a file.

    Attributes:
        names: name in the file -> name for the model.
        module: does the same for the name of a module.
        notes: what was done, a line each.
    """

    names: Mapping[str, str]
    module: Callable[[str], str]
    notes: Sequence[str]


def namings(
    model: nn.Module,
    own: Mapping[str, Shape],
    state: Mapping[str, Shape],
    rename: Mapping[str, str] | None = None,
) -> list[Naming]:
    """Return ways to read the names of a file, the likeliest first.

    Args:
        model: whose modules have names, too.
        own: name -> shape, of the model.
        state: name -> shape, of the file.
        rename: beginnings of names in the file -> what they become.

    Raises:
        InvalidArgumentError: `rename` concerns no name, or makes two names one.
    """
    rename = rename or {}
    names, notes = _renamed(list(state), rename)
    plain = {_unwrapped(name): name for name in own}
    bare = {old: _unwrapped(new) for old, new in names.items()}
    # Two names that become one: the words of wrappers are words of this model.
    if len(set(bare.values())) < len(bare) or len(plain) < len(own):
        return [Naming(names, lambda name: name, notes)]
    modules = {_unwrapped(name): name for name, _ in model.named_modules()}
    if any(bare[old] != new for old, new in names.items()):
        notes.append("with the names that wrappers add taken out")

    def naming(change: "_Prefix") -> Naming | None:
        changed = {old: change.apply(new) for old, new in bare.items()}
        if len(set(changed.values())) < len(changed):
            return None

        def module(name: str) -> str:
            start = _begun(f"{name}." if name else "", rename)  # of the names of its tensors
            inner = change.apply(_unwrapped(start)).removesuffix(".")
            return modules.get(inner, inner)

        found = {old: plain.get(new, new) for old, new in changed.items()}
        return Naming(found, module, [*notes, *change.notes()])

    changes = _ranked(bare, plain, own, state)
    ways = (way for change in changes if (way := naming(change)) is not None)
    best = next(ways)
    # Nothing of the model is missing: no other way is better.
    if own.keys() <= set(best.names.values()):
        return [best]
    # Hooks of the model may rename what follows a prefix that all names share: those come next.
    shared = [change for change in changes if change.is_shared(bare.values(), plain)]
    others = [naming(change) for change in (_Prefix(), *shared)]
    return [best, *[way for way in others if way is not None and way.notes != best.notes]][:_TRIALS]


def check_ignored(names: Iterable[str], ignore: Sequence[str]) -> None:
    """Refuse patterns that match no name.

    Raises:
        InvalidArgumentError: there is one.
    """
    names = list(names)
    for pattern in ignore:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InvalidArgumentError(f"ignore {pattern!r} matches no name in file or model")


def fits(first: Shape, second: Shape) -> bool:
    """Whether a tensor of one shape goes into one of the other.

    >>> fits((2, 3), (2, 3)), fits((2, 3), None), fits((2,), (3,))
    (True, True, False)
    """
    return first is None or second is None or first == second


@dataclass(frozen=True)
class _Prefix:
    """The beginning of names that is taken off those of the file, or put before them."""

    strip: str = ""
    add: str = ""

    def apply(self, name: str) -> str:
        return self.add + (name.removeprefix(self.strip))

    def notes(self) -> list[str]:
        if self.strip:
            return [f"with the prefix {self.strip!r} taken off"]
        return [f"with the prefix {self.add!r} put before"] if self.add else []

    def is_shared(self, names: Iterable[str], own: Iterable[str]) -> bool:
        beginning, sharers = (self.strip, names) if self.strip else (self.add, own)
        return beginning != "" and all(name.startswith(beginning) for name in sharers)


def _ranked(
    bare: Mapping[str, str],
    plain: Mapping[str, str],
    own: Mapping[str, Shape],
    state: Mapping[str, Shape],
) -> list[_Prefix]:
    """Return what may be taken off or put before; first what makes most tensors fit.

    Of as many, no change comes before changes, and short prefixes before long ones.

    Args:
        bare: name in the file -> the same without wrappers.
        plain: name in the model without wrappers -> with them.
        own: name -> shape, of the model.
        state: name -> shape, of the file.
    """
    files = {new: old for old, new in bare.items()}

    def fit(name: str, old: str) -> bool:
        return name in plain and fits(state[old], own[plain[name]])

    as_it_is = sum(fit(new, old) for new, old in files.items())
    # Counted from both sides at once, so that a thousand prefixes cost no more than one.
    strips: Counter[str] = Counter()
    adds: Counter[str] = Counter()
    for new, old in files.items():
        for beginning in _beginnings(new):
            strips[beginning] += fit(new[len(beginning) :], old) - fit(new, old)
    for name in plain:
        for beginning in _beginnings(name):
            rest = name[len(beginning) :]
            adds[beginning] += rest in files and fit(name, files[rest])
    counts = {_Prefix(): as_it_is}
    counts |= {_Prefix(strip=b): as_it_is + strips[b] for b in sorted(strips, key=len)}
    counts |= {_Prefix(add=b): adds[b] for b in sorted(adds, key=len)}
    return sorted(counts, key=lambda change: -counts[change])


def _beginnings(name: str) -> list[str]:
    """Return the beginnings `a.`, `a.b.`, ... of a dotted name, the shorter ones first.

    >>> _beginnings("a.b.weight")
    ['a.', 'a.b.']
    """
    parts = name.split(".")
    depths = range(1, min(_PREFIX_DEPTH, len(parts) - 1) + 1)
    return [".".join(parts[:depth]) + "." for depth in depths]


def _renamed(names: Sequence[str], rename: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return old -> new names after the caller's own wishes."""
    for old in rename:
        if not any(name.startswith(old) for name in names):
            first = ", ".join(list(names)[:4])
            raise InvalidArgumentError(
                f"rename {old!r}: no name in the file begins so; it holds {first}, ..."
            )
    result = {name: _begun(name, rename) for name in names}
    seen: dict[str, str] = {}
    for old, new in result.items():
        if new in seen:
            raise InvalidArgumentError(f"rename makes {seen[new]} and {old} both {new}")
        seen[new] = old
    return result, [f"renamed: {old!r} to {new!r}" for old, new in rename.items()]


def _begun(name: str, rename: Mapping[str, str]) -> str:
    """Return a name with the longest beginning that was named in place of its own."""
    # Of `net.` and `net.head.` the one that says more about a name.
    longest = max((old for old in rename if name.startswith(old)), key=len, default=None)
    return name if longest is None else rename[longest] + name[len(longest) :]


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
