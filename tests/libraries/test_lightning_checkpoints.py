"""A real Lightning module, trained and saved by its Trainer, analyzed from its .ckpt."""

import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import flatkit
from flatkit.checkpoints.inspection import inspect
from flatkit_cli.main import main
from tests.libraries.reference import top_eigenvalue

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("lightning")

pytestmark = pytest.mark.filterwarnings("ignore")

SOURCE = """
import torch, flatkit
from torch import nn

def build():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 4, generator=generator)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    return flatkit.Task(net, "cross_entropy", (x, torch.arange(40) % 3))
"""


def data():
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(40) % 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    class Classifier(lightning.LightningModule):
        def __init__(self, width: int = 6):
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))

        def training_step(self, batch, _):
            inputs, targets = batch
            return F.cross_entropy(self.net(inputs), targets)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.05)

    folder = tmp_path_factory.mktemp("lightning")
    torch.manual_seed(0)
    module = Classifier()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=5,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, DataLoader(TensorDataset(*data()), batch_size=10))
        trainer.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt", module


def test_the_file_is_recognised_with_its_epoch(saved):
    facts = inspect(saved[0])
    assert facts["format"].startswith("Lightning 2.")
    assert facts["entry"] == "state_dict"
    assert facts["beside"]["epoch"] == 5
    assert [t["name"] for t in facts["tensors"]] == list(saved[1].state_dict())


def test_one_command_leads_to_the_top_eigenvalue(saved, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_task.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    arguments = ["analyze", str(saved[0]), "--task", "my_task.py:build", "--dtype", "float64"]
    assert main([*arguments, "--measures", "top_eigenvalues", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    x, y = data()
    net = saved[1].net.double()
    expected = top_eigenvalue(net, lambda model: F.cross_entropy(model(x.double()), y))
    assert report["results"][0]["value"][0] == pytest.approx(expected, rel=1e-4)
    assert report["checkpoint"]["fitted"] == ["with the prefix 'net.' taken off"]


def test_the_module_itself_takes_the_weights(saved):
    module = type(saved[1])()
    assert flatkit.load(saved[0]).load_into(module) == []
    assert torch.equal(module.net[0].weight, saved[1].net[0].weight.to(module.net[0].weight))
