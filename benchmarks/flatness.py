"""How good the search in the ball is, against exact maxima and long random ascents.

Run with `python -m benchmarks.flatness`; writes benchmarks/results/flatness.md.
"""

import math
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.functional import cross_entropy

from benchmarks.timing import save
from flatkit import Objective
from flatkit.data import DATASETS
from flatkit.flatness import gradient_norm_maximum, max_gradient_norm
from tests.cases import quadratic_task

STARTS, STEPS, IMAGES = 1000, 60, 300


def quadratic_lines(size: int, seeds: int, budget: int) -> list[str]:
    """Compare with the exact maximum of indefinite quadratics with random spectra."""
    worst, spent = 0.0, []
    for seed in range(seeds):
        draws = np.random.default_rng(seed)
        matrix = draws.standard_normal((size, size)) / math.sqrt(size)
        matrix = matrix + matrix.T
        linear = draws.standard_normal(size) / math.sqrt(size)
        exact = gradient_norm_maximum(matrix, linear, 1.0).value
        objective = Objective(*quadratic_task(torch.from_numpy(matrix), torch.from_numpy(linear)))
        found = max_gradient_norm(objective, rho=1.0, budget=budget, tolerance=1e-12)
        worst = max(worst, 1 - found.value / exact)
        spent.append(found.gradients)
    return [f"| {size} | {seeds} | {max(spent)} | {worst:.1e} | {_met(worst <= 1e-6)} |"]


def network(activation: type[nn.Module], smoothing: float, *, trained: bool) -> tuple:
    """Return an MLP of P = 1,482 on 300 digits, its loss, its data and its gradient norm."""
    x, y = DATASETS.build("digits").train
    x, y = x.double()[:IMAGES], y[:IMAGES]
    torch.manual_seed(0)
    layers = [nn.Linear(64, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 10)]
    model = nn.Sequential(nn.Flatten(), *layers).double()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets, label_smoothing=smoothing, reduction="none")

    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for _ in range(20000 if trained else 0):
        optimizer.zero_grad()
        loss(model(x), y).mean().backward()
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
        if norm < 9e-5:
            break
        optimizer.step()
    return model, loss, (x, y)


def long_ascents(objective: Objective, rho: float) -> tuple[float, int]:
    """Return the best of many long projected ascents from random starts, and their gradients."""
    generator = torch.Generator().manual_seed(1)
    chunk, best, batch = next(objective.chunks()), 0.0, 50
    for _ in range(STARTS // batch):
        u = torch.randn(batch, objective.num_parameters, generator=generator, dtype=torch.float64)
        u *= rho / u.norm(dim=1, keepdim=True)
        for step in range(STEPS):
            points = (objective.theta + u).requires_grad_()
            losses = vmap(lambda theta: objective.chunk_loss(theta, chunk))(points)
            (gradients,) = torch.autograd.grad(losses.sum(), points, create_graph=True)
            norms = gradients.norm(dim=1)
            (ascent,) = torch.autograd.grad(norms.sum(), points)
            best = max(best, float(norms.detach().max()))
            u = u + rho * 0.5 * 0.95**step * ascent / ascent.norm(dim=1, keepdim=True)
            u = u * (rho / u.norm(dim=1, keepdim=True)).clamp(max=1.0)
    return best, 3 * STARTS * STEPS


def network_lines(name: str, activation: type[nn.Module], smoothing: float) -> list[str]:
    """Compare with long ascents on one architecture, trained and untrained."""
    lines = []
    for trained in (True, False):
        objective = Objective(*network(activation, smoothing, trained=trained))
        norm = float(objective.gradient().norm())
        for rho in (0.05, 0.5):
            best, theirs = long_ascents(objective, rho)
            started, budget = time.perf_counter(), int(0.019 * theirs)
            found = max_gradient_norm(objective, rho=rho, budget=budget)
            ratio, cost = found.value / best, (found.gradients + 100) / theirs
            lines.append(
                f"| {name}, {'trained' if trained else 'untrained'} | {norm:.1e} | {rho} "
                f"| {ratio:.5f} | {cost:.2%} | {time.perf_counter() - started:.1f} "
                f"| {_met(ratio >= 0.999 and cost <= 0.02)} |"
            )
            print(lines[-1], flush=True)
    return lines


def _met(met: bool) -> str:
    return "yes" if met else "NO"


def main() -> None:
    """Measure everything and write the results."""
    torch.set_num_threads(1)
    lines = ["## Indefinite quadratics, ρ = 1", ""]
    lines += [
        "| P | seeds | most gradients | worst shortfall | within 1e-6 |",
        "|---|---|---|---|---|",
    ]
    lines += quadratic_lines(50, 100, 3000) + quadratic_lines(2000, 3, 6000)
    lines += ["", f"## Networks, against the best of {STARTS} random ascents of {STEPS} steps", ""]
    lines += ["| network | ‖∇L‖ | ρ | value / best | gradients / theirs | s | ≥ 0.999 at ≤ 2 % |"]
    lines += ["|---|---|---|---|---|---|---|"]
    lines += network_lines("tanh", nn.Tanh, 0.1) + network_lines("relu", nn.ReLU, 0.0)
    lines += ["", "Not measured here: ResNet-20; the quadratics of P = 2,000 on 100 seeds."]
    save("flatness", "The search in the ball", "python -m benchmarks.flatness", lines)


if __name__ == "__main__":
    main()
