"""Tables of a study: the verdict on each claim, and what must be said beside them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from flatkit.comparison.statistics import statistics
from flatkit.render.notation import significant
from flatkit.render.tables.comparison import comparison_markdown, comparison_table
from flatkit.render.tables.folded import Folded, SheetTable
from flatkit.render.tables.formats import markdown
from flatkit.render.tables.sheet import Column, Sheet, Text
from flatkit.render.tables.verdict import VERDICT_COLOURS
from flatkit.results.comparison import Comparison
from flatkit.studies.claims import Claim
from flatkit.studies.outcome import Outcome

_KENDALL = "Kendall's τ over the runs, + where the sharper is the worse (95 %)"
_WIDE, _UNFOLDED = 110, 10_000
"""Characters of a line that holds a claim with its reason, and of one that is never folded."""
_NARROWEST = 30
"""Characters of a column of claims."""


def claims_table(claims: Sequence[Claim]) -> RenderableType:
    """Return the claims with their verdicts, for `rich.console.Console.print`.

    Where the reasons find no room beside the effects they stand below the claims.

    >>> from rich.console import Console
    >>> from flatkit.studies.claims import Asked, decide
    >>> asked = Asked("", "sam", "sgd", "flatter: trace tr H", "flatter", [0.9, 1.1, 1.0],
    ...               "ratio", 0.1)
    >>> Console(width=80).print(claims_table(decide([asked])))
    <BLANKLINE>
     sam against sgd      verdict  effect (95 %)...
    """
    pairs = dict.fromkeys((claim.arm, claim.against) for claim in claims)
    return Group(*(_PairTable(arm, against, claims) for arm, against in pairs))


@dataclass(frozen=True)
class _PairTable:
    """The claims of an arm against another, for rich."""

    arm: str
    against: str
    claims: Sequence[Claim]

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """Yield the table for the width at hand."""
        # Only here the width is known: a pipe has another one than the terminal.
        below, cells = options.max_width < _WIDE, [len(self.arm + self.against)]
        cells += [max(len(claim.claim), len(claim.briefly)) for claim in self.claims]
        # Claims and their reasons are words, which can be broken; effects are numbers.
        slack = max(0, max(cells) - _NARROWEST)
        yield Folded(self._table(below=below), slack=slack)

    def _table(self, *, below: bool) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        heading = f"{escape(self.arm)} against {escape(self.against)}"
        table.add_column(heading, overflow="fold", min_width=_NARROWEST)
        table.add_column("verdict", no_wrap=True)
        table.add_column("effect (95 %)", no_wrap=True)
        if not below:
            table.add_column("")
        for claim in self.claims:
            if (claim.arm, claim.against) == (self.arm, self.against):
                colour = VERDICT_COLOURS[claim.verdict]
                cells = [escape(claim.claim), f"[{colour}]{claim.verdict}[/{colour}]"]
                cells += [effect_text(claim), escape(claim.briefly)]
                if below:
                    why = cells.pop()
                    cells[0] += f"\n  [dim]{why}[/dim]" if why else ""
                table.add_row(*cells)
        return table


def claims_sheet(claims: Sequence[Claim]) -> Sheet:
    """Return the claims with their verdicts and reasons, for formats of text."""
    titles = ("arm", "against", "claim", "verdict", "effect (95 %)", "why")
    return Sheet(
        [Column(title, number=title.startswith("effect")) for title in titles],
        [
            [
                *map(Text, (claim.arm, claim.against, claim.claim)),
                Text(claim.verdict, strong=True),
                *map(Text, (effect_text(claim), claim.reason)),
            ]
            for claim in claims
        ],
        leading=len(titles) - 1,
    )


def study_tables(outcome: Outcome) -> RenderableType:
    """Return all tables of a study: for each condition the groups, then the claims."""
    parts: list[RenderableType] = [escape(outcome.study.title)] if outcome.study.title else []
    for condition, comparison in outcome.comparisons.items():
        if condition:
            parts.append(f"\n[bold]{escape(condition)}[/bold]")
        parts += [comparison_table(comparison), *study_notes(outcome, condition)]
        parts.append(claims_table([c for c in outcome.claims if c.condition == condition]))
        correlations = correlation_sheet(comparison)
        parts += [SheetTable(correlations)] if correlations.rows else []
    return Group(*parts)


def correlation_sheet(comparison: Comparison) -> Sheet:
    """Return how far the order of the runs by each flatness is that by what it should predict."""
    rows, titles = _correlations(comparison)
    return Sheet(
        [Column("", number=False), *map(Column, titles)],
        [[Text(name), *(Text(cells.get(t, "")) for t in titles)] for name, cells in rows.items()],
        head=[_KENDALL] if rows else [],
    )


def _correlations(comparison: Comparison) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return measure -> what it should predict -> τ with its interval, and all of the latter."""
    rows: dict[str, dict[str, str]] = {}
    titles: dict[str, None] = {}
    for one in statistics(comparison).correlations:
        # The page has them; here there is room for one τ a pair.
        if one.key.endswith(", granulated"):
            continue
        name, _, target = one.title.rpartition(" with ")
        span = "" if one.low is None else f" ({one.low:+.2f} to {one.high:+.2f})"
        rows.setdefault(name, {})[target] = f"{one.tau:+.2f}{span}"
        titles[target] = None
    return rows, list(titles)


