"""The frame of the command line: help, versions, exit codes, no tracebacks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flatkit
from flatkit.training import TrainingConfig, train
from flatkit_cli.main import main, with_flags
from tests import processes

ROOT = Path(__file__).parent.parent.parent


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("analyze", "compare", "demo", "info", "plot", "train", "verify"):
        assert command in text


@pytest.mark.parametrize(
    "command", ["analyze", "compare", "demo", "info", "plot", "train", "verify"]
)
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert "Usage: flatkit" in capsys.readouterr().out


def test_help_costs_less_than_half_a_second_of_cpu():
    before = os.times()
    subprocess.run(
        [sys.executable, "-m", "flatkit_cli.main", "--help"],
        cwd=ROOT / "cli",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    after = os.times()
    spent = after.children_user + after.children_system
    assert spent - before.children_user - before.children_system < 0.5


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert flatkit.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analize", "x.pt"], "No such command 'analize'; did you mean 'analyze'?"),
        (["train", "--optimizer", "gan", "--out", "x"], "sgd, adamw, sam, asam, gsam, gam; did y"),
        (["analyze", "x.pt", "--dtype", "float46"], "did you mean 'float64'?"),
    ],
)
def test_a_word_that_is_none_is_answered_with_the_nearest(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("rho_prime must be a number", "--rho-prime must be a number"),
        ("x_range must grow", "--range must grow"),
        ("leave out `rho_prime`; rho is 3", "leave out --rho-prime; rho is 3"),
        ("rho must be one of a, rho_prime", "--rho must be one of a, rho_prime"),
        ("go on with `resume`, or `no_such`", "go on with --resume, or --no-such"),
        ("/tmp/rho_prime/a.pt and 'rho_prime'", "/tmp/rho_prime/a.pt and 'rho_prime'"),
        ("steps.rho_prime rho_prime=3", "steps.rho_prime rho_prime=3"),
        ("the rho of all", "the rho of all"),
    ],
)
def test_the_arguments_of_the_library_become_flags(message, shown):
    flags = {"rho_prime": "--rho-prime", "x_range": "--range", "rho": "--rho"}
    assert with_flags(message, flags) == shown


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "flatkit", "--version"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "cli"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"flatkit, version {flatkit.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["analyze"],
        ["analyze", "x.pt", "--no-such-option"],
        ["analyze", "x.pt", "--processes", "2", "--processes", "3"],
        [],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert (error.startswith("error: ") and error.count("\n") == 1) or not arguments


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path, capsys):
    for arguments in (["--debug", "analyze", "none.pt"], ["analyze", "none.pt", "--debug"]):
        assert main(arguments) == 1
        assert "Traceback" in capsys.readouterr().err
    assert main(["analyze", "none.pt"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "none.pt" in error


def test_an_unexpected_error_is_one_line_too(monkeypatch, capsys):
    import flatkit_cli.info

    def fail(**options):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(flatkit_cli.info.info, "callback", fail)
    assert main(["info", "x.pt"]) == 1
    error = capsys.readouterr().err
    assert (
        error == "error: RuntimeError: first line second line (unexpected; --debug shows where)\n"
    )


def test_interruption_is_exit_code_130(monkeypatch, capsys):
    import flatkit_cli.info

    def interrupt(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr(flatkit_cli.info.info, "callback", interrupt)
    assert main(["info", "x.pt"]) == 130


def flatkit_in(folder, *arguments, encoding="utf-8"):
    """Run the command in a process of its own, with streams of an encoding; return what it says."""
    said = folder / "said"
    line = list(arguments), str(said), str(folder), encoding
    process = processes.start(processes.command, *line)
    process.join()
    out, err = (said.with_suffix(f".{name}").read_bytes() for name in ("out", "err"))
    assert process.exitcode == 0, err
    return out


@pytest.mark.long
def test_streams_without_greek_letters_get_words_and_json_stays_whole(run_folder):
    table = ["analyze", "ckpt.pt", "--measures", "top_eigenvalues,gradient_norm"]
    text = flatkit_in(run_folder, *table, encoding="cp1252").decode("cp1252")
    assert "top eigenvalue lambdamax" in text and "gradient norm |grad L|" in text
    text = flatkit_in(run_folder, *table, "--json", "-", encoding="latin-1").decode("latin-1")
    assert json.loads(text)["results"]


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_the_report_of_a_file_whose_name_is_no_text_is_kept(run_folder):
    named = os.fsdecode(b"strange-\xff.pt")
    shutil.copy(run_folder / "ckpt.pt", run_folder / named)
    more = ["--json", "strange.json", "--html", "strange.html"]
    flatkit_in(run_folder, "analyze", named, "--measures", "loss", *more)
    (entry,) = flatkit.load_results(run_folder / "strange.json").entries
    assert entry.report.checkpoint["path"] == named
    assert b"\\udcff" in (run_folder / "strange.html").read_bytes()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Return the folder of a run."""
    folder = tmp_path_factory.mktemp("run")
    train(TrainingConfig(data="gaussians", epochs=1, device="cpu"), folder)
    return folder


@pytest.mark.long
def test_who_closes_the_pipe_has_the_files_all_the_same(run_folder):
    """`flatkit compare ... --markdown table.md | true` wrote no table and no figures."""
    checkpoint, report = (str(run_folder / name) for name in ("ckpt.pt", "r.json"))
    assert main(["analyze", checkpoint, "--measures", "loss", "--json", report]) == 0
    read, write = os.pipe()
    os.close(read)
    path = os.pathsep.join([str(ROOT), str(ROOT / "cli")])
    files = ["--markdown", "t.md", "--html", "p.html", "--json", "c.json"]
    done = subprocess.run(
        [sys.executable, "-m", "flatkit_cli.main", "compare", "r.json", *files],
        cwd=run_folder,
        env={**os.environ, "PYTHONPATH": path},
        stdout=write,
        check=False,
    )
    os.close(write)
    assert done.returncode == 1
    assert all((run_folder / name).is_file() for name in ("t.md", "p.html", "c.json"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device")
def test_a_full_disk_does_not_cost_the_numbers(run_folder, capsys):
    options = ["--measures", "loss", "--json", "/dev/full"]
    assert main(["analyze", str(run_folder / "ckpt.pt"), *options]) == 1
    said = capsys.readouterr()
    assert "No space left" in said.err and "train loss" in said.out
