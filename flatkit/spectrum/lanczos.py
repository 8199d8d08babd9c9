"""Lanczos with full reorthogonalisation and thick restart, stopped by residuals."""

import math
import time
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from flatkit.checks import check_choice, check_count, check_positive
from flatkit.errors import InvalidArgumentError, NonFiniteError
from flatkit.operators import SymmetricOperator, random_vector
from flatkit.spectrum.estimate import Estimate, residual_norms
from flatkit.spectrum.power import check_wanted

End: TypeAlias = Literal["largest", "smallest", "magnitude", "both"]
Stop: TypeAlias = Literal["residual", "value"]


def lanczos(
    operator: SymmetricOperator,
    *,
    k: int = 1,
    which: End = "largest",
    tolerance: float = 1e-4,
    max_matvecs: int = 1000,
    max_basis: int | None = None,
    stop: Stop = "residual",
    initial: Tensor | None = None,
    generator: torch.Generator,
) -> Estimate:
    """Return k eigenvalues at one end of the spectrum by thick-restart Lanczos.

    The Krylov basis is kept orthonormal by two passes of Gram-Schmidt, so that no ghost copies
    appear, also in 32 bits; when it is full, the best Ritz vectors start the next one (Wu and
    Simon, 2000). The residuals that stop the iteration come from the recurrence; those returned
    are computed explicitly, from k more products.

    Each value holds to its residual: some eigenvalue lies within it, and the largest Ritz value is
    at most the largest eigenvalue. A single-vector Krylov method may report an eigenvalue of
    multiplicity m fewer than m times.

    Cost: a product and 4·M·P multiplications a step; memory M + 1 vectors, M = `max_basis`.

    Args:
        operator: A, symmetric.
        k: how many eigenvalues.
        which: `largest` (most positive), `smallest` (most negative), `magnitude`, or `both`: the
            ends in turn, the largest first.
        tolerance: on the residual, relative to the largest magnitude among the Ritz values.
        max_matvecs: products in all but the last k; when spent, the status is `budget`.
        max_basis: M, at least k + 2; by default 2k + 18.
        stop: on the `residual`, or on the estimated error of the `value`: r²/gap (Kato, 1949;
            Temple, 1928), quadratically smaller, with the gap taken from the Ritz values. That
            estimate is not certain, as an eigenvalue that was not seen may lie in the gap; the
            returned error is the residual either way, the estimate stands in the notes.
        initial: vectors [J, P] that are nearly wanted, such as those of a nearby operator; the
            basis starts from their sum.
        generator: draws the start.

    Returns:
        Estimate with values [k] from the wanted end inwards, e.g. largest first.

    Raises:
        InvalidArgumentError: k > P, or an argument out of range.

    >>> from flatkit.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.tensor([3.0, 1.0, -5.0])))
    >>> [round(x, 3) for x in lanczos(operator, k=2, generator=torch.Generator()).value.tolist()]
    [3.0, 1.0]
    """
    check_wanted(operator, k)
    check_choice("which", which, get_args(End))
    check_choice("stop", stop, get_args(Stop))
    check_positive("tolerance", tolerance)
    check_count("max_matvecs", max_matvecs)
    capacity = min(operator.size, _capacity(k, max_basis))
    started = time.perf_counter()
    basis = _Basis(operator, capacity, generator, initial)
    while True:
        basis.expand()
        values, weights = basis.ritz(which)
        scale = float(np.abs(values).max())
        every = basis.coupling * np.abs(weights[-1])
        residuals = every[:k] if stop == "residual" else value_errors(values, every)[:k]
        enough = len(values) >= k and not basis.fresh
        converged = enough and bool((residuals <= tolerance * scale).all())
        if converged or basis.matvecs >= max_matvecs:
            break
        if basis.full:
            basis.restart(values, weights, kept=_kept(k, capacity))
    vectors = basis.vectors(weights[:, :k])
    found = torch.from_numpy(values[:k].copy())
    errors = residual_norms(operator, found, vectors)
    estimated = value_errors(values, np.concatenate([errors.numpy(), every[len(errors) :]]))
    checked = errors if stop == "residual" else torch.from_numpy(estimated[:k].copy())
    return Estimate(
        value=found,
        error=errors + operator.rounding * scale,
        error_kind="residual",
        status=_status(converged, checked, tolerance * scale),
        matvecs=basis.matvecs + len(found),
        seconds=time.perf_counter() - started,
        vectors=vectors,
        notes={
            "basis": capacity,
            "restarts": basis.restarts,
            "stop": stop,
            "value_error_estimate": estimated[:k].tolist(),
            "rounding": operator.rounding * scale,
            "warm_start": initial is not None,
        },
    )


