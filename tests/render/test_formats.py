"""Tables in files: each is read back by what reads such files, and names break none of them."""

import csv
import io
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from typing import Any

import pandas
import pytest

from flatkit.errors import InvalidArgumentError
from flatkit.render.frames import COLUMNS
from flatkit.render.tables.latex import in_latex, latex
from flatkit.render.tables.sheet import Column, Sheet, Text
from flatkit.results import Comparison, Entry, Report, Result

NAMES = ("sgd_50% & <b>|x|</b>", "{gam} #1 ~ $x^2$ \\ ‖α‖")
RADII = (0.01, 0.05, 0.1)


def report(top=3.0, trace=24.0, status="converged"):
    return Report(
        [
            Result("loss", 0.5123, 0.0, settings={"split": "train"}),
            Result("accuracy", 0.955, 0.0, settings={"split": "test"}),
            Result("top_eigenvalues", [top, 1.0], [1e-4, 1e-4], "residual", status=status),
            Result("trace", trace, 0.5, "standard_error"),
            *(
                Result(name, top * rho**2, None, "lower_bound", settings={"rho": rho})
                for name in ("zeroth_order_sharpness", "first_order_flatness")
                for rho in RADII
            ),
        ],
        checkpoint={"epoch": 60, "training": {"seed": 7}},
    )


def comparison(names=NAMES, seeds=3):
    return Comparison(
        [
            Entry(
                f"{name}, seed {seed}",
                name,
                report(3.0 + place + 0.01 * seed * (place + 1)),
                seed=str(seed),
            )
            for place, name in enumerate(names)
            for seed in range(seeds)
        ]
    )


class Cells(HTMLParser):
    """The texts of the cells of each row, and which tags were left open."""

    def __init__(self):
        super().__init__()
        self.rows, self.open, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.text = ""

    def handle_data(self, data):
        self.text += data

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.rows[-1].append(self.text)


def tabulars(text):
    """Return layout and rows of cells of every tabular but those that are one title."""
    found = []
    text = re.sub(r"\\begin\{tabular\}\[b\].*?\\end\{tabular\}", "title", text)
    for layout, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        found.append((layout, [re.split(r"(?<!\\)&", row) for row in rows]))
    return found


@pytest.mark.parametrize("format", ["text", "markdown", "latex", "html", "csv"])
def test_one_group_has_no_pairs_and_a_table_without_rows(format):
    assert "Error" not in comparison(("a",)).table(format, pairs=True)


def test_the_name_of_a_file_with_a_line_break_ends_no_table_of_markdown():
    text = comparison(("a\nb", "c")).table("markdown")
    assert "\n| a\\nb | " in text


@pytest.mark.parametrize("names", [NAMES, tuple("abcdefghi")])
def test_csv_is_a_tidy_table_in_full_precision(names):
    shown = comparison(names)
    frame: Any = pandas.read_csv(io.StringIO(shown.table("csv")))
    assert tuple(frame.columns) == COLUMNS
    assert set(frame["group"]) == set(names) and set(frame["seed"]) == {0, 1, 2}
    assert len(frame) == 3 * len(names) * (2 + 2 + 1 + 3 * 3)
    top = frame[(frame.measure == "top_eigenvalues") & (frame.group == names[1])]
    assert top["value"].tolist() == [4.0, 4.02, 4.04] and set(top["kind"]) == {"residual"}
    flat = frame[frame.measure == "first_order_flatness"]
    assert set(flat["rho"]) == set(RADII) and flat["error"].isna().all()
    assert set(frame[frame.measure == "accuracy"]["split"]) == {"test"}
    assert set(frame["epoch"]) == {60}


def test_the_csv_of_pairs_has_the_numbers_of_the_statistics():
    shown = comparison()
    rows = list(csv.DictReader(io.StringIO(shown.table("csv", pairs=True))))
    (pair,) = (row for row in rows if row["quantity"] == "top_eigenvalues")
    (known,) = shown.statistics().quantities["top_eigenvalues"].pairs
    assert float(pair["difference"]) == known.difference == pytest.approx(-1.01)
    assert float(pair["p_holm"]) == known.p_holm and pair["paired_by"] == "seed"


def test_what_is_the_same_of_all_pairs_is_a_line_below_them():
    alike = comparison(("a", "b")).table("markdown", pairs=True)
    assert "runs of each pair: 3, paired: by seed" in alike and "| runs |" not in alike
    several = Comparison([*comparison(("a", "b")).entries, Entry("c", "c", report())])
    text = several.table("markdown", pairs=True)
    assert "runs of each pair" not in text and "| runs | paired |" in text


def test_html_closes_every_tag_and_shows_names_as_they_are():
    for shown in (comparison(), comparison()[f"{NAMES[0]}, seed 0"], Report([])):
        parser = Cells()
        parser.feed(shown.table("html"))
        assert parser.open == [] and len({len(row) for row in parser.rows}) == 1
    parser = Cells()
    parser.feed(comparison().table("html"))
    assert [row[0] for row in parser.rows] == ["group", *NAMES]
    assert "<b>" not in comparison().table("html")


