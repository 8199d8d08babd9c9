"""A measure comes from one file, also from that of another package."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import flatkit
from flatkit.errors import InvalidArgumentError, PluginError, ResultError
from flatkit.measures import MEASURES, AnalysisSettings, Measure
from flatkit.measures.reading import number
from flatkit.measures.registry import Measures
from flatkit.measures.settings import owners
from flatkit.render import comparison_markdown, comparison_rows
from flatkit.render.readings import readings
from flatkit.results import Comparison, Entry, Report, Result
from flatkit.settings import setting, settings_of
from flatkit.training import TrainingConfig, train
from tests.cases import CASES

ROOT = Path(__file__).parent.parent.parent
TOY = '''
"""A measure of another package."""
from dataclasses import dataclass
from flatkit import Measure
from flatkit.checks import check_positive
from flatkit.measures import Reading
from flatkit.measures.reading import number
from flatkit.results import Result
from flatkit.settings import check_settings, setting

@dataclass(frozen=True)
class GapSettings:
    gap_unit: float = setting(1.0, "Unit of the gap.", check=check_positive)
    def __post_init__(self):
        check_settings(self)

def run(session):
    unit = session.own(GapSettings).gap_unit
    with session.meter() as cost:
        values = session.top.value.tolist()
        return [Result("spectral_gap", (values[0] - values[1]) / unit, 0.0, cost=cost())]

def read(result):
    return [
        number(result, "spectral_gap", "gap λ1 - λ2", role="flatness", better="lower", drawn=True)
    ]

def gap_figure(comparison):
    from matplotlib.figure import Figure
    return Figure(figsize=(1, 1))

MEASURE = Measure(
    "spectral_gap", "gap of the two largest eigenvalues", run, read,
    settings=(GapSettings,), figures={"gap": "toy_gap:gap_figure"},
)
'''


def install(folder: Path, code: str, measure: str = "spectral_gap") -> None:
    """Put a package with a measure where Python finds it, as an installer does."""
    (folder / "toy_gap.py").write_text(code, "utf-8")
    info = folder / "toy_gap-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-gap\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[flatkit.measures]\n{measure} = toy_gap:MEASURE\n")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_gap", raising=False)
    return tmp_path


@pytest.fixture
def registered():
    """Take away afterwards what a test registers."""
    before = set(MEASURES)
    yield
    for name in set(MEASURES) - before:
        del MEASURES._homes[name]


def task() -> flatkit.Task:
    case = CASES[0]
    return flatkit.Task(case.build(), case.loss, case.data())


def test_every_measure_stands_in_the_file_of_its_name_and_says_what_it_is():
    for name, measure in MEASURES.items():
        assert measure.name == name and measure.help
        for part in measure.settings:
            assert settings_of(part) and all(one.help for one in settings_of(part).values())


@pytest.mark.long
def test_a_package_adds_a_measure_that_help_table_comparison_and_figures_show(tmp_path):
    install(tmp_path, TOY)
    checkpoint = train(
        TrainingConfig(data="gaussians", epochs=1, device="cpu"), tmp_path / "run"
    ).checkpoint
    code = f"""
import sys
from flatkit_cli.main import main
def call(*words):
    assert main(list(words)) == 0, words
call("analyze", "--help")
assert "toy_gap" not in sys.modules
out, again = {str(tmp_path / "gap.json")!r}, {str(tmp_path / "again.json")!r}
for file, unit in ((out, "2"), (again, "4")):
    call("analyze", {str(checkpoint)!r}, "--measures", "spectral_gap", "--eigenvalues", "2",
         "--setting", f"gap_unit={{unit}}", "--dtype", "float64", "--json", file)
