"""How often the true value lies within one and within two of the stated standard errors.

Seven kinds of spectra, some hundred seeds each, every method, against dense float64 by NumPy. Each
pair of method and spectrum is one row of coverage.json beside the table; an interrupted run goes on
with the rows that are missing.
"""

import json
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import get_args

import click
import numpy as np
import torch
from scipy.special import ndtr
from scipy.stats import binom
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.timing import save
from flatkit import Objective
from flatkit.files import write_text_atomically
from flatkit.flatness import average_loss_increase
from flatkit.spectrum import diagonal, frobenius_norm, spectral_density, trace
from flatkit.spectrum.operators import DenseOperator
from flatkit.spectrum.xtrace import TraceMethod

Pairs = list[tuple[float, float, float]]
"""Values, errors and truths."""


def rotated(values: np.ndarray) -> np.ndarray:
    """Return a symmetric matrix of these eigenvalues in a random basis."""
    basis, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((len(values), len(values))))
    return (basis * values) @ basis.T


def coupled(size: int, couplings: dict[tuple[int, int], float]) -> np.ndarray:
    """Return a diagonal matrix but for a few pairs of coordinates."""
    matrix = np.diag(np.linspace(0.5, 1.5, size))
    for (one, other), strength in couplings.items():
        matrix[one, other] = matrix[other, one] = strength
    return matrix


def network() -> np.ndarray:
    """Return the Hessian of an MLP 10-13-3 after 60 steps of gradient descent."""
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 10, generator=draws, dtype=torch.float64)
    targets = torch.randint(0, 3, (64,), generator=draws)

    def loss(theta: Tensor) -> Tensor:
        first, one, second, two = theta.split([130, 13, 39, 3])
        hidden = torch.tanh(inputs @ first.view(10, 13) + one)
        return cross_entropy(hidden @ second.view(13, 3) + two, targets)

    theta = 0.3 * torch.randn(185, generator=draws, dtype=torch.float64)
    for _ in range(60):
        theta = theta - 0.5 * torch.autograd.functional.jacobian(loss, theta)
    return torch.autograd.functional.hessian(loss, theta).numpy()


SPECTRA: dict[str, Callable[[], np.ndarray]] = {
    "bulk": lambda: rotated(np.r_[30.0, 10.0, 3.0, np.random.default_rng(0).random(197) * 0.3]),
    "decay": lambda: rotated(np.arange(1, 201.0) ** -1.5),
    "indefinite": lambda: rotated(np.random.default_rng(3).standard_normal(200) + 0.5),
    "flat": lambda: rotated(np.linspace(0.5, 1.5, 200)),
    "pairs": lambda: coupled(200, {(0, 1): 20.0, (50, 51): 15.0, (100, 101): 25.0}),
    "one pair": lambda: coupled(100, {(3, 7): 30.0}),
    "network": network,
}


def of_trace(method: TraceMethod, tolerance: float) -> Callable[[np.ndarray, int], Pairs]:
    """Return what measures a trace once; the budget leaves too little for every entry."""

    def run(matrix: np.ndarray, seed: int) -> Pairs:
        found = trace(
            DenseOperator(torch.from_numpy(matrix)),
            method=method,
            tolerance=tolerance,
            max_matvecs=len(matrix) + 15,
            generator=torch.Generator().manual_seed(seed),
        )
        return [(float(found.value), float(found.error), float(np.trace(matrix)))]

    return run


def of_frobenius(tolerance: float) -> Callable[[np.ndarray, int], Pairs]:
    """Return what measures the Frobenius norm once."""

    def run(matrix: np.ndarray, seed: int) -> Pairs:
        found = frobenius_norm(
            DenseOperator(torch.from_numpy(matrix)),
            tolerance=tolerance,
            max_matvecs=len(matrix) + 15,
            generator=torch.Generator().manual_seed(seed),
        )
        return [(float(found.value), float(found.error), float(np.linalg.norm(matrix)))]

    return run


def of_diagonal(sizes: bool) -> Callable[[np.ndarray, int], Pairs]:
    """Return what measures the diagonal, ten entries of it, or its sums over parts."""

    def run(matrix: np.ndarray, seed: int) -> Pairs:
        cut = len(matrix) // 4
        parts = [cut, len(matrix) - cut]
        found = diagonal(
            DenseOperator(torch.from_numpy(matrix)),
            sizes=parts if sizes else None,
            generator=torch.Generator().manual_seed(seed),
        )
        truth = np.diag(matrix)
        if sizes:
            truth = np.array([truth[:cut].sum(), truth[cut:].sum()])
        every = max(1, len(truth) // 10)
        rows = zip(found.value.tolist(), found.error.tolist(), truth.tolist(), strict=True)
        return list(rows)[::every]

    return run


def of_density(matrix: np.ndarray, seed: int) -> Pairs:
    """Measure the mean of the spectral density once."""
    found = spectral_density(
        DenseOperator(torch.from_numpy(matrix)),
        steps=3,  # the first moments are exact from two on
        generator=torch.Generator().manual_seed(seed),
    )
    return [(found.mean, found.mean_error, float(np.trace(matrix)) / len(matrix))]


class Quadratic(torch.nn.Module):
    """The values ½ θᵀAθ."""

    def __init__(self, matrix: np.ndarray) -> None:
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(len(matrix), dtype=torch.float64))
        self.matrix = torch.from_numpy(matrix)

    def forward(self, x: Tensor) -> Tensor:
        """Return one value a sample."""
        return (0.5 * self.theta @ (self.matrix @ self.theta)).expand(len(x), 1)


