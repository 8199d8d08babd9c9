"""What one rank holds of a search of eigenvalues: one process against two, each in one thread.

`python -m benchmarks.shards` starts itself under torchrun, and writes its results beside those of
the others.
Memory is the growth of the resident set of the largest rank (VmHWM) over what it was before the
search; the model is (2M + 1)·P/N numbers for a basis of M vectors with its images.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.timing import save
from flatkit import HessianOperator
from flatkit.devices import give_back
from flatkit.devices.joining import joined
from flatkit.objective import Objective
from flatkit.spectrum.lanczos import Lanczos


def resident(what: str) -> int:
    """Return bytes of the resident set: `VmRSS` now, `VmHWM` the most so far."""
    status = Path("/proc/self/status").read_text("utf-8")
    found = re.search(rf"{what}:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def work(arguments: argparse.Namespace) -> None:
    """Be one process, and let the first write what the largest one held."""
    torch.set_num_threads(1)
    width = arguments.width
    with joined() as ranks:
        draws = torch.Generator().manual_seed(0)
        data = (torch.randn(8, width, generator=draws), torch.randn(8, width, generator=draws))
        objective = Objective(nn.Linear(width, width, bias=False), "mse", data)
        hessian = HessianOperator(objective, engine="layers")
        _ = hessian @ objective.theta  # what comes once
        give_back(objective.theta)
        Path("/proc/self/clear_refs").write_text("5")  # what was most begins anew
        before, sent = resident("VmRSS"), ranks.sent
        generator = torch.Generator().manual_seed(0)
        search = Lanczos(hessian, k=1, tolerance=1e-12, generator=generator)
        for _ in range(arguments.products):
            search.step()
        sent, grown = ranks.sent - sent, resident("VmHWM") - before
        rows, vector = 2 * search.capacity + 1, objective.theta.nbytes
        told = {"grown": grown, "model": rows * vector // ranks.count, "vector": vector}
        value = float(search.estimate().value[0])
        every = [json.loads(text) for text in ranks.gathered(json.dumps(told))]
        most = max(every, key=lambda one: one["grown"])
        most |= {"value": value, "sent": sent / search.matvecs / objective.theta.element_size()}
        if ranks.is_first:
            arguments.worker.write_text(json.dumps(most))


def measured(count: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the largest of so many processes holds."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "held.json"
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        given = [f"--{n}={getattr(arguments, n)}" for n in ("width", "products")]
        own = ["-m", "benchmarks.shards", "--worker", str(out), *given]
        # What is freed goes back at once: else the allocator of C decides what is resident.
        around = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        subprocess.run([sys.executable, *launcher, *own], check=True, env=around)
        return json.loads(out.read_text("utf-8"))


def main() -> None:
    """Measure and write, or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=2000)
    parser.add_argument("--products", type=int, default=24)
    parser.add_argument("--worker", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(arguments)
        return
    lines = [
        f"A layer of {arguments.width**2:,} weights in float32, {arguments.products} products of "
        "Lanczos with their images kept.",
        "Memory of the largest rank: what the search added to its resident set at the most, and "
        "the basis by the model. Sent is what a rank sends for a product, in numbers.",
        "",
        "| processes | resident, MB | basis, MB | the rest, in vectors | sent, numbers | λmax |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for count in (1, 2):
        found = measured(count, arguments)
        beside = (found["grown"] - found["model"]) / found["vector"]
        lines.append(
            f"| {count} | {found['grown'] / 1e6:.0f} | {found['model'] / 1e6:.0f} | {beside:.1f} | "
            f"{found['sent']:,.0f} | {found['value']:.6g} |"
        )
    command = " ".join(["python -m benchmarks.shards", *sys.argv[1:]])
    save("shards", "Krylov vectors in parts", command, lines)


if __name__ == "__main__":
    main()
