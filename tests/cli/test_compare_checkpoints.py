"""`flatkit compare` on checkpoints, of flatkit and of others, from the shell."""

import json
import os
import shutil
import sys
import textwrap
import xml.dom.minidom
from dataclasses import replace

import pytest
import torch
from torch import nn

from flatkit.results import Comparison, load_results
from flatkit.training import TrainingConfig, train
from flatkit_cli.main import main

TASK = """
    import torch
    from torch import nn
    import flatkit

    def build():
        inputs = torch.linspace(-1, 1, 12)[:, None].expand(-1, 3) + torch.eye(3).repeat(4, 1)
        return flatkit.Task(nn.Linear(3, 2), "cross_entropy", (inputs, torch.arange(12) % 2))
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_task.py").write_text(textwrap.dedent(TASK))
    for number, kind in enumerate(("sgd", "gam")):
        for seed in (0, 1):
            torch.manual_seed(2 * number + seed)
            (tmp_path / f"{kind}-seed{seed}").mkdir()
            torch.save(nn.Linear(3, 2).state_dict(), tmp_path / f"{kind}-seed{seed}" / "e.pt")
    return tmp_path


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


OPTIONS = ("--measures", "loss,top_eigenvalues", "--jobs", "1")


def test_checkpoints_of_others_by_a_pattern_in_groups(files, capsys):
    given = ("*-seed*/e.pt", "--task", "my_task.py:build", "--groups", r"(.*)-seed\d")
    code, out, err = run(capsys, "compare", *given, *OPTIONS, "--json", "c.json")
    assert code == 0, err
    assert "[4 of 4 checkpoints done] sgd-seed1: done in" in err and "comparison: c.json" in err
    assert "sgd" in out and "gam" in out
    found = load_results("c.json")
    assert [(e.name, e.group, e.seed) for e in found.entries] == [
        ("gam-seed0", "gam", "0"),
        ("gam-seed1", "gam", "1"),
        ("sgd-seed0", "sgd", "0"),
        ("sgd-seed1", "sgd", "1"),
    ]
    assert not list(files.glob("c.json.journal*"))

    mixed = ("c.json", "gam-seed0/e.pt", "--task", "my_task.py:build")
    code, out, err = run(capsys, "compare", *mixed, *OPTIONS, "--json", "-")
    again = Comparison.from_json(out)
    assert code == 0 and json.loads(out)["schema"] == 1
    assert "warning: gam-seed0 and gam-seed0/e are copies of one checkpoint" in err
    values = [[r.value for r in entry.report] for entry in again.entries]
    assert values[0] == values[-1] != values[1]


def test_checkpoints_of_flatkit_need_no_task(tmp_path, capsys):
    config = TrainingConfig(data="gaussians", data_kwargs={"samples": 40}, epochs=1)
    config = replace(config, batch_size=8, device="cpu")
    runs = {"one": config, "two": replace(config, seed=1)}
    paths = [train(each, tmp_path / name).checkpoint for name, each in runs.items()]
    code, out, err = run(capsys, "compare", *paths, *OPTIONS)
    assert code == 0, err
    assert "one" in out and "two" in out


def test_saved_groups_are_made_without_torch(files, capsys, monkeypatch):
    code, _, err = run(
        capsys, "compare", "*/e.pt", "--task", "my_task.py:build", *OPTIONS, "--json", "c.json"
    )
    assert code == 0, err
    code, out, err = run(capsys, "compare", "c.json", "--groups", r"(.*)-seed", "--json", "-")
    assert code == 0 and Comparison.from_json(out).groups == ["gam", "sgd"]


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_names_that_cannot_be_written_are_spelt_out(files, capsys):
    """A byte that is no UTF-8 ended the command after the measuring; a bell broke the SVG."""
    names = [os.fsdecode(b"caf\xe9.pt"), "a\x07b.pt"]
    for name, source in zip(names, sorted(files.glob("*/e.pt")), strict=False):
        shutil.copy(source, files / name)
    common = ["--task", "my_task.py:build", "--measures", "loss,loss_slice", "--budget", "40"]
    written = ["--figures", "figures", "--json", "c.json", "--html", "c.html"]
    code, _, err = run(capsys, "compare", *names, *common, *written)
    assert code == 0, err
    assert list(load_results("c.json")) == ["caf\\udce9", "a\\x07b"]
    common = ["--task", "my_task.py:build", "--points", "3", "--out", "figures"]
    code, _, err = run(capsys, "landscape", *names, *common)
    assert code == 0, err
    drawn = sorted((files / "figures").glob("*.svg"))
    assert len(drawn) >= 3
    for figure in drawn:
        xml.dom.minidom.parse(str(figure))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("*/e.pt", "--jobs", "1"), 1, "holds weights but does not say which model"),
        (("*/none.pt",), 2, "no file matches the pattern */none.pt"),
        (("gone.pt",), 2, "there is no file gone.pt"),
        ((".",), 2, "is a folder, not a checkpoint; a pattern names the 4 in it"),
        (("a.json", "--measures", "loss"), 2, "nothing of saved reports is measured again"),
        (("*/e.pt", "--repeats"), 2, "--groups tells of checkpoints"),
        (("*/e.pt", "--groups", "seed"), 2, "--groups must hold the group in parentheses"),
        (("*/e.pt", "--jobs", "0"), 2, "--jobs must be"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, code, words, files, capsys):
    found, out, err = run(capsys, "compare", *arguments)
    assert (found, out) == (code, "") and words in err and len(err.splitlines()) == 1
