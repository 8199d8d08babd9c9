"""What the user's own code raises leaves the command line as one line, with exit code 1."""

import pytest
import torch
from torch import nn

from flatkit_cli.main import main

TASK = """
import torch
from torch import nn
import flatkit

X, Y = torch.randn(12, 4), torch.arange(12) % 3


class Net(nn.Linear):
    def forward(self, x):
        return super().forward(x[:, :3])  # FORWARD


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {"x": X[index]}["y"]  # DATASET


def loss(outputs, targets):
    raise ValueError("no such loss")  # LOSS


class Enough(BaseException):
    pass


def leave(outputs, targets):
    raise SystemExit(0)  # LEAVE


def give_up(outputs, targets):
    raise Enough  # ENOUGH


def collate(items):
    return items.x  # COLLATE


def forward():
    return flatkit.Task(Net(4, 3), "cross_entropy", (X, Y))


def losing():
    return flatkit.Task(nn.Linear(4, 3), loss, (X, Y))


def leaving():
    return flatkit.Task(nn.Linear(4, 3), leave, (X, Y))


def giving_up():
    return flatkit.Task(nn.Linear(4, 3), give_up, (X, Y))


def data():
    return flatkit.Task(nn.Linear(4, 3), "cross_entropy", Data())


def collating():
    pairs = torch.utils.data.TensorDataset(X, Y)
    loader = torch.utils.data.DataLoader(pairs, batch_size=4, collate_fn=collate)
    return flatkit.Task(nn.Linear(4, 3), "cross_entropy", loader)
"""

CASES = {
    "forward": ("FORWARD", "forward (return super().forward(x[:, :3])", "RuntimeError: mat1"),
    "losing": ("LOSS", "loss (raise ValueError", "ValueError: no such loss"),
    "leaving": ("LEAVE", "leave (raise SystemExit", "SystemExit: 0"),
    "giving_up": ("ENOUGH", "give_up (raise Enough", "Enough"),
    "data": ("DATASET", "__getitem__ (return", "KeyError: 'y'"),
    "collating": ("COLLATE", "collate (return items.x", "AttributeError: 'list'"),
}


@pytest.fixture
def weights(tmp_path, monkeypatch):
    (tmp_path / "faulty.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(4, 3).state_dict(), "weights.pth")
    return tmp_path


@pytest.mark.parametrize(("function", "words"), CASES.items(), ids=CASES.keys())
def test_the_users_line_is_shown_and_no_traceback(weights, capsys, function, words):
    mark, *texts = words
    line = next(n for n, text in enumerate(TASK.splitlines(), 1) if text.endswith(f"# {mark}"))
    arguments = ["analyze", "weights.pth", "--task", f"faulty.py:{function}"]
    assert main([*arguments, "--measures", "loss"]) == 1
    told = capsys.readouterr().err
    assert f"faulty.py, line {line}, " in told and "Traceback" not in told
    assert all(text in told for text in texts) and told.count("\n") == 1
    assert main(["--debug", *arguments]) == 1
    assert "Traceback" in capsys.readouterr().err
