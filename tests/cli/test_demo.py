"""The demo goes the whole way, from training to the report."""

import json

import pytest
import torch
from click.testing import CliRunner

from flatkit.checkpoints import load
from flatkit.comparison.workers import in_processes
from flatkit.results import Report, Result, load_results
from flatkit_cli import demo
from flatkit_cli.main import cli, main


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_demo_leaves_checkpoints_a_report_and_pictures(tmp_path, monkeypatch):
    # The whole way with a smaller network on a fifth of the images, and short searches.
    monkeypatch.setattr(demo, "_SEARCH_BUDGET", 20)
    small = {"data_kwargs": {"test_fraction": 0.8}, "batch_size": 16}
    small["model_kwargs"] = {"hidden": (16,), "activation": "relu"}
    for name, value in small.items():
        monkeypatch.setitem(demo._COMMON, name, value)
    monkeypatch.chdir(tmp_path)
    example = ["demo", "--out", "demo"]
    assert f"flatkit {' '.join(example)}" in CliRunner().invoke(cli, ["demo", "--help"]).output
    out = tmp_path / "demo"
    done = CliRunner().invoke(cli, [*example, "--seeds", "1", "--epochs", "2", "--jobs", "1"])
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


def test_a_run_gives_the_same_bits_in_a_process_of_its_own(tmp_path):
    settings = {"data": "gaussians", "data_kwargs": {"samples": 40}, "epochs": 2, "device": "cpu"}
    settings |= {"model": "mlp", "batch_size": 10}
    folders = [str(tmp_path / place) for place in ("here", "there")]
    calls = [(folder, settings, ["loss", "gradient_norm"], [], False) for folder in folders]
    here = Report.from_json(demo.train_and_analyze(*calls[0])[0])
    ((_, answer),) = in_processes(demo.train_and_analyze, calls[1:], jobs=1)
    there = Report.from_json(answer[0])
    assert [result.value for result in here] == [result.value for result in there]
    weights = [load(f"{folder}/ckpt.pt").state_dict for folder in folders]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_first_seed_is_shown_before_the_others_are_done(tmp_path, monkeypatch, capsys):
    shown = []

    def answer(folder, *_):
        shown.append((folder, "The first seed" in capsys.readouterr().out))
        return Report([Result("loss", 0.5, 0.0, settings={"split": "train"})]).to_json(), "done"

    monkeypatch.setattr(demo, "train_and_analyze", answer)
    comparison = demo._measure(demo._runs(tmp_path, 2, 1), 1, overwrite=False)
    assert [seen for _, seen in shown] == [False, False, False, True, False, False]
    names = [f"{name}, seed {seed}" for seed in (0, 1) for name in ("sgd", "sam", "gam")]
    assert [entry.name for entry in comparison.entries] == names
