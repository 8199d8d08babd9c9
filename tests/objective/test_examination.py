import json

import pytest
import torch
from rich.console import Console
from torch import nn

import flatkit
from flatkit.objective.function import Objective
from flatkit.objective.proofs.spread import spread_rows
from flatkit.render import report_table
from flatkit.results import Report


def small(count=12):
    torch.manual_seed(0)
    return nn.Linear(4, 3), (torch.randn(count, 4), torch.randint(0, 3, (count,)))


def shown(report: Report) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(report_table(report))
    return capture.get()


def test_a_report_carries_what_was_examined_how_and_in_what_time():
    model, data = small()
    report = flatkit.analyze(model, "cross_entropy", data, measures=["loss"])
    report = Report.from_json(json.loads(json.dumps(report.to_json())))
    checks = {check["name"]: check for check in report.objective["examination"]}
    assert checks["deterministic"]["passed"] is True
    assert all(check["how"] and check["seconds"] >= 0 for check in checks.values())
    assert "deterministic" in shown(report) and "examined in" in shown(report)


def test_a_report_says_that_nothing_was_examined():
    model, data = small()
    report = flatkit.analyze(model, "cross_entropy", data, measures=["loss"], examine=False)
    assert [check["passed"] for check in report.objective["examination"]] == [None]
    assert "not examined" in shown(report)


@pytest.mark.parametrize(("available", "size"), [(10, 3), (7, 7), (3, 9), (1000, 16)])
def test_spread_samples_lie_one_in_each_equal_part(available, size):
    rows, size = spread_rows(available, size), min(size, available)
    parts = (rows * size + size - 1) // available  # the part in which a row begins or ends
    assert len(rows) == size and rows.unique().tolist() == rows.tolist()
    assert bool((rows >= 0).all()) and bool((rows < available).all())
    assert bool(((parts - torch.arange(size)).abs() <= 1).all())


def test_spread_samples_carry_their_share_of_the_loss():
    model, data = small(12)
    objective = Objective(model, "cross_entropy", data)
    whole = objective.chunk_loss(objective.theta, objective.spread(99))
    assert float(whole.detach()) == pytest.approx(objective.loss(), rel=1e-6)
