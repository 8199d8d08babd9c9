"""`compare` of what others have saved: patterns, tasks, groups, and what is kept between calls."""

import copy
import shutil
import textwrap
from io import StringIO

import pytest
import torch
from rich.console import Console
from torch import nn

import flatkit
from flatkit.checkpoints import task_file
from flatkit.comparison import compare as module
from flatkit.errors import (
    CheckpointError,
    FlatkitError,
    InvalidArgumentError,
    ResultError,
    TaskError,
)
from flatkit.measures.registry import MEASURES as MEASURES_KNOWN
from flatkit.render.runs import RunLines, RunsProgress
from flatkit.results import Comparison, Entry, Report, Result

pytestmark = pytest.mark.long

MEASURES = ["loss", "top_eigenvalues", "trace"]
TASK = """
    import torch
    from torch import nn
    import flatkit

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(torch.tanh(self.norm(self.first(x))))

    def build():
        draws = torch.Generator().manual_seed(0)
        inputs = torch.randn(20, 3, generator=draws)
        return flatkit.Task(Net(), "cross_entropy", (inputs, (inputs[:, 0] > 0).long()))
"""


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Return a folder with two methods x two seeds x two epochs, and a task beside them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_task.py").write_text(textwrap.dedent(TASK))
    task = task_file.load_task("my_task.py:build")
    for method, scale in (("sgd", 1.0), ("gam", 0.5)):
        for seed in (0, 1):
            torch.manual_seed(seed)
            folder = tmp_path / "runs" / f"{method}-seed{seed}"
            folder.mkdir(parents=True)
            for epoch in (9, 10):
                model = copy.deepcopy(task.model)
                with torch.no_grad():
                    buffers = dict(model.named_buffers())
                    for tensor in (*model.parameters(), buffers["norm.running_mean"]):
                        tensor.copy_(scale * torch.randn_like(tensor) + epoch / 100)
                torch.save(model.state_dict(), folder / f"epoch-{epoch}.pt")
    return tmp_path / "runs"


def run(subjects, **more):
    given = {"task": "my_task.py:build", "measures": MEASURES, "progress": False, "jobs": 1, **more}
    return flatkit.compare(subjects, **given)


def values(report):
    return {r.measure: (r.value, r.error) for r in report}


def test_a_pattern_of_foreign_checkpoints_is_named_grouped_and_measured_as_each_alone(runs):
    found = run(["runs/*/epoch-*.pt"], groups=r"(.*)-seed\d+")
    assert [(e.name, e.group, e.seed, e.epoch) for e in found.entries[:3]] == [
        ("gam-seed0/epoch-9", "gam, epoch 9", "0", 9.0),
        ("gam-seed0/epoch-10", "gam, epoch 10", "0", 10.0),
        ("gam-seed1/epoch-9", "gam, epoch 9", "1", 9.0),
    ]
    assert found.groups == ["gam, epoch 9", "gam, epoch 10", "sgd, epoch 9", "sgd, epoch 10"]
    for entry in found.entries:
        task = task_file.load_task("my_task.py:build")
        flatkit.load(runs / f"{entry.name}.pt").load_into(task.model)
        alone = flatkit.analyze(task, measures=MEASURES, progress=False)
        assert values(alone) == values(entry.report)  # bit for bit, the buffers too
        assert alone.objective["loss"] == entry.report.objective["loss"]
    assert len({entry.report.result("loss").value for entry in found.entries}) == 8


def test_epochs_that_all_share_need_no_name_and_groups_may_be_anything(runs):
    files = ["runs/*/epoch-9.pt"]
    names = ["gam-seed0", "gam-seed1", "sgd-seed0", "sgd-seed1"]
    found = run(files, groups={"gam-seed0": "ours"}, measures=["loss"])
    assert [entry.name for entry in found.entries] == names
    assert found.groups == ["ours", *names[1:]]
    assert {entry.epoch for entry in found.entries} == {9.0}
    assert run(files, groups=lambda n: n[:3], measures=["loss"]).groups == ["gam", "sgd"]
    by_name = r"(?P<group>\w+)-seed(?P<seed>\d)"
    assert [e.seed for e in run(files, groups=by_name, measures=["loss"]).entries] == list("0101")
    found = run({"GAM": "runs/gam*/epoch-9.pt", "SGD": "runs/sgd-seed1/epoch-9.pt"})
    assert [(e.name, e.group) for e in found.entries] == [
        ("GAM, gam-seed0", "GAM"),
        ("GAM, gam-seed1", "GAM"),
        ("SGD", "SGD"),
    ]


