"""A study end to end on small data: trained, measured, stopped, gone on with, refused."""

import io
import json
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from flatkit.errors import FlatkitError, InvalidArgumentError, ResultError
from flatkit.render.notation import significant
from flatkit.render.screen import TerminalScreen
from flatkit.render.studies import StudyLines, StudyProgress, StudyTable
from flatkit.render.tables.folded import SheetTable
from flatkit.render.tables.study import correlation_sheet, study_markdown, study_tables
from flatkit.results import Comparison, Entry, Report, Result, load_results
from flatkit.studies.forecast import _timed
from flatkit.studies.outcome import judged
from flatkit.studies.runs import choose, study_runs
from flatkit.studies.settings import Arm, Study, read_study, study_names
from flatkit.studies.study import study
from flatkit.studies.watching import DoneRun, SilentStudy
from flatkit.training.evaluation import evaluate
from tests.processes import start, study_until_killed

pytestmark = pytest.mark.long

TRAIN = {
    "data": "gaussians",
    "data_kwargs": {"samples": 60},
    "batch_size": 16,
    "epochs": 4,
    "save_every": 2,
}
SMALL = Study(
    arms=[Arm("sgd"), Arm("sam", {"optimizer": "sam", "rho": 0.2})],
    seeds=(0, 1),
    train=TRAIN,
    analyze={
        "measures": ["loss", "accuracy", "top_eigenvalues", "trace"],
        "samples": 12,
        "tolerance": 0.01,
        "trace_tolerance": 0.3,
    },
)


class Told(SilentStudy):
    """Notes what it is told, but for the outcomes, which it does not ask for."""

    def __init__(self):
        self.runs, self.kept, self.seeds = [], [], []

    def begin(self, runs, kept, jobs):
        self.kept = [found.run.folder for found in kept]

    def done(self, found):
        self.runs.append(found.run.folder)

    def early(self, seeds, outcome):
        self.seeds.append(seeds)


def numbers(folder):
    """Everything that came out, without times."""
    claims = json.loads((folder / "claims.json").read_text())
    reports = sorted(folder.rglob("report.json"))
    return claims, [values(path) for path in reports if path.parent.name.startswith("seed-")]


def values(path):
    return [(r.measure, r.value, r.error) for r in Report.load(path)]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    told = Told()
    outcome = study(SMALL, folder, jobs=2, progress=told)
    return outcome, folder, told


def test_every_arm_is_trained_and_measured_with_every_seed(done):
    outcome, _, told = done
    assert sorted(told.runs) == ["sam/seed-0", "sam/seed-1", "sgd/seed-0", "sgd/seed-1"]
    (comparison,) = outcome.comparisons.values()
    assert [(e.group, e.seed) for e in comparison.entries] == [
        ("sgd", "0"),
        ("sgd", "1"),
        ("sam", "0"),
        ("sam", "1"),
    ]
    (along,) = outcome.along.values()
    assert {entry.epoch for entry in along.entries} == {2.0, 4.0}
    assert {claim.arm for claim in outcome.claims} == {"sam"}
    assert done[2].seeds == [1]
    assert any("at training loss" in claim.claim for claim in outcome.claims)
    assert outcome.claims[-1].claim == "flatter and generalises"


def test_outcomes_are_shown_after_1_2_4_8_seeds(tmp_path, monkeypatch):
    def in_a_blink(self, function, calls):
        for number, (folder, *_) in enumerate(calls):
            outcome = {"diverged": "planted", "validation_accuracy": None}
            Path(folder).mkdir(parents=True)
            (Path(folder) / "outcome.json").write_text(json.dumps(outcome))
            yield number, outcome

    monkeypatch.setattr("flatkit.studies.study.Processes.map", in_a_blink)
    for seeds, after in ((9, [1, 2, 4, 8]), (12, []), (18, [16])):  # goes on twice
        told = Told()
        study(replace(SMALL, seeds=tuple(range(seeds))), tmp_path, progress=told)
        assert told.seeds == after


