"""The page of a report or comparison, as text; how a browser shows it is in `browser`."""

import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flatkit.errors import OutputError
from flatkit.render.html.document import page
from flatkit.render.html.sentences import summary
from flatkit.render.notation import significant
from flatkit.results import Comparison, Entry, Report, Result, load_results
from flatkit_cli.main import main
from tests.render.html_samples import EVERY, HOSTILE_NAME, ONE, SEVERAL

ROOT = Path(__file__).parent.parent.parent


@cache
def shown(name: str) -> str:
    return page(EVERY[name])


class Parts(HTMLParser):
    """Collects tags with attributes, and the text of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: dict[str, list[str]] = {}
        self._in: dict[str, str | None] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = dict(attrs) if tag in ("td", "th") else self._in

    def handle_endtag(self, tag):
        self._in = None if tag in ("td", "th") else self._in

    def handle_data(self, data):
        if self._in and self._in.get("data-label"):
            self.cells.setdefault(self._in["data-label"] or "", []).append(data)


@pytest.mark.long
@pytest.mark.parametrize("name", EVERY)
def test_a_page_names_nothing_outside_itself(name):
    text = shown(name)
    for tag, attributes in Parts(text).tags:
        for key in ("src", "href", "xlink:href", "data", "action"):
            value = attributes.get(key) or "#"
            assert value.startswith(("#", "data:")), (tag, value)
    assert "@import" not in text and "default-src 'none'" in text
    assert not re.findall(r"url\((?!#)", text)


@pytest.mark.parametrize("name", EVERY)
def test_every_name_in_a_page_is_there_once_and_what_is_used_is_there(name):
    text = shown(name)
    tags = Parts(text).tags
    names = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(names) == len(set(names))
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | {
        (attributes.get(key) or "#")[1:]
        for _, attributes in tags
        for key in ("href", "xlink:href")
        if (attributes.get(key) or "").startswith("#")
    }
    assert used <= set(names)


def test_the_same_results_make_the_same_bytes():
    assert page(ONE) == page(ONE)


def test_the_numbers_are_those_of_the_results_and_cells_sort_by_them():
    table = Parts(shown("one"))
    assert table.cells["value"][5:7] == ["1.0000", "0.5000"]
    numbers = [a.get("data-number") for _, a in table.tags if a.get("data-label") == "value"]
    assert numbers[5] == "1.0"
    groups = Parts(shown("several"))
    assert groups.cells["top eigenvalue λmax"][:3] == [
        "9.13 ± 0.15",
        "1.00 ± 0.10 ★",
        "10.17 ± 0.21",
    ]
    numbers = [a.get("data-number") for _, a in groups.tags if a.get("data-label") == "trace tr H"]
    assert [round(float(n or "nan"), 2) for n in numbers[:3]] == [73.07, 8.0, 81.33]


def test_the_verdict_stands_first_in_the_words_of_the_statistics():
    text = shown("several")
    verdict = text[text.index('id="verdict"') : text.index('id="numbers"')]
    said = SEVERAL.statistics().verdict
    assert said and verdict.count("<li>") == len(said)
    for line in said:
        assert line[1:].replace("<", "&lt;") in verdict
    one = shown("one")
    summary = one[one.index('id="verdict"') : one.index('id="numbers"')]
    assert "The top eigenvalue λmax is 1.0000 (residual 1e-4)." in summary
    assert "0.98 × λmax, as the theory says" in summary and "1 of 10 measurements" in summary


def test_names_are_text_wherever_they_stand():
    text = shown("hostile")
    assert HOSTILE_NAME not in text and "<img" not in text
    assert text.count("<script") == 2 and text.count("</script") == 2  # the data and the code
    assert "&lt;/script&gt;" in text


def test_what_is_malformed_is_named_and_the_rest_is_shown():
    text = shown("broken")
    faults = text[text.index("What could not be read") : text.index('id="numbers"')]
    assert "malformed result of trace" in faults and "cannot draw the plane" in faults
    assert "! tired" in text
    cells = Parts(text).cells
    assert cells["top eigenvalue λmax"] == ["1.0000", "3.0"]
    assert cells["trace tr H"] == ["8.00", "not measured"]
    for empty in (Comparison([]), Comparison([Entry("a", "a", Report([]))])):
        assert "There is no result here." in page(empty)


def test_what_did_not_converge_stands_with_its_advice():
    text = shown("several")
    caveats = text[text.index('id="caveats"') : text.index('id="guide"')]
    assert "The gradient jumps where the search ended" in caveats
    assert "9 measurements" in caveats and "sam, seed 2: first order flatness, ρ = 0.1" in caveats
    assert "100 of 400 training samples, drawn at random" in caveats


def test_the_command_can_be_pasted_and_digests_are_there():
    text = shown("one")
    where = text[text.index('id="provenance"') :]
    assert "flatkit analyze &#39;my runs/ckpt.pt&#39;" in where
    for fact in ("12" * 32, "ab" * 32, "torch 2.13", "runs/gam/ckpt.pt"):
        assert fact in where


def test_every_measure_says_how_it_is_read():
    from flatkit.measures import MEASURES

    for measure in MEASURES.own:
        assert len(measure.about) > 60 and measure.about.endswith("."), measure.name


def test_claims_of_the_theory_have_a_table():
    claims = [{"claim": "R0 ≤ R1", "verdict": "fails", "reason": "by <3 %"}]
    comparison = Comparison([Entry("a", "a", Report([Result("verdict", claims)]))])
    assert Parts(page(comparison)).cells["verdict"] == ["fails"]


def test_reports_and_comparisons_write_themselves(tmp_path):
    assert ONE.entries[0].report.to_html(tmp_path / "a.html").read_text("utf-8") == shown("one")
    assert ONE.to_html(tmp_path / "b.html").read_text("utf-8") == shown("one")
    with pytest.raises(OutputError, match="folder"):
        ONE.to_html(tmp_path)


@pytest.mark.long
def test_compare_writes_a_page_without_torch(tmp_path, capsys):
    files = [str(SEVERAL.save(tmp_path / "a.json")), str(ONE.save(tmp_path / "b.json"))]
    arguments = ["compare", *files, "--html", str(tmp_path / "new" / "page.html")]
    code = f"""
