"""One of two processes that train together over gloo, with a tracker; a file of its own, as a
process imports it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from flatkit import CurvatureTracker


def train_together(rank: int, folder: Path, tracked: bool) -> None:
    """Train with DistributedDataParallel, and leave the weights and what was tracked."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", rank=rank, world_size=2, init_method=f"file://{folder / f'store-{tracked}'}"
    )
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    model = nn.parallel.DistributedDataParallel(inner)
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    y = (x.sum(1) > 0).long()
    tracker = CurvatureTracker("cross_entropy", (x, y), every=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(1, 7):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rank::2]), y[rank::2]).backward()
        optimizer.step()
        if tracked:
            tracker.step(model, step)
    found: dict[str, Any] = {f"weights {k}": v for k, v in model.state_dict().items()}
    found["random"] = torch.get_rng_state()
    found["steps"] = torch.tensor([row.step for row in tracker.history])
    torch.save(found, folder / f"{rank}-{tracked}.pt")
    del model, optimizer  # what is let go after its group waits for ever at times
    torch.distributed.destroy_process_group()
