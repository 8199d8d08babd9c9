"""The journal of an analysis: what it is of, what differs is named, and passes are found again."""

import sqlite3
from typing import Any

import pytest
import torch
from torch import nn

from flatkit.errors import InterruptedAnalysis, OutputError, ResultError
from flatkit.files import Store
from flatkit.measures import AnalysisSettings, analyze
from flatkit.measures.journal import journal, keep_passes
from flatkit.measures.watching import Silent
from flatkit.objective import Task


def network(bias=0.0, mean=0.0):
    model: Any = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape))
    nn.init.constant_(model[0].bias, bias)
    nn.init.constant_(model[1].running_mean, mean)
    return model


def task(*, shift=0.0, test=0.0, loss="cross_entropy", **changes):
    inputs = torch.arange(30.0).view(10, 3) / 30
    labels = torch.arange(10) % 2
    data, test_data = (inputs + shift, labels), (inputs + test, labels)
    return Task(network(**changes), loss, data, test_data)


def opened(path, given, fresh=False, **settings):
    known = AnalysisSettings(samples=6, **settings)
    return journal(path, given.objective(known), known, fresh=fresh)


def weighted(outputs, targets):
    return 2 * nn.functional.cross_entropy(outputs, targets, reduction="none")


@pytest.mark.parametrize(
    ("changes", "settings", "named"),
    [
        ({"bias": 0.5}, {}, "the weights"),
        ({"mean": 0.5}, {}, "the model or its buffers"),
        ({"shift": 0.5}, {}, "the samples"),
        ({"loss": weighted}, {}, "the code of the model or the loss"),
        ({}, {"seed": 1}, "seed: 0 there, 1 here"),
        ({}, {"rho": [0.3]}, r"rho: .* there, \[0.3\] here"),
        ({}, {"dtype": "float64"}, 'dtype: null there, "float64" here'),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value), ""),
)
def test_the_journal_of_another_analysis_is_refused_with_what_differs(
    tmp_path, changes, settings, named
):
    path = tmp_path / "report.json.journal"
    with opened(path, task()) as store:
        store.put("result", "loss", 0.5)
    with (
        pytest.raises(ResultError, match=rf"report\.json\.journal is of another job \(.*{named}"),
        opened(path, task(**changes), **settings),
    ):
        pass
    with opened(path, task()) as store:
        assert store.get("result", "loss") == 0.5
    with opened(path, task(**changes), fresh=True, **settings) as store:
        assert store.get("result", "loss") is None


def test_more_measures_and_other_test_data_go_on_with_the_journal(tmp_path):
    path = tmp_path / "report.json.journal"
    with opened(path, task(), measures=["loss"]) as store:
        store.put("result", "loss", 0.5)
    with opened(path, task(test=1.0), measures=["trace"]) as store:
        assert store.get("result", "loss") == 0.5


def test_each_objective_finds_its_own_passes(tmp_path):
    path, settings = tmp_path / "a.journal", AnalysisSettings()
    given = task(test=0.5)
    losses = []
    for _ in range(2):
        train = given.objective(settings)
        with journal(path, train, settings) as store:
            test = keep_passes(given.objective(settings, split="test"), store)
            assert train.kept is not None and test.kept is not None
            for objective in (train, test):
                assert objective.kept is not None
                objective.kept._least = 0.0
                losses.append(objective.loss())
        assert train.loss() == losses[-2]  # it is closed: all goes on without
    plain = [given.objective(settings, split=split).loss() for split in ("train", "test")]
    assert losses == [*plain, *plain] and plain[0] != plain[1]


def test_two_analyses_do_not_write_one_journal(tmp_path):
    path = tmp_path / "a.journal"
    with (
        opened(path, task()),
        pytest.raises(OutputError, match="is being written by another process"),
        opened(path, task()),
    ):
        pass


@pytest.mark.parametrize("stops", [False, True])
def test_a_full_disk_is_told_in_the_report_and_ends_nothing(tmp_path, monkeypatch, stops):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    class FullThenStopped(Silent):
        def begin(self, schedule):
            monkeypatch.setattr(Store, "_insert", full)

        def look(self, schedule):
            if stops and schedule.session.objective.cost.matvecs > 2:
                raise KeyboardInterrupt

    known = {"measures": ["loss", "top_eigenvalues"], "progress": FullThenStopped()}
    try:
        report = analyze(task(), journal=tmp_path / "a.journal", **known)
    except InterruptedAnalysis as error:
        report = error.report
    assert "disk is full" in report.analysis["journal_failed"]
    assert report.analysis["ended"] == ("interrupted" if stops else "done")
    assert report.result("loss").value == task().objective(AnalysisSettings()).loss()
