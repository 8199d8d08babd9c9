"""The examples in the help of every command and in the README run as they stand, on small files."""

import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from flatkit.models import MODELS
from flatkit.results import Report, Result
from flatkit.training import TrainingConfig, train
from flatkit_cli.main import cli, main

pytestmark = pytest.mark.long

TASK = """
import torch
from torch import nn
import flatkit

def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))
    data = (torch.randn(20, 3), torch.arange(20) % 2)
    return flatkit.Task(model, "cross_entropy", data, data)
"""
# What an example is shortened with where it would take long, or needs files of a data set.
SHORTER = {
    "analyze": "--measures loss,first_order_flatness --budget 10 --rho 0.01",
    "landscape": "--points 3 --no-figures",
    "compare runs/": "--measures loss,first_order_flatness --budget 10 --rho 0.01",
    "verify": "--search-budget 10 --rho 0.01",
    "train --data": "--epochs 1",
    "train --task": "--batch-size 8 --epochs 1",
    "train --config": "--data gaussians --model mlp --augment none --batch-size 50 --epochs 1",
}

TAKES_LONG = ("demo", "study")
"""Commands that files of their own run: tests/cli/test_demo.py, tests/studies."""


def examples(command: str) -> list[str]:
    """Return the lines of a command's help that are commands."""
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    lines = found.get_help(click.Context(found, info_name=f"flatkit {command}")).splitlines()
    return [line.strip() for line in lines if line.strip().startswith(f"flatkit {command} ")]


README = (Path(__file__).parent.parent.parent / "README.md").read_text("utf-8")


def of_readme() -> list[str]:
    """Return the commands in the blocks of the README."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README, re.S | re.M)
    lines = [line for kind, block in blocks if not kind for line in block.splitlines()]
    return [line for line in lines if line.startswith("flatkit ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Lay out the files that the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    small: dict[str, Any] = {
        "data_kwargs": {"samples": 60, "features": 3},
        "model_kwargs": {"hidden": (3,)},
    }
    small |= {"data": "gaussians", "batch_size": 20, "epochs": 3, "save_every": 1}
    for seed, name in enumerate(("runs/sgd", "runs/gam", "a", "b", "c")):
        train(TrainingConfig(**small, seed=seed, device="cpu"), folder / name)
    (folder / "my_task.py").write_text(TASK)
    repeated = [f"runs/{name}-seed{seed}.pt" for name in ("sgd", "gam") for seed in (0, 1)]
    layers = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2))
    for name in ("a.pth", "b.pth", "weights.pth", *repeated):
        for layer in (layers[0], layers[2]):
            assert isinstance(layer, torch.nn.Linear)
            layer.reset_parameters()
        torch.save(layers.state_dict(), folder / name)
    (folder / "lightning").mkdir()
    for epoch in (0, 1):
        content = {"epoch": epoch, "state_dict": layers.state_dict()}
        torch.save(content, folder / "lightning" / f"epoch={epoch}.ckpt")
    from safetensors.torch import save_file

    save_file(layers.state_dict(), folder / "weights.safetensors")
    for name in ("sgd", "gam"):
        few = ("--points", "3", "--line", "--no-figures")
        main(["landscape", str(folder / "a" / "ckpt.pt"), "--out", str(folder / name), *few])
    for seed, name in enumerate(("sgd", "gam", "sam")):
        results = [
            Result("top_eigenvalues", [2.0 + seed], [0.1]),
            Result("first_order_flatness", 0.5 + seed, 0.1, settings={"rho": 0.1}),
        ]
        report = Report(results, checkpoint={"name": name}, objective={"samples": 60})
        for file in (f"{name}.json", f"runs/{name}/report.json", "report.json", "before.json"):
            report.save(folder / file)
    return folder


@pytest.fixture
def _no_journal_stays(monkeypatch, folder):
    """On a slow machine an analysis takes longer than journals of short ones are kept for."""
    report = import_module("flatkit.measures.report")
    monkeypatch.setattr(report, "_SHORT", float("inf"))
    yield
    for journal in folder.rglob("*.journal*"):  # of what its time ended
        journal.unlink()


def run(example: str) -> int:
    """Run an example as a shell would, shortened."""
    _, *words = shlex.split(example, comments=True)
    more = [text for start, text in SHORTER.items() if " ".join(words).startswith(start)]
    # What matches nothing stays as it is, as in a shell: it may be an expression.
    found = [("*" in word and sorted(map(str, Path().glob(word)))) or [word] for word in words]
    return main([name for names in found for name in names] + shlex.split(" ".join(more)))


@pytest.mark.usefixtures("_no_journal_stays")
@pytest.mark.parametrize("command", cli.list_commands(click.Context(cli)))
def test_the_examples_of_every_command_run(command, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path if command == "train" else folder)
    (tmp_path / "my_task.py").write_text(TASK)
    monkeypatch.syspath_prepend(str(folder))
    found = examples(command)
    assert found, f"the help of {command} has no example"
    if command in TAKES_LONG:
        return
    for example in found:
        code = run(example)
        assert code == 0, (example, capsys.readouterr().err)


SHORT = [line for line in of_readme() if line.split()[1] not in TAKES_LONG]


@pytest.mark.usefixtures("_no_journal_stays")
@pytest.mark.parametrize("example", SHORT, ids=str)
def test_the_commands_of_the_readme_run(example, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    code = run(example)
    assert code == 0, capsys.readouterr().err


def test_the_readme_shows_every_command_and_links_to_what_is_there():
    shown = {line.split()[1] for line in of_readme()}
    assert shown == {*cli.list_commands(click.Context(cli))} - {"demo"}  # `make demo` stands there
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 20
    root = Path(__file__).parent.parent.parent
    assert not [link for link in links if not (root / link).exists()]
    assert len(README.splitlines()) <= 250


def test_the_examples_of_flatkit_itself_name_what_commands_have():
    text = cli.get_help(click.Context(cli, info_name="flatkit"))
    lines = [line.split() for line in text.splitlines() if line.startswith("  flatkit ")]
    assert [words[1] for words in lines] == ["train", "analyze"]
    assert MODELS.names