def value_errors(values: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """Return min(r, r²/gap) for each Ritz value, its gap to the other intervals μ ± r.

    Args:
        values: μ [M], in any order.
        residuals: r [M].

    >>> value_errors(np.array([3.0, 1.0]), np.array([0.1, 0.0])).round(4).tolist()
    [0.005, 0.0]
    """
    distances = np.abs(values[:, None] - values[None, :]) - residuals[None, :]
    np.fill_diagonal(distances, np.inf)
    gaps = distances.min(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        sharper = np.where(gaps > 0, residuals**2 / gaps, np.inf)
    return np.minimum(residuals, sharper)


def _capacity(k: int, max_basis: int | None) -> int:
    if max_basis is None:
        return 2 * k + 18
    if max_basis < k + 2:
        raise InvalidArgumentError(f"max_basis must be at least k + 2 = {k + 2}, got {max_basis}")
    return max_basis


def _kept(k: int, capacity: int) -> int:
    return min(capacity - 1, k + (capacity - k) // 3)


def _status(converged: bool, errors: Tensor, allowed: float) -> str:
    if not converged:
        return "budget"
    # The recurrence promised more than the explicit residuals hold: rounding of the products.
    return "converged" if bool((errors <= 2 * allowed).all()) else "rounding"


def _from_both_ends(count: int) -> list[int]:
    """Return places of an ascending sequence: the last, the first, the last but one, ..."""
    return [number // 2 if number % 2 else count - 1 - number // 2 for number in range(count)]


_FRESH = 0.05
"""Part of a random vector in a warm start."""


class _Basis:
    """An orthonormal Krylov basis V and the projection T = V A Vᵀ onto it."""

    def __init__(
        self,
        operator: SymmetricOperator,
        capacity: int,
        generator: torch.Generator,
        initial: Tensor | None = None,
    ) -> None:
        self._operator, self._generator = operator, generator
        start = random_vector(operator, generator=generator)
        if initial is not None:  # a little of everything, lest what is new be invisible
            known = initial.to(start).sum(0)
            start = known / known.norm() + _FRESH * start / start.norm()
        self._rows = torch.empty(
            capacity + 1, operator.size, dtype=start.dtype, device=start.device
        )
        self._rows[0] = start / start.norm()
        self._projection = np.zeros((capacity, capacity))
        self._capacity, self._size = capacity, 0
        self.coupling = math.inf  # ‖the part of A v_last outside the basis‖
        self.matvecs = self.restarts = 0
        self._age = 0  # expansions since the last random direction
        self._settled = False  # the rest of the space is one eigenspace

    @property
    def full(self) -> bool:
        return self._size == self._capacity

    @property
    def fresh(self) -> bool:
        """Whether a new random direction has not had time to show what it holds."""
        return not self._settled and self._age < min(3, self._operator.size - self._size)

    def expand(self) -> None:
        """Multiply the newest direction, extend T, and find the next direction."""
        last = self._size
        product = self._operator.matvec(self._rows[last])
        norm = float(product.norm())
        if not math.isfinite(norm):
            raise NonFiniteError("a product with the operator has NaN or infinite entries")
        coefficients = self._orthogonalise(product, count=last + 1)
        self._projection[last, : last + 1] = self._projection[: last + 1, last] = coefficients
        self._size, self.matvecs, self._age = last + 1, self.matvecs + 1, self._age + 1
        self.coupling = float(product.norm())
        complete = self._size == self._operator.size
        if not complete and self.coupling > 10 * torch.finfo(product.dtype).eps * norm:
            self._rows[self._size] = product / self.coupling
        else:
            self._break_down()

    def ritz(self, which: End) -> tuple[np.ndarray, np.ndarray]:
        """Return Ritz values [M] and weights [M, M] in columns, the wanted ones first."""
        values, weights = np.linalg.eigh(self._projection[: self._size, : self._size])
        keys = {"largest": -values, "smallest": values, "magnitude": -np.abs(values)}
        if which == "both":
            order = np.array(_from_both_ends(len(values)))
        else:
            order = np.argsort(keys[which], kind="stable")
        return values[order], weights[:, order]

    def vectors(self, weights: np.ndarray) -> Tensor:
        """Return the vectors [K, P] of weights [M, K], normalised."""
        columns = torch.as_tensor(weights.copy()).to(self._rows)
        vectors = columns.T @ self._rows[: self._size]
        return vectors / vectors.norm(dim=1, keepdim=True)

    def restart(self, values: np.ndarray, weights: np.ndarray, *, kept: int) -> None:
        """Keep the first Ritz vectors and the newest direction."""
        newest = self._rows[self._size].clone()
        self._rows[:kept] = self.vectors(weights[:, :kept])
        self._rows[kept] = newest
        self._projection[:] = 0
        self._projection[range(kept), range(kept)] = values[:kept]
        self._size = kept
        self.restarts += 1

    def _orthogonalise(self, vector: Tensor, *, count: int) -> np.ndarray:
        """Remove the basis from a vector in place, twice, and return what was removed."""
        rows = self._rows[:count]
        removed = torch.zeros(count, dtype=vector.dtype, device=vector.device)
        for _ in range(2):
            part = rows @ vector
            vector -= part @ rows
            removed += part
        return removed.double().cpu().numpy()

    def _break_down(self) -> None:
        """Go on from a random direction: the space is invariant, its Ritz values are exact.

        A random direction that is an eigenvector by itself shows that all the rest is one
        eigenspace, and ends the search for more.
        """
        self.coupling = 0.0
        self._settled = self._age == 1 or self._size >= self._operator.size
        if self._size >= self._operator.size:
            return
        vector = random_vector(self._operator, generator=self._generator)
        self._orthogonalise(vector, count=self._size)
        self._rows[self._size] = vector / vector.norm()
        self._age = 0


def krylov_rule(
    operator: SymmetricOperator, *, steps: int, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of the Gauss rule of a random vector's spectral measure.

    The weights add up to 1. The rule ends early where the vector's Krylov space does.

    Cost: a product a step; memory `steps` vectors.

    >>> from flatkit.operators import DenseOperator
    >>> nodes, weights = krylov_rule(
    ...     DenseOperator(torch.eye(3)), steps=3, generator=torch.Generator()
    ... )
    >>> nodes.round(4).tolist(), weights.round(4).tolist()
    ([1.0], [1.0])
    """
    basis = _Basis(operator, steps, generator)
    for _ in range(steps):
        basis.expand()
        if basis.coupling == 0:
            break
    values, weights = basis.ritz("largest")
    return values, weights[0] ** 2