def drawn(table):
    stream = io.StringIO()
    Console(file=stream, width=80).print(table)
    return stream.getvalue()


def test_a_table_shows_arms_means_and_how_long_it_may_take(done):
    _, folder, _ = done
    asked = replace(SMALL, seeds=(0, 1, 2))
    runs = study_runs(asked, {})
    found = {run.folder: DoneRun(run, folder / run.folder) for run in runs if run.seed < 2}
    progress = StudyProgress()
    progress.begin(runs, [found["sgd/seed-0"]], 2)
    text = drawn(progress.table())
    assert re.search(r"sgd +1/3", text) and re.search(r"sam +0/3 +… +…", text)
    assert "1 of 6 runs done, 2 at once; Ctrl-C" in text
    for name in ("sgd/seed-1", "sam/seed-0"):
        progress.done(found[name])
    reports = [found[f"sgd/seed-{n}"].report or pytest.fail("unmeasured") for n in (0, 1)]
    tops = [report.result("top_eigenvalues").value[0] for report in reports]
    row = next(line for line in drawn(progress.table()).splitlines() if "sgd" in line)
    assert "2/3" in row and significant(sum(tops) / 2) in row
    assert re.match(r"3 of 6 runs done in .*, about .* left, 2 at once", progress.text)
    line = progress.line(runs[0])
    assert line.startswith("sgd, seed 0: train loss") and f"λmax {significant(tops[0])}" in line


def test_a_pipe_gets_a_line_a_run_and_a_terminal_what_the_first_seeds_say(done, capsys):
    outcome, folder, _ = done
    for watcher in (StudyLines(), StudyTable(TerminalScreen())):
        runs = study_runs(SMALL, {})
        watcher.begin(runs, [], 1)
        watcher.done(DoneRun(runs[0], folder / runs[0].folder))
        watcher.early(1, lambda: outcome)
        watcher.end()
        told = capsys.readouterr().err
        assert ("1 of 4 runs done in" in told) == isinstance(watcher, StudyLines)
        assert "After 1 seed; more follow." in told and "flatter and generalises" in told


def test_an_outcome_shows_itself(done):
    outcome, _, _ = done
    count = len(outcome.claims)
    assert re.fullmatch(
        rf"<Outcome of 2 arms with 2 seeds: of {count} claims \d+ hold, .* be told>", repr(outcome)
    )
    html = outcome._repr_html_()
    assert "flatter and generalises" in html and "trace tr H" in html and "<table" in html
    frame = outcome.to_dataframe()
    own = frame[(frame.measure == "trace") & (frame.run == "sam, seed 1")]
    (comparison,) = outcome.comparisons.values()
    assert own.value.tolist() == [comparison["sam, seed 1"].result("trace").value]
    assert set(frame.group) == {"sgd", "sam"} and frame.columns[0] == "condition"
    assert dir(outcome.plot)[0] == "claims" and "curvature" in dir(outcome.plot)
    titles = [axis.get_title().replace("\n", " ") for axis in outcome.plot().axes]
    assert titles == ["top eigenvalue λmax", "trace tr H", "test accuracy (%)"]
    (line,) = [x for x in outcome.plot().axes[1].lines if len(x.get_xdata()) == 1]
    (claim,) = [c for c in outcome.claims if c.claim == "flatter: trace tr H"]
    assert line.get_xdata()[0] == claim.effect
    assert outcome.plot.curvature(condition="").axes
    with pytest.raises(FlatkitError, match="no condition 'noisy'"):
        outcome.plot.curvature(condition="noisy")
    empty = replace(outcome, comparisons={}, claims=[])
    assert not dir(empty.plot) and "of 0 claims" in empty._repr_html_()
    with pytest.raises(FlatkitError, match="no run of the study was measured"):
        empty.plot()


