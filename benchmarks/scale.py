"""Two processes against one, one thread each: eigenvalue, R1 and a landscape of a ResNet-20.

`python -m benchmarks.scale` starts itself under torchrun with one and with two processes in turn
and writes `benchmarks/results/scale.md`. The ratio of processor times (that of one process over the
larger of two) is what sharing saves on an idle machine, without what waiting costs; that of
wall-clock times needs as many idle cores as processes. The floor is what two cores give here: the
gradient by torch alone over the samples of each process, which share their cores' caches and clock.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import distributed

from benchmarks.resnet20 import resnet20
from benchmarks.timing import save
from flatkit import HessianOperator, max_gradient_norm
from flatkit.devices.joining import joined
from flatkit.devices.ranks import Ranks
from flatkit.landscape.job import LandscapeJob
from flatkit.landscape.subspaces import Subspace
from flatkit.objective import Objective
from flatkit.spectrum.lanczos import lanczos

NAMES = {
    "floor": "bare gradients of torch, nothing sent",
    "eigenvalue": "top eigenvalue",
    "r1": "R1",
    "landscape": "landscape of losses",
}


def jobs(samples: int, products: int, budget: int, points: int) -> dict[str, Callable[[], object]]:
    """Return what is timed, over random images: the time does not depend on what they show."""
    draws = torch.Generator().manual_seed(0)
    data = (
        torch.randn(samples, 3, 32, 32, generator=draws),
        torch.randint(0, 10, (samples,), generator=draws),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = resnet20()
    objective = Objective(model, "cross_entropy", data, chunk_size=16)
    hessian = HessianOperator(objective, engine="double_backward", retain_graph=False)
    _ = hessian @ objective.theta  # what comes once
    axis = numpy.linspace(-1, 1, points)
    direction = torch.randn(1, objective.num_parameters, generator=draws)
    job = LandscapeJob(
        {"train": objective}, Subspace("given", objective.theta, direction), {"t": axis}
    )

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def eigenvalue() -> object:
        return lanczos(hessian, tolerance=1e-9, max_matvecs=products, generator=seeded())

    def r1() -> object:
        return max_gradient_norm(objective, rho=0.01, budget=budget, generator=seeded())

    own = objective.ranks.part(samples)
    x, y = data[0][own], data[1][own]

    def floor() -> None:
        for _ in range(budget):
            for rows in torch.arange(len(x)).split(16):
                torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            model.zero_grad()

    return {
        "floor": floor,
        "eigenvalue": eigenvalue,
        "r1": r1,
        "landscape": job.measure,
        "product": lambda: hessian @ objective.theta,
    }


def work(arguments: argparse.Namespace) -> None:
    """Be one process: time everything, and let the first write it."""
    torch.set_num_threads(1)
    with joined() as ranks:
        made = jobs(arguments.samples, arguments.products, arguments.budget, arguments.points)
        sent = _sent(made.pop("product"), ranks)
        times = {name: _timed(run, ranks) for name, run in made.items()}
        if ranks.is_first:
            arguments.worker.write_text(json.dumps({"times": times, "sent": sent}))


def _timed(run: Callable[[], object], ranks: Ranks) -> list[float]:
    """Return the seconds on the clock, and the largest processor time of a rank."""
    ranks.gathered("ready")
    wall, own = time.perf_counter(), time.process_time()
    run()
    spent = ranks.gathered(str(time.process_time() - own))
    return [time.perf_counter() - wall, max(map(float, spent))]


def _sent(product: Callable[[], object], ranks: Ranks) -> list[int]:
    """Return how many numbers each all-reduce of a product holds."""
    found: list[int] = []
    plain: Any = distributed.all_reduce

    def counted(tensor: torch.Tensor, **more: Any) -> object:
        found.append(tensor.numel())
        return plain(tensor, **more)

    distributed.all_reduce = counted
    try:
        product()
    finally:
        distributed.all_reduce = plain
    return found if ranks.count > 1 else []


def measured(count: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what so many processes need."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "times.json"
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        given = [
            f"--{n}={getattr(arguments, n)}" for n in ("samples", "products", "budget", "points")
        ]
        own = ["-m", "benchmarks.scale", "--worker", str(out), *given]
        subprocess.run([sys.executable, *launcher, *own], check=True)
        return json.loads(out.read_text("utf-8"))


def main() -> None:
    """Measure and write, or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--products", type=int, default=12)
    parser.add_argument("--budget", type=int, default=20)
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(arguments)
        return
    rounds = [(measured(1, arguments), measured(2, arguments)) for _ in range(arguments.rounds)]
    rows = []
    for name, words in NAMES.items():
        of = [
            [one["times"][name][n] / two["times"][name][n] for one, two in rounds] for n in (0, 1)
        ]
        rows.append(
            f"| {words} | {statistics.median(of[0]):.2f} | {statistics.median(of[1]):.2f} |"
        )
    sent = rounds[0][1]["sent"]
    lines = [
        f"ResNet-20, {arguments.samples} samples, one thread a process; medians of "
        f"{arguments.rounds} rounds, interleaved.",
        f"The eigenvalue takes {arguments.products} products, R1 {arguments.budget} gradients, the "
        f"landscape {arguments.points} points of a line.",
        "",
        "| what | wall-clock, times as fast | processor time of one over the larger of two |",
        "|---|--:|--:|",
        *rows,
        "",
        f"{os.cpu_count()} cores, with a load average of {os.getloadavg()[0]:.0f} at the end: "
        "where that is beyond the cores, the clock says little.",
        "",
        f"A product sends {len(sent)} all-reduce of {sent[0]:,} numbers.",
    ]
    command = " ".join(["python -m benchmarks.scale", *sys.argv[1:]])
    save("scale", "Two processes against one", command, lines)


if __name__ == "__main__":
    main()
