"""What does not fit between a file and a model, as a table, and what would help."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from flatkit.checkpoints.matching import Shape, fits

_ROWS = 8  # a wrong model misses hundreds of names, and the first few show the pattern
"""Rows of each kind in the table."""


@dataclass(frozen=True)
class Mismatch:
    """Names that are left over.

    Attributes:
        missing: in the model alone.
        unexpected: in the file alone.
        misshaped: pairs (name in the file, name in the model) of different shapes.
        unread: name in the model -> what the file has for it, and flatkit does not read.
    """

    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    misshaped: Sequence[tuple[str, str]] = ()
    unread: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshaped or self.unread)

    def summary(self) -> str:
        """Return how many of each kind.

        >>> Mismatch(missing=["a"], unexpected=["b", "c"]).summary()
        '1 missing, 2 unexpected'
        """
        counts = {
            "missing": len(self.missing),
            "unexpected": len(self.unexpected),
            "of another shape": len(self.misshaped),
            "not read": len(self.unread),
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)

    def lines(self, state: Mapping[str, Shape], own: Mapping[str, Shape]) -> list[str]:
        """Return the table and what would help, a line each.

        Args:
            state: name -> shape, of the file.
            own: name -> shape, of the model.
        """
        pairs = _pairs(self.missing, self.unexpected, state, own)
        rows = [("not read", name, "", words) for name, words in [*self.unread.items()][:_ROWS]]
        rows += _more("not read", [*self.unread])
        for kind, names, shapes in (
            ("missing", self.missing, own),
            ("unexpected", self.unexpected, state),
        ):
            for name in names[:_ROWS]:
                other = pairs.get(name, "")
                hint = f"is it {other} in the {'file' if kind == 'missing' else 'model'}?"
                rows.append((kind, name, _text(shapes[name]), hint if other else "-"))
            rows += _more(kind, names)
        for old, name in self.misshaped[:_ROWS]:
            theirs, ours = list(state[old] or ()), list(own[name] or ())
            rows.append(
                (
                    "shape",
                    name,
                    f"{theirs} in the file, {ours} in the model",
                    _reshaping(theirs, ours),
                )
            )
        rows += _more("shape", self.misshaped)
        return [*_aligned(rows), *self._help(pairs), *self._nameless(state, own)]

    def _help(self, pairs: Mapping[str, str]) -> list[str]:
        lines = []
        renames = {
            beginning: None
            for name in self.unexpected
            if name in pairs and (beginning := _beginnings(name, pairs[name]))
        }
        if renames:
            options = " ".join(f"`rename` {old}={new}" for old, new in renames)
            python = {old: new for old, new in renames}  # noqa: C416
            lines.append(f"try {options} (from Python: rename={python})")
        alone = [name for name in self.unexpected if name not in pairs]
        lacking = [name for name in self.missing if name not in pairs]
        # What is left over may be what is missing, under a name that nobody recognised: to leave it
        # out would leave a layer at random.
        if alone and not lacking and not self.misshaped and not self.unread:
            common = _common(alone)
            lines.append(
                f"what the model has no use for can be left out: `ignore` {common!r} "
                f"(from Python: ignore=[{common!r}])"
            )
        elif lacking and not alone and not self.misshaped:
            lines.append("the file has nothing for what is missing: build the model that was saved")
        return lines

    def _nameless(self, state: Mapping[str, Shape], own: Mapping[str, Shape]) -> list[str]:
        """Return what would help a list of tensors, such as the shadow of an average."""
        numbers = [name.rpartition(".")[2].removeprefix("arr_") for name in self.unexpected]
        shapes = [state[name] for name in self.unexpected]
        if not numbers or not all(number.isdigit() for number in numbers):
            return []
        fit = shapes == [own[name] for name in self.missing]
        return [
            "the file has tensors without names"
            + (", in number and shape those that are missing, in their order" if fit else "")
            + "; save them by name, e.g. dict(zip(dict(model.named_parameters()), tensors))"
        ]


def _pairs(
    missing: Sequence[str],
    unexpected: Sequence[str],
    state: Mapping[str, Shape],
    own: Mapping[str, Shape],
) -> dict[str, str]:
    """Return both ways which missing name may be which unexpected one: one shape, like names."""
    pairs: dict[str, str] = {}
    for name in missing:
        *_, parent, leaf = ("", *name.split("."))
        alike = [
            other
            for other in unexpected
            if fits(state[other], own[name]) and other.rpartition(".")[2] == leaf
        ]
        # Of several matrices of one shape (those of attention) a wrong guess would go unnoticed.
        related = [other for other in alike if other.split(".")[-2:-1] == [parent]]
        free = [other for other in related or alike if other not in pairs]
        if free and (related or len(alike) == 1):
            best = max(free, key=lambda other: SequenceMatcher(None, name, other).ratio())
            pairs[name], pairs[best] = best, name
    return pairs


def _beginnings(old: str, new: str) -> tuple[str, str] | None:
    """Return how two names begin before the dotted end that they share.

    >>> _beginnings("classifier.weight", "fc.weight")
    ('classifier.', 'fc.')
    """
    first, second = old.split("."), new.split(".")
    shared = 0
    while shared < min(len(first), len(second)) - 1 and first[-1 - shared] == second[-1 - shared]:
        shared += 1
    if not shared:
        return None
    heads = (first[: len(first) - shared], second[: len(second) - shared])
    start, end = (".".join(head) + "." if head else "" for head in heads)
    return start, end


def _reshaping(theirs: Sequence[int], ours: Sequence[int]) -> str:
    """Return what may be the matter with a shape."""
    if theirs == [0] != ours:
        return "empty, as DeepSpeed ZeRO-3 and FSDP leave it; join the parts of the ranks first"
    if len(theirs) == len(ours) == 2 and theirs == [*reversed(ours)]:
        return "transposed: one of them multiplies as x @ W; store it transposed"
    if theirs and ours and theirs[1:] == ours[1:]:
        return f"build the model for {theirs[0]} outputs (classes, words), not {ours[0]}"
    if [n for n in theirs if n != 1] == [n for n in ours if n != 1]:
        return "the same but for dimensions of 1; reshape it"
    if len(theirs) == len(ours) > 1 and theirs[0] == ours[0] and theirs[2:] == ours[2:]:
        return f"build the model for {theirs[1]} inputs (channels, width), not {ours[1]}"
    return "build the model with the widths of the file"


def _common(names: Sequence[str]) -> str:
    """Return one shell pattern for names: their common beginning, or the first of them."""
    start = names[0]
    for name in names[1:]:
        while not name.startswith(start):
            start = start[:-1]
    head = start.rpartition(".")[0]
    if len(names) == 1:
        return names[0]
    return f"{head}.*" if head else names[0]


def _text(shape: Shape) -> str:
    return "[?]" if shape is None else str(list(shape))


def _more(kind: str, names: Sequence[object]) -> list[tuple[str, str, str, str]]:
    left = len(names) - _ROWS
    return [(kind, f"... and {left} more", "", "")] if left > 0 else []


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
