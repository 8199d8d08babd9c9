"""The spectral density by stochastic Lanczos quadrature."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import trapezoid

from flatkit.checks import check_count, check_positive
from flatkit.spectrum.gauss_rule import Rule
from flatkit.spectrum.krylov import KrylovBasis
from flatkit.spectrum.operators import SymmetricOperator, refuse_noisy
from flatkit.spectrum.standard_error import freedom_of, rounding_error, stretch
from flatkit.spectrum.steps import Steps, changed, finish, timed


class _Rules(NamedTuple):
    """Rules of random vectors, and the products that were made for them."""

    rules: Sequence[Rule]
    matvecs: int


@dataclass(frozen=True)
class Density:
    """A density over eigenvalues, as quadrature nodes and as a curve.

    Attributes:
        nodes: eigenvalues of the Krylov matrices, float64 [n].
        weights: their weights, adding up to 1.
        grid: where the curve is given, [G].
        curve: the density there: Gaussians of standard deviation `bandwidth` at the nodes.
        error: standard error of the curve over the probes, and what it may lack between the nodes,
            [G].
        bandwidth: in units of the eigenvalues.
        mean: Σ weight·node, an estimate of tr A / P.
        mean_error: its standard error.
        mass: the integral of the curve over the grid; 1 but for what lies outside.
        matvecs: products.
        seconds: wall-clock time.
    """

    nodes: np.ndarray
    weights: np.ndarray
    grid: np.ndarray
    curve: np.ndarray
    error: np.ndarray
    bandwidth: float
    mean: float
    mean_error: float
    mass: float
    matvecs: int
    seconds: float


def spectral_density(
    operator: SymmetricOperator,
    *,
    num_probes: int = 8,
    steps: int = 40,
    bandwidth: float | None = None,
    points: int = 401,
    generator: torch.Generator,
    first: Rule | None = None,
) -> Density:
    """Return the density of the eigenvalues, smoothed by a Gaussian of known width.

    Each random unit vector gives, by Lanczos with full reorthogonalisation, a Gauss quadrature
    rule of its own spectral measure, exact for polynomials of degree 2·steps - 1; their mean
    estimates the density (Lin, Saad and Yang, 2016; Ghorbani, Krishnan and Xiao, 2019). Detail
    finer than the bandwidth is not resolved, and the curve says nothing of it. Where the spectrum
    has no gaps, `steps` nodes may lie farther apart than the bandwidth: the curve is then that of
    averaged rules, with nodes between those, whose halves tell how wrong it may be (Laurie, 1996).

    For a random unit vector v the variance of vᵀAv is 2/(P + 2) times that of the eigenvalues,
    which the rules give with far less noise than the few values vᵀAv: `mean_error` stands on it.
    Errors are widened where vectors are few (Student's t).

    Cost: num_probes·steps products; memory `steps` vectors.

    Args:
        operator: A, symmetric.
        num_probes: random vectors, at least 2.
        steps: of Lanczos for each.
        bandwidth: standard deviation of the Gaussians; by default 1 % of the width of the
            spectrum.
        points: of the curve.
        generator: draws the probes.
        first: the rule of a random vector that is known, such as `Lanczos.rule`: one probe less.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.tensor([1.0, 1.0, -1.0, -1.0])))
    >>> density = spectral_density(operator, num_probes=2, generator=torch.Generator())
    >>> round(density.mass, 3), sorted(set(density.nodes.round(3).tolist()))
    (1.0, [-1.0, 1.0])
    """
    return finish(
        density_steps(
            operator,
            num_probes=num_probes,
            steps=steps,
            bandwidth=bandwidth,
            points=points,
            generator=generator,
            first=first,
        )
    )


def density_steps(
    operator: SymmetricOperator,
    *,
    num_probes: int = 8,
    steps: int = 40,
    bandwidth: float | None = None,
    points: int = 401,
    generator: torch.Generator,
    first: Rule | None = None,
) -> Steps[Density]:
    """Tell the density after each product; `spectral_density` is the end.

    Of the rules that are whole; of the first one before that.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.tensor([1.0, 1.0, -1.0, -1.0])))
    >>> told = density_steps(operator, num_probes=2, generator=torch.Generator())
    >>> len(next(told)().nodes), len(finish(told).nodes)
    (1, 4)
    """
    refuse_noisy(operator, "the density")
    check_count("num_probes", num_probes, minimum=2)
    check_count("steps", steps)
    check_count("points", points, minimum=11)
    if bandwidth is not None:
        check_positive("bandwidth", bandwidth)
    curve = partial(_density, operator, bandwidth, points)
    rules = [] if first is None else [first]
    return timed(changed(_rules(operator, rules, num_probes, steps, generator), curve))


def _rules(
    operator: SymmetricOperator,
    rules: list[Rule],
    count: int,
    steps: int,
    generator: torch.Generator,
) -> Steps[_Rules]:
    matvecs = 0
    while len(rules) < count:
        basis = KrylovBasis(operator, min(steps, operator.size), generator)
        ended = False
        while not ended:
            basis.expand()
            matvecs += 1
            ended = basis.coupling == 0 or basis.full
            now = basis.rule()
            assert now is not None
            if ended:
                rules = [*rules, now]
            yield partial(_Rules, rules or [now], matvecs)


def _density(
    operator: SymmetricOperator, bandwidth: float | None, points: int, told: _Rules
) -> Density:
    rules = told.rules
    nodes = np.concatenate([rule.nodes for rule in rules])
    weights = np.concatenate([rule.weights for rule in rules]) / len(rules)
    width = float(nodes.max() - nodes.min())
    scale = float(np.abs(nodes).max())
    # One node has no width, and that of a zero matrix no size either.
    sigma = bandwidth or 0.01 * width or 0.01 * scale or 1e-12
    grid = _grid(nodes, sigma, points)
    if bandwidth is None:  # a curve must not miss its own peaks
        sigma = max(sigma, 1.5 * (grid[1] - grid[0]))
        grid = _grid(nodes, sigma, points)
    curves = np.stack([_smooth(grid, rule.finer, rule.shares, sigma) for rule in rules])
    drawn = _curve_error(curves * sigma, operator.size) / sigma  # squares overflow
    mean, mean_error = _mean(rules, operator)
    return Density(
        nodes=nodes,
        weights=weights,
        grid=grid,
        curve=curves.mean(0),
        error=np.hypot(drawn * sigma, _between(rules, grid, sigma) * sigma) / sigma,
        bandwidth=sigma,
        mean=mean,
        mean_error=mean_error,
        mass=float(trapezoid(curves.mean(0), grid)),
        matvecs=told.matvecs,
        seconds=0.0,
    )


def _curve_error(curves: np.ndarray, size: int) -> np.ndarray:
    """Return the standard error of the mean of curves [n, G], in units of 1 / bandwidth.

    Of a single one by what random vectors do: the variance of vᵀf(A)v is at most 2/(P + 2) times
    the mean of f², here of Gaussians that are at most 1/√(2π).
    """
    if len(curves) == 1:
        # f² ≤ f/√(2π) for such a Gaussian f, and curves[0] estimates the mean of f.
        return np.sqrt(2 / (size + 2) * curves[0] / math.sqrt(2 * math.pi)) * stretch(1)
    return curves.std(0, ddof=1) / np.sqrt(len(curves)) * stretch(len(curves) - 1)


def _between(rules: Sequence[Rule], grid: np.ndarray, sigma: float) -> np.ndarray:
    """Return how wrong the curve [G] may be, as nodes are farther apart than the bandwidth.

    What the two averaged rules are wrong by, the most within the distance of two nodes, as they
    cross between bumps and hollows. Their mean is nearer, in an even spectrum far nearer.
    """
    halves = [np.abs(_smooth(grid, rule.finer, rule.shares * rule.signs, sigma)) for rule in rules]
    # Points of the grid between two nodes, were the nodes of the shortest rule spread evenly.
    reach = len(grid) // min(len(rule.nodes) for rule in rules)
    padded = np.pad(np.mean(halves, axis=0), reach, mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).max(1)


def _mean(rules: Sequence[Rule], operator: SymmetricOperator) -> tuple[float, float]:
    """Return the mean eigenvalue and its standard error."""
    scale = max(float(np.abs(rule.nodes).max()) for rule in rules) or 1.0  # squares overflow
    means = np.array([float(rule.nodes @ rule.weights) for rule in rules]) / scale
    mean, count, size = float(means.mean()), len(rules), operator.size
    # Exact moments: a rule of two nodes or more integrates squares, as does one that ended early.
    spreads = np.array([float(rule.weights @ (rule.nodes / scale - mean) ** 2) for rule in rules])
    # Var vᵀAv = 2/(P + 2) · Var λ for v uniform on the unit sphere (`spectral_density`).
    variance = 2 / (size + 2) * float(spreads.mean())
    freedom = min(count, freedom_of(count, float(spreads.sum()), float(spreads @ spreads)))
    # A rule of one node has no spread of its own, which would read as an error of 0.
    if min(len(rule.nodes) for rule in rules) < 2:
        spread = float(means.var(ddof=1)) if count > 1 else mean * mean
        variance, freedom = max(variance, spread), count - 1
    frobenius = np.sqrt((spreads.mean() + mean**2) * size)
    rounding = rounding_error(operator.rounding, frobenius=frobenius, value=mean * size) / size
    return scale * mean, scale * float(
        np.hypot(np.sqrt(variance / count) * stretch(freedom), rounding)
    )


def _grid(nodes: np.ndarray, sigma: float, points: int) -> np.ndarray:
    # Beyond five deviations a normal curve has less than a millionth of its mass.
    return np.linspace(nodes.min() - 5 * sigma, nodes.max() + 5 * sigma, points)  # [G]


def _smooth(grid: np.ndarray, nodes: np.ndarray, weights: np.ndarray, sigma: float) -> np.ndarray:
    distances = (grid[:, None] - nodes[None, :]) / sigma  # [G, n]
    return (np.exp(-0.5 * distances**2) / (sigma * np.sqrt(2 * np.pi))) @ weights