def test_the_task_is_built_once_and_its_model_has_its_own_weights_again(runs):
    built = []

    def build():
        built.append(task_file.load_task("my_task.py:build"))
        return built[-1]

    from_factory = run(["runs/*/epoch-9.pt"], task=build)
    assert len(built) == 1
    task = build()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    from_task = run(["runs/*/epoch-9.pt"], task=task)
    assert all(torch.equal(task.model.state_dict()[n], tensor) for n, tensor in before.items())
    named = run(["runs/*/epoch-9.pt"])
    for one, two, three in zip(from_factory.entries, from_task.entries, named.entries, strict=True):
        assert values(one.report) == values(two.report) == values(three.report)
    with pytest.raises(TaskError, match=r"must return a flatkit\.Task.*got int"):
        run(["runs/*/epoch-9.pt"], task=lambda: 7)
    with pytest.raises(InvalidArgumentError, match="jobs > 1 needs `task` as FILE"):
        run(["runs/*/epoch-9.pt"], task=build, jobs=2)


def test_what_one_file_lacks_does_not_stay_from_the_one_before(runs):
    """A checkpoint without a bias that may be missing gets that of the model as it was built."""
    partial = torch.load(runs / "sgd-seed0" / "epoch-9.pt", weights_only=True)
    del partial["last.bias"]
    torch.save(partial, runs / "partial.pt")
    torch.manual_seed(5)
    task = task_file.load_task("my_task.py:build")
    more = {"ignore": ["last.bias"], "allow_uninitialised": True, "measures": ["loss"]}
    subjects = [runs / "gam-seed0" / "epoch-9.pt", runs / "partial.pt"]
    alone = run(subjects[1:], task=task, **more)  # first, as nothing may stay of the others
    both = run(subjects, task=task, **more)
    assert values(both.entries[1].report) == values(alone.entries[0].report)


def test_lightning_reports_tasks_and_comparisons_mix(runs, tmp_path):
    state = {
        f"model.{name}": tensor
        for name, tensor in torch.load(runs / "sgd-seed0" / "epoch-9.pt", weights_only=True).items()
    }
    lightning = {"state_dict": state, "epoch": 4, "pytorch-lightning_version": "2.4.0"}
    torch.save(lightning, tmp_path / "lit.ckpt")
    alone = run([runs / "sgd-seed0" / "epoch-9.pt"]).entries[0].report
    pair = Comparison([Entry("old a", "old", alone, "3", 2.0), Entry("old b", "old", alone)])
    task = task_file.load_task("my_task.py:build")
    with pytest.warns(UserWarning, match="copies of one checkpoint"):
        found = run(["lit.ckpt", str(alone.save(tmp_path / "saved.json")), pair, task])
    names = ["lit", alone.checkpoint["name"], "old a", "old b", "run 4"]
    assert [entry.name for entry in found.entries] == names
    assert (found.entries[2].seed, found.entries[2].epoch) == ("3", 2.0)
    assert found.entries[0].epoch == 4.0
    assert values(found.entries[0].report) == values(alone)
    assert found.groups == ["lit", names[1], "old", "run 4"]


@pytest.mark.parametrize(
    ("subjects", "more", "message"),
    [
        ("runs/*/none-*.pt", {}, r"no file matches the pattern .*; runs holds gam-seed0, gam"),
        ("runs/gone.pt", {}, r"there is no file runs/gone.pt; runs holds gam-seed0"),
        ("runs", {}, r"runs is a folder.*names the 8 in it: 'runs/\*\*/\*.pt'"),
        ([], {}, "at least one checkpoint"),
        (["a.pt", "a.pt"], {}, "a.pt is given twice"),
        ("runs/*/epoch-9.pt", {"groups": r".*-seed\d+"}, r"in parentheses, as \(\.\*\)-seed"),
        ("runs/*/epoch-9.pt", {"groups": r"(.*)_seed"}, r"fits none of them: gam-seed0"),
        ("runs/*/epoch-9.pt", {"groups": "(.*"}, "must be a regular expression"),
        ("runs/*/epoch-9.pt", {"groups": {"sgd-seed9": "a"}}, "did you mean 'sgd-seed1'"),
        ("runs/*/epoch-9.pt", {"groups": r"(?P<epoch>\w+)-(.*)"}, "a number as the epoch, got"),
        ("runs/*/epoch-9.pt", {"groups": ["sgd", "gam"]}, "function of a name; got a list"),
        ("runs/*/epoch-9.pt", {"task": nn.Linear(1, 1)}, "or such a Task; got a Linear"),
        ("runs/*/epoch-9.pt", {"task": nn}, r"task must be FILE.py:FUNCTION.*got a module"),
        ([nn.Linear(1, 1)], {}, r"compare takes.*flatkit.Task\(model, loss, data\)"),
        ("runs/*/epoch-9.pt", {"task": None}, "holds weights but does not say which model"),
        ("runs/*/epoch-9.pt", {"model": "mlp", "data": "digits"}, "task builds model"),
    ],
)
def test_what_is_wrong_with_subjects_and_groups_is_said(subjects, more, message, runs):
    shutil.copy(runs / "gam-seed0" / "epoch-9.pt", "a.pt")
    with pytest.raises(FlatkitError, match=message):
        run(subjects, **more)