def test_tables_of_a_study_fold_at_80_columns(done):
    outcome, _, _ = done
    (comparison,) = outcome.comparisons.values()
    words = {"claim": "flatter: " + 40 * "x", "reason": "within its measure's errors; more"}
    numbers = {"verdict": "cannot tell", "effect": 12.9, "low": 11.6, "high": 14.4}
    long = replace(outcome.claims[0], **words, **numbers)
    wide = replace(outcome, claims=[long, *outcome.claims])
    for width in (80, 120):
        stream = io.StringIO()
        Console(file=stream, width=width).print(study_tables(wide))
        text = stream.getvalue()
        assert max(map(len, text.splitlines())) <= width
        assert "12.9 times (11.6 to 14.4)" in text and "within its measure's errors" in text
        table = correlation_sheet(comparison)
        folded = SheetTable(table).sheet.folded(width - 2)
        assert len(folded) > 1 if width == 80 else len(folded) >= 1
        for column in table.columns[1:]:
            assert column.title.split()[0] in text
    markdown = study_markdown(wide)
    assert "| **cannot tell** | 12.9 times (11.6 to 14.4) | within its" in markdown


def test_every_condition_has_its_own_claims(tmp_path):
    two = {"plain": {}, "smooth": {"label_smoothing": 0.1}}
    small = replace(SMALL, conditions=two, train={**TRAIN, "save_every": 0}, seeds=(0,))
    outcome = study(small, tmp_path, jobs=1)
    assert list(outcome.comparisons) == ["plain", "smooth"]
    heads = [
        claim.condition for claim in outcome.claims if claim.claim == "flatter and generalises"
    ]
    assert heads == ["plain", "smooth"]
    losses = [c.entries[0].report.objective["loss"] for c in outcome.comparisons.values()]
    assert losses[0] != losses[1]
    assert not outcome.along


def test_all_files_are_there(done):
    _, folder, _ = done
    assert not list(folder.rglob("*.journal"))


def test_a_study_repeats_its_numbers_and_makes_nothing_twice(done, tmp_path):
    _, folder, _ = done
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("ckpt.pt")}
    told = Told()
    study(SMALL, folder, progress=told)
    assert not told.runs and len(told.kept) == 4 and not told.seeds
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("ckpt.pt")}
    study(replace(SMALL, seeds=(0,)), tmp_path, jobs=1)
    places = [tmp_path / name / "seed-0" / "report.json" for name in ("sgd", "sam")]
    assert [values(path) for path in places] == [
        values(folder / path.relative_to(tmp_path)) for path in places
    ]


def test_a_killed_study_ends_with_the_same_numbers(done, tmp_path):
    _, folder, _ = done
    for fatal in (30, 300, 1000):  # calls of layers: in a training, a measurement, and a later run
        process = start(study_until_killed, SMALL, tmp_path, fatal)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert 0 < len(list(tmp_path.rglob("outcome.json"))) < 3
    study(SMALL, tmp_path, jobs=1)
    assert numbers(tmp_path) == numbers(folder)


def test_a_study_goes_on_from_its_small_files(done, tmp_path):
    _, folder, _ = done
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.pt", "*.journal"))
    (copy / "sgd/seed-0/outcome.json").unlink()  # was not done, and has lost its checkpoints
    shutil.copytree(folder / "sam/seed-1", copy / "sam/seed-1", dirs_exist_ok=True)
    for name in ("outcome.json", "along.json", "epoch-0002.pt"):  # and one of two on the way
        (copy / "sam/seed-1" / name).unlink()
    told = Told()
    study(SMALL, copy, jobs=1, progress=told)
    assert sorted(told.runs) == ["sam/seed-1", "sgd/seed-0"]
    assert numbers(copy) == numbers(folder)
    both = [load_results(place / "sam/seed-1/along.json") for place in (copy, folder)]
    assert [one.keys() for one in both] == [["epoch-0002", "epoch-0004"]] * 2
    assert not (copy / "sgd/seed-1/ckpt.pt").exists()


