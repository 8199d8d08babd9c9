"""The demo goes the whole way, from training to the report; it is a study that comes along."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from flatkit.results import load_results
from flatkit.studies.settings import read_study
from flatkit_cli import demo
from flatkit_cli.main import cli

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Run the demo with a smaller network on a fifth of the images, and with short searches."""
    whole = read_study("demo")
    brief = {**whole.analyze, "search_budget": 10, "samples": 60, "trace_tolerance": 0.1}
    brief |= {"slice_points": 7, "plane_points": 7}
    line = ["demo", "--out", "demo", "--seeds", "2", "--formats", "png", "--dpi", "60"]
    small = {"data_kwargs": {"test_fraction": 0.8}, "batch_size": 16, "epochs": 2}
    small["model_kwargs"] = {"hidden": (16,), "activation": "relu"}
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        fast = replace(whole, train={**whole.train, **small}, analyze=brief)
        patch.setattr(demo, "read_study", lambda name: fast)
        patch.chdir(folder)
        done = CliRunner().invoke(cli, line)
        again = CliRunner().invoke(cli, line)
    assert done.exit_code == again.exit_code == 0, done.output
    return folder / "demo", done, again


def test_the_demo_leaves_checkpoints_a_report_and_pictures(shown):
    out, done, _ = shown
    example = "flatkit demo --out demo"
    assert example in CliRunner().invoke(cli, ["demo", "--help"]).output
    comparison = load_results(out / "report.json")
    assert [entry.name for entry in comparison.entries] == [
        f"{name}, seed {seed}" for name in ("sgd", "sam", "gam") for seed in (0, 1)
    ]
    for name in ("sgd", "sam", "gam"):
        assert (out / name / "seed-0" / "ckpt.pt").is_file()
        rows = json.loads((out / name / "seed-0" / "history.json").read_text())["rows"]
        assert len(rows) == 2
    report = (out / "report.md").read_text("utf-8")
    assert "| gam | sgd | flatter and generalises |" in report and "top eigenvalue" in report
    for picture in ("slice", "plane", "flatness", "curvature", "claims", "history"):
        assert f"figures/{picture}.png" in report and (out / f"figures/{picture}.png").is_file()
    assert (out / "report.html").is_file()
    assert "gam against sgd" in done.output


def test_landscapes_are_drawn_of_the_first_seed_alone(shown):
    out, _, _ = shown
    for entry in load_results(out / "report.json").entries:
        measured = {result.measure for result in entry.report}
        assert ("loss_plane" in measured) == (entry.seed == "0")
        assert "top_eigenvalues" in measured


def test_a_table_is_shown_as_soon_as_one_seed_is_done(shown):
    _, done, again = shown
    assert done.stderr.index("After 1 seed; more follow.") < done.stderr.index("[6 of 6 runs done")
    assert "runs done" not in again.stderr and "gam against sgd" in again.stdout


def test_the_demo_trains_with_what_is_published_for_gam():
    whole = read_study("demo")
    (gam,) = [arm for arm in whole.arms if arm.name == "gam"]
    published = {"rho": 0.2, "rho_prime": 0.03, "alpha": 0.1, "beta": 0.1, "gamma": 0.05}
    assert gam.settings == {"optimizer": "gam", **published}
    assert (whole.train["lr"], whole.train["weight_decay"]) == (0.1, 5e-4)