import sys
sys.path[:0] = [{str(ROOT / "cli")!r}, {str(ROOT)!r}]
from flatkit_cli.main import main
assert main({arguments!r}) == 0
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "page: " in done.stderr
    assert "<h1>" in (tmp_path / "new" / "page.html").read_text("utf-8")
    assert load_results(files[0]) == SEVERAL
    assert main(["compare", *files, "--html", str(tmp_path)]) == 1
    assert "folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("norm", "r1_over", "words"),
    [
        (1e-6, 3.1, "1.03 × λmax, as the theory says of a minimum"),
        (0.2, 5.0, "lifts R1/ρ² by up to ‖∇L‖/ρ = 2.00"),  # 3 + 0.2/0.1
        (0.2, 9.0, "3.00 × λmax, away from the 1 of a minimum"),
        (0.2, 2.0, "0.67 × λmax, away from the 1 of a minimum"),  # no gradient lowers it
        (1e-6, 9.0, "3.00 × λmax, away from the 1 of a minimum"),
    ],
)
def test_a_summary_says_why_flatness_and_curvature_differ(norm, r1_over, words):
    found = Report(
        [
            Result("gradient_norm", norm, 0.0),
            Result("top_eigenvalues", [3.0], [1e-6], "residual"),
            *(
                Result("first_order_flatness", over * rho**2, None, "lower_bound",
                       settings={"rho": rho})
                for rho, over in ((0.5, 100.0), (0.1, r1_over))
            ),
        ]
    )  # fmt: skip
    assert words in " ".join(summary(found))


@pytest.mark.parametrize("shape", ["adaptive", "filter", "linf"])
def test_balls_that_are_not_round_are_not_held_against_the_top_eigenvalue(shape):
    settings = {"rho": 0.1, "geometry": shape}
    flat = Result("first_order_flatness", 0.09, None, "lower_bound", settings=settings)
    found = Report([Result("top_eigenvalues", [3.0], [1e-6], "residual"), flat])
    assert "λmax, a" not in " ".join(summary(found))


def test_the_three_errors_of_a_group_stand_apart():
    cells = Parts(shown("several")).cells
    rows = SEVERAL.statistics().quantities["trace"].rows
    at = next(n for n, mean in enumerate(cells["mean"]) if mean == "73.07")
    assert cells["seeds"][at] == significant(rows[0].seeds, 2)
    assert (cells["solver"][at], cells["data sample"][at]) == ("0.10", "not known")
