"""How often intervals over samples and seeds hold what is true of the population.

Each problem is a linear regression drawn anew: inputs ~ N(0, Σ), targets with noise, two points θ.
Of it the population value of every number is a closed form: H = 2Σ, the loss, the gradient, and the
largest increase and gradient norm of a quadratic function in a ball (by dense eigenvectors and a
secular equation). 300 samples are drawn, flatkit measures both points on them, and an interval of
95 % is right if it holds the population value, of one point and of the difference of the two.

    python -m benchmarks.sampling --trials 2000

writes benchmarks/results/sampling.md.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import brentq
from torch import nn

from flatkit import analyze
from flatkit.comparison.intervals import Part, interval
from flatkit.comparison.readings import compared
from flatkit.results import Comparison, Entry, Report, Result

RESULTS = Path(__file__).parent / "results" / "sampling.md"
RHO = 0.5
SAMPLES, DIMENSIONS, NOISE = 300, 6, 0.5
MEASURES = (
    *("loss", "gradient_norm", "top_eigenvalues", "trace"),
    *("zeroth_order_sharpness", "first_order_flatness"),
)
KEYS = {
    "train_loss": "loss",
    "gradient_norm": "gradient norm",
    "top_eigenvalue": "largest eigenvalue",
    "trace": "trace",
    f"zeroth_order_sharpness[rho={RHO!r}]": "R0",
    f"first_order_flatness_over_rho_squared[rho={RHO!r}]": "R1/ρ²",
}


def trial(seed: int) -> dict[tuple[str, str], bool]:
    """Return by quantity, and `alone` or `difference`, whether an interval holds the truth."""
    random = np.random.default_rng(seed)
    spectrum = 2.0 ** -np.arange(DIMENSIONS) * random.uniform(0.8, 1.2, DIMENSIONS)
    basis = np.linalg.qr(random.normal(size=(DIMENSIONS, DIMENSIONS)))[0]
    covariance = basis @ np.diag(spectrum) @ basis.T
    inputs = random.multivariate_normal(np.zeros(DIMENSIONS), covariance, SAMPLES)
    targets = NOISE * random.normal(size=SAMPLES)
    runs = {name: random.normal(0, 0.7, DIMENSIONS) for name in ("one", "other")}
    scales = {"one": 1.0, "other": random.uniform(0.6, 0.9)}
    truths, entries = [], []
    for name, theta in runs.items():
        truths.append(population(theta, covariance, scales[name]))
        report = measured(theta, inputs * math.sqrt(scales[name]), targets)
        entries.append(Entry(name, name, report))
    found = {}
    for truth, entry in zip(truths, entries, strict=True):
        for key, reading in compared(entry.report).items():
            assert reading.sampling_error is not None
            part = Part(reading.sampling_error, len(reading.influence) - 1)
            known = interval(reading.value - (reading.sampling_bias or 0.0), [part])
            found[KEYS[key], "alone"] = known.low <= truth[KEYS[key]] <= known.high
    for key, quantity in Comparison(entries).statistics().quantities.items():
        (pair,) = quantity.pairs
        true = truths[0][KEYS[key]] - truths[1][KEYS[key]]
        assert pair.low is not None and pair.high is not None
        found[KEYS[key], "difference"] = pair.low <= true <= pair.high
    return found


def measured(theta: np.ndarray, inputs: np.ndarray, targets: np.ndarray) -> Report:
    """Return what flatkit says of a point on the samples."""
    model = nn.Linear(len(theta), 1, bias=False).double()
    with torch.no_grad():
        model.weight[:] = torch.from_numpy(theta)
    data = torch.from_numpy(inputs), torch.from_numpy(targets)[:, None]
    return analyze(
        model, "mse", data, measures=MEASURES, rho=[RHO], search_budget=15, progress=False
    )


def population(theta: np.ndarray, covariance: np.ndarray, scale: float) -> dict[str, float]:
    """Return the values of the population: of L(θ) = θᵀΣθ + σ², whose Hessian is 2Σ."""
    covariance = scale * covariance
    hessian, gradient = 2 * covariance, 2 * covariance @ theta
    values, vectors = np.linalg.eigh(hessian)
    g = vectors.T @ gradient
    return {
        "loss": float(theta @ covariance @ theta + NOISE**2),
        "gradient norm": float(np.linalg.norm(gradient)),
        "largest eigenvalue": float(values[-1]),
        "trace": float(values.sum()),
        "R0": largest(values, g),
        # ‖g + Hδ‖² = |g|² + 2 (Hg)ᵀδ + δᵀH²δ is a quadratic function as well.
        "R1/ρ²": math.sqrt(g @ g + largest(2 * values**2, 2 * values * g)) / RHO,
    }


def largest(values: np.ndarray, gradient: np.ndarray) -> float:
    """Return the largest gᵀδ + δᵀHδ/2 with ‖δ‖ = ρ, for H diagonal and convex.

    There (μ − H)δ = g with μ > λmax, and ‖δ‖ = ρ is one equation of μ.
    """

    def excess(shift: float) -> float:
        return float(np.linalg.norm(gradient / (values[-1] + shift - values))) - RHO

    high = float(np.linalg.norm(gradient)) / RHO + 1
    delta = gradient / (values[-1] + brentq(excess, 1e-12, high, xtol=1e-14) - values)
    return float(gradient @ delta + delta @ (values * delta) / 2)


def seeds_trial(seed: int, runs: int = 4) -> dict[tuple[str, str], bool]:
    """Return whether intervals over seeds hold: pairs of common seeds, and groups of others."""
    random = np.random.default_rng(seed)
    common = random.normal(0, 2, runs)
    found = {}
    for paired in (True, False):
        entries = []
        for group, mean in (("one", 9.0), ("other", 8.0)):
            shift = common if paired else random.normal(0, 2, runs)
            values = mean + shift + random.normal(0, 0.5 if group == "one" else 1.0, runs)
            for number, value in enumerate(values):
                report = Report([Result("trace", float(value), 0.0, "standard_error")])
                name = str(number) if paired else ""
                entries.append(Entry(f"{group} {number}", group, report, seed=name))
        (pair,) = Comparison(entries).statistics().quantities["trace"].pairs
        assert pair.low is not None and pair.high is not None
        kind = "paired by seed" if paired else "other seeds"
        found[f"{runs} runs a group", kind] = pair.low <= 1.0 <= pair.high
    return found


def shares(trials: int, run: Callable[[int], dict[tuple[str, str], bool]], start: int = 0):
    """Return how often each interval was right."""
    found: dict[tuple[str, str], list[bool]] = {}
    for seed in range(start, start + trials):
        for key, right in run(seed).items():
            found.setdefault(key, []).append(right)
    return {key: float(np.mean(right)) for key, right in found.items()}


def main() -> None:
    """Run all trials and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    trials = parser.parse_args().trials
    found = {**shares(trials, trial), **shares(5 * trials, seeds_trial)}
    lines = [
        "# How often intervals of 95 % hold what is true of the population",
        "",
        f"`python -m benchmarks.sampling --trials {trials}`: {trials} linear regressions with "
        f"{SAMPLES} samples each (seeds: {5 * trials} comparisons of two groups).",
        "",
        "| quantity | interval of | right |",
        "| :-- | :-- | --: |",
        *(f"| {name} | {kind} | {100 * share:.1f} % |" for (name, kind), share in found.items()),
    ]
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
