"""Files that flatkit 0.1.0 wrote are read, drawn and gone on with.

They lie in `files`: runs of every optimizer with two of three epochs done, reports, surfaces, and
the journal of a line of which three of seven points were measured.
"""

import json
import shutil
import zlib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from flatkit import checkpoints
from flatkit._moved import HOMES
from flatkit.landscape import LandscapeJob, load_surface
from flatkit.results import Report, load_results
from flatkit.training import read_history, train
from flatkit.training.run import stored_config
from flatkit.version import __version__
from flatkit_cli.main import main
from tests.versions import before

FILES = Path(__file__).parent / "files"
RUNS = sorted(path.name for path in (FILES / "runs").iterdir())
MEASURES = (
    *("loss", "accuracy", "gradient_norm", "top_eigenvalues", "bottom_eigenvalues", "trace"),
    *("frobenius_norm", "spectral_density", "layer_curvature", "cross_check"),
    *("zeroth_order_sharpness", "first_order_flatness", "max_gradient_norm"),
    *("quadratic_model_maximum", "average_sharpness", "m_sharpness", "loss_slice", "loss_plane"),
)


def test_a_report_of_all_measures_is_read_without_loss():
    report = Report.load(FILES / "sgd-report.json")
    assert {result.measure for result in report} >= set(MEASURES)
    assert json.loads(report.to_json()) == json.loads(
        (FILES / "sgd-report.json").read_text("utf-8")
    )
    assert report.result("top_eigenvalues").error_kind == "residual"


def test_a_comparison_is_read_without_loss():
    comparison = load_results(FILES / "comparison.json")
    assert [entry.name for entry in comparison.entries] == ["sgd", "gam"]
    assert json.loads(comparison.to_json()) == json.loads(
        (FILES / "comparison.json").read_text("utf-8")
    )


def test_a_verification_is_read_without_loss():
    verified = Report.load(FILES / "verify.json")
    assert json.loads(verified.to_json()) == json.loads((FILES / "verify.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("files", "pictures"),
    [
        (
            ["sgd-report.json"],
            {f"{n}.png" for n in ("density", "flatness", "layers", "plane", "slice")},
        ),
        (["comparison.json"], {f"{n}.png" for n in ("curvature", "flatness", "plane", "slice")}),
        (["verify.json"], {"flatness.png"}),
        (["sgd-random-line.npz"], {"random-line.png"}),
        (["sgd-random-plane.npz"], {"random-plane-loss.png"}),
    ],
    ids=lambda value: "" if isinstance(value, set) else value[0],
)
def test_they_are_drawn(files, pictures, tmp_path):
    given = [str(FILES / name) for name in files]
    assert main(["plot", *given, "--figures", str(tmp_path / "figures")]) == 0
    found = {path.name for path in (tmp_path / "figures").iterdir()}
    assert pictures <= found


def test_reports_and_comparisons_are_compared(capsys):
    assert main(["compare", str(FILES / "sgd-report.json"), str(FILES / "comparison.json")]) == 0
    words = capsys.readouterr().out.split()
    assert {"sgd", "gam", "eigenvalue", "flattest,"} <= set(words)


@pytest.mark.parametrize("name", ["sgd-random-line", "sgd-random-plane"])
def test_surfaces_are_read_and_whole(name):
    surface = load_surface(FILES / f"{name}.npz")
    assert surface.header["complete"] and surface.measured.all()
    loss = checkpoints.load(FILES / "runs" / "sgd" / "ckpt.pt").task()
    x, y = loss.data
    expected = float(torch.nn.functional.cross_entropy(loss.model(x), y).detach())
    assert surface.at_centre("loss") == pytest.approx(expected, rel=1e-5)


@pytest.mark.skipif(before(torch, 2, 5), reason="torch 2.4 rounds the directions otherwise")
def test_a_half_done_landscape_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    name = "gam-random-line.npz"
    lines = (FILES / "half" / f"{name}.journal").read_bytes().splitlines()
    job = json.loads(lines[0].split(b" ", 1)[1])
    # Other versions of flatkit or torch may round otherwise and begin anew: these are set aside.
    job["job"] |= {"flatkit": __version__, "torch": torch.__version__}
    text = json.dumps(job, ensure_ascii=False).encode()
    lines[0] = b"%08x %s" % (zlib.crc32(text), text)
    (tmp_path / f"{name}.journal").write_bytes(b"\n".join([*lines, b""]))
    measured, values = [], LandscapeJob.values_at

    def counted(self, part):
        measured.extend(part)
        return values(self, part)

    monkeypatch.setattr(LandscapeJob, "values_at", counted)
    arguments = ["--line", "--points", "7", "--no-figures", "--out", str(tmp_path)]
    assert main(["landscape", str(FILES / "runs" / "gam" / "ckpt.pt"), *arguments]) == 0
    assert len(measured) == 4
    surface = load_surface(tmp_path / name)
    losses = [json.loads(line.split(b" ", 1)[1])["values"][0]["loss"] for line in lines[1:]]
    np.testing.assert_array_equal(surface.quantities["loss"][:3], losses)
    assert surface.header["complete"] and surface.measured.all()


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_to_the_weights_that_it_would_have_had(name, tmp_path):
    folder = shutil.copytree(FILES / "runs" / name, tmp_path / name)
    assert checkpoints.load(folder / "ckpt.pt").epoch == 2
    earlier = read_history(FILES / "runs" / name / "history.json")
    assert train(stored_config(folder), folder, resume=True).epochs_run == 1
    rows = read_history(folder / "history.json")
    assert rows[:2] == earlier and len(rows) == 3
    expected = json.loads((FILES / "final-weights.json").read_text())[name]
    for key, tensor in checkpoints.load(folder / "ckpt.pt").state_dict.items():
        np.testing.assert_allclose(tensor.flatten(), expected[key], rtol=1e-4, atol=1e-6)


def test_the_eigenvalues_along_a_run_go_on(tmp_path):
    folder = shutil.copytree(FILES / "runs" / "sgd", tmp_path / "sgd")
    shutil.copy(FILES / "curvature.json", folder)
    (before,) = json.loads((FILES / "curvature.json").read_text())["rows"]
    assert main(["train", "--out", str(folder), "--resume", "--track-curvature", "3"]) == 0
    rows = json.loads((folder / "curvature.json").read_text())["rows"]
    assert before.items() <= rows[0].items()  # what was measured later only has no value
    assert [row["step"] for row in rows] == [3, 6]


@pytest.mark.parametrize("name", HOMES)
def test_modules_of_0_1_hand_on_to_where_they_are(name):
    known = {"flatkit.operators": "DenseOperator", "flatkit.losses": "CrossEntropy"}
    known |= {"flatkit.samples": "collect", "flatkit.task": "Task", "flatkit.analysis": "analyze"}
    with pytest.warns(DeprecationWarning, match=HOMES[name]):
        found = getattr(import_module(name), known[name])
    assert found is getattr(import_module(HOMES[name]), known[name])
    with pytest.raises(ImportError):
        exec(f"from {name} import nothing_of_that_name")
