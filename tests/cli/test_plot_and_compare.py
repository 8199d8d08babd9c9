"""`flatkit compare` and `flatkit plot` on saved results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flatkit.results import Comparison, Entry, Report, Result, load_results
from flatkit_cli.main import main

ROOT = Path(__file__).parent.parent.parent
OBJECTIVE = {
    "samples": 100,
    "samples_available": 100,
    "indices_sha256": "ab" * 32,
    "loss": "cross_entropy",
    "batchnorm": "eval",
    "dtype": "float64",
    "parameters": 43,
}


def report(top: float = 3.0, name: str | None = None, **changed) -> Report:
    x = [-1.0, 0.0, 1.0]
    plane = {"x": x, "y": x, "loss": [[1 + top * (a * a + b * b) for a in x] for b in x]}
    return Report(
        [
            Result("accuracy", 0.95, 0.0, settings={"split": "test"}),
            Result("top_eigenvalues", [top], [1e-4], "residual"),
            Result("loss_plane", plane, 0.0),
        ],
        checkpoint={} if name is None else {"name": name},
        objective={**OBJECTIVE, **changed},
    )


def save(folder: Path, **reports: Report) -> list[str]:
    return [str(found.save(folder / f"{name}.json")) for name, found in reports.items()]


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_compare_puts_reports_and_comparisons_in_one_table(tmp_path, capsys):
    files = save(tmp_path, sgd=report(9.0), gam=report(2.0, name="gam of the paper"))
    pair = Comparison([Entry("sam, seed 0", "sam", report(5.0))])
    code, out, err = run(capsys, "compare", *files, pair.save(tmp_path / "pair.json"))
    assert code == 0, err
    rows = [line.split() for line in out.splitlines()]
    assert ["sgd", "95.00", "9.0000"] in rows
    assert ["gam", "of", "the", "paper", "95.00", "2.0000*"] in rows
    assert ["sam,", "seed", "0", "95.00", "5.0000"] in rows


def test_json_on_stdout_is_alone_and_reads_back(tmp_path, capsys):
    files = save(tmp_path, sgd=report(9.0), gam=report(2.0))
    code, out, err = run(capsys, "compare", *files, "--json", "-")
    assert code == 0 and json.loads(out)["schema"] == 1 and err == ""
    again = Comparison.from_json(out)
    assert [entry.name for entry in again.entries] == ["sgd", "gam"]
    assert [entry.report for entry in again.entries] == [
        load_results(path).entries[0].report for path in files
    ]


def test_compare_writes_the_files_that_are_asked_for(tmp_path, capsys):
    files = save(tmp_path, sgd=report(9.0), gam=report(2.0))
    out_json, markdown, figures = (tmp_path / "new" / n for n in ("c.json", "c.md", "figures"))
    code, out, err = run(
        capsys, "compare", *files, "--json", out_json, "--markdown", markdown, "--figures", figures
    )
    assert code == 0 and "λmax" in out
    assert len(load_results(out_json).entries) == 2
    assert "| gam | 95.00 | **2.0000** |" in markdown.read_text("utf-8")
    names = {path.name for path in figures.iterdir()}
    assert names == {f"{n}.{s}" for n in ("plane", "curvature") for s in ("png", "svg")}
    assert all(str(path) in err for path in (out_json, markdown, figures))


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("markdown", "| gam | 95.00 | **2.0000** |"),
        ("latex", r"gam & 95.00 & \textbf{\boldmath 2.0000} \\"),
        ("csv", "gam of the paper,gam of the paper,,,top_eigenvalues,,,2.0,0.0001,residual,conv"),
        ("html", "<strong>2.0000</strong>"),
    ],
)
def test_the_table_is_printed_in_the_format_that_is_asked_for(kind, row, tmp_path, capsys):
    name = "gam of the paper" if kind == "csv" else "gam"
    files = save(tmp_path, sgd=report(9.0), gam=report(2.0, name=name))
    code, out, _ = run(capsys, "compare", *files, "--format", kind)
    assert code == 0 and row in out
    code, _, err = run(capsys, "compare", *files, "--format", "latx")
    assert code == 2 and "did you mean 'latex'?" in err


def test_the_differences_of_groups_are_shown_if_they_are_asked_for(tmp_path, capsys):
    files = save(tmp_path, sgd=report(9.0), gam=report(2.0))
    _, without, _ = run(capsys, "compare", *files)
    _, out, _ = run(capsys, "compare", *files, "--pairs")
    assert "sgd − gam" in out and "95 % interval" in out and "sgd − gam" not in without
    _, out, _ = run(capsys, "compare", *files, "--pairs", "--format", "latex")
    assert out.count(r"\begin{table}") == 2


def test_runs_of_one_name_are_told_apart_by_their_files(tmp_path, capsys):
    for seed in (0, 1):
        report(2.0 + seed, name="gam").save(tmp_path / f"seed-{seed}" / "report.json")
    files = sorted(tmp_path.glob("*/report.json"))
    code, out, _ = run(capsys, "compare", *files, "--json", "-")
    entries = Comparison.from_json(out).entries
    assert code == 0
    names = ["gam (seed-0/report.json)", "gam (seed-1/report.json)"]
    assert [entry.name for entry in entries] == [entry.group for entry in entries] == names


def test_repeats_makes_reports_of_one_name_one_group(tmp_path, capsys):
    for seed in (0, 1, 2):
        report(2.0 + seed, name="gam").save(tmp_path / str(seed) / "report.json")
    files = sorted(tmp_path.glob("*/report.json"))
    code, out, _ = run(capsys, "compare", *files, "--repeats")
    assert code == 0 and ["gam", "3", "95.00", "±", "0", "3.0", "±", "1.0"] in [
        line.split() for line in out.splitlines()
    ]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"indices_sha256": "cd" * 32}, "which samples"),
        ({"loss": "mse"}, "loss: cross_entropy (a), mse (b)"),
        ({"dtype": "float32"}, "dtype: float64 (a), float32 (b)"),
    ],
)
def test_reports_of_different_functions_are_flagged(changed, named, tmp_path, capsys):
    files = save(tmp_path, a=report(9.0), b=report(2.0, **changed))
    code, out, _ = run(capsys, "compare", *files)
    assert code == 0 and "! different functions" in out and "*" not in out
    assert named in " ".join(out.split())
    _, out, err = run(capsys, "compare", *files, "--json", "-")
    assert json.loads(out) and err.startswith("warning: different functions") and named in err
    _, _, err = run(capsys, "plot", *files, "--figures", tmp_path / "figures")
    assert "warning: different functions" in err


@pytest.mark.long
def test_plot_draws_the_figures_without_torch(tmp_path):
    (path,) = save(tmp_path, gam=report())
    code = (
        "import sys; from flatkit_cli.main import main;"
        f"assert main(['plot', {path!r}, '--figures', {str(tmp_path / 'figures')!r}]) == 0;"
        f"assert main(['compare', {path!r}]) == 0;"
        "assert 'matplotlib' in sys.modules and 'torch' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'cli'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"plane.png", "plane.svg"}


def test_help_and_the_modules_of_the_commands_import_nothing_heavy():
    code = (
        "import sys, flatkit_cli.plot; plot = {*sys.modules} & {'numpy'};"
        "import flatkit_cli.compare;"  # its options are those of the measures, which use NumPy
        "print(plot | {'torch', 'matplotlib', 'seaborn', 'rich'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'cli'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.long
def test_drawing_twice_gives_the_same_bytes_in_another_process(tmp_path, capsys):
    (path,) = save(tmp_path, gam=report())
    assert run(capsys, "plot", path, "--figures", tmp_path / "a")[0] == 0
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'cli'}"}
    subprocess.run(
        [sys.executable, "-m", "flatkit_cli.main", "plot", path, "--figures", tmp_path / "b"],
        env={**environment, "PYTHONHASHSEED": "7"},
        check=True,
        capture_output=True,
    )
    for name in ("plane.png", "plane.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_results_that_no_figure_can_show_are_an_error(tmp_path, capsys):
    path = Report([Result("loss", 0.5, 0.0)]).save(tmp_path / "a.json")
    code, out, err = run(capsys, "plot", path, "--figures", tmp_path / "figures")
    assert (code, out) == (1, "") and "nothing to draw" in err and "loss" in err
    assert "layer_curvature" in err and "first_order_flatness" in err


@pytest.mark.parametrize("command", ["compare", "plot"])
def test_bad_files_are_one_line_and_the_right_exit_code(command, tmp_path, capsys):
    (good,) = save(tmp_path, gam=report())
    options = ["--figures", tmp_path / "figures"] if command == "plot" else []
    text = tmp_path / "text.json"
    text.write_text("hello")
    foreign = tmp_path / "foreign.json"
    foreign.write_text('{"schema": 99, "results": []}')
    malformed = tmp_path / "malformed.json"
    malformed.write_text(
        json.dumps({"schema": 1, "results": [{**Result("loss_plane", {}).to_dict()}]})
    )
    cases = {text: 1, foreign: 1, tmp_path / "missing.json": 2, tmp_path: 2}
    if command == "plot":
        cases[malformed] = 1
    for path, expected in cases.items():
        code, out, err = run(capsys, command, good, path, *options)
        assert (code, out) == (expected, ""), (path, out, err)
        assert "Traceback" not in err and "unexpected" not in err, err
    assert not (tmp_path / "figures").exists() or not list((tmp_path / "figures").iterdir())


def test_a_file_given_twice_is_wrong_usage(tmp_path, capsys):
    (path,) = save(tmp_path, gam=report())
    code, out, err = run(capsys, "compare", path, Path(path).parent / "." / "gam.json")
    assert (code, out) == (2, "") and "twice" in err


def test_outputs_that_cannot_be_written_leave_nothing_half_done(tmp_path, capsys):
    (path,) = save(tmp_path, gam=report())
    occupied = tmp_path / "file"
    occupied.write_text("mine")
    for option in (
        ["--json", occupied / "c.json"],
        ["--markdown", tmp_path],
        ["--figures", occupied],
    ):
        code, out, err = run(capsys, "compare", path, *option)
        assert (code, out) == (1, "") and "cannot" in err
    assert occupied.read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("arguments", [["compare"], ["plot"], ["plot", "FILE"]])
def test_missing_arguments_are_wrong_usage(arguments, tmp_path, capsys):
    (path,) = save(tmp_path, gam=report())
    code, out, _ = run(capsys, *(path if word == "FILE" else word for word in arguments))
    assert (code, out) == (2, "")


@pytest.mark.parametrize("command", ["compare", "plot"])
def test_other_files_of_a_run_are_called_by_what_they_are(command, tmp_path, capsys):
    options = ["--figures", tmp_path / "figures"] if command == "plot" else []
    files = {
        "curvature.json": ({"rows": [{"step": 1}]}, "the curvature that a training tracked"),
        "history.json": ({"rows": [{"train_loss": 1}]}, "the history of a training"),
        "other.json": ([1], "some other JSON, neither a report nor a comparison"),
    }
    for name, (content, words) in files.items():
        (tmp_path / name).write_text(json.dumps(content))
        code, out, err = run(capsys, command, tmp_path / name, *options)
        assert (code, out) == (1, "") and f"{name} is {words}" in err and "--json FILE" in err
