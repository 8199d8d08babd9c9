"""`compare` over checkpoints: data are read once, and processes give what one process gives."""

import shutil
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

import flatkit
from flatkit.checkpoints import checkpoint as checkpoints
from flatkit.comparison import compare
from flatkit.comparison.finished import finished
from flatkit.errors import FlatkitError, InvalidArgumentError, ResultError
from flatkit.measures import MEASURES, AnalysisSettings, Measure
from flatkit.results import Report, Result
from flatkit.training import TrainingConfig, train


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    usual = TrainingConfig(data="gaussians", data_kwargs={"samples": 40}, device="cpu", epochs=1)
    usual = replace(usual, batch_size=10)
    other = replace(usual, data_kwargs={"samples": 50})
    configs = (usual, replace(usual, seed=1), other, replace(usual, seed=2))
    folder = tmp_path_factory.mktemp("runs")
    return [str(train(c, folder / str(n)).checkpoint) for n, c in enumerate(configs)]


@pytest.fixture
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_checkpoints_of_one_data_set_read_it_once(files, monkeypatch):
    built, build = [], checkpoints.build_data

    def counted(recipe, **more):
        built.append(recipe)
        return build(recipe, **more)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "build_data", counted)
        together = flatkit.compare(files[:2], measures=["loss"], progress=False)
    assert len(built) == 1
    for file, entry in zip(files[:2], together.entries, strict=True):
        alone = flatkit.analyze(file, measures=["loss"], progress=False)
        assert [r.value for r in alone] == [r.value for r in entry.report]
        assert alone.objective["samples_available"] == entry.report.objective["samples_available"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_different_functions_are_refused_by_what_differs(files, jobs):
    other = files[2]  # of 50 samples, not 40
    with pytest.raises(InvalidArgumentError, match=r"which samples.* data: gaussians, sha256"):
        flatkit.compare([files[0], other], measures=["loss"], jobs=jobs, progress=False)


def test_different_functions_are_refused_whichever_is_done_first(files, monkeypatch):
    def from_the_last_on(_, subjects, settings, *others, **more):
        for number in reversed(subjects):
            report = flatkit.analyze(subjects[number], settings=settings[number], progress=False)
            yield number, report

    module = import_module("flatkit.comparison.compare")
    monkeypatch.setattr(module, "at_once", from_the_last_on)
    with pytest.raises(InvalidArgumentError, match=r"samples: 32 \(0\), 40 \(2\)"):
        flatkit.compare([files[0], files[2]], measures=["loss"], jobs=2, progress=False)


@pytest.mark.usefixtures("_one_thread")
def test_several_at_once_give_the_same_bits_in_the_same_order(files, monkeypatch):
    monkeypatch.setattr("flatkit.comparison.sharing.usable_cores", lambda: 2)  # a thread for each
    told = []
    subjects = {"a": files[1], "old": Report([]), "b": files[0]}
    more: dict[str, Any] = {"measures": ["loss", "gradient_norm"], "dtype": "float64", "samples": 9}
    one = flatkit.compare(subjects, progress=False, **more)
    two = flatkit.compare(subjects, progress=lambda *x: told.append(x), jobs=2, **more)
    assert [entry.name for entry in two.entries] == ["a", "old", "b"]
    assert told == [("checkpoints", 1, 2), ("checkpoints", 2, 2)]
    for here, there in zip(one.entries, two.entries, strict=True):
        assert [r.value for r in here.report] == [r.value for r in there.report]
        assert here.report.objective.get("indices") == there.report.objective.get("indices")


@pytest.mark.parametrize(
    ("subject", "more", "message"),
    [
        (flatkit.Task(nn.Linear(1, 1), "mse", (torch.ones(1, 1),) * 2), {}, "got a Task"),
        ("a file", {"measures": ["answer"]}, "answer was registered in this one alone"),
        ("a file", {"samples": 0}, "samples must be"),
        ("a file", {"jobs": 0}, "jobs must be"),
    ],
)
def test_what_another_process_cannot_be_given_is_refused_first(subject, more, message, files):
    subject = files[0] if isinstance(subject, str) else subject
    given: dict[str, Any] = {"jobs": 2, **more}
    MEASURES.register(Measure("answer", "the answer", run=lambda session: []))
    try:
        with pytest.raises(InvalidArgumentError, match=message):
            flatkit.compare([subject], **given)
    finally:
        del MEASURES._homes["answer"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_comparison_that_was_stopped_goes_on_with_what_was_finished(
    files, tmp_path, monkeypatch, jobs
):
    journal, more = tmp_path / "a.journal", {"measures": ["loss"], "progress": False}
    # the third is missing, as if all stopped there
    shutil.copy(files[3], third := tmp_path / "third.pt")
    content = third.read_bytes()
    third.write_bytes(content[:50])
    with pytest.raises(FlatkitError):
        flatkit.compare([*files[:2], third], journal=journal, jobs=1, **more)
    assert journal.exists()
    third.write_bytes(content)
    with pytest.raises(ResultError, match="seed: 0 there, 1 here"):
        flatkit.compare([*files[:2], third], journal=journal, seed=1, **more)

    analyzed, analyze = [], compare.analyze
    monkeypatch.setattr(
        compare, "analyze", lambda task, **given: analyzed.append(task) or analyze(task, **given)
    )
    resumed = flatkit.compare([*files[:2], third], journal=journal, jobs=jobs, **more)
    assert len(analyzed) == (1 if jobs == 1 else 0)  # or in another process
    plain = flatkit.compare([*files[:2], third], jobs=1, **more)
    assert [e.report.result("loss").value for e in resumed.entries] == [
        e.report.result("loss").value for e in plain.entries
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["third.pt"]


def test_the_report_of_a_checkpoint_that_changed_is_not_taken(files, tmp_path):
    shutil.copy(files[0], here := tmp_path / "ckpt.pt")
    settings = AnalysisSettings(measures=["loss"])
    with finished(tmp_path / "a.journal", settings) as done:
        done.keep(0, here, Report([Result("loss", 0.5, 0.0)]))
        done.keep(1, flatkit.load(here), Report([Result("loss", 0.5, 0.0)]))
        assert set(done.reports({0: here, 1: flatkit.load(here), 2: files[0]})) == {0, 1}
        shutil.copy(files[1], here)
        changed = {0: here, 1: flatkit.load(here), 2: files[1], 3: object()}
        with pytest.warns(UserWarning, match="ckpt.pt has changed since it was measured"):
            assert done.reports(changed) == {}
        assert done.journal(0, here) != done.journal(0, files[1])
