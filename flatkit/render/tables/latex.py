"""Tables as LaTeX, with the rules of booktabs; they compile with it alone."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from textwrap import wrap

from rich.cells import cell_len

from flatkit.render.tables.sheet import GAP, Sheet, Text

_PAGE_WIDTH, _PAGE_ROWS = 79, 39
"""Digits and lines, in small type, of a page of the class `article`, with a caption."""
_LAYOUT = r"\centering\small\setlength{\tabcolsep}{4pt}"
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"$<$", ">": r"$>$", "|": r"$|$",
    "[": "{[}", "*": "{*}",  # which a rule or the end of a row before them takes for its argument
}  # fmt: skip
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi o pi rho varsigma "
    "sigma tau upsilon phi chi psi omega"
)
_LETTERS = {
    **{chr(ord("α") + n): rf"$\{name}$" for n, name in enumerate(_GREEK.split())},
    **{chr(ord("Α") + n): rf"$\{name.capitalize()}$" for n, name in enumerate(_GREEK.split())
       if chr(ord("Α") + n) in "ΓΔΘΛΞΠΣΦΨΩ"},
    **{digit: f"$^{n}$" for n, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{digit: f"$_{n}$" for n, digit in enumerate("₀₁₂₃₄₅₆₇₈₉")},
    "ο": "o", "µ": r"$\mu$", "⁻": "$^-$", "−": "$-$", "±": r"$\pm$", "·": r"$\cdot$",
    "×": r"$\times$", "≥": r"$\geq$", "≤": r"$\leq$", "≠": r"$\neq$", "≈": r"$\approx$",
    "∇": r"$\nabla$", "∂": r"$\partial$", "‖": r"$\|$", "∞": r"$\infty$", "∈": r"$\in$",
    "ℓ": r"$\ell$", "√": r"$\surd$", "→": r"$\to$", "←": r"$\gets$", "–": r"\textendash{}",
    "…": r"\ldots{}",
}  # fmt: skip
_WITHOUT_A_GLYPH = re.compile("[«»ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ„‹›]|[^\x00-\u017f–—‘’“”•†‡€™‰]")
"""What the fonts of LaTeX's default encoding do not hold; tried one by one."""


def latex(sheet: Sheet, *, width: int = _PAGE_WIDTH) -> str:
    r"""Return a sheet as a table of LaTeX, with the rules of booktabs; the flattest is bold.

    It needs no package but booktabs. Wide tables become several `tabular`s, folded by measure, and
    what is longer than a page several tables; warnings stand as comments, and what the marks mean
    in the caption.

    >>> from flatkit.render.tables.sheet import Column
    >>> columns = [Column("run", number=False), Column("λmax")]
    >>> print(latex(Sheet(columns, [[Text("sgd_1"), Text("2.0 ± 0.1")]])))
    % \usepackage{booktabs}
    \begin{table}
    \centering\small\setlength{\tabcolsep}{4pt}
    \begin{tabular}{lr}
    \toprule
    run & $\lambda_{\max}$ \\
    \midrule
    sgd\_1 & 2.0 $\pm$ 0.1 \\
    \bottomrule
    \end{tabular}
    \end{table}
    """
    tables = list(_tables(sheet, width))
    caption = "; ".join(map(in_latex, [*sheet.head, *sheet.notes_marked("bold")]))
    body: list[str] = []
    for number, parts in enumerate(tables):
        body += [r"\begin{table}", _LAYOUT]
        for place, part in enumerate(parts):
            body += [*([r"\par\medskip"] if place else []), *_tabular(part, width)]
        words = "Continued." if number else f"{caption}." if caption else ""
        body += [rf"\caption{{{words}}}"] if words else []
        body += [r"\end{table}"]
    # At these pdfLaTeX stops.
    strange = sorted(set(_WITHOUT_A_GLYPH.findall("\n".join(body))))
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            *([f"% For {' '.join(strange)} take XeLaTeX or LuaLaTeX."] if strange else []),
            *(f"% {' '.join(line.split())}" for line in sheet.warnings),
            *body,
        ]
    )