def test_a_file_that_is_no_checkpoint_is_refused_before_any_is_measured(runs, monkeypatch):
    monkeypatch.setattr(module, "analyze", lambda *_, **__: pytest.fail("measured too early"))
    paths = [runs / "gam-seed0" / "epoch-9.pt", "my_task.py"]
    with pytest.raises(CheckpointError, match=r"my_task.py is not a file of torch.save"):
        flatkit.compare(paths, task="my_task.py:build", measures=["loss"], progress=False)


def test_a_run_that_an_expression_does_not_fit_is_told(runs):
    state = torch.load(runs / "gam-seed0" / "epoch-10.pt", weights_only=True)
    torch.save({**state, "last.bias": torch.ones(2)}, runs / "gam-seed0" / "best.pt")
    with pytest.warns(UserWarning, match=r"does not fit gam-seed0/best: each is a group"):
        files = ["runs/*/epoch-9.pt", "runs/gam-seed0/*.pt"]  # what both find counts once
        found = run(files, groups="(.*)-seed.*epoch", measures=["loss"])
    assert len(found.entries) == 6


def test_processes_give_the_same_and_small_files_are_measured_at_once_by_default(
    runs, monkeypatch, capsys
):
    monkeypatch.setattr("flatkit.comparison.sharing.usable_cores", lambda: 2)
    torch.set_num_threads(1)
    asked, at_once = [], module.at_once
    monkeypatch.setattr(module, "at_once", lambda *a, **m: asked.append(a[3]) or at_once(*a, **m))
    one = run(["runs/*/epoch-9.pt"])
    two = run(["runs/*/epoch-9.pt"], jobs=None, progress=RunLines())
    assert asked == [2]
    assert capsys.readouterr().err.startswith("plan: ")  # before the processes are there
    for here, there in zip(one.entries, two.entries, strict=True):
        assert (here.name, values(here.report)) == (there.name, values(there.report))
    run(["runs/*/epoch-9.pt"], jobs=None, measures=["loss"])  # too cheap to start processes
    run(["runs/gam*/epoch-9.pt"], jobs=None)  # too few
    assert asked == [2]


def test_a_journal_serves_further_checkpoints_and_measures_and_knows_its_task(runs, monkeypatch):
    monkeypatch.setattr("flatkit.comparison.finished._SHORT", -1.0)  # worth keeping
    measured, analyze = [], module.analyze

    def watched(task, **given):
        measured.append((task.name, given["settings"].measures))
        return analyze(task, **given)

    monkeypatch.setattr(module, "analyze", watched)
    more = {"journal": "c.journal"}
    run(["runs/gam-seed0/*.pt"], measures=["loss", "trace"], **more)
    assert len(measured) == 2
    found = run(["runs/gam*/*.pt"], measures=["loss", "trace"], **more)
    assert len(measured) == 4
    run(["runs/gam*/*.pt"], measures=["trace"], **more)
    assert len(measured) == 4
    found = run(["runs/gam*/*.pt"], **more)
    assert len(measured) == 8 and measured[-1][1] == ("top_eigenvalues",)
    monkeypatch.undo()
    monkeypatch.chdir(runs.parent)
    whole = run(["runs/gam*/*.pt"])
    for kept, fresh in zip(found.entries, whole.entries, strict=True):
        assert values(kept.report) == values(fresh.report)
        assert [r.measure for r in kept.report] == [r.measure for r in fresh.report]

    shutil.copy("runs/sgd-seed0/epoch-9.pt", "runs/gam-seed0/epoch-9.pt")
    with pytest.warns(UserWarning, match="gam-seed0/epoch-9.pt has changed since"):
        changed = run(["runs/gam-seed0/*.pt"], **more)
    assert values(changed.entries[0].report) != values(whole.entries[0].report)
    assert values(changed.entries[1].report) == values(whole.entries[1].report)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("manual_seed(0)", "manual_seed(1)", "the samples"),
        ("torch.tanh", "torch.sigmoid", "the code"),
        ('"cross_entropy"', '"mse"', ""),
    ],
)
def test_a_journal_of_another_task_is_refused(runs, monkeypatch, old, new, what):
    monkeypatch.setattr("flatkit.comparison.finished._SHORT", -1.0)
    more = {"measures": ["loss"], "journal": "c.journal"}
    run(["runs/gam-seed0/*.pt"], **more)
    text = textwrap.dedent(TASK).replace(old, new)
    if new == '"mse"':
        text = text.replace(".long()", ".float()[:, None].expand(-1, 2)")
    (runs.parent / "other_task.py").write_text(text)
    with pytest.raises(ResultError, match=f"of another job.*{what}"):
        run(["runs/gam-seed0/*.pt"], task="other_task.py:build", **more)


