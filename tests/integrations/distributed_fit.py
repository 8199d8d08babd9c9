"""A fit by one or two processes on a CPU, the callback of a library in it."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

STEPS, BATCH = 4, 16


def data() -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(STEPS * BATCH, 5, generator=torch.Generator().manual_seed(1))
    return inputs, (inputs.sum(1) > 0).long()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))


def lightning_fit(folder: Path, processes: int) -> Any:
    import lightning.pytorch as lightning
    from lightning.pytorch.loggers import CSVLogger

    from flatkit.integrations.lightning import CurvatureCallback

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index) -> Any:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self):
            # Each process takes its share of every batch. Lightning's own sampler would shuffle.
            samples = torch.utils.data.TensorDataset(*data())
            share = torch.utils.data.DistributedSampler(
                samples, num_replicas=processes, rank=self.global_rank, shuffle=False
            )
            return torch.utils.data.DataLoader(samples, BATCH // processes, sampler=share)

    callback = CurvatureCallback(
        "cross_entropy", data(), every_n_steps=2, max_share=None, tolerance=1e-6
    )
    lightning.Trainer(
        accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto",
        max_epochs=1, logger=CSVLogger(folder), callbacks=[callback], default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        num_sanity_val_steps=0, log_every_n_steps=1, use_distributed_sampler=False,
    ).fit(Net())  # fmt: skip
    return callback


def transformers_fit(folder: Path, processes: int) -> Any:
    from transformers import Trainer, TrainingArguments

    from flatkit.integrations.hugging_face import CurvatureCallback

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x, labels):
            outputs = self.net(x)
            return {"loss": nn.functional.cross_entropy(outputs, labels), "logits": outputs}

    samples = [{"x": x, "labels": y} for x, y in zip(*data(), strict=True)]
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, per_device_train_batch_size=BATCH // processes,
        max_steps=STEPS, logging_steps=1, report_to=[], save_strategy="no", disable_tqdm=True,
        optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", max_grad_norm=0.0,
    )  # fmt: skip
    trainer = Trainer(Net(), arguments, train_dataset=samples)  # pyright: ignore[reportArgumentType]
    inputs, labels = data()
    callback = CurvatureCallback(
        data={"x": inputs, "labels": labels}, samples=STEPS * BATCH, every_n_steps=2,
        max_share=None, tolerance=1e-6,
    ).attach(trainer)  # fmt: skip
    trainer.train()
    if trainer.is_world_process_zero():
        logged = [row for row in trainer.state.log_history if "curvature/trace" in row]
        (folder / "logged.json").write_text(json.dumps(logged))
    return callback


FITS = {"lightning": lightning_fit, "transformers": transformers_fit}


def fit(library: str, folder: Path, processes: int, rank: int = 0, port: int = 0) -> None:
    """Fit as one of so many processes, told what torchrun tells each; leave what it measured."""
    torch.set_num_threads(1)
    if processes > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "NODE_RANK": "0"}
        os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), f"{rank}")
        os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), f"{processes}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*could not be measured")
        tracker = FITS[library](folder, processes).tracker
    found = [row.scalars() for row in tracker.history]
    (folder / f"history-{rank}.json").write_text(json.dumps(found))