@pytest.mark.parametrize("pairs", [False, True])
def test_every_row_of_latex_has_as_many_cells_as_its_layout_and_no_raw_special_character(pairs):
    text = comparison().table("latex", pairs=pairs)
    found = tabulars(text)
    assert len(found) >= (1 if pairs else 2)
    for layout, rows in found:
        assert {len(row) for row in rows} == {len(layout)} and len(rows) >= 3
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == len(found)
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    without = re.sub(r"\$(\\[a-zA-Z]+(\{[^{}]*\})?|[\^_<>|\d{}-]|\\\|)+\$", "", body)
    assert not re.search(r"(?<!\\)[#_^~<>|]|(?<!\\)%|[^\x00-\x7f]", without), without
    assert body.count("{") - body.count(r"\{") == body.count("}") - body.count(r"\}")


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("a_b & 50%", r"a\_b \& 50\%"),
        ("λmax", r"$\lambda_{\max}$"),
        ("(3.56 ± 0.25)e-4", r"(3.56 $\pm$ 0.25)$\times10^{-4}$"),
        ("-0.5 to 2e5", r"$-$0.5 to 2$\times10^{5}$"),
        ("one-step", "one-step"),
        ("\\", r"\textbackslash{}"),
        ("[a] *b", "{[}a] {*}b"),
        ("-∞ a--b", r"$-\infty$ a-{}-b"),
        ("β₃\n\nµ", r"$\beta_3$ $\mu$"),
    ],
)
def test_latex_writes_mathematics_and_escapes_the_rest(text, tex):
    assert in_latex(text) == tex


HOSTILE = (*NAMES, "[x] a--b \"q\" 'r' `s`", "*β-µ é ü ≠ ∈ ₃ ³", "two\n\nlines")


def many_runs():
    return Comparison([Entry(f"run {n}", f"run {n}", report(1.0 + n)) for n in range(60)])


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        pytest.param(lambda: comparison(("sgd", "gam")).table("latex"), True, id="groups"),
        pytest.param(lambda: comparison(("a", "b")).table("latex", pairs=True), True, id="pairs"),
        pytest.param(lambda: report(math.inf).table("latex"), True, id="infinite"),
        pytest.param(lambda: many_runs().table("latex"), True, id="pages"),
        pytest.param(lambda: comparison(HOSTILE, 1).table("latex"), True, id="names"),
        pytest.param(
            lambda: comparison(HOSTILE).table("latex", pairs=True), False, id="long pairs"
        ),
    ],
)
def test_tables_of_latex_compile_with_booktabs_alone_and_fit_the_page(text, fits, tmp_path):
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("no pdflatex, so nothing was compiled: install texlive-latex-recommended")
    lines = (r"\documentclass{article}", r"\usepackage{booktabs}", r"\begin{document}", text())
    (tmp_path / "table.tex").write_text("\n".join([*lines, r"\end{document}"]), encoding="utf-8")
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=100)
    said = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0 and (tmp_path / "table.pdf").exists(), said[-2000:]
    assert "too large" not in said
    assert not fits or "Overfull" not in said, said


def test_latex_says_which_characters_its_fonts_lack():
    sheet = Sheet([Column("run", number=False)], [[Text("网络 é β")]])
    assert "% For 络 网 take XeLaTeX or LuaLaTeX." in latex(sheet).splitlines()


def test_wide_tables_fold_by_measure_and_repeat_the_names():
    sheet = Sheet(
        [Column("run", number=False), *(Column(f"{m}{n}", m) for m in "ab" for n in (1, 2, 3))],
        [[Text("sgd"), *map(Text, ["1.000"] * 6)]],
    )
    parts = [[column.title for column in part.columns] for part in sheet.folded(35)]
    assert parts == [["run", "a1", "a2", "a3"], ["run", "b1", "b2", "b3"]]
    assert [len(part.columns) for part in sheet.folded(1000)] == [7]
    narrow = [[column.title for column in part.columns] for part in sheet.folded(1)]
    assert narrow == [["run", name] for name in ("a1", "a2", "a3", "b1", "b2", "b3")]
    assert latex(sheet, width=35).count(r"\begin{tabular}") == 2


def test_text_has_no_line_that_is_wider_than_it_says_and_no_lost_name():
    text = comparison(("a" * 25, "b" * 25)).table()
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("a" * 25) == text.count("b" * 25) >= 2


def test_an_unknown_format_is_answered_with_the_nearest():
    for shown in (comparison(), report()):
        with pytest.raises(InvalidArgumentError, match="did you mean 'markdown'"):
            shown.table("markdwn")


def test_what_did_not_converge_is_marked_in_every_format():
    shown = Comparison([Entry(n, n, report(status="budget")) for n in "ab"])
    assert "3.0000!" in shown.table("markdown") and "3.0000!" in shown.table("latex")
    assert "3.0000!" in shown.table("html") and ",budget" in shown.table("csv")
