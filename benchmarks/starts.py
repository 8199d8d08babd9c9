"""Starts of a search handed out to two ranks, against each gradient shared by both.

`python -m benchmarks.starts` counts, in one process, how many gradients each stage of a search
takes, and writes `benchmarks/results/starts.md`. Where each is shared, a rank is at it for the
time of half of the samples. Where starts are handed out, it goes with all the samples from those
that are its own, and a stage lasts as long as the rank with more of them; what one start does alone
is shared as before. Waiting and sending are left out, and that an ascent stops where another one
has found more: the sums are the most that handing out can gain.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.resnet20 import resnet20
from benchmarks.timing import save
from flatkit import max_gradient_norm, max_loss_increase
from flatkit.flatness.rounds import Iterate, Rounds
from flatkit.objective import Objective

_RANKS = 2
_BUDGETS = (40, 150, 600)


def counted(search: Any, objective: Objective, budget: int) -> tuple[int, list[list[int]]]:
    """Return the gradients of one start at a time, and of several beside each other."""
    beside: list[list[int]] = []
    plain = {name: vars(Rounds)[name] for name in ("_look", "_round", "_ascend")}

    def look(self: Rounds, count: int, looked: list[Iterate]) -> Iterator[None]:
        stage: list[int] = []
        beside.append(stage)
        before, explored = self.search.spent, self.search.explored
        for _ in plain["_look"](self, count, looked):
            own = self.search.spent - before - (self.search.explored - explored)
            if own > 0:  # the model of the starts is made by all
                stage.append(own)
            before, explored = self.search.spent, self.search.explored
            yield

    def ascend(self: Rounds, iterate: Iterate) -> Iterator[None]:
        before = self.search.spent
        for _ in plain["_ascend"](self, iterate):
            yield
        if self.phases and iterate.name != "walk":
            beside[-1].append(self.search.spent - before)

    def a_round(self: Rounds, waiting: list[Iterate]) -> Iterator[None]:
        beside.append([])  # of ascents, which begin when all have stepped
        yield from plain["_round"](self, waiting)

    for name, function in {"_look": look, "_ascend": ascend, "_round": a_round}.items():
        setattr(Rounds, name, function)
    try:
        draws = torch.Generator().manual_seed(0)
        found = search(objective, rho=0.1, budget=budget, generator=draws)
    finally:
        for name, function in plain.items():
            setattr(Rounds, name, function)
    total = sum(sum(stage) for stage in beside)
    return found.gradients - total, [stage for stage in beside if stage]


def longest(stage: list[int]) -> int:
    """Return how many gradients the rank with more of a stage computes."""
    loads = [0] * _RANKS
    for own in sorted(stage, reverse=True):
        loads[loads.index(min(loads))] += own
    return max(loads)


def seconds(objective: Objective, rounds: int) -> float:
    """Return the processor seconds of a gradient, the median of some."""
    found = []
    for _ in range(rounds):
        begun = time.process_time()
        objective.gradient()
        found.append(time.process_time() - begun)
    return sorted(found)[len(found) // 2]


def cases() -> Iterator[tuple[str, nn.Module, tuple[Tensor, Tensor], int]]:
    """Yield networks with samples, and how often a gradient is timed."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    x, y = torch.tensor(digits.data[:1438]).float() / 16, torch.tensor(digits.target[:1438])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 120), nn.Tanh(), nn.Linear(120, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    yield "MLP of 8,970 weights, 1,438 digits", model, (x, y), 40
    yield "the same, 100 digits", model, (x[:100], y[:100]), 200
    images = torch.randn(64, 3, 32, 32)
    yield "ResNet-20, 64 images", resnet20().eval(), (images, torch.randint(10, (64,))), 3


def rows() -> Iterator[str]:
    """Yield a line of the table for each search."""
    for name, model, (x, y), rounds in cases():
        chunk = 16 if x.ndim > 2 else None
        whole, half = (
            Objective(model, "cross_entropy", (x[:n], y[:n]), chunk_size=chunk, examine=False)
            for n in (len(x), len(x) // _RANKS)
        )
        for each in (whole, half):
            each.gradient()
        part = seconds(half, rounds) / seconds(whole, rounds)
        for what, search in (("R0", max_loss_increase), ("R1", max_gradient_norm)):
            for budget in _BUDGETS if x.ndim == 2 else _BUDGETS[:1]:
                alone, beside = counted(search, whole, budget)
                several = sum(map(sum, beside))
                shared = (alone + several) * part
                handed = alone * part + sum(map(longest, beside))
                yield (
                    f"| {name} | {what}, {budget} | {several / (alone + several):.0%} | {part:.2f} "
                    f"| {shared:.0f} | {handed:.0f} | {shared / handed:.2f} |"
                )


def main() -> None:
    """Count, and write the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    lines = [
        "Gradients of a search, in those over all the samples of which a rank of two computes as "
        "many: where",
        "each is shared, and where starts that can go beside each other are handed out, at best.",
        "",
        "| network, samples | search, budget | from several starts | half of the samples take | "
        "shared | handed out | gain |",
        "|---|---|--:|--:|--:|--:|--:|",
        *rows(),
    ]
    save(
        "starts", "Starts handed out, or each gradient shared", "python -m benchmarks.starts", lines
    )


if __name__ == "__main__":
    main()