def _tables(sheet: Sheet, width: int) -> Iterator[list[Sheet]]:
    """Yield what stands in each table: folded to the width, cut to the rows of a page."""
    page: list[Sheet] = []
    for part in sheet.folded(width, _widths(sheet)):
        for start in range(0, max(1, len(part.rows)), _PAGE_ROWS):
            piece = replace(part, rows=part.rows[start : start + _PAGE_ROWS])
            if page and sum(_lines(one) for one in [*page, piece]) > _PAGE_ROWS:
                yield page
                page = []
            page.append(piece)
    yield page


def _lines(sheet: Sheet) -> int:
    return len(sheet.rows) + max(map(len, _titles(sheet))) + 1  # of rules


def _widths(sheet: Sheet) -> list[int]:
    """Return what each column takes, in widths of a digit."""
    titles = [max(map(len, title)) for title in _titles(sheet)]
    cells = [max(map(_width, column), default=0) for column in zip(*sheet.rows, strict=True)]
    return [max(pair) for pair in zip(titles, cells or titles, strict=True)]


def _width(text: Text) -> int:
    words = text.marked("")
    # A power of ten is set as × 10 with an exponent, and signs are wider than digits.
    powers, signs = len(re.findall(r"[\d)]e-?\d", words)), len(re.findall("[-−±]", words))
    return math.ceil((cell_len(words) + 3 * powers + 0.5 * signs) * (1.15 if text.strong else 1.0))


def _titles(sheet: Sheet) -> list[list[str]]:
    """Return the lines of the title of each column, as wide as the column or their longest word."""
    glued = [column.title.replace(" = ", "\0=\0") for column in sheet.columns]
    lines = [wrap(t, w, break_long_words=False) for t, w in zip(glued, sheet.widths(), strict=True)]
    return [[line.replace("\0", " ") for line in title] or [""] for title in lines]


def _tabular(sheet: Sheet, width: int) -> list[str]:
    layout = "".join("r" if column.number else "l" for column in sheet.columns)
    whole = [[column.title] for column in sheet.columns]
    wide = sum(map(max, _widths(sheet), (len(title) for (title,) in whole))) + GAP * len(whole)
    titles = whole if wide <= width else _titles(sheet)
    heads = [_head(title, side) for title, side in zip(titles, layout, strict=True)]
    rows = [_row([_cell(text) for text in row]) for row in sheet.rows]
    begin = [rf"\begin{{tabular}}{{{layout}}}", r"\toprule", _row(heads), r"\midrule"]
    return [*begin, *rows, r"\bottomrule", r"\end{tabular}"]


def _head(lines: Sequence[str], side: str) -> str:
    if len(lines) == 1:
        return in_latex(lines[0])
    stacked = r"\\".join(map(in_latex, lines))
    return rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}{stacked}\end{{tabular}}"


def _cell(text: Text) -> str:
    words = in_latex(text.marked(""))
    return rf"\textbf{{\boldmath {words}}}" if text.strong else words


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def in_latex(text: str) -> str:
    r"""Return a text in one line, what LaTeX would misread escaped, and mathematics in commands.

    >>> in_latex("50 % of a_b & c"), in_latex("R1/ρ² (ρ = 0.1)"), in_latex("4.1e-6")
    ('50 \\% of a\\_b \\& c', 'R1/$\\rho^2$ ($\\rho$ = 0.1)', '4.1$\\times10^{-6}$')
    """
    mathematics = r"(λmax|(?<=\d)e-?\d+|(?<![\w.])-(?=[\d∞])|(?<=\))e-?\d+)"
    found: list[str] = []
    for number, part in enumerate(re.split(mathematics, " ".join(text.split()))):
        # The odd parts are those that the pattern in parentheses took.
        if number % 2 == 0:
            plain = "".join(_SPECIAL.get(c) or _LETTERS.get(c, c) for c in part)
            found.append(re.sub("-(?=-)", "-{}", plain))  # which would become one dash
        elif part == "λmax":
            found.append(r"$\lambda_{\max}$")
        else:
            found.append("$-$" if part == "-" else rf"$\times10^{{{part[1:]}}}$")
    return re.sub(r"(?<!\\)\$\$", "", "".join(found))  # of two formulas side by side one