def test_a_report_of_other_results_is_taken_as_it_is():
    report = Report([Result("loss", 0.5, 0.0)])
    found = flatkit.compare({"mine": report}, progress=False)
    assert [(e.name, e.group, e.report) for e in found.entries] == [("mine", "mine", report)]


def test_a_table_of_the_runs_tells_how_far_they_are(runs, capsys):
    run(["runs/gam*/epoch-9.pt"], progress=RunLines())
    plan, first, second = capsys.readouterr().err.splitlines()
    assert plan.startswith("plan: ") and "at each of 2, in all about" in plan
    assert first.startswith("[1 of 2 checkpoints done in") and "left] gam-seed0: done" in first
    assert second.startswith("[2 of 2 checkpoints done] gam-seed1: done in") and "loss" in second
    progress = RunsProgress()
    run(["runs/gam*/epoch-9.pt"], progress=progress)
    console = Console(width=120, record=True, file=StringIO())
    console.print(progress.table())
    text = console.export_text()
    assert "2 of 2 checkpoints done" in text and "gam-seed1" in text and "top" in text
    assert "plan: " in text
    run(["runs/gam*/epoch-9.pt"])
    assert capsys.readouterr().err == ""


def test_what_no_run_could_measure_stays_with_the_reason(runs):
    given = {"measures": ["loss", "accuracy", "quadratic_model_maximum"], "geometry": "linf"}
    shown = run(["runs/*/*.pt"], **given, rho=[0.1])
    assert "not measured: quadratic_model_maximum (the ball is not round)" in shown.table()
    page = shown.to_html("page.html").read_text("utf-8")
    assert "not measured" in shown.table("latex") and "not round" in page
    kept = Comparison.from_json(shown.to_json())
    assert "quadratic_model_maximum (the ball is not round)" in kept.table()
    few = run(["runs/*/*.pt"], measures=["loss", "trace"], budget=1)
    assert "not measured: trace (the budget ended before its first value)" in few.table()


def test_what_is_measured_and_not_compared_is_named(runs):
    shown = run(["runs/*/*.pt"], measures=["loss", "average_sharpness"], rho=[0.1])
    assert "in the report of each run, not compared: average_sharpness" in shown.table()


def test_a_measure_that_does_not_say_what_the_samples_contribute_is_named(runs, monkeypatch):
    def measure(session):
        return [Result("weight_norm", float(session.objective.theta.norm()))]

    added = flatkit.Measure("weight_norm", "a norm", measure)
    monkeypatch.setitem(MEASURES_KNOWN._homes, "weight_norm", added)
    shown = run(["runs/*/*.pt"], measures=["loss", "frobenius_norm", "weight_norm"])
    quantities = shown.statistics().quantities
    assert not quantities["train_loss"].unsampled and not quantities["frobenius_norm"].unsampled
    assert all(row.sampling for row in quantities["frobenius_norm"].rows)
    line = "without the error of the data sample: weight norm (its measure does not say"
    assert line in " ".join(shown.table("markdown", pairs=True).split())
    page = shown.to_html("page.html").read_text("utf-8")
    assert "Without the error of the data sample: weight norm" in page
