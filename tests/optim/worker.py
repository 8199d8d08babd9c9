"""What each of two processes that train together does.

It writes what came out to FOLDER/RANK.pt: scenario -> weights, or what was raised.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.amp import GradScaler
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

try:
    from torch.distributed.tensor import Shard, distribute_tensor
except ImportError:  # before torch 2.5
    from torch.distributed._tensor import Shard, distribute_tensor  # pyright: ignore

from flatkit.errors import FlatkitError
from flatkit.optim import ASAM, GAM, GSAM, SAM

STEPS = 4
SETTINGS: dict[str, dict[str, Any]] = {
    "sam": {"rho": 0.3},
    "asam": {"rho": 0.5, "eta": 0.02},
    "gsam": {"rho": 0.3, "alpha": 0.6},
    "gam": {"rho": 0.3, "rho_prime": 0.1, "alpha": 0.7, "beta": 0.4, "gamma": 0.3},
    "gam over sam": {"oracle": "sam", "rho": 0.3, "rho_sam": 0.2},
    "exact gam": {"mode": "exact", "rho": 0.3, "alpha": 0.8},
    "exact gam by differences": {
        "mode": "exact",
        "engine": "central_difference",
        "rho": 0.3,
        "alpha": 0.8,
    },
}
KINDS: dict[str, Callable[..., Any]] = {"sam": SAM, "asam": ASAM, "gsam": GSAM}


def wrapped(name: str, base: Optimizer, **more: Any) -> Any:
    return KINDS.get(name, GAM)(base, **SETTINGS[name], **more)


def network(norm: bool = False) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        middle = nn.BatchNorm1d(4) if norm else nn.Tanh()
        return nn.Sequential(nn.Linear(3, 4), middle, nn.Linear(4, 2)).double()


def data(step: int, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the samples of a step: 12, or the 6 of one process."""
    g = torch.Generator().manual_seed(step)
    x = torch.randn(12, 3, generator=g, dtype=torch.float64)
    y = torch.randint(0, 2, (12,), generator=g)
    rows = slice(None) if rank is None else slice(6 * rank, 6 * rank + 6)
    return x[rows], y[rows]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def train(
    name: str, model: nn.Module, optimizer: Any, rank: int | None, *, loop: bool = False
) -> Tensor:
    for step in range(STEPS):
        x, y = data(step, rank)
        if not loop:
            optimizer.step(lambda x=x, y=y: nn.functional.cross_entropy(model(x), y))
            continue
        for gradient_pass in optimizer.gradient_passes():
            gradient_pass.backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()
    return weights(model)


def sgd(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01)


def together(rank: int, name: str, batch: str, *, loop: bool) -> Tensor:
    model = DistributedDataParallel(network(), gradient_as_bucket_view=loop)
    optimizer = wrapped(name, sgd(model), model=model, batch=batch)
    return train(name, model, optimizer, rank, loop=loop)


def parts(rank: int, name: str, batch: str) -> Tensor:
    """Train on the samples in two parts, and talk after the second only."""
    model = DistributedDataParallel(network())
    optimizer = wrapped(name, sgd(model), model=model, batch=batch)
    for step in range(STEPS):
        x, y = data(step, rank)
        for gradient_pass in optimizer.gradient_passes():
            with model.no_sync():
                part = nn.functional.cross_entropy(model(x[:2]), y[:2], reduction="sum") / 6
                gradient_pass.backward(part)
            gradient_pass.backward(
                nn.functional.cross_entropy(model(x[2:]), y[2:], reduction="sum") / 6
            )
        optimizer.step()
    return weights(model)


def broken(rank: int, name: str, batch: str, *, scaled: bool) -> dict[str, Any]:
    """Let the loss of one process explode in its second pass."""
    model = DistributedDataParallel(network())
    optimizer = wrapped(name, sgd(model), model=model, batch=batch)
    scaler = GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    before, raised, (x, y) = weights(model), "", data(0, rank)

    def loss() -> Tensor:
        bad = rank == 1 and optimizer.gradient_pass == 1
        return nn.functional.cross_entropy(model(x), y) * (torch.inf if bad else 1.0)

    try:
        optimizer.step(loss, scaler=scaler)
    except FlatkitError as error:
        raised = f"{type(error).__name__}: {error}"
    scaler.update()
    restored = torch.equal(before, weights(model))
    train(name, model, optimizer, rank)
    return {
        "raised": raised,
        "restored": restored,
        "scale": scaler.get_scale(),
        "end": weights(model),
    }


def statistics(rank: int) -> dict[str, Any]:
    """Return running statistics after one step and after one plain forward pass."""
    x, y = data(0, rank)
    plain = DistributedDataParallel(network(norm=True))
    plain(x)
    model = DistributedDataParallel(network(norm=True))
    optimizer = wrapped("gam", sgd(model), model=model)
    optimizer.step(lambda: nn.functional.cross_entropy(model(x), y))
    return {"step": dict(model.named_buffers()), "plain": dict(plain.named_buffers())}


def without_model(name: str, **more: Any) -> str:
    model = network()
    x, y = data(0)
    try:
        optimizer = wrapped(name, sgd(model), **more)
        optimizer.step(lambda: nn.functional.cross_entropy(model(x), y))
    except FlatkitError as error:
        return str(error)
    return ""


def sharded() -> str:
    mesh = init_device_mesh("cpu", (2,))
    theta = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    try:
        SAM(SGD([theta], lr=0.1))
    except FlatkitError as error:
        return str(error)
    return ""


def work(rank: int, folder: Path) -> None:
    """Do the share of one of the two processes."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    out: dict[str, Any] = {}
    for name in SETTINGS:
        for batch in ("global", "local"):
            for loop in (False, True):
                out[f"{name} {batch} {loop}"] = together(rank, name, batch, loop=loop)
            for scaled in (False, True):
                out[f"{name} {batch} broken {scaled}"] = broken(rank, name, batch, scaled=scaled)
    for name in ("sam", "gam", "exact gam"):
        for batch in ("global", "local"):
            out[f"{name} {batch} parts"] = parts(rank, name, batch)
    out["statistics"] = statistics(rank)
    out["exact without model"] = without_model("exact gam")
    out["local without model"] = without_model("sam", batch="local")
    out["sharded"] = sharded()
    torch.save(out, folder / f"{rank}.pt")
    distributed.destroy_process_group()
