"""The figure of a study: the effect of every claim with its interval, a row an arm."""

from collections.abc import Sequence
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from flatkit.errors import NothingToDrawError
from flatkit.render.axes import tick_text
from flatkit.render.figures.legend import legend_above
from flatkit.render.style import MUTED, footnote, looks, panels, styled, tidy
from flatkit.render.written import title
from flatkit.studies.claims import Claim
from flatkit.studies.outcome import Outcome

_ROW, _FRAME, _PER_CHARACTER = 0.3, 0.85, 0.075
"""Inches of a row, of title and ticks, and of a letter of a name."""
_NAME_WIDTH = 30
_VERDICTS = {"holds": "sgd", "fails": "sam", "cannot tell": "gam"}
"""Verdict -> the name whose look it takes: three that are told apart in grey, too."""


def claims_figure(outcome: Outcome, *, condition: str | None = None) -> Figure:
    """Draw the effects of the claims of a study with their 95 % intervals.

    A panel is a claim, a row an arm and what it is held against. A flatness is drawn as a multiple
    of the other arm's, below 1 where the arm is flatter; an accuracy as a difference in percent.
    Claims at equal training loss are in the table alone.

    Args:
        outcome: of the study.
        condition: of the study; by default the first.

    Raises:
        NothingToDrawError: no claim has an effect.
    """
    chosen = next(iter(outcome.comparisons), "") if condition is None else condition
    found = [
        claim
        for claim in outcome.claims
        if claim.condition == chosen
        and claim.effect is not None
        and " at training loss " not in claim.claim
    ]
    if not found:
        raise NothingToDrawError(
            f"no claim has an effect in condition {chosen!r}; a study needs two arms with a seed "
            f"in common; its conditions are {', '.join(map(repr, outcome.comparisons)) or 'none'}"
        )
    claims = list(dict.fromkeys(claim.claim for claim in found))
    rows = list(dict.fromkeys(_row(claim) for claim in found))
    with styled():
        longest = max(map(len, rows))
        figure, axes = panels(
            len(claims),
            width=1.75,
            height=_FRAME + _ROW * len(rows),
            per_row=5,
            margins=(0.15 + _PER_CHARACTER * min(longest, _NAME_WIDTH), 0.55),
            sharey=True,
        )
        for axis, name in zip(axes, claims, strict=True):
            _draw(axis, [claim for claim in found if claim.claim == name], rows)
        axes[0].set_yticks(range(len(rows)), ["\n".join(wrap(r, _NAME_WIDTH)) for r in rows])
        # The first row on top, as in the table.
        axes[0].set_ylim(len(rows) - 0.5, -0.5)
        tidy(axes)
        for axis in axes:
            axis.tick_params(axis="y", length=0)
        legend_above(figure, _handles([claim.verdict for claim in found]))
        where = f"{chosen}: " if chosen else ""
        seeds = _seeds_text([claim.pairs for claim in found])
        footnote(figure, f"{where}mean over {seeds} with its 95 % interval; line: no effect")
    return figure


def _seeds_text(pairs: Sequence[int]) -> str:
    """Return over how many seeds the effects are means; a run that diverged leaves one out.

    >>> _seeds_text([3, 3]), _seeds_text([2, 3]), _seeds_text([1])
    ('3 seeds', '2 to 3 seeds', '1 seed')
    """
    low, high = min(pairs), max(pairs)
    return f"{low} to {high} seeds" if low < high else f"{low} seed{'s' * (low != 1)}"


def _row(claim: Claim) -> str:
    return f"{claim.arm} against {claim.against}"


def _draw(axis: Axes, claims: Sequence[Claim], rows: Sequence[str]) -> None:
    ratio = claims[0].effect_is == "ratio"
    scale = 1.0 if ratio else 100.0
    axis.axvline(1.0 if ratio else 0.0, color=MUTED, linewidth=0.8, zorder=1)
    for claim in claims:
        place, look = rows.index(_row(claim)), looks(list(_VERDICTS.values()))
        own = look[_VERDICTS[claim.verdict]]
        effect = scale * (claim.effect or 0.0)
        if claim.low is not None and claim.high is not None:
            ends = [scale * claim.low, scale * claim.high]
            axis.plot(ends, [place, place], color=own.colour, linewidth=1.6, zorder=2)
        axis.plot(
            [effect],
            [place],
            color=own.colour,
            linestyle="none",
            marker=own.marker,
            markersize=5.5,
            markeredgecolor="white",
            zorder=3,
        )
    name = claims[0].claim.partition(": ")[2]
    axis.set_title(title(name if ratio else f"{name} (%)"))
    axis.grid(False, axis="y")
    if ratio:
        # A half and a double are as far from no effect.
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        narrow = high < 30 * low
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("← flatter, times")
        return
    axis.margins(x=0.12)
    axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axis.set_xlabel("better →")


def _handles(verdicts: Sequence[str]) -> list[Line2D]:
    look = looks(list(_VERDICTS.values()))
    return [
        Line2D([], [], color=look[name].colour, marker=look[name].marker, markersize=5.5,
               linewidth=1.6, label=verdict)
        for verdict, name in _VERDICTS.items()
        if verdict in verdicts
    ]  # fmt: skip