def study_markdown(outcome: Outcome) -> str:
    """Return a study as Markdown: tables of the groups, claims with verdicts, what was chosen."""
    lines = [f"# {outcome.study.title or 'Study'}"]
    for condition, comparison in outcome.comparisons.items():
        if condition:
            lines.append(f"## {condition}")
        own = [claim for claim in outcome.claims if claim.condition == condition]
        lines += [comparison_markdown(comparison), markdown(claims_sheet(own), width=_UNFOLDED)]
        lines += ["\n".join(f"- {note}" for note in study_notes(outcome, condition))]
        correlations = correlation_sheet(comparison)
        lines += [markdown(correlations)] if correlations.rows else []
    return "\n\n".join(line for line in lines if line) + "\n"


def effect_text(claim: Claim) -> str:
    """Return an effect with its interval: a ratio to the base, or percent of the test set.

    >>> from flatkit.studies.claims import Asked, decide
    >>> asked = Asked("", "sam", "sgd", "generalises better", "generalises",
    ...               [0.01, 0.02, 0.03], "difference", 0.002)
    >>> effect_text(decide([asked])[0])
    '+2.00 (-0.48 to +4.48)'
    """
    if claim.effect is None:
        return ""
    if claim.effect_is == "ratio":
        text = f"{significant(claim.effect, 3)} times"
        if claim.low is None or claim.high is None:
            return text
        return f"{text} ({significant(claim.low, 3)} to {significant(claim.high, 3)})"
    text = f"{100 * claim.effect:+.2f}"
    if claim.low is None or claim.high is None:
        return text
    return f"{text} ({100 * claim.low:+.2f} to {100 * claim.high:+.2f})"


def study_notes(outcome: Outcome, condition: str) -> list[str]:
    """Return what must be said beside the claims of a condition, a line each."""
    chosen, found = outcome.choices.get(condition, {}), list[str]()
    for arm, values in chosen.items():
        words = ", ".join(f"{name} {value}" for name, value in values.items())
        found.append(f"chosen on the validation split for {arm}: {words}")
    for run, why in outcome.diverged.get(condition, {}).items():
        found.append(f"diverged: {run} ({why})")
    spent = outcome.gradients.get(condition, {})
    base = spent.get(outcome.study.base)
    if base:
        words = ", ".join(f"{arm} {number / base:.2g}" for arm, number in spent.items())
        found.append(f"gradients of batches, in those of {outcome.study.base}: {words}")
    return found
