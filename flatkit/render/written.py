"""Names in figures: broken into lines, else as they are written, and never formulas."""

from textwrap import wrap

from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FuncFormatter

# In DejaVu Sans 32 characters of 9.5 pt take about 2.4 inches, and the narrowest panel with a name
# for a title has 2.6.
_TITLE_WIDTH = 32


def title(name: str) -> str:
    """Return a name in lines short enough for the title of a panel.

    >>> title("gam")
    'gam'
    """
    return "\n".join(wrap(name, _TITLE_WIDTH)) or name


def take_as_written(figure: Figure) -> None:
    """Let no name of a run be a formula, as matplotlib takes what stands between two dollars.

    Ticks that are numbers keep theirs, which are powers of ten.

    >>> figure = Figure()
    >>> shown = figure.text(0.0, 0.0, "cost$1 and $2")
    >>> take_as_written(figure)
    >>> shown.get_parse_math()
    False
    """
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axis in figure.axes:
        texts += [axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts]
        for side in (axis.xaxis, axis.yaxis):
            # What matplotlib makes of `set_yticks` with labels, and our own words for numbers.
            if isinstance(side.get_major_formatter(), FixedFormatter | FuncFormatter):
                texts += side.get_ticklabels()
    for text in texts:
        text.set_parse_math(False)
