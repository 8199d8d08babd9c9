"""What each of several processes does that share the work; it writes what came out to a file."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, distributed, nn

from flatkit import FisherOperator, GaussNewtonOperator, HessianOperator, analyze
from flatkit.devices.joining import current, joined
from flatkit.devices.ranks import Ranks
from flatkit.errors import FlatkitError
from flatkit.landscape.job import LandscapeJob
from flatkit.landscape.subspaces import Subspace
from flatkit.objective import Objective, Task, kept
from flatkit.objective.blocks import blocks_of
from flatkit.objective.settings import ObjectiveSettings

SAMPLES, INPUTS, CLASSES, WIDTH = 41, 5, 3, 4


def data() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, INPUTS, generator=draws, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (SAMPLES,), generator=draws)


def network(norm: bool = False) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        middle = [nn.BatchNorm1d(WIDTH)] if norm else []
        parts = [nn.Linear(INPUTS, WIDTH), *middle, nn.Tanh(), nn.Linear(WIDTH, CLASSES)]
        return nn.Sequential(*parts).double()


def vectors(size: int) -> Tensor:
    return torch.randn(3, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def objectives() -> dict[str, Objective]:
    """Return functions whose samples are cut in several ways."""
    x, y = data()
    weights = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    return {
        "one chunk": Objective(network(), "cross_entropy", (x, y)),
        "chunks": Objective(network(), "cross_entropy", (x, y), chunk_size=6),
        "weights": Objective(network(), nn.CrossEntropyLoss(weights), (x, y), chunk_size=6),
        "norm": Objective(
            network(norm=True), "cross_entropy", (x, y), batchnorm="train", chunk_size=9
        ),
    }


def passes(objective: Objective) -> dict[str, Any]:
    """Return what every kind of pass over the samples gives."""
    v = vectors(objective.num_parameters)
    plain = objective.divisible and objective.total_weight == SAMPLES
    loss, gradient = objective.loss_and_gradient()
    found: dict[str, Any] = {
        "loss": loss,
        "evaluated": list(objective.evaluate()),
        "gradient": gradient,
        "gauss-newton": GaussNewtonOperator(objective).matmat(v),
        "fisher": FisherOperator(objective).matvec(v[0]) if plain else v[0],
    }
    for engine in ("layers", "double_backward"):
        hessian = HessianOperator(objective, engine=engine)
        found[f"{engine}: product"] = hessian.matvec(v[0])
        found[f"{engine}: products"] = hessian.matmat(v)
        found[f"{engine}: gradient"] = hessian.gradient()
    found["cost"] = objective.cost.counts()
    blocks = blocks_of(objective)
    if not isinstance(blocks, str):
        found["gradients of blocks"] = torch.stack(list(blocks.gradients(objective.theta)))
        values = blocks.evaluate(objective.theta)
        found["values of blocks"] = [values.losses, values.right, values.asked]
        found["values of samples"] = values.singles
    return found


def analysis(folder: Path | None = None) -> dict[str, Any]:
    """Analyze with every pass kept, if there is a folder; give the report."""
    dear, kept.LEAST_SECONDS = kept.LEAST_SECONDS, 0.0
    try:
        report = analyze(
            network(),
            "cross_entropy",
            data(),
            measures=[
                "loss",
                "accuracy",
                "top_eigenvalues",
                "trace",
                "max_gradient_norm",
                "first_order_flatness",
                "zeroth_order_sharpness",
                "m_sharpness",
                "loss_slice",
            ],
            m_sharpness=8,
            rho=[0.1],
            slice_points=5,
            budget=150,
            chunk_size=6,
            progress=False,
            journal=None if folder is None else folder / "analysis.journal",
        )
    finally:
        kept.LEAST_SECONDS = dear
    return json.loads(report.to_json())


def surface(refine: float | None, journal: Path | None = None) -> dict[str, Any]:
    """Measure a plane around the network; give its values and whose points were measured here."""
    objective = Objective(network(), "cross_entropy", data(), chunk_size=6)
    v = vectors(objective.num_parameters)[:2]
    axes = {"x": numpy.linspace(-1, 1, 7), "y": numpy.linspace(-1, 1, 7)}
    job = LandscapeJob(
        {"train": objective},
        Subspace("given", objective.theta, v),
        axes,
        quantities=("loss", "gradient_norm"),
        refine=refine,
    )
    plain, here = job.values_at, []

    def counted(part: Any) -> Any:
        here.extend(part)
        return plain(part)

    job.values_at = counted  # type: ignore[method-assign]
    found = job.measure(journal=journal)
    values = {name: value.tolist() for name, value in found.quantities.items()}
    return {"values": values, "here": here, "cost": objective.cost.counts()}


class Picky(nn.Module):
    """A loss that fails at one sample, which only one rank meets."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if bool((targets == CLASSES - 1).any()) and self.training:
            raise ValueError("no such class")
        return nn.functional.cross_entropy(outputs, targets, reduction="none")


def raised(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def failures(ranks: Ranks) -> dict[str, str]:
    """Return what all ranks say where one fails."""
    x, y = data()
    y = y.clamp(max=CLASSES - 2)
    y[-1] = CLASSES - 1
    bad = Objective(network(), Picky(), (x, y), chunk_size=6, examine=False)
    bad.loss_function.inner.train()
    found = {"loss": raised(bad.loss), "gradient": raised(bad.gradient)}
    found["product"] = raised(lambda: HessianOperator(bad, engine="layers") @ bad.theta)

    def work(number: int) -> int:
        if number == 1:
            raise FlatkitError("not this one")
        return number

    found["handed out"] = raised(lambda: list(ranks.hand_out(3, work)))
    found["first"] = raised(lambda: ranks.decided(lambda: 1 / 0))
    x[0, 0] += ranks.rank
    task = Task(network(), "cross_entropy", (x, y))
    found["data"] = raised(lambda: task.objective(ObjectiveSettings()))
    few = Task(network(), "cross_entropy", (torch.zeros(1, INPUTS), torch.zeros(1).long()))
    found["few"] = raised(lambda: few.objective(ObjectiveSettings()))
    task = Task(network(), "cross_entropy", data())
    found["settings"] = raised(lambda: analyze(task, rho=[0.1 + ranks.rank], progress=False))
    return found


def bytes_of_a_product() -> list[int]:
    """Return how many numbers each all-reduce of a product sends, and P."""
    objective = Objective(network(), "cross_entropy", data(), chunk_size=6)
    hessian = HessianOperator(objective)
    _ = hessian @ objective.theta
    sent, plain = [], distributed.all_reduce
    distributed.all_reduce = lambda tensor, **more: (
        sent.append(tensor.numel()) or plain(tensor, **more)
    )
    try:
        _ = hessian @ objective.theta
    finally:
        distributed.all_reduce = plain
    return [*sent, objective.num_parameters]


def everything(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {name: passes(o) for name, o in objectives().items()}
    found["analysis"] = analysis()
    found["kept"] = analysis(folder)
    found["again"] = analysis(folder)
    found["surface"] = surface(None)
    found["refined"] = surface(0.05)
    found["journal"] = surface(None, folder / "surface.journal")
    found["journal again"] = surface(None, folder / "surface.journal")
    return found


def work(rank: int, count: int, port: int, folder: Path) -> None:
    """Do the share of one process."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    with joined() as ranks:
        assert current() is ranks and ranks.rank == rank
        found = everything(folder)
        found["bytes"] = bytes_of_a_product()
        found["failures"] = failures(ranks)
    assert current().count == 1
    torch.save(found, folder / f"{rank}.pt")