def test_more_seeds_and_arms_may_come_and_other_settings_are_refused(done):
    _, folder, _ = done
    outcome = study(replace(SMALL, seeds=(0, 1, 2)), folder, jobs=1)
    (comparison,) = outcome.comparisons.values()
    assert len(comparison.entries) == 6
    with pytest.raises(ResultError, match=r"holds another study \(train: .* there, .* here\)"):
        study(replace(SMALL, seeds=(0, 1, 2), train={**TRAIN, "epochs": 5}), folder)
    with pytest.raises(ResultError, match="arm sam"):
        study(
            replace(SMALL, seeds=(0, 1, 2), arms=[Arm("sgd"), Arm("sam", {"optimizer": "sam"})]),
            folder,
        )


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("study.json", "{", "study.json is no study"),
        ("study.json", "[1]", "study.json is no study"),
        ("study.json", '{"arms": 5, "seeds": 3}', "study.json is no study"),
        ("sgd/seed-0/outcome.json", '{"div', "remove the folder .*seed-0"),
        ("sgd/seed-0/outcome.json", "{}", "remove the folder .*seed-0"),
    ],
)
def test_damaged_files_of_a_study_are_named(done, tmp_path, file, text, message):
    shutil.copytree(done[1], tmp_path / "copy")
    (tmp_path / "copy" / "study.json").write_text(json.dumps(SMALL.to_dict()))
    (tmp_path / "copy" / file).write_text(text)
    with pytest.raises(ResultError, match=message):
        study(SMALL, tmp_path / "copy", jobs=1)


@pytest.mark.parametrize("value", [0.0, -2.0, float("inf")])
def test_there_is_no_ratio_to_a_value_that_is_not_positive(value):
    entries = [
        Entry(f"{arm}, seed {n}", arm, Report([Result("trace", x + n / 9)]), seed=str(n))
        for arm, x in (("sgd", 5.0), ("sam", value))
        for n in range(3)
    ]
    entries[3] = replace(entries[3], report=Report([Result("trace", value)]))
    (claim, _) = judged(SMALL, {"": Comparison(entries)}, {}, {})
    assert (claim.verdict, claim.effect) == ("cannot tell", None)
    assert claim.briefly == "no ratio, as a value is not positive and finite"


def test_an_arm_that_diverges_is_reported_and_never_dropped(tmp_path):
    wild = replace(SMALL, arms=[Arm("sgd"), Arm("wild", {"lr": 1e30})], seeds=(0,))
    outcome = study(wild, tmp_path, jobs=1)
    assert list(outcome.diverged[""]) == ["wild, seed 0"]
    verdicts = {claim.claim: claim for claim in outcome.claims}
    assert all(claim.verdict == "cannot tell" for claim in verdicts.values())
    assert any("diverged: wild, seed 0" in claim.reason for claim in verdicts.values())


