"""The demo goes the whole way, from training to the report."""

import json

import pytest
import torch
from click.testing import CliRunner

from flatkit.results import load_results
from flatkit_cli import demo
from flatkit_cli.main import cli, main


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_demo_leaves_checkpoints_a_report_and_pictures(tmp_path, monkeypatch):
    # The whole way with a smaller network on a fifth of the images.
    small = {"data_kwargs": {"test_fraction": 0.8}, "batch_size": 16}
    small["model_kwargs"] = {"hidden": (16,), "activation": "relu"}
    for name, value in small.items():
        monkeypatch.setitem(demo._COMMON, name, value)
    monkeypatch.chdir(tmp_path)
    example = ["demo", "--out", "demo"]
    assert f"flatkit {' '.join(example)}" in CliRunner().invoke(cli, ["demo", "--help"]).output
    out = tmp_path / "demo"
    done = CliRunner().invoke(cli, [*example, "--seeds", "1", "--epochs", "2"])
    assert done.exit_code == 0, done.output
    comparison = load_results(out / "report.json")
    assert [entry.name for entry in comparison.entries] == [
        f"{name}, seed 0" for name in ("sgd", "sam", "gam")
    ]
    for name in ("sgd", "sam", "gam"):
        assert (out / name / "ckpt.pt").is_file()
        assert len(json.loads((out / name / "history.json").read_text())["rows"]) == 2
    report = (out / "report.md").read_text("utf-8")
    assert "GAM below SGD" in report and "top eigenvalue" in report
    for picture in ("slice", "plane", "flatness", "curvature", "history"):
        assert f"figures/{picture}.png" in report and (out / f"figures/{picture}.png").is_file()


def test_an_earlier_demo_is_not_overwritten_unasked(tmp_path, capsys):
    (tmp_path / "report.json").write_text("{}")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "report.json").read_text() == "{}"
