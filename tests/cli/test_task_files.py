"""From a foreign file to a table in one command: task files, registry names, wrong names."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from flatkit.checkpoints import load
from flatkit.checkpoints.task_file import Parts, as_task, assemble, load_task
from flatkit.errors import CheckpointError, InvalidArgumentError, MismatchError, TaskError
from flatkit.landscape import load_surface
from flatkit_cli.main import main

TASK = """
import torch
from torch import nn

import flatkit
from my_layers import activation


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 3)).double()


def build():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    return flatkit.Task(network(), "cross_entropy", (x, torch.arange(30) % 3))


def fails():
    return unknown


def needs(data_root):
    return None


def returns_a_model():
    return network()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_layers.py").write_text("from torch.nn import Tanh as activation\n")
    (tmp_path / "my_task.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    torch.save({"epoch": 4, "model": nn.DataParallel(model).state_dict()}, "weights.pth")
    return tmp_path


def trained() -> nn.Module:
    return trained_with(5)


def trained_with(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def run(*arguments: str) -> int:
    return main([*arguments, "--task", "my_task.py:build"])


def test_one_command_leads_from_a_foreign_file_to_its_top_eigenvalue(folder, capsys):
    code = run("analyze", "weights.pth", "--measures", "loss,top_eigenvalues", "--json", "-")
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    x, y = load_task("my_task.py:build").data
    model = trained()
    parameters = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(theta):
        parts = theta.split([p.numel() for p in model.parameters()])
        named = {
            name: part.view(p.shape)
            for (name, p), part in zip(model.named_parameters(), parts, strict=True)
        }
        return nn.functional.cross_entropy(torch.func.functional_call(model, named, (x,)), y)

    dense = torch.autograd.functional.hessian(loss, parameters)
    top = float(torch.linalg.eigvalsh(dense)[-1])  # type: ignore[arg-type]
    values = {result["measure"]: result["value"] for result in report["results"]}
    assert values["loss"] == pytest.approx(float(loss(parameters)), rel=1e-12)
    assert values["top_eigenvalues"][0] == pytest.approx(top, rel=1e-4)
    assert report["checkpoint"]["task"] == "my_task.py:build"
    assert report["checkpoint"]["format"] == "training checkpoint (torch.save)"
    assert report["checkpoint"]["fitted"] == ["with the prefix 'module.' taken off"]
    assert report["objective"]["indices"] == "0-29"


def test_a_layer_that_the_file_lacks_is_allowed_twice_or_not_and_the_report_says_it(folder, capsys):
    state = {name: tensor for name, tensor in trained().state_dict().items() if name[0] == "0"}
    torch.save(state, "body.pth")
    ignoring = ("analyze", "body.pth", "--measures", "loss", "--ignore", "2.*")
    assert run(*ignoring) == 1
    assert "say --allow-uninitialised as well" in capsys.readouterr().err
    assert run(*ignoring, "--allow-uninitialised", "--json", "x.json") == 0
    note = "left as the model was built: 2.weight, 2.bias"
    assert note in " ".join(capsys.readouterr().out.split())
    assert json.loads(Path("x.json").read_text())["checkpoint"]["fitted"] == [note]


def test_verify_takes_the_same_options(folder, capsys):
    code = run("verify", "weights.pth", "--rho", "0.01", "--search-budget", "30", "--json", "-")
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["checkpoint"]["path"] == "weights.pth"
    assert report["checkpoint"]["task"] == "my_task.py:build"


def losses_between(first: nn.Module, second: nn.Module, steps) -> list[float]:
    """Return the loss of the task's data on the way from one network to another, by hand."""
    x, y = load_task("my_task.py:build").data
    model, found = trained(), []
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    for t in steps:
        with torch.no_grad():
            for p, (a, b) in zip(model.parameters(), pairs, strict=True):
                p.copy_((1 - t) * a + t * b)
            found.append(float(nn.functional.cross_entropy(model(x), y)))
    return found


def test_a_landscape_of_raw_state_dicts_takes_the_same_options(folder, capsys):
    first, second = trained(), trained_with(6)
    for name, model in (("first", first), ("second", second)):
        torch.save({k.replace("2.", "head."): v for k, v in model.state_dict().items()}, name)
    between = ("landscape", "first", "second", "--directions", "checkpoints")
    given = ("--rename", "head.=2.", "--points", "5", "--no-figures", "--range", "0,1")
    assert run(*between, *given, "--out", "line") == 0, capsys.readouterr().err
    (path,) = (folder / "line").glob("*.npz")
    line = load_surface(path)
    expected = losses_between(first, second, line.axes["t"])
    assert line.quantities["loss"] == pytest.approx(expected, rel=1e-12)
    names = [checkpoint["name"] for checkpoint in line.header["checkpoints"]]
    assert [name.rpartition("/")[2] for name in names] == ["first", "second"]
    assert all(len(c["sha256"]) == 64 for c in line.header["checkpoints"])
    assert run(*between, "--out", "other") == 1  # without --rename they do not fit
    assert "try --rename head.=2." in capsys.readouterr().err


def test_landscapes_at_and_along_raw_state_dicts(folder, capsys):
    files = []
    for seed in (5, 6, 7):
        torch.manual_seed(seed)
        state = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().state_dict()
        files.append(f"step-{seed}.pth")
        torch.save(state, files[-1])
    small = ("--points", "3", "--quantities", "loss", "--no-figures", "--out")
    assert run("landscape", *files, "--samples", "7", *small, "planes") == 0
    assert len(list((folder / "planes").glob("*.npz"))) == 3
    path = folder / "planes" / f"{folder.name}-step-5-random-plane.npz"
    surface = load_surface(path)
    assert surface.header["objective"]["train"]["samples"] == 7
    x, y = load_task("my_task.py:build").data
    assert run("landscape", *files, "--directions", "pca", *small, "trajectory") == 0
    (path,) = (folder / "trajectory").glob("*.npz")
    trajectory = load_surface(path)
    last = float(nn.functional.cross_entropy(trained_with(7)(x), y).detach())
    assert trajectory.at_centre("loss") == pytest.approx(last, rel=1e-12)
    assert "epochs" not in trajectory.header["path"]  # these files do not say which
    assert main(["landscape", files[0], *small, "none"]) == 1
    assert "name them with --task" in capsys.readouterr().err
    assert run("landscape", files[0], "--model", "mlp", *small, "none") == 2
    assert "leave out --model" in capsys.readouterr().err
    assert not (folder / "none").exists()


def test_a_landscape_of_a_model_and_data_by_name(folder, capsys):
    from flatkit.data import DATASETS
    from flatkit.models import MODELS

    torch.manual_seed(0)
    model = MODELS.build("mlp", in_shape=[8], classes=4, hidden=[3])
    torch.save({f"net.{k}": v for k, v in model.state_dict().items()}, "x.pth")
    names = ("--model", "mlp", "--model-arg", "hidden=3,", "--data", "gaussians")
    splits = ("--splits", "train,test", "--samples", "1000000")
    small = ("--points", "3", "--line", "--no-figures", "--out", "out")
    assert main(["landscape", "x.pth", *names, *splits, *small]) == 2
    assert "samples must be at most" in capsys.readouterr().err
    data = DATASETS.build("gaussians")
    splits = ("--splits", "train,test", "--samples", str(len(data.train[0])))
    assert len(data.train[0]) > len(data.test[0])  # of these, all
    assert main(["landscape", "x.pth", *names, *splits, *small]) == 0
    (path,) = (folder / "out").glob("*.npz")
    x, y = data.test
    loss = float(nn.functional.cross_entropy(model.eval()(x), y).detach())
    assert load_surface(path).at_centre("test_loss") == pytest.approx(loss, rel=1e-6)


def test_samples_seed_and_batch_size_reach_the_objective(folder, capsys):
    arguments = ("--measures", "loss", "--samples", "7", "--seed", "3", "--batch-size", "4")
    assert run("analyze", "weights.pth", *arguments, "--json", "-") == 0
    objective = json.loads(capsys.readouterr().out)["objective"]
    assert (objective["samples"], objective["chunk_size"], objective["drawn"]) == (7, 4, "random")


def test_model_and_data_by_name(folder, capsys):
    from flatkit.models import MODELS

    torch.manual_seed(0)
    model = MODELS.build("mlp", in_shape=[8], classes=4, hidden=[3])
    torch.save({f"net.{k}": v for k, v in model.state_dict().items()}, "x.pth")
    names = ("--model", "mlp", "--model-arg", "hidden=3,", "--data", "gaussians", "--json", "-")
    assert main(["analyze", "x.pth", *names, "--measures", "loss"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["checkpoint"]["model"]["kwargs"]["hidden"] == [3]
    assert report["checkpoint"]["data"]["name"] == "gaussians"
    assert main(["analyze", "x.pth", *names, "--data-root", "here"]) == 2
    assert "has no argument 'root'" in capsys.readouterr().err


def test_a_mismatch_is_printed_as_a_table_whose_advice_works(folder, capsys):
    state = {name.replace("2.", "head."): value for name, value in trained().state_dict().items()}
    torch.save(state, "head.pth")
    assert run("analyze", "head.pth", "--measures", "loss") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: head.pth and the model do not fit: 2 missing, 2 unexpected"
    assert "try --rename head.=2." in lines[-1]
    assert run("analyze", "head.pth", "--measures", "loss", "--rename", "head.=2.") == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--task", "my_task.py"], 2, "must be FILE.py:FUNCTION"),
        (["--task", "other.py:build"], 2, "there is no such file"),
        (["--task", "my_task.py:biuld"], 1, "has no function biuld; it has network, build"),
        (["--task", "my_task.py:fails"], 1, "my_task.py, line 21 in fails: NameError"),
        (["--task", "my_task.py:needs"], 1, "must take no arguments, not data_root"),
        (["--task", "my_task.py:returns_a_model"], 1, "must return a flatkit.Task"),
        (["--task", "my_task.py:build", "--model", "mlp"], 2, "leave out --model"),
        (["--task", "my_task.py:build", "--rename", "x"], 2, "must be OLD=NEW"),
        (["--task", "my_task.py:build", "--entry", "ema"], 2, "entry must be one of model"),
        (["--model", "mlp"], 2, "--model needs --data"),
        (["--data", "digits"], 2, "name the model too"),
        (["--model-arg", "a=1"], 2, "--model-arg need --model, the name"),
        ([], 1, "name them with --task"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder, capsys, arguments, code, message):
    assert main(["analyze", "weights.pth", *arguments]) == code
    text = capsys.readouterr().err
    assert message in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nowhere", "line 1 in <module>: ModuleNotFoundError"),
        ("def (", "line 1: SyntaxErr"),
        ("import sys\nsys.exit(0)", "line 2 in <module>: SystemExit: 0"),
        ("def build():\n    raise SystemExit(0)", "line 2 in build: SystemExit: 0"),
    ],
)
def test_a_task_file_that_cannot_be_imported_names_its_line(folder, source, message):
    (folder / "broken.py").write_text(source)
    with pytest.raises(TaskError, match=message):
        load_task("broken.py:build")


def test_weights_that_are_not_finite_are_refused_by_name(folder):
    state = trained().state_dict()
    state["2.bias"][1] = float("nan")
    torch.save(state, "nan.pth")
    with pytest.raises(CheckpointError, match=r"values of 2.bias that are NaN or infinite: 1"):
        assemble(load("nan.pth"), Parts(task="my_task.py:build"))


def test_a_model_goes_with_its_loss_and_data_and_nothing_else_does(folder):
    data = (torch.ones(2, 4).double(), torch.tensor([0, 1]))
    task = as_task(trained(), "cross_entropy", data)
    assert as_task(task) is task
    with pytest.raises(InvalidArgumentError, match=r"analyze\(model, loss, data\)"):
        as_task(trained())
    with pytest.raises(InvalidArgumentError, match="not with a Task"):
        as_task(task, "mse")
    with pytest.raises(CheckpointError, match=r"load_into\(model\)"):
        as_task("weights.pth")


def test_load_into_returns_what_it_did_and_fits_all_or_nothing(folder):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    assert load("weights.pth").load_into(model) == ["with the prefix 'module.' taken off"]
    assert torch.equal(model[2].weight, trained()[2].weight)  # type: ignore[index]
    with pytest.raises(MismatchError):
        load("weights.pth").load_into(nn.Linear(4, 5))