def test_the_best_value_on_the_validation_split_is_chosen():
    tuned = Arm("sam", {"optimizer": "sam"}, {"rho": [0.1, 0.2, 0.4]})
    asked = replace(SMALL, arms=[Arm("sgd"), tuned], train={**TRAIN, "validation_samples": 10})
    scores = {"rho=0.1": (0.8, 0.9), "rho=0.2": (0.9, 0.9), "rho=0.4": (1.0, None)}
    outcomes = {
        f"sam/tuning/{values}/seed-{1_000_000 + place}": {"validation_accuracy": score}
        for values, pair in scores.items()
        for place, score in enumerate(pair)
    }
    chosen = choose(asked, outcomes)
    assert chosen == {("", "sam"): {"rho": 0.2}}
    assert {run.settings["rho"] for run in study_runs(asked, chosen) if run.arm == "sam"} == {0.2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": [Arm("sgd"), Arm("sgd")]}, "two arms are named 'sgd'"),
        ({"arms": [Arm("sgd")]}, "needs two arms at least"),
        ({"arms": [Arm("sgd"), Arm("sam", {"optimiser": "sam"})]}, "did you mean 'optimizer'"),
        ({"arms": [Arm("sgd"), Arm("sam", {"rho": 0.1})]}, "arm 'sam': rho does not apply"),
        ({"arms": [Arm("sgd"), Arm("sam", {}, {"lr": [0.1, 0.2]})]}, "validation split"),
        ({"base": "adam"}, "base"),
        ({"seeds": (1, 1)}, "seeds must be different"),
        ({"seeds": 0}, "seeds"),
        ({"controls": {"gradients": "sgd"}}, "is the base 'sgd' itself"),
        ({"controls": {"luck": "sam"}}, "controls"),
        ({"analyze": {"measures": ["sharpness"]}}, "measures"),
        ({"train": {**TRAIN, "seed": 3}}, "seeds are those of the study"),
        ({"train": 3}, "train must be a table"),
        ({"conditions": {"clean": 3}}, "conditions.clean must be a table"),
        ({"conditions": {"": {}, "x": {}}}, "condition '' must have a name"),
        ({"conditions": {"../x": {}}}, "can be a folder"),
        ({"arms": [Arm("sgd"), Arm("a/b")]}, "arm 'a/b' must have a name that can be a folder"),
        ({"arms": [Arm("sgd"), Arm("report.md")]}, "arm 'report.md'"),
        ({"arms": [Arm("sgd"), Arm("..")]}, "arm '..'"),
        ({"seeds": "ab"}, "seeds must be a whole number or a list"),
        ({"seeds": (0.5, 1)}, "seeds must be a whole number"),
        ({"seeds": (True, 2)}, "seeds must be a whole number"),
        ({"matched": ["tracee"]}, "matched: .* did you mean 'trace'"),
        ({"matched": "trace"}, "matched: measures must be a list"),
        ({"smallest_ratio": 0.0}, "smallest_ratio must be between 0 and 1"),
        ({"smallest_ratio": 1.0}, "smallest_ratio must be between 0 and 1"),
        ({"title": 7}, "title must be a text"),
        ({"task": "nix.py:build"}, "task names nix.py, and there is no such file"),
        ({"trainer": "nix.py"}, "trainer must be FILE.py:FUNCTION"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(changes, message):
    with pytest.raises(InvalidArgumentError, match=message):
        replace(SMALL, **changes)


def test_files_that_are_no_study_are_refused(tmp_path):
    path = tmp_path / "own.toml"
    for text, message in (
        ("arms = 3", "arms must be tables"),
        ("[arms.a\n", "is not TOML"),
        ("sedes = 3\n[arms.a]\n[arms.b]\nlr = 0.2", "did you mean 'seeds'"),
        ("[arms.a]\n[arms.b]\ntune = { rho = 0.1 }", "must map settings to lists"),
    ):
        path.write_text(text)
        with pytest.raises(InvalidArgumentError, match=message):
            read_study(path)
    with pytest.raises(InvalidArgumentError, match=r"^study must be .* did you mean 'digits'"):
        read_study("digts")
    with pytest.raises(InvalidArgumentError, match=r"^cannot read .*No such file"):
        read_study(tmp_path / "missing.toml")


def test_a_plan_counts_evaluations_as_often_as_they_are_made(tmp_path, monkeypatch):
    def slow(*arguments, **named):
        time.sleep(1.1)  # of two splits
        return evaluate(*arguments, **named)

    monkeypatch.setattr("flatkit.training.run.evaluate", slow)
    long = replace(SMALL, train={**TRAIN, "epochs": 100, "evaluate_every": 50})
    _, seconds = _timed(study_runs(long, {})[0].settings, tmp_path / "run")
    assert 2 * 2.2 <= seconds < 100  # of 100 evaluations 220


@pytest.mark.parametrize("name", study_names())
def test_studies_that_come_along_can_be_read(name):
    assert len(read_study(name).seeds) >= 3


OWN = """
import torch
from torch import nn
import flatkit

def build():
    x = torch.linspace(-1, 1, 40)[:, None]
    return flatkit.Task(nn.Linear(1, 2), "cross_entropy", (x, (x[:, 0] > 0).long()))

def good(folder, seed, settings):
    print("words among the answers")
    weights = build().model.state_dict()
    weights["bias"] *= settings.get("factor", 1.0)
    torch.save(weights, folder / "own.pt")
    return folder / "own.pt"

def raises(folder, seed, settings):
    raise ValueError("no luck")

def nothing(folder, seed, settings):
    pass

def nan(folder, seed, settings):
    return {"checkpoint": good(folder, seed, settings), "validation_accuracy": float("nan")}
"""


def own_study(folder, trainer, second):
    (folder / "own.py").write_text(OWN)
    return Study(
        arms=[Arm("one"), second],
        seeds=(0,),
        analyze={"measures": ["loss", "top_eigenvalues"]},
        task=f"{folder / 'own.py'}:build",
        trainer=f"{folder / 'own.py'}:{trainer}",
    )


@pytest.mark.parametrize(
    ("trainer", "tune", "message"),
    [
        ("raises", {}, r"own.py:raises in .*seed-0 fails in .*own.py.*ValueError: no luck"),
        ("nothing", {}, "must return the path of the checkpoint .* got None"),
        ("good", {"factor": [1, 2]}, "must return a mapping with 'validation_accuracy'"),
    ],
)
@pytest.mark.usefixtures("forked_interpreters")  # which write where this test reads
def test_own_functions_that_fail_are_named(tmp_path, capfd, trainer, tune, message):
    with pytest.raises(FlatkitError, match=message):
        study(own_study(tmp_path, trainer, Arm("two", {}, tune)), tmp_path / "out", jobs=1)
    assert "Traceback" not in capfd.readouterr().err


def test_weights_of_an_own_function_that_are_not_finite_diverged(tmp_path):
    outcome = study(
        own_study(tmp_path, "good", Arm("two", {"factor": float("inf")})), tmp_path / "out", jobs=1
    )
    assert "NaN or infinite" in outcome.diverged[""]["two, seed 0"]
    tuned = own_study(tmp_path, "nan", Arm("two", {}, {"factor": [1, 2]}))
    assert (
        "validation accuracy is nan"
        in study(tuned, tmp_path / "b", jobs=1).diverged[""]["one, seed 0"]
    )


def test_own_functions_train_and_build(tmp_path):
    (tmp_path / "own.py").write_text(
        """
import torch
from torch import nn
import flatkit

def data():
    x = torch.linspace(-1, 1, 40)[:, None]
    return x, (x[:, 0] > 0).long()

def build():
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 2))
    return flatkit.Task(model, "cross_entropy", data())

def train(folder, seed, settings):
    torch.manual_seed(seed)
    task = build()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=settings["lr"])
    x, y = data()
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(task.model(x), y).backward()
        optimizer.step()
    torch.save(task.model.state_dict(), folder / "own.pt")
    return folder / "own.pt"
"""
    )
    asked = Study(
        arms=[Arm("slow", {"lr": 0.01}), Arm("fast", {"lr": 0.5})],
        seeds=(0, 1),
        analyze={"measures": ["loss", "top_eigenvalues"]},
        task=f"{tmp_path / 'own.py'}:build",
        trainer=f"{tmp_path / 'own.py'}:train",
    )
    outcome = study(asked, tmp_path / "out", jobs=1)
    (comparison,) = outcome.comparisons.values()
    losses = {entry.name: entry.report.result("loss").value for entry in comparison.entries}
    assert losses["fast, seed 0"] < losses["slow, seed 0"]


def test_the_study_of_the_documentation_can_be_read(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "studies.md"
    _, toml, *_ = re.split(r"```(?:toml)?\n", page.read_text().split("## A study file")[1])
    path = tmp_path / "own.toml"
    path.write_text(toml)
    assert read_study(path).claimants == ["sam"]