call("compare", out, again, "--figures", {str(tmp_path / "figures")!r})
wrong = ["analyze", {str(checkpoint)!r}, "--measures", "spectral_gap", "--setting"]
assert main([*wrong, "gap_unti=2"]) == 2
assert main([*wrong, "gap_unit=0"]) == 2
"""
    paths = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "cli")))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert "spectral_gap from the package toy-gap" in shown
    assert "gap λ1 - λ2" in shown and "*" in shown.rpartition("gap λ1 - λ2")[2]
    assert "did you mean 'gap_unit'" in done.stderr and "gap_unit must be" in done.stderr
    two, four = (
        Report.load(tmp_path / name).result("spectral_gap").value
        for name in ("gap.json", "again.json")
    )
    assert two == pytest.approx(2 * four, rel=1e-3) and two > 0
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"gap.png", "curvature.png"} <= names


def test_a_broken_package_is_named_and_disturbs_nobody_else(folder):
    install(folder, "import nothing_of_this_name\n")
    measures = Measures()
    assert list(measures)[-1] == "spectral_gap" and "toy_gap" not in sys.modules
    assert measures["trace"].help and measures.help("spectral_gap").endswith("toy-gap")
    with pytest.raises(PluginError, match=r"toy-gap.*nothing_of_this_name"):
        measures["spectral_gap"]


def test_an_entry_point_that_names_another_measure_is_refused(folder):
    install(folder, TOY, measure="other_gap")
    with pytest.raises(PluginError, match=r"toy-gap must add a flatkit\.Measure of the name") as e:
        Measures()["other_gap"]
    assert "toy_gap:MEASURE" in str(e.value)
    assert str(e.value).endswith("name 'other_gap', got one of the name 'spectral_gap'")


def test_a_file_of_flatkit_that_names_another_measure_is_named():
    measures = Measures()
    measures._homes["loss"] = "flatkit.measures.trace:MEASURE"
    with pytest.raises(PluginError, match=r"^flatkit\.measures\.trace:MEASURE must .*'trace'$"):
        measures["loss"]


def test_a_package_cannot_take_the_name_of_a_measure(folder):
    install(folder, TOY, measure="trace")
    with pytest.raises(
        PluginError, match=r"'trace' of flatkit\.measures is added by flatkit and by"
    ):
        list(Measures())


def test_a_registered_measure_runs_when_it_is_named(registered):
    answer = Measure("answer", "the answer", run=lambda session: [Result("answer", 42.0, 0.0)])
    assert MEASURES.register(answer) is answer
    case = CASES[0]
    task = flatkit.Task(case.build(), case.loss, case.data())
    report = flatkit.analyze(task, measures=["answer", "loss"])
    assert [result.measure for result in report] == ["loss", "answer"]
    assert [reading.title for reading in readings(report.result("answer"))] == ["answer"]
    assert "answer" not in AnalysisSettings().measures
    with pytest.raises(InvalidArgumentError, match="trace"):
        MEASURES.register(Measure("trace", "another one", run=lambda session: []))


def test_a_measure_may_say_that_higher_is_flatter(registered):

    def read(result):
        return [number(result, "width", "width", role="flatness", better="higher")]

    MEASURES.register(Measure("width", "width of the basin", run=lambda session: [], read=read))
    runs = {name: Report([Result("width", width, 0.1)]) for name, width in (("a", 1.0), ("b", 9.0))}
    rows = comparison_rows(Comparison([Entry(name, name, run) for name, run in runs.items()]))
    assert [row["width_flattest"] for row in rows] == [False, True]


def test_results_of_a_measure_that_is_not_installed_are_read_as_plain_numbers():
    gaps = Result("gap_of_old", [2.0, 1.0], [0.1, 0.1], "residual", status="tired")
    again = Report.from_json(Report([gaps]).to_json())
    assert again.result("gap_of_old").status == "tired"
    assert [r.title for r in readings(again.result("gap_of_old"))] == [
        "gap of old 1",
        "gap of old 2",
    ]
    assert Comparison([]).groups == []


def test_an_unknown_setting_is_answered_with_the_nearest():
    case = CASES[0]
    task = flatkit.Task(case.build(), case.loss, case.data())
    with pytest.raises(InvalidArgumentError, match="did you mean 'rho'"):
        flatkit.analyze(task, roh=[0.1])
    with pytest.raises(InvalidArgumentError, match=r"'rho'.* option of its own: `rho`"):
        flatkit.analyze(task, added={"rho": [0.1]})


@dataclass(frozen=True)
class Width:
    width: float = setting(1.0, "Of the basin.")
    steps: int | None = setting(None, "How many.")


@dataclass(frozen=True)
class Tolerance:
    tolerance: float = setting(0.5, "Another one.")


@dataclass(frozen=True)
class OtherWidth:
    width: float = setting(2.0, "Of something else.")


def width(session):
    own = session.own(Width)
    return [Result("width", own.width, 0.0, settings={"steps": own.steps})]


def add(name, run=width, **more) -> Measure:
    return MEASURES.register(Measure(name, name, run=run, **more))


def test_a_setting_of_a_name_that_is_taken_is_refused_with_both_names(registered):
    add("width", settings=(Width,))
    add("tolerant", settings=(Tolerance,))
    add("other", settings=(OtherWidth,))
    add("again", settings=(Width,))
    assert AnalysisSettings(measures=["width", "again"]).of(Width).width == 1.0
    with pytest.raises(PluginError, match=r"CurvatureSettings and .*Tolerance .*'tolerance'"):
        flatkit.analyze(task(), measures=["tolerant"], tolerance=2)
    with pytest.raises(PluginError, match=r"\.Width and .*OtherWidth declare a setting 'width'"):
        AnalysisSettings(measures=["width", "other"])
    with pytest.raises(PluginError, match="'width'"):  # as two files of flatkit itself
        owners((Width, OtherWidth))


def test_settings_from_outside_are_checked_by_their_types(registered):
    add("width", settings=(Width,))
    report = flatkit.analyze(task(), measures=["width"], width=3, steps=2)
    assert (report.result("width").value, report.result("width").settings["steps"]) == (3, 2)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"width": "x"}, "width must be a number, got 'x'"),
        ({"width": True}, "width must be a number, got True"),
        ({"steps": 1.5}, "steps must be a whole number, got 1.5"),
    ]
    for wrong, message in cases:
        with pytest.raises(InvalidArgumentError, match=message):
            flatkit.analyze(task(), measures=["width"], **wrong)


def test_settings_that_no_measure_declares_are_refused_where_they_are_asked_for(registered):
    add("width")
    with pytest.raises(PluginError, match=r"Width; .* name it: Measure\(.*settings=\(Width,\)\)"):
        flatkit.analyze(task(), measures=["width"])


def test_a_measure_from_outside_that_fails_is_named_with_its_package(folder):
    install(folder, TOY.replace("values[0] - values[1]", "{}[unit]"))
    with pytest.raises(
        PluginError, match="measure spectral_gap of the package toy-gap failed"
    ) as e:
        flatkit.analyze(task(), measures=["spectral_gap"])
    assert isinstance(e.value.__cause__, KeyError)


def test_a_measure_of_flatkit_that_fails_stays_loud(monkeypatch):
    def fail(session):
        raise KeyError("loss")

    broken = Measure("loss", "the loss", run=fail)
    monkeypatch.setitem(MEASURES._homes, "loss", broken)
    with pytest.raises(KeyError):
        flatkit.analyze(task(), measures=["loss"])


def test_a_measure_from_outside_that_cannot_read_is_named_with_its_package(folder):
    install(folder, TOY.replace("return [\n        number(", "return [\n        result.no_such("))
    with pytest.raises(
        ResultError, match=r"spectral_gap of the package toy-gap cannot read.*no_such"
    ):
        readings(Result("spectral_gap", 1.0))


def test_a_number_that_nobody_reads_is_compared_and_a_missing_package_is_named(registered):
    add("width")
    results = [Result("width", 1.0, 0.0), Result("gap_of_old", 2.0), Result("verdict", [])]
    comparison = Comparison([Entry("a", "a", Report([*results, Result("frobenius_norm", 3.0)]))])
    (row,) = comparison_rows(comparison)
    assert row["width"] == 1.0 and row["frobenius_norm"] == 3.0 and "gap_of_old" not in row
    assert (
        "- ! of packages that are not installed here, so left out: gap_of_old"
        in comparison_markdown(comparison).splitlines()
    )


def test_a_measure_may_ask_for_more_eigenvalues_than_the_settings(registered):
    def top_two(session):
        two = session.eigenvalues(session.curvature, k=2).value.tolist()
        return [Result("two", two, settings={"top": session.top.value.tolist()})]

    add("two", top_two)
    result = flatkit.analyze(task(), measures=["two"], dtype="float64").result("two")
    assert len(result.value) == 2 and len(result.settings["top"]) == 1
    assert result.value[0] == pytest.approx(result.settings["top"][0], rel=1e-3)
