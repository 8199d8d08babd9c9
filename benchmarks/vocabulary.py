"""Cross-entropy over many classes: time and memory against that of torch, by numbers of classes.

    python -m benchmarks.vocabulary [--device cuda]

A gradient and a second derivative along a direction, of scores [rows, classes] of 2^24 numbers.
"""

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import medians
from flatkit.hessian.memory import measure_bytes
from flatkit.objective import vocabulary


def _passes(values: object, scores: Tensor, classes: Tensor, along: Tensor) -> None:
    assert callable(values)
    (slope,) = torch.autograd.grad(values(scores, classes).sum(), scores, create_graph=True)
    torch.autograd.grad(slope, scores, along)
    if scores.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    """Print a line for each number of classes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)
    vocabulary.MANY_CLASSES = 2
    print("| classes | torch, ms | in blocks, ms | torch, copies | in blocks, copies |")
    print("|--:|--:|--:|--:|--:|")
    for count in (64, 512, 4096, 32768):
        rows = 2**24 // count
        scores = torch.randn(rows, count, device=device, requires_grad=True)
        classes = torch.randint(count, (rows,), device=device)
        ways = {
            "torch": partial(F.cross_entropy, reduction="none"),
            "blocks": vocabulary.cross_entropy,
        }
        runs = {
            name: partial(_passes, way, scores, classes, torch.randn_like(scores))
            for name, way in ways.items()
        }
        seconds = medians(runs, rounds=3)
        copies = {name: measure_bytes(run)[0] / scores.nbytes for name, run in runs.items()}
        cells = [f"{1e3 * one:.0f}" for one in seconds.values()]
        print(f"| {count} |", *cells, *(f"{one:.2f}" for one in copies.values()), sep=" | ")


if __name__ == "__main__":
    main()
