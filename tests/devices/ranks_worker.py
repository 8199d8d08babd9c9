"""What each of several processes does that share the work; it writes what came out to a file."""

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, distributed, nn

from flatkit import FisherOperator, GaussNewtonOperator, HessianOperator, analyze
from flatkit.devices import ranks
from flatkit.devices.joining import apart, current, joined
from flatkit.devices.ranks import Ranks
from flatkit.errors import FlatkitError
from flatkit.files.store import Store
from flatkit.flatness.geometry import Geometry
from flatkit.flatness.quadratic_model import ScaledOperator
from flatkit.landscape.job import LandscapeJob
from flatkit.landscape.subspaces import Subspace
from flatkit.objective import Objective, Task, kept
from flatkit.objective.blocks import blocks_of
from flatkit.objective.digest import digest_of
from flatkit.objective.settings import ObjectiveSettings
from flatkit.spectrum.density import spectral_density
from flatkit.spectrum.lanczos import Lanczos, lanczos
from flatkit.spectrum.lobpcg import lobpcg

SAMPLES, INPUTS, CLASSES, WIDTH = 19, 5, 3, 4
CHUNK = 4
"""Samples of a chunk: neither two ranks nor three have as many samples or chunks each."""


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
        "chunks": Objective(network(), "cross_entropy", (x, y), chunk_size=CHUNK),
        "weights": Objective(network(), nn.CrossEntropyLoss(weights), (x, y), chunk_size=CHUNK),
        "norm": Objective(
            network(norm=True), "cross_entropy", (x, y), batchnorm="train", chunk_size=7
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
            budget=100,
            chunk_size=CHUNK,
            progress=False,
            journal=None if folder is None else folder / "analysis.journal",
        )
    finally:
        kept.LEAST_SECONDS = dear
    return json.loads(report.to_json())


def surface(refine: float | None, journal: Path | None = None) -> dict[str, Any]:
    """Measure a plane around the network; give its values and whose points were measured here."""
    objective = Objective(network(), "cross_entropy", data(), chunk_size=CHUNK)
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


class Numbered(nn.Module):
    """A network that holds the number of its process."""

    def __init__(self, rank: int, scale: float) -> None:
        super().__init__()
        self.rank, self.scale, self.network = rank, scale, network()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.network(x)


