"""How often intervals over samples and seeds hold what is true of the population.

Each problem is a linear regression drawn anew: inputs ~ N(0, Σ), targets with noise, two points θ.
Of it the population value of every number is a closed form: H = 2Σ, the loss, the gradient, its
increase at the rounded weights, and the largest increase and gradient norm of a quadratic function
in a ball (by dense eigenvectors and a secular equation); m-sharpness is the mean of such increases
over 4,000 fresh batches. 300 samples are drawn, flatkit measures both points on them, and an
interval of 95 % is right if it holds the population value, of one point and of the difference of
the two. Of seeds there is a population of numbers alone, without networks.

    python -m benchmarks.sampling --trials 2000

writes benchmarks/results/sampling.md.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.timing import machine
from flatkit import analyze
from flatkit.comparison.intervals import Part, interval
from flatkit.comparison.readings import readings
from flatkit.results import Comparison, Entry, Report, Result

RESULTS = Path(__file__).parent / "results" / "sampling.md"
RHO = 0.5
SAMPLES, DIMENSIONS, NOISE, BATCH, BITS = 300, 6, 0.5, 12, 4
MEASURES = (
    *("loss", "gradient_norm", "top_eigenvalues", "trace", "frobenius_norm"),
    *("spectral_density", "rounding", "zeroth_order_sharpness", "first_order_flatness"),
)
KEYS = {
    "train_loss": "loss",
    "gradient_norm": "gradient norm",
    "top_eigenvalues": "largest eigenvalue",
    "trace": "trace",
    "frobenius_norm": "Frobenius norm",
    "density_mean": "mean of the density",
    f"rounding[bits={BITS}]": f"ΔL at {BITS} bits",
    f"zeroth_order_sharpness[rho={RHO!r}]": "R0",
    f"first_order_flatness_over_rho_squared[rho={RHO!r}]": "R1/ρ²",
    f"m_sharpness[m={BATCH}][rho={RHO!r}]": f"R0 of {BATCH} samples",
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
        truths.append(population(theta, covariance, scales[name], random))
        report = measured(theta, inputs * math.sqrt(scales[name]), targets)
        entries.append(Entry(name, name, report))
    found = {}
    for truth, entry in zip(truths, entries, strict=True):
        all_readings = (one for result in entry.report for one in readings(result))
        for reading in (one for one in all_readings if one.key in KEYS):
            key = reading.key
            assert reading.sampling_error is not None
            parts = [Part(reading.sampling_error, len(reading.influence) - 1)]
            if reading.error_kind == "standard_error" and not reading.error_is_of_samples:
                parts.append(Part(reading.error or 0.0))  # over probes
            known = interval(reading.value - (reading.sampling_bias or 0.0), parts)
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
        model,
        "mse",
        data,
        measures=MEASURES,
        m_sharpness=BATCH,
        bits=[BITS],
        rho=[RHO],
        search_budget=15,
        progress=False,
    )


def population(
    theta: np.ndarray, covariance: np.ndarray, scale: float, random: np.random.Generator
) -> dict[str, float]:
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
        "Frobenius norm": float(np.linalg.norm(values)),
        "mean of the density": float(values.mean()),
        f"ΔL at {BITS} bits": rounding(theta, covariance),
        "R0": largest(values, g),
        # ‖g + Hδ‖² = |g|² + 2 (Hg)ᵀδ + δᵀH²δ is a quadratic function as well.
        "R1/ρ²": math.sqrt(g @ g + float(largest(2 * values**2, 2 * values * g))) / RHO,
        f"R0 of {BATCH} samples": over_batches(theta, covariance, random),
    }


def rounding(theta: np.ndarray, covariance: np.ndarray) -> float:
    """Return by how much θᵀΣθ rises when θ is rounded to even steps between -max|θ| and max|θ|."""
    step = np.abs(theta).max() / (2 ** (BITS - 1) - 1)
    near = np.rint(theta / step) * step
    return float(near @ covariance @ near - theta @ covariance @ theta)


def over_batches(theta: np.ndarray, covariance: np.ndarray, random: np.random.Generator) -> float:
    """Return the mean of R0 over fresh batches; its own error is a thirteenth of a measured one."""
    inputs = random.multivariate_normal(np.zeros(DIMENSIONS), covariance, (4000, BATCH))
    residuals = inputs @ theta - NOISE * random.normal(size=(4000, BATCH))
    gradients = 2 * np.einsum("bmd,bm->bd", inputs, residuals) / BATCH
    values, vectors = np.linalg.eigh(2 * np.einsum("bmd,bme->bde", inputs, inputs) / BATCH)
    return float(largest(values, np.einsum("bde,bd->be", vectors, gradients)).mean())


def largest(values: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Return the largest gᵀδ + δᵀHδ/2 with ‖δ‖ = ρ, for H diagonal and convex [..., D].

    There (μ − H)δ = g with μ > λmax, and ‖δ‖ = ρ is one equation of μ, solved by bisection.
    """
    top = values[..., -1:]
    low = np.full_like(top, 1e-12)
    high = np.linalg.norm(gradient, axis=-1, keepdims=True) / RHO + 1
    for _ in range(100):
        middle = (low + high) / 2
        delta = gradient / (top + middle - values)
        far = np.linalg.norm(delta, axis=-1, keepdims=True) > RHO
        low, high = np.where(far, middle, low), np.where(far, high, middle)
    delta = gradient / (top + high - values)
    return (gradient * delta + values * delta**2 / 2).sum(-1)


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


def both_trial(seed: int, ratio: float) -> dict[tuple[str, str], bool]:
    """Return whether an interval over 3 common seeds holds whose samples add to the error.

    Args:
        seed: of the draws.
        ratio: of the variance over samples to that over seeds.
    """
    random = np.random.default_rng(seed)
    seeds, blocks = random.normal(0, 2, 12), 25
    entries = []
    for group, mean, runs in (("one", 9.0, 3), ("other", 8.0, 12)):
        of_samples = random.normal(0, math.sqrt(ratio * blocks / 3), blocks)
        for number, own in enumerate(random.normal(0, 1, runs)):
            values = mean + seeds[number] + own + of_samples
            settings = {"influence": {"values": values.tolist()}}
            found = Result("trace", float(values.mean()), 0.0, "standard_error", settings=settings)
            entries.append(Entry(f"{group} {number}", group, Report([found]), seed=str(number)))
    (pair,) = Comparison(entries).statistics().quantities["trace"].pairs
    assert pair.low is not None and pair.high is not None
    name = f"3 runs against 12, samples {ratio:g} of the variance of seeds"
    return {(name, "paired by seed"): pair.low <= 1.0 <= pair.high}


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
    for ratio in (0.1, 1.0, 10.0):
        found |= shares(5 * trials, partial(both_trial, ratio=ratio), start=10**6)
    lines = [
        "# How often intervals of 95 % hold what is true of the population",
        "",
        f"`python -m benchmarks.sampling --trials {trials}`: {trials} linear regressions with "
        f"{SAMPLES} samples each (seeds: {5 * trials} comparisons of two groups); {machine()}.",
        "",
        "| quantity | interval of | right |",
        "| :-- | :-- | --: |",
        *(f"| {name} | {kind} | {100 * share:.1f} % |" for (name, kind), share in found.items()),
    ]
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
