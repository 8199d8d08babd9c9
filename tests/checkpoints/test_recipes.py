"""What a message advises is done as it is printed, and helps."""

# torch types what a module holds as Tensor | Module.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportUnusedExpression=false

import re
import shlex
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import flatkit
from flatkit.errors import CheckpointError, FlatkitError
from flatkit_cli.main import main

TASK = """
import torch, flatkit
from torch import nn
from collections import OrderedDict

def build():
    net = nn.Sequential(OrderedDict(body=nn.Linear(3, 4), head=nn.Linear(4, 2)))
    return flatkit.Task(net, "cross_entropy", (torch.randn(6, 3), torch.arange(6) % 2))
"""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(body=nn.Linear(3, 4), head=nn.Linear(4, 2)))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_task.py").write_text(TASK)


def renamed(old: str, new: str) -> dict[str, torch.Tensor]:
    return {name.replace(old, new): tensor for name, tensor in network().state_dict().items()}


def beside() -> dict[str, torch.Tensor]:
    return {**network().state_dict(), "loss.scale": torch.ones(2), "loss.shift": torch.ones(1)}


def lacking() -> dict[str, torch.Tensor]:
    return {name: t for name, t in network().state_dict().items() if name.startswith("body")}


STATES = {
    "rename": (lambda: renamed("head.", "classifier.fc."), []),
    "rename, nested": (lambda: renamed("body.", "net.encoder.body."), []),
    "ignore": (beside, []),
    "ignore one": (lambda: {**network().state_dict(), "extra": torch.ones(1)}, []),
    "allow": (lacking, ["--ignore", "head.*"]),
}


@pytest.mark.parametrize("name", ["rename", "ignore", "allow"])
def test_the_options_that_a_refusal_prints_help_on_the_command_line(name, capsys):
    make, options = STATES[name]
    torch.save(make(), "x.pt")
    command = ["analyze", "x.pt", "--task", "my_task.py:build", "--measures", "loss", *options]
    code, printed = main(command), capsys.readouterr().err
    while code:  # a file may need one after the other
        advised = re.search(r"(?:try|left out:|say) (--.*?)(?: as well)? \(from Python", printed)
        assert advised is not None, printed
        words = shlex.split(advised[1])
        assert words[0] not in command, printed
        command += words
        code, printed = main(command), capsys.readouterr().err


@pytest.mark.parametrize("name", STATES)
def test_the_arguments_that_a_refusal_prints_help_in_python(name):
    make, options = STATES[name]
    torch.save(make(), "x.pt")
    arguments: dict = {"ignore": [options[1]]} if options else {}
    model = network()
    for _ in range(3):
        try:
            flatkit.load("x.pt").load_into(model, **arguments)
            break
        except FlatkitError as error:
            advised = re.search(r"\(from Python: (.*?)\)(\n|$)", str(error))
            assert advised is not None, error
            arguments |= eval(f"dict({advised[1]})")
    assert torch.equal(model.body.weight, network().body.weight)
    assert name == "allow" or torch.equal(model.head.weight, network().head.weight)


@pytest.mark.parametrize(
    "content",
    [
        lambda state: {"generator": state, "critic": state},
        lambda state: {"models": [state, state]},
        lambda state: {"folds": {0: state, 1: state}},
    ],
)
def test_the_entry_that_a_refusal_names_can_be_chosen(content, capsys):
    torch.save(content(network().state_dict()), "x.pt")
    with pytest.raises(CheckpointError) as caught:
        flatkit.load("x.pt")
    entry = str(caught.value).rpartition("e.g. ")[2]
    flatkit.load("x.pt", entry=entry).load_into(network())
    assert main(["info", "x.pt"]) == 1
    words = shlex.split(capsys.readouterr().err.strip().rpartition("choose one with ")[2])
    assert main(["info", "x.pt", words[0].strip(",`"), words[-1]]) == 0


def test_the_command_that_info_prints_analyzes_the_file(capsys):
    torch.save(network().state_dict(), "my weights.pt")
    assert main(["info", "my weights.pt"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    command = text.partition("flatkit analyze")[2].partition(", where")[0]
    assert main(["analyze", *shlex.split(command), "--measures", "loss"]) == 0


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_the_conversion_of_a_scripted_model_works():
    torch.jit.save(torch.jit.script(network()), "x.pt")
    with pytest.raises(CheckpointError) as caught:
        flatkit.load("x.pt")
    exec(str(caught.value).partition("convert it once: ")[2], {})
    model = network()
    flatkit.load("weights.pt").load_into(model)


@pytest.mark.parametrize("compress", [0, 3])
def test_the_conversion_that_a_file_of_joblib_is_refused_with_makes_it_readable(compress):
    joblib = pytest.importorskip("joblib")
    weights = {name: tensor.numpy() for name, tensor in network().state_dict().items()}
    joblib.dump(weights, "w.joblib", compress=compress)
    with pytest.raises(CheckpointError, match=r"joblib.* convert it once: ") as caught:
        flatkit.load("w.joblib")
    exec(str(caught.value).partition("convert it once: ")[2], {})
    found = flatkit.load("weights.pt").state_dict
    assert all(torch.equal(found[name], t) for name, t in network().state_dict().items())


def test_an_archive_that_holds_a_checkpoint_names_it():
    torch.save(network().state_dict(), "best.pt")
    with zipfile.ZipFile("all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write("best.pt")
    with pytest.raises(CheckpointError, match=r"holds best\.pt; unpack it first"):
        flatkit.load("all.zip")
