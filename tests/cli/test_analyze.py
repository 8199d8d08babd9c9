"""`flatkit analyze` on good and bad input."""

import json
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch

from flatkit.checkpoints import load
from flatkit.errors import CheckpointError
from flatkit.measures import MEASURES, Measure
from flatkit.results import Comparison, Entry, Report, Result
from flatkit.training import TrainingConfig, train
from flatkit_cli.main import main

QUICK = [
    *("--slice-points", "3", "--slice-directions", "2", "--plane-points", "3"),
    *("--search-budget", "40"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    config = TrainingConfig(data="gaussians", epochs=2, device="cpu")
    return train(config, tmp_path_factory.mktemp("run")).checkpoint


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_table_names_every_quantity(checkpoint, capsys):
    code, out, err = run(capsys, "analyze", checkpoint, "--rho", 0.05, *QUICK)
    assert code == 0, err
    for text in ("loss", "accuracy", "gradient norm", "λmax", "trace", "R0", "R1", "0.05"):
        assert text in out, text


def test_json_on_stdout_is_alone_and_complete(checkpoint, capsys):
    code, out, _ = run(
        capsys, "analyze", checkpoint, "--json", "-", "--rho", 0.05, "--rho", 0.1, *QUICK
    )
    data = json.loads(out)
    assert code == 0 and data["schema"] == 1
    assert {"path", "sha256", "format"} <= set(data["checkpoint"])
    assert {
        "samples", "indices_sha256", "loss", "batchnorm", "dtype", "device", "parameters",
    } <= set(data["objective"])  # fmt: skip
    r1 = [r for r in data["results"] if r["measure"] == "first_order_flatness"]
    assert [r["settings"]["rho"] for r in r1] == [0.05, 0.1]
    assert data["command"][:1] == ["flatkit"]
    assert Report.from_json(out).find("top_eigenvalues") is not None


def test_the_report_and_the_figures_are_written(checkpoint, tmp_path, capsys):
    figures, report = tmp_path / "new" / "figures", tmp_path / "new" / "report.json"
    code, out, err = run(
        capsys, "analyze", checkpoint, "--json", report, "--figures", figures, *QUICK
    )
    assert code == 0 and "λmax" in out
    assert Report.load(report).checkpoint["path"] == str(checkpoint)
    kinds = {path.suffix for path in figures.iterdir()}
    assert kinds == {".png", ".svg"}
    assert str(report) in err


def test_measures_samples_dtype_seed_and_method_are_obeyed(checkpoint, capsys):
    options = ["--measures", "loss,top_eigenvalues", "--measures", "trace", "--samples", 50]
    options += ["--dtype", "float64", "--seed", 4, "--method", "power", "--eigenvalues", 2]
    code, out, _ = run(capsys, "analyze", checkpoint, "--json", "-", *options)
    report = Report.from_json(out)
    assert code == 0
    assert {r.measure for r in report} == {"loss", "top_eigenvalues", "trace"}
    assert report.objective["samples"] == 50 and report.objective["dtype"] == "float64"
    top = report.find("top_eigenvalues", method="power", seed=4)
    assert top is not None and len(top.value) == 2 and top.value[0] >= top.value[1]


def test_two_runs_find_the_same_numbers(checkpoint, capsys):
    # To rounding only: which engine multiplies is decided by its measured speed.
    command = ("analyze", checkpoint, "--dtype", "float64", "--json", "-", *QUICK)
    first, second = (Report.from_json(run(capsys, *command)[1]) for _ in range(2))
    assert [r.measure for r in first] == [r.measure for r in second]
    for one, other in zip(first, second, strict=True):
        assert numbers(one.value) == pytest.approx(numbers(other.value), rel=1e-5), one.measure
        assert numbers(one.error) == pytest.approx(numbers(other.error), rel=0.01, abs=1e-7)


def numbers(value) -> list[float]:
    """Return the numbers in lists and dictionaries, in their order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [float(value)] if isinstance(value, int | float) else []


def malicious(path: Path) -> Path:
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(path.parent / "executed"),)

    torch.save({"flatkit_checkpoint": 1, "model": Evil()}, path)
    return path


def test_files_that_are_no_checkpoints_are_exit_code_1_in_one_line(checkpoint, tmp_path, capsys):
    whole = checkpoint.read_bytes()
    bad = {
        "missing.pt": None,
        "empty.pt": b"",
        "text.pt": b"hello",
        "truncated.pt": whole[: len(whole) // 2],
        "pickle.pt": pickle.dumps([1, 2]),
    }
    for name, content in bad.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        code, out, err = run(capsys, "analyze", path)
        assert (code, out) == (1, ""), name
        assert err.startswith("error: ") and err.count("\n") == 1 and name in err, err
    code, out, err = run(capsys, "analyze", tmp_path)
    assert code == 1 and err.count("\n") == 1
    (tmp_path / "runs" / "gam").mkdir(parents=True)
    (tmp_path / "runs" / "gam" / "ckpt.pt").write_bytes(whole)
    code, out, err = run(capsys, "analyze", tmp_path / "runs")
    assert code == 1 and f"did you mean {tmp_path / 'runs' / 'gam' / 'ckpt.pt'}?" in err


@pytest.mark.parametrize("command", ["analyze", "verify", "info"])
@pytest.mark.parametrize("found", [Report([]), Comparison([Entry("a", "a", Report([]))])])
def test_a_report_in_the_place_of_a_checkpoint_is_sent_to_the_command_that_takes_it(
    command, found, tmp_path, capsys
):
    file = found.save(tmp_path / "report.json")
    code, out, err = run(capsys, command, file)
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert f"flatkit compare {file} shows it, flatkit plot {file} --figures" in err
    with pytest.raises(CheckpointError, match="is a report of flatkit, not a checkpoint"):
        load(file)


def test_a_folder_of_figures_is_made_when_there_is_one(checkpoint, tmp_path, capsys):
    folder = tmp_path / "new" / "figures"
    code, _, err = run(capsys, "analyze", checkpoint, "--measures", "loss", "--figures", folder)
    assert code == 0 and "figures: none, figures need" in err and not folder.parent.exists()


def test_a_pickle_that_would_execute_code_does_not(tmp_path, capsys):
    code, out, err = run(capsys, "analyze", malicious(tmp_path / "evil.pt"))
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--rho", "-0.1"], "--rho"),
        (["--rho", "0"], "--rho"),
        (["--samples", "1000000"], "--samples"),
        (["--samples", "0"], "--samples"),
        (["--measures", "los"], "did you mean 'loss'"),
        (["--plane-points", "4"], "--plane-points"),
        (["--tolerance", "nan"], "--tolerance"),
        (["--device", "tpu"], "--device"),
        (["--device", "gpu"], "--device must be one of auto, cpu, cuda, mps, got 'gpu'"),
        (["--device", "gpu"], "did you mean 'cuda'?"),
        (["--measures", "hessian"], "frobenius_norm, gradient_norm, layer_curvature, loss,"),
        (["--measures", "m_sharpness"], "measure m_sharpness needs the setting --m-sharpness: the"),
        (["--draws", "2"], "--draws > 1 needs --samples"),
        (["--setting", "rho=0.1"], "rho has an option of its own: --rho"),
        (["--eigenvalues", "0"], "--eigenvalues"),
    ],
)
def test_options_out_of_range_are_exit_code_2_in_one_line(checkpoint, options, name, capsys):
    code, out, err = run(capsys, "analyze", checkpoint, *options)
    assert (code, out) == (2, ""), err
    assert name in err and err.count("\n") == 1, err


def test_an_output_that_cannot_be_written_is_found_before_the_work(checkpoint, tmp_path, capsys):
    occupied = tmp_path / "file"
    occupied.write_text("mine")
    for options in (
        ["--json", occupied / "report.json"],
        ["--figures", occupied],
        ["--json", tmp_path],
    ):
        code, out, err = run(capsys, "analyze", checkpoint, *options)
        assert code == 1 and out == "" and "cannot" in err, err
    assert occupied.read_text() == "mine" and list(tmp_path.iterdir()) == [occupied]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_found_before_the_work(checkpoint, tmp_path, capsys):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    code, _, err = run(capsys, "analyze", checkpoint, "--json", tmp_path / "report.json")
    assert code == 1 and "permission" in err


def test_a_fault_where_results_are_read_loses_nothing(checkpoint, tmp_path, capsys):
    def read(result):
        raise AttributeError("fault")

    MEASURES.register(
        Measure("answer", "the answer", run=lambda session: [Result("answer", 42.0)], read=read)
    )
    file, figures = tmp_path / "report.json", tmp_path / "figures"
    try:
        code, out, err = run(
            capsys, "analyze", checkpoint, "--measures", "loss_plane,answer", "--plane-points", 3,
            "--json", file, "--figures", figures,
        )  # fmt: skip
    finally:
        del MEASURES._homes["answer"]
    assert (code, out) == (1, "") and "measure answer cannot read its result" in err
    assert Report.load(file).result("answer").value == 42.0
    assert {path.name for path in figures.iterdir()} == {"plane.png", "plane.svg"}
