"""The three examples of the README run as they stand, with the reader's files in place."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

README = Path(__file__).parent.parent.parent / "README.md"

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]


def example(title: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.S)
    (found,) = [block for block in blocks if block.startswith(f"# {title}")]
    return found


def run(title: str, **names) -> dict:
    import flatkit

    scope = {"flatkit": flatkit, **names}
    exec(compile(example(title), f"README, {title}", "exec"), scope)
    return scope


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def pairs(n: int = 2000) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(n, 4, generator=generator), torch.arange(n) % 2)


def test_your_own_loop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = net()
    torch.save({"epoch": 1, "model": trained.state_dict()}, "best.pth")
    scope = run("Your own loop", Net=net, validation_set=pairs())
    assert torch.equal(scope["model"][0].weight, trained[0].weight)  # type: ignore[index]
    assert (tmp_path / "report.json").exists()


def test_lightning(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def val_dataloader(self):
            return DataLoader(pairs(), batch_size=64)

    monkeypatch.chdir(tmp_path)
    trained = Classifier()
    trainer = lightning.Trainer(
        max_epochs=1,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(trained, DataLoader(pairs(64), batch_size=16))
    trainer.save_checkpoint("last.ckpt")
    report = run("Lightning", Classifier=Classifier)["report"]
    assert report.objective["samples"] == 2000
    assert report.result("top_eigenvalues").status == "converged"


def test_hugging_face(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    config = transformers.GPT2Config(vocab_size=13, n_positions=6, n_embd=8, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained("folder")
    tokens = torch.randint(0, 13, (9, 6), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(6) < torch.tensor([6, 3, 5, 6, 2, 4, 6, 3, 5])[:, None]).long()
    labels = tokens.masked_fill(mask == 0, -100)
    report = run("Hugging Face", tokens=tokens, mask=mask, labels=labels)["report"]
    assert report.result("top_eigenvalues").status == "converged"
    assert report.objective["mean_over"] == "labels that are not -100, shifted by one"