def raised(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def failures(others: Ranks) -> dict[str, str]:
    """Return what all ranks say where one fails."""
    x, y = data()
    y = y.clamp(max=CLASSES - 2)
    y[-1] = CLASSES - 1
    bad = Objective(network(), Picky(), (x, y), chunk_size=CHUNK, examine=False)
    bad.loss_function.inner.train()
    found = {"loss": raised(bad.loss), "gradient": raised(bad.gradient)}
    found["product"] = raised(lambda: HessianOperator(bad, engine="layers") @ bad.theta)

    def work(number: int) -> int:
        if number == 1:
            raise FlatkitError("not this one")
        return number

    found["handed out"] = raised(lambda: list(others.hand_out(3, work)))
    found["first"] = raised(lambda: others.decided(lambda: 1 / 0))
    x[0, 0] += others.rank
    task = Task(network(), "cross_entropy", (x, y))
    found["data"] = raised(lambda: task.objective(ObjectiveSettings()))
    few = Task(network(), "cross_entropy", (torch.zeros(1, INPUTS), torch.zeros(1).long()))
    found["few"] = raised(lambda: few.objective(ObjectiveSettings()))
    # Each rank has its own number in it, first where nothing depends on that, then in the loss.
    for name, scale in {"numbered": 1.0, "scaled": 1.0 + others.rank}.items():
        task = Task(Numbered(others.rank, scale), "cross_entropy", data())
        found[name] = raised(partial(task.objective, ObjectiveSettings()))
    task = Task(network(), "cross_entropy", data())
    found["settings"] = raised(lambda: analyze(task, rho=[0.1 + others.rank], progress=False))
    return found


def bytes_of_a_product() -> list[int]:
    """Return how many numbers each all-reduce of a product sends, and P."""
    objective = Objective(network(), "cross_entropy", data(), chunk_size=CHUNK)
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


def searches() -> dict[str, Any]:
    """Return eigenvalues and vectors of several searches, each of which keeps its part of a basis.

    Seven vectors are few: Lanczos restarts, and gives its images up.
    """
    objective = Objective(network(), "cross_entropy", data(), chunk_size=CHUNK)
    hessian, size = HessianOperator(objective), objective.num_parameters
    given: dict[str, Any] = {"k": 2, "tolerance": 1e-8}

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    search = Lanczos(hessian, max_basis=7, generator=seeded(), **given)
    spaces = []
    while not search.done:
        search.step()
        if search.matvecs in (5, 40):
            spaces.append(search.space(3))
    early = search.deflation()
    warm = lanczos(hessian, initial=vectors(size)[:2], generator=seeded(), **given)
    found = {
        "restarted": search.estimate(),
        "both ends": lanczos(hessian, which="both", generator=seeded(), **given),
        "warm": warm,
        "block": lobpcg(hessian, initial=vectors(size)[:1], generator=seeded(), **given),
        "scaled": lanczos(scaled(objective), generator=seeded(), **given),
        "gauss-newton": lanczos(GaussNewtonOperator(objective), generator=seeded(), **given),
    }
    said: dict[str, Any] = {
        name: {"values": f.value, "errors": f.error, "projectors": projectors(f.vectors)}
        for name, f in found.items()
    }
    said["restarts"] = found["restarted"].notes["restarts"]
    said["products"] = {name: f.matvecs for name, f in found.items()}
    said["spaces"] = [[projectors(s.vectors), s.ritz()[0], s.ritz()[2]] for s in spaces]
    said["deflation"] = [early.trace, early.length, early.vectors @ early.vectors.T]
    density = spectral_density(hessian, num_probes=2, steps=6, generator=seeded())
    said["density"] = [density.nodes.tolist(), density.mean]
    return said


def moved(folder: Path) -> dict[str, Any]:
    """Go on from the journal of one process by all ranks, and from theirs by one; count products.

    A float32 network of two chunks, whose sums all ranks round otherwise than one.
    """
    x, y = data()
    found: dict[str, Any] = {}

    def search(path: Path) -> None:
        objective = Objective(network().float(), "cross_entropy", (x.float(), y), chunk_size=10)
        ranks, made = objective.ranks, []
        plain = HessianOperator._prepared

        def counted(self: HessianOperator, *given: Any, **more: Any) -> Any:
            made.append(1)
            return plain(self, *given, **more)

        with Store(path, {}) if ranks.is_first else nullcontext() as store:
            digest = digest_of(objective)
            objective.kept = kept.Passes(store, digest, least_seconds=0, ranks=ranks)
            HessianOperator._prepared = counted  # type: ignore[method-assign]
            try:
                given: dict[str, Any] = {"tolerance": 1e-12, "max_matvecs": 25, "max_basis": 9}
                generator = torch.Generator().manual_seed(3)
                done = lanczos(HessianOperator(objective), generator=generator, **given)
            finally:
                HessianOperator._prepared = plain  # type: ignore[method-assign]
        found[path.stem] = [*found.get(path.stem, []), [len(made), done.matvecs, done.value]]

    def by_first(path: Path) -> None:
        if current().is_first:
            with apart():
                search(path)
        current().gathered("done")

    by_first(folder / "one.journal")
    search(folder / "one.journal")
    search(folder / "all.journal")
    by_first(folder / "all.journal")
    return found


def scaled(objective: Objective) -> ScaledOperator:
    theta = objective.theta
    return ScaledOperator(HessianOperator(objective), Geometry("adaptive", theta.abs()))


def projectors(rows: Tensor | None) -> Tensor:
    """Return vvᵀ for each row: the same whatever the sign."""
    assert rows is not None
    return rows[:, :, None] * rows[:, None, :]


def bytes_of_a_search() -> dict[str, Any]:
    """Return what a step of Lanczos sends and keeps, and what the calls of torch were given."""
    objective = Objective(network(), "cross_entropy", data(), chunk_size=CHUNK)
    search = Lanczos(HessianOperator(objective), k=1, generator=torch.Generator().manual_seed(5))
    for _ in range(4):
        search.step()
    count, given = objective.ranks.count, {"vectors": 0, "sums": 0, "calls": 0}
    places = ((ranks, "_gather"), (distributed, "all_to_all_single"), (distributed, "all_reduce"))
    plain: list[Any] = [getattr(place, name) for place, name in places]

    def gather(whole: Tensor, part: Tensor, **more: Any) -> Any:
        given["vectors"] += (count - 1) * part.nbytes
        return plain[0](whole, part, **more)

    def exchange(taken: Tensor, rows: Tensor, **more: Any) -> Any:
        given["vectors"] += rows.nbytes * (count - 1) // count
        return plain[1](taken, rows, **more)

    def reduce(tensor: Tensor, **more: Any) -> Any:
        given["sums"] += 2 * tensor.nbytes * (count - 1) // count
        given["calls"] += 1
        return plain[2](tensor, **more)

    before = objective.ranks.sent
    for (place, name), function in zip(places, (gather, exchange, reduce), strict=True):
        setattr(place, name, function)
    try:
        search.step()
    finally:
        for (place, name), function in zip(places, plain, strict=True):
            setattr(place, name, function)
    told = objective.ranks.sent - before
    kept = search.estimate().notes["bytes_of_basis"]
    rows = 2 * search.capacity + 1
    return {**given, "told": told, "kept": kept, "rows": rows, "size": objective.num_parameters}


def in_bfloat16() -> dict[str, list[float]]:
    """Return value and error of what is measured with the noise of bfloat16."""
    x, y = data()
    measures = ["loss", "gradient_norm", "top_eigenvalues"]
    given: dict[str, Any] = {"dtype": "bfloat16", "measures": measures, "progress": False}
    report = analyze(Task(network(), "cross_entropy", (x, y)), **given)
    return {
        result.measure: [float(torch.tensor(part).max()) for part in (result.value, result.error)]
        for result in report.results
    }


def everything(folder: Path) -> dict[str, Any]:
    """Return what one process finds too."""
    found: dict[str, Any] = {name: passes(o) for name, o in objectives().items()}
    found["searches"] = searches()
    found["analysis"] = analysis()
    found["surface"] = surface(None)
    found["refined"] = surface(0.05)
    found["journal"] = surface(None, folder / "surface.journal")
    return found


def work(rank: int, count: int, port: int, folder: Path) -> None:
    """Do the share of one process."""
    from tests.devices.sharded_models import models

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    with joined() as others:
        assert current() is others and others.rank == rank
        found = everything(folder)
        found["kept"] = analysis(folder)
        found["again"] = analysis(folder)
        found["journal again"] = surface(None, folder / "surface.journal")
        found["bytes"] = bytes_of_a_product()
        found["bfloat16"] = in_bfloat16()
        found["bytes of a search"] = bytes_of_a_search()
        found["moved"] = moved(folder)
        found["models"] = dict(models(folder))
        found["failures"] = failures(others)
    assert current().count == 1
    torch.save(found, folder / f"{rank}.pt")
