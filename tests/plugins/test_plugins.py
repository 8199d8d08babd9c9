"""A package from outside adds one thing of each kind: help, table, figures and files know it.

The package is `site/toy`, found by its entry points; CONTRIBUTING.md tells how each is made.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flatkit.landscape import load_surface
from flatkit.render.axes import axis_label

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent.parent
SITE = Path(__file__).parent / "site"

# A process of its own, as the entry points are read once; each command prints after its number.
WALK = """
import contextlib, sys
from flatkit_cli.main import main
run, out = sys.argv[1:]
checkpoint, reports = f"{run}/ckpt.pt", (f"{out}/a.json", f"{out}/b.json")
for number, arguments in enumerate((
    ["analyze", "--help"],
    ["train", "--help"],
    ["landscape", "--help"],
    ["train", "--data", "ring", "--data-arg", "radius=1.1", "--model", "plain", "--optimizer",
     "sign", "--lr", "0.02", "--epochs", "2", "--batch-size", "8", "--out", run],
    ["landscape", checkpoint, "--directions", "coordinates", "--line", "--points", "5",
     "--out", out, "--formats", "svg"],
    ["analyze", checkpoint, "--measures", "weight_norm", "--setting", "norm_order=1",
     "--json", f"{out}/order.json"],
    ["analyze", checkpoint, "--measures", "loss,weight_norm", "--json", reports[0],
     "--figures", f"{out}/one"],
    ["analyze", checkpoint, "--measures", "weight_norm", "--json", reports[1]],
    ["compare", *reports],
    ["plot", *reports, "--figures", f"{out}/two"],
)):
    print(f"@{number}")
    if number == 3:
        assert "torch" not in sys.modules
    code = main(arguments)
    assert code == 0, (number, code)
with open(f"{out}/wrong.txt", "w") as stream, contextlib.redirect_stderr(stream):
    for given in ("norm_order=0", "norm_order=x", "norm_odrer=1", "rho=0.1"):
        wrong = ["analyze", checkpoint, "--measures", "weight_norm", "--setting", given]
        assert main(wrong) == 2, given
    assert main(["analyze", checkpoint, "--measures", "loss", "--setting", "norm_order=1"]) == 2
"""


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> tuple[Path, list[str]]:
    """What the commands left and printed."""
    folder = tmp_path_factory.mktemp("walk")
    path = os.pathsep.join(str(place) for place in (SITE, ROOT, ROOT / "cli"))
    done = subprocess.run(
        [sys.executable, "-c", WALK, str(folder / "run"), str(folder)],
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "120"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder, [part.split("\n", 1)[1] for part in done.stdout.split("@")[1:]]


def test_the_help_names_what_was_added_without_torch(walk):
    _, (analyze, train, landscape, *_) = walk
    assert "weight_norm" in analyze and "toy" in analyze
    assert "coordinates   of another package" in landscape
    for name in ("sign", "plain", "ring"):
        assert name in train


def test_a_run_is_made_of_data_model_and_optimizer_from_outside(walk):
    folder, _ = walk
    assert len(json.loads((folder / "run" / "history.json").read_text())["rows"]) == 2


def test_directions_are_in_the_file_of_the_surface_and_in_its_picture(walk):
    folder, _ = walk
    surface = load_surface(folder / "run-coordinates-line.npz")
    assert surface.axes["t"].tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert surface.lengths == [1.0] and axis_label(surface, 0) == "step t  (‖d‖ = 1.00)"
    assert (folder / "coordinates-line.svg").is_file()


def test_a_measure_is_in_table_file_comparison_and_figures(walk):
    folder, (*_, analyzed, _, compared, _) = walk
    (result,) = json.loads((folder / "b.json").read_text())["results"]
    assert result["measure"] == "weight_norm" and result["value"] > 0
    for table in (analyzed, compared):
        assert {"weight", "norm", "‖θ‖"} <= set(table.split())
        assert any(word.startswith(f"{result['value']:.4g}"[:4]) for word in table.split())
    for figures in ("one", "two"):
        assert (folder / figures / "weight-norm.png").is_file()


def test_a_setting_of_a_measure_reaches_it_and_is_checked_by_its_field(walk):
    folder, _ = walk
    one, two = (
        json.loads((folder / name).read_text())["results"][0]["value"]
        for name in ("order.json", "b.json")
    )
    assert one > 1.5 * two
    assert (folder / "wrong.txt").read_text().splitlines() == [
        "error: norm_order must be a finite number > 0, got 0",
        "error: norm_order must be a finite number > 0, got 'x'",
        "error: setting 'norm_odrer' is not known: --setting takes norm_order; did you mean "
        "'norm_order'?",
        "error: --setting must not hold 'rho': rho has an option of its own: --rho",
        "error: setting 'norm_order' is not known: --setting takes none, as no chosen measure of "
        "another package has settings",
    ]
