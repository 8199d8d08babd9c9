"""The experiment of `make experiment`, on a part of it."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks import experiment
from tests.data.local_folders import cifar_binary

pytestmark = pytest.mark.slow


@pytest.mark.skipif(torch.cuda.is_available(), reason="the size for a CPU is meant")
def test_the_experiment_goes_on_where_it_was_stopped_and_writes_its_table(tmp_path, monkeypatch):
    cifar_binary(tmp_path, count=40)
    data = {"train_samples": 160, "test_samples": 40, "shrink": 4, "verify": False}
    monkeypatch.setitem(experiment.CPU, "data_kwargs", data)
    monkeypatch.setattr(experiment, "RESULT", tmp_path / "experiment.md")
    arguments = ["--data-root", str(tmp_path), "--out", str(tmp_path / "runs"), "--epochs", "1"]
    arguments += ["--samples", "16"]

    def run(*more: str) -> str:
        result = CliRunner().invoke(experiment.main, [*arguments, *more], catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    run("--seed", "0", "--seed", "1")
    text = (tmp_path / "experiment.md").read_text("utf-8")
    for variant in ("sgd", "sam", "gam", "gam-sam"):
        assert f"2 of {variant}" in text
    for column in ("test accuracy", "λmax", "tr H", "R0", "R1"):
        assert column in text
    reports = sorted((tmp_path / "runs").rglob("report.json"))
    assert len(reports) == 8
    times = {file: file.stat().st_mtime_ns for file in reports}
    missing: Path = tmp_path / "runs" / "gam" / "seed-1" / "report.json"
    missing.unlink()
    assert "gam/seed-1: analyzed" in run("--seed", "0", "--seed", "1")
    assert [file for file in reports if file.stat().st_mtime_ns != times[file]] == [missing]