def of_average_sharpness(matrix: np.ndarray, seed: int) -> Pairs:
    """Measure the average sharpness of a quadratic once."""
    key = matrix.tobytes()
    if key not in _OBJECTIVES:
        data = (torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64))
        _OBJECTIVES[key] = Objective(Quadratic(matrix), lambda out, _: out.mean(), data)
    found = average_loss_increase(
        _OBJECTIVES[key], rho=1.0, generator=torch.Generator().manual_seed(seed)
    )
    return [(found.value, found.error, 0.5 * float(np.trace(matrix)) / len(matrix))]


_OBJECTIVES: dict[bytes, Objective] = {}

METHODS: dict[str, Callable[[np.ndarray, int], Pairs]] = {
    **{
        f"{method}, {tolerance}": of_trace(method, tolerance)
        for method in get_args(TraceMethod)
        for tolerance in (0.02, 0.1)
    },
    "hutchinson, 0.05": of_trace("hutchinson", 0.05),
    "hutchinson, 0.2": of_trace("hutchinson", 0.2),
    "frobenius_norm, 0.02": of_frobenius(0.02),
    "frobenius_norm, 0.1": of_frobenius(0.1),
    "diagonal, entries": of_diagonal(sizes=False),
    "diagonal, parts": of_diagonal(sizes=True),
    "density, mean": of_density,
    "average_sharpness": of_average_sharpness,
}


def distances(method: str, matrix: np.ndarray, seeds: range) -> np.ndarray:
    """Return how many stated errors the true value is away, for every seed."""
    measured = np.array([row for seed in seeds for row in METHODS[method](matrix, seed)])
    value, error, truth = measured.T
    # The truth is rounded, too.
    return np.abs(value - truth) / np.maximum(error, 1e-14 * np.abs(truth).max())


def too_few(hits: int, count: int, errors: float) -> bool:
    """Whether so few lie within some errors that a true share as a normal's is ruled out.

    At one in a thousand; more may lie there, where a bar is wider than it must be.

    >>> too_few(110, 200, 1.0), too_few(130, 200, 1.0)
    (True, False)
    """
    return bool(binom.cdf(hits, count, 2 * float(ndtr(errors)) - 1) < 1e-3)


def _missing(
    rows: dict[str, dict[str, float]], seeds: int, first: int, only: str
) -> Iterator[tuple[str, str]]:
    chosen = [method for method in METHODS if method.startswith(only)]
    for method, spectrum in product(chosen, SPECTRA):
        row = rows.get(f"{method} | {spectrum}", {})
        if (row.get("seeds"), row.get("first", 0)) != (seeds, first):
            yield method, spectrum


@click.command()
@click.option("--seeds", default=200, show_default=True)
@click.option("--first", default=0, show_default=True, help="Of the seeds.")
@click.option("--only", default="", help="Methods whose names begin so.")
def main(seeds: int, first: int, only: str) -> None:
    """Measure what is missing and write benchmarks/results/coverage.md."""
    torch.set_num_threads(1)
    path = Path(__file__).parent / "results" / "coverage.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    matrices = {name: build() for name, build in SPECTRA.items()}
    for method, spectrum in list(_missing(rows, seeds, first, only)):
        started = time.process_time()
        away = distances(method, matrices[spectrum], range(first, first + seeds))
        within = {str(errors): int((away <= errors).sum()) for errors in (1, 2, 3)}
        rows[f"{method} | {spectrum}"] = {
            "seeds": seeds,
            "first": first,
            "count": len(away),
            **within,
            "farthest": float(away.max()),
            "seconds": time.process_time() - started,
        }
        write_text_atomically(path, json.dumps(rows, indent=1) + "\n")
    save(
        "coverage",
        "Coverage of standard errors",
        f"python -m benchmarks.coverage --seeds {seeds}",
        _table(rows),
        "numpy",
        "scipy",
    )


def _table(rows: dict[str, dict[str, float]]) -> list[str]:
    lines = [
        "Shares of true values within 1, 2 and 3 stated errors, and the farthest; a normal gives "
        "0.683, 0.954, 0.997. Budgets are too small to take every entry of the diagonal, which "
        "would leave no error. XTrace is cautious by design, and bars of few draws are wider. The "
        "truth is NumPy's.",
        "",
        "| method, tolerance | spectrum | first seed | values | within 1 | 2 | 3 | farthest |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for method in METHODS:
        own = {name: rows[f"{method} | {name}"] for name in SPECTRA}
        whole = {key: sum(row[key] for row in own.values()) for key in ("count", "1", "2", "3")}
        whole["farthest"] = max(row["farthest"] for row in own.values())
        for name, row in [*own.items(), ("**all**", whole)]:
            shares = " | ".join(f"{row[key] / row['count']:.3f}" for key in ("1", "2", "3"))
            count = int(row["count"])
            begun = "" if row is whole else int(row.get("first", 0))
            farthest = row["farthest"]
            lines.append(f"| {method} | {name} | {begun} | {count} | {shares} | {farthest:.1f} |")
    seconds = sum(row["seconds"] for row in rows.values())
    return [*lines, "", f"{seconds:.0f} s of one processor."]


if __name__ == "__main__":
    main()
