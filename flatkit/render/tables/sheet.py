"""A table before it has a format: columns, cells with their marks, and the lines around them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len

GAP = 2
"""Characters between two columns."""


@dataclass(frozen=True)
class Text:
    """The text of a cell.

    Attributes:
        plain: what it says.
        strong: whether it is to be marked, as the flattest of its column.
        doubtful: whether the measurement did not do what it was asked.

    >>> Text("2.0", strong=True, doubtful=True).marked()
    '2.0!*'
    """

    plain: str
    strong: bool = False
    doubtful: bool = False

    def marked(self, mark: str = "*") -> str:
        """Return the text with its marks."""
        return self.plain + ("!" if self.doubtful else "") + (mark if self.strong else "")


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        title: above it.
        block: columns of one block stay together where a table is folded.
        number: whether it holds numbers, which stand to the right.
    """

    title: str
    block: str = ""
    number: bool = True


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        columns: of which the first `leading` name the rows, and are repeated where it is folded.
        rows: a text for each column.
        leading: how many columns name the rows.
        head: lines above: what was measured.
        warnings: lines below that must not be overlooked.
        notes: lines below: what the marks mean.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Text]]
    leading: int = 1
    head: Sequence[str] = ()
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()

    def widths(self) -> list[int]:
        """Return how many characters each column takes: its widest cell or word of its title."""
        return [
            max(
                [
                    *(cell_len(word) for word in column.title.replace(" = ", "=").split()),
                    *(cell_len(row[place].marked()) for row in self.rows),
                    0,
                ]
            )
            for place, column in enumerate(self.columns)
        ]

    def notes_marked(self, mark: str) -> list[str]:
        """Return the notes, with a word for what marks the flattest in a format."""
        return [f"{mark}{note[1:]}" if note.startswith("*: ") else note for note in self.notes]

    def folded(self, width: int, widths: Sequence[int] | None = None) -> "list[Sheet]":
        """Return tables of at most so many characters, one below the other; blocks stay whole.

        A block that is wider alone is broken, and a column is never.

        Args:
            width: in characters.
            widths: of the columns, if other than those of `widths`.

        >>> columns = [Column("run"), *(Column(name, name[0]) for name in ("a1", "a2", "b1"))]
        >>> sheet = Sheet(columns, [[Text("sgd"), Text("1.00"), Text("2.00"), Text("3.00")]])
        >>> [[column.title for column in part.columns] for part in sheet.folded(18)]
        [['run', 'a1', 'a2'], ['run', 'b1']]
        """
        taken = list(self.widths() if widths is None else widths)
        first = list(range(self.leading))
        fixed = sum(taken[place] + GAP for place in first)
        parts: list[list[int]] = [[]]
        used = fixed
        for block in self._blocks():
            needed = sum(taken[place] + GAP for place in block)
            if parts[-1] and used + needed > width:
                parts.append([])
                used = fixed
            for place in block:
                if parts[-1] and used + taken[place] + GAP > width:
                    parts.append([])
                    used = fixed
                parts[-1].append(place)
                used += taken[place] + GAP
        return [self._only([*first, *part]) for part in parts]

    def _blocks(self) -> list[list[int]]:
        blocks: list[list[int]] = []
        for place in range(self.leading, len(self.columns)):
            block, before = self.columns[place].block, self.columns[place - 1].block
            # A column without a block is one by itself.
            if blocks and block and block == before:
                blocks[-1].append(place)
            else:
                blocks.append([place])
        return blocks

    def _only(self, places: Sequence[int]) -> "Sheet":
        rows = [[row[place] for place in places] for row in self.rows]
        return replace(self, columns=[self.columns[place] for place in places], rows=rows)
