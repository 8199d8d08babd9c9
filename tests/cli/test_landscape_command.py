"""`flatkit landscape`: files, exports, exit codes, and messages of bad input."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from torch import nn

import flatkit_cli.landscape
from flatkit import checkpoints
from flatkit.landscape import load_surface
from flatkit.training import TrainingConfig, train
from flatkit_cli.landscape import _progress
from flatkit_cli.main import main
from tests.processes import CONTEXT, landscape_until_killed, start

SMALL = {
    "data": "digits",
    "data_kwargs": {"test_fraction": 0.9},
    "model_kwargs": {"hidden": (8,)},
    "device": "cpu",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two runs of four epochs, each epoch kept, and one of another architecture."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("a", "b")):
        train(TrainingConfig(**SMALL, epochs=4, save_every=1, seed=seed), folder / name)
    other = {**SMALL, "model_kwargs": {"hidden": (9,)}}
    train(TrainingConfig(**other, epochs=1), folder / "wide")
    return folder


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main(["landscape", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_plane_at_each_checkpoint_in_one_file_each_with_exports(runs, tmp_path, capsys):
    files = [runs / name / "ckpt.pt" for name in ("a", "b")]
    code, out, err = run(
        capsys, *files, "--out", tmp_path, "--points", 5, "--splits", "train,test",
        "--export", "csv,vtk", "--range", "-0.5,0.5", "--no-figures",
    )  # fmt: skip
    assert code == 0, err
    names = {p.name for p in tmp_path.iterdir()}
    stems = {"a-random-plane", "b-random-plane"}
    assert names == {f"{stem}.{suffix}" for stem in stems for suffix in ("npz", "csv", "vtk")}
    surface = load_surface(tmp_path / "a-random-plane.npz")
    expected = {f"{s}{q}" for s in ("", "test_") for q in ("loss", "accuracy", "gradient_norm")}
    assert set(surface.quantities) == expected
    task = checkpoints.load(files[0]).task()
    assert task.test_data is not None
    for prefix, (x, y) in (("", task.data), ("test_", task.test_data)):
        loss = torch.nn.functional.cross_entropy(task.model(x), y)
        assert surface.at_centre(f"{prefix}loss") == pytest.approx(float(loss.detach()), rel=1e-6)
    assert surface.header["directions"]["normalization"] == "filter"
    assert surface.header["directions"]["one_dimensional"] == "zero"
    table = pandas.read_csv(tmp_path / "a-random-plane.csv")
    assert table.loss.to_numpy() == pytest.approx(surface.quantities["loss"].ravel())
    assert "width" in out and "asymmetry" in out and "25 of 25 points" in err


def test_a_trajectory_and_its_path_in_one_file(runs, tmp_path, capsys):
    files = [runs / "a" / f"epoch-000{n}.pt" for n in range(1, 5)]
    code, _, err = run(
        capsys, *files, "--directions", "pca", "--points", 5, "--out", tmp_path, "--no-figures"
    )
    assert code == 0, err
    surface = load_surface(tmp_path / "a-pca-plane.npz")
    path = surface.header["path"]
    assert path["epochs"] == [1, 2, 3, 4] and path["at"][-1] == [0.0, 0.0]
    for axis, steps in enumerate(surface.axes.values()):
        places = [at[axis] for at in path["at"]]
        assert steps[0] < min(places) and steps[-1] > max(places)
    assert 0 < sum(surface.header["directions"]["explained_variance"]) <= 1


def test_the_line_between_two_checkpoints_has_their_own_losses_and_a_barrier(
    runs, tmp_path, capsys
):
    files = [runs / name / "ckpt.pt" for name in ("a", "b")]
    code, out, err = run(
        capsys, *files, "--directions", "checkpoints", "--points", 9, "--out", tmp_path,
        "--no-figures",
    )  # fmt: skip
    assert code == 0, err
    line = load_surface(tmp_path / "a-b-checkpoints-line.npz")
    for t, path in zip((0.0, 1.0), files, strict=True):
        task = checkpoints.load(path).task()
        x, y = task.data
        loss = float(torch.nn.functional.cross_entropy(task.model(x), y).detach())
        (at,) = np.flatnonzero(line.axes["t"] == t)
        assert line.quantities["loss"][at] == pytest.approx(loss, rel=1e-5)
    markers = [(marker["name"], marker["at"]) for marker in line.header["markers"]]
    assert markers == [("a", [0.0]), ("b", [1.0])]
    assert "barrier" in out


def test_directions_from_a_file_are_those_vectors(runs, tmp_path, capsys):
    model = checkpoints.load(runs / "a" / "ckpt.pt").build_model()
    size = sum(p.numel() for p in model.parameters())
    np.save(tmp_path / "v.npy", np.eye(2, size))
    code, _, err = run(
        capsys, runs / "a" / "ckpt.pt", "--directions", tmp_path / "v.npy", "--points", 3,
        "--quantities", "loss", "--out", tmp_path / "out", "--no-figures",
    )  # fmt: skip
    assert code == 0, err
    surface = load_surface(tmp_path / "out" / "a-given-plane.npz")
    assert surface.header["directions"]["norms"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["{a}", "--range", "1,1"], 2, "no width"),
        (["{a}", "--range", "1,x"], 2, "--range must be numbers"),
        (["{a}", "--range", "1"], 2, "two numbers"),
        (["{a}", "--range", "2,1"], 2, "smaller to a larger"),
        (["{a}", "--points", "2"], 2, "points must be a whole number >= 3"),
        (["{a}", "--directions", "pcq"], 2, "did you mean 'pca'"),
        (["{a}", "--quantities", "los"], 2, "did you mean 'loss'"),
        (["{a}", "--export", "xls"], 2, "export must be one of"),
        (["{a}", "--refine", "0"], 2, "refine must be"),
        (["{a}", "--directions", "pca"], 2, "at least 3 checkpoints"),
        (["{a}", "--directions", "checkpoints"], 2, "two (a line) or three"),
        (["{a}", "--directions", "pca", "--normalization", "filter"], 2, "does not apply"),
        (["{a}", "--directions", "nothing.npy"], 2, "no such file"),
        (["{a}", "--statistics", "reestimate"], 2, "BatchNorm"),
        (["{a}", "--statistics", "interpolate"], 2, "checkpoints"),
        (["{a}", "{wide}", "--directions", "checkpoints"], 1, "another architecture"),
        (["{a}", "{nan}", "--directions", "checkpoints"], 1, "NaN"),
        (["{nan}"], 1, "NaN"),
        (["{missing}"], 1, "no such file"),
    ],
)
def test_bad_input_is_named_and_nothing_is_left_behind(
    arguments, code, named, runs, tmp_path, capsys
):
    places = {name: runs / name / "ckpt.pt" for name in ("a", "wide", "missing")}
    nan = checkpoints.load(places["a"])
    nan.state_dict["output.weight"][0, 0] = float("nan")
    places["nan"] = checkpoints.save(
        tmp_path / "nan.pt",
        model=nan.model,
        data=nan.data,
        loss=nan.loss,
        state_dict=nan.state_dict,
    )
    given = [argument.format(**places) for argument in arguments]
    found, _, err = run(capsys, *given, "--out", tmp_path / "out")
    assert found == code and named in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_surface_file_cut_short_is_named(runs, tmp_path, capsys):
    arguments = [runs / "a" / "ckpt.pt", "--line", "--points", 3, "--out", tmp_path, "--no-figures"]
    assert run(capsys, *arguments)[0] == 0
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:-40])
    code, _, err = run(capsys, *arguments)
    assert code == 1 and "cut short" in err
    assert run(capsys, *arguments, "--overwrite")[0] == 0
    load_surface(path)


def test_a_second_command_leaves_a_surface_to_the_first_until_that_is_killed(
    runs, tmp_path, capsys
):
    arguments = [str(runs / "a" / "ckpt.pt"), "--out", str(tmp_path / "out")]
    arguments += ["--points", "5", "--line", "--no-figures", "--samples", "20"]
    stuck = CONTEXT.Event()
    first = start(landscape_until_killed, arguments, stuck)
    try:
        assert stuck.wait(timeout=120)
        (journal,) = (tmp_path / "out").glob("*.journal")
        kept = journal.read_bytes()
        for more in ((), ("--overwrite",)):
            code, _, err = run(capsys, *arguments, *more)
            assert code == 1 and "Traceback" not in err
            (line,) = [x for x in err.splitlines() if x.startswith("error:")]
            assert "a-random-line.npz is being written by another process" in line
            assert "wait until it has finished" in line
            if Path("/proc/locks").exists():
                assert f"(process {first.pid})" in line
            assert journal.read_bytes() == kept
        elsewhere = tmp_path / "elsewhere"
        code, _, err = run(capsys, *arguments, "--seed", "3", "--out", elsewhere)
        assert code == 0, err  # not in its way
    finally:
        first.kill()
        first.join()
    code, _, err = run(capsys, *arguments)
    assert code == 0, err
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a-random-line.npz"}
    assert load_surface(tmp_path / "out" / "a-random-line.npz").header["complete"]


def test_from_python_the_same_surfaces_come_without_files(runs):
    from flatkit.landscape import measure_landscape

    found = measure_landscape(
        [checkpoints.load(runs / name / "ckpt.pt") for name in ("a", "b")],
        points=3,
        quantities=("loss",),
    )
    assert [surface.name for surface in found] == ["a", "b"]
    assert found[0].at_centre("loss") != found[1].at_centre("loss")
    norms = [surface.header["directions"]["norms"] for surface in found]
    assert norms[0] != norms[1]  # each is scaled like its own weights


def test_tasks_of_ones_own_make_surfaces_also_of_what_they_have_frozen():
    from flatkit import Task
    from flatkit.errors import CheckpointError, InvalidArgumentError
    from flatkit.landscape import measure_landscape

    def task(seed: int, backbone: int = 0, **more) -> Task:
        torch.manual_seed(backbone)
        first = nn.Linear(3, 4).requires_grad_(False)
        torch.manual_seed(seed)
        x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
        pairs = [(row, n % 2) for n, row in enumerate(x)]
        return Task(
            nn.Sequential(first, nn.Linear(4, 2)), "cross_entropy", pairs, pairs[:5], **more
        )

    given = {"points": 3, "samples": 8, "splits": ("train", "test"), "quantities": ("loss",)}
    one, two = measure_landscape([task(1, name="mine"), lambda: task(2)], **given)
    assert (one.name, two.name) == ("mine", "model")
    assert one.header["objective"]["test"]["samples"] == 5  # of those, all
    (line,) = measure_landscape(
        [task(1), task(2)], directions="checkpoints", x_range=(0, 1), points=3
    )
    for t, seed in ((0, 1), (2, 2)):
        model, pairs = task(seed).model, task(seed).data
        x, y = torch.stack([row for row, _ in pairs]), torch.tensor([label for _, label in pairs])
        loss = float(nn.functional.cross_entropy(model(x), y).detach())
        assert line.quantities["loss"][t] == pytest.approx(loss, rel=1e-5)
    with pytest.raises(CheckpointError, match=r"0\.weight, which the model has frozen"):
        measure_landscape([task(1), task(2, backbone=3)], directions="checkpoints")
    with pytest.raises(InvalidArgumentError, match=r"flatkit\.load"):
        measure_landscape(["runs/ckpt.pt"])  # type: ignore[list-item]


def test_names_that_become_one_name_of_a_file_have_files_of_their_own(runs, tmp_path, capsys):
    files = [tmp_path / folder / "ckpt.pt" for folder in ("x/a", "y/a", "a-2")]
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True)
        shutil.copy(runs / ("a", "b", "a")[number] / "ckpt.pt", file)
    out = tmp_path / "out"
    few = ["--line", "--points", 3, "--quantities", "loss", "--no-figures"]
    code, _, err = run(capsys, *files, "--out", out, *few)
    assert code == 0, err
    names = {"a": "a", "a-2": "a (2)", "a-2-2": "a-2"}
    found = {stem: load_surface(out / f"{stem}-random-line.npz").name for stem in names}
    assert found == names


def test_a_file_that_is_none_is_refused_before_the_first_surface(runs, tmp_path, capsys):
    (tmp_path / "task.py").write_text("raise SystemExit('the task was run')")
    files, task = [runs / "a/ckpt.pt", tmp_path / "typo.pt"], f"{tmp_path / 'task.py'}:build"
    code, _, err = run(capsys, *files, "--task", task, "--out", tmp_path / "out")
    assert code == 1
    assert "typo.pt: there is no such file" in err


def test_a_bar_shows_a_name_with_braces_and_brackets_as_it_is(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with _progress("run{1}[red]") as progress:
        progress(1, 3)
    assert "run{1}[red]" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_costs_neither_surface_nor_numbers(
    runs, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(flatkit_cli.landscape, "_SECONDS", 0.0)
    (tmp_path / "random-line.png").mkdir()
    few = ["--line", "--points", 33, "--quantities", "loss"]
    code, out, err = run(capsys, runs / "a/ckpt.pt", "--out", tmp_path, *few)
    assert code == 1 and "note: no early picture: cannot write" in err
    assert load_surface(tmp_path / "a-random-line.npz").header["complete"] and "loss at 0" in out
