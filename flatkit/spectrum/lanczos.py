"""Lanczos with full reorthogonalisation and thick restart, stopped by residuals."""

import math
import time
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from flatkit.checks import check_choice, check_count, check_positive
from flatkit.devices import ordinary_torch
from flatkit.errors import InvalidArgumentError
from flatkit.spectrum.estimate import Estimate, residual_status
from flatkit.spectrum.krylov import KrylovBasis
from flatkit.spectrum.multiplicity import displacements, saw_copy
from flatkit.spectrum.operators import SymmetricOperator, check_k
from flatkit.spectrum.rank import margins, notes, too_far
from flatkit.status import Status

End: TypeAlias = Literal["largest", "smallest", "magnitude", "both"]
StopRule: TypeAlias = Literal["residual", "value"]


@ordinary_torch()
def lanczos(
    operator: SymmetricOperator,
    *,
    k: int = 1,
    which: End = "largest",
    tolerance: float = 1e-4,
    max_matvecs: int = 1000,
    max_basis: int | None = None,
    stop: StopRule = "residual",
    check_multiplicity: bool = True,
    initial: Tensor | None = None,
    generator: torch.Generator,
) -> Estimate:
    """Return k eigenvalues at one end of the spectrum by thick-restart Lanczos.

    The Krylov basis is kept orthonormal by two passes of Gram-Schmidt, so that no ghost copies
    appear, also in 32 bits; when it is full, the best Ritz vectors start the next one (Wu and
    Simon, 2000). The residuals that stop the iteration come from the recurrence; those returned
    are ‖Av − μv‖ itself, Av being combined from the products of the basis where these are kept, as
    they are up to 1 GiB, or else computed by k more products.

    Each value holds to its residual: some eigenvalue lies within it, and a Ritz value is at most
    the eigenvalue of its rank. That it has this rank takes more: the search goes on until what the
    random start saw rules out, but for a probability of 0.1 %, that an eigenvalue was missed
    further beyond a value than the tolerance (`rank.log_unseen`); how far beyond one may lie is
    part of the error. Where an end of the spectrum is so dense that this takes three times the
    products of the search, the status is `rank`. One start sees a multiple eigenvalue once; for
    k > 1 random vectors in the complement of what was found look for further copies, until these
    are found or ruled out but for a probability of 0.1 %. Where that takes as many products as the
    search itself, the status is `multiplicity`, and the error includes what a copy would displace.

    Cost: a product and 4·M·P multiplications a step; memory 2M + 1 vectors, M = `max_basis`, or
    M + 1 where 2M + 1 would take more than 1 GiB.

    Args:
        operator: A, symmetric.
        k: how many eigenvalues.
        which: `largest` (most positive), `smallest` (most negative), `magnitude`, or `both`: the
            ends in turn, the largest first.
        tolerance: on the residual, relative to the largest magnitude among the Ritz values.
        max_matvecs: products in all but those of the residuals; when spent, the status is `budget`.
        max_basis: M, at least k + 2; by default 2k + 18.
        stop: on the `residual`, or on the estimated error of the `value`: r²/gap (Kato, 1949;
            Temple, 1928), quadratically smaller, with the gap taken from the Ritz values. That
            estimate is not certain, as an eigenvalue that was not seen may lie in the gap; the
            returned error is the residual either way, the estimate stands in the notes. Eigenvalues
            that were missed are then ruled out from the root of the tolerance on.
        check_multiplicity: look for further copies of multiple eigenvalues. Without, one that is
            multiple may be counted once, and the values after it are then those of later ranks; the
            notes say that none was looked for. Saves about a fifth of the products for k = 5
            (`python -m benchmarks.curvature`).
        initial: vectors [J, P] that are nearly wanted, such as those of a nearby operator; the
            basis starts from their sum and a small random part, which sees what these lack.
        generator: draws the start.

    Returns:
        Estimate with values [k] from the wanted end inwards, e.g. largest first.

    Raises:
        InvalidArgumentError: k > P, an argument out of range, or `initial` is not finite.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.tensor([3.0, 1.0, -5.0])))
    >>> [round(x, 3) for x in lanczos(operator, k=2, generator=torch.Generator()).value.tolist()]
    [3.0, 1.0]
    """
    check_k(operator, k)
    check_choice("which", which, get_args(End))
    check_choice("stop", stop, get_args(StopRule))
    check_positive("tolerance", tolerance)
    check_count("max_matvecs", max_matvecs)
    capacity = min(operator.size, _capacity(k, max_basis))
    started = time.perf_counter()
    basis = KrylovBasis(operator, capacity, generator, initial, keep_images=True)
    search = _Search(basis, capacity, k, which, stop, tolerance, max_matvecs, check_multiplicity)
    found, vectors, errors, checks = _settle(search, operator)
    estimated = search.estimated_errors(errors.numpy())
    status = search.status(errors.numpy() if stop == "residual" else estimated)
    rounding = operator.product_errors(vectors, found, scale=search.scale)
    return Estimate(
        value=found,
        error=search.errors(errors) + rounding,
        error_kind="residual",
        status=status,
        matvecs=basis.matvecs + checks,
        seconds=time.perf_counter() - started,
        vectors=vectors,
        notes={
            "basis": capacity,
            "restarts": basis.restarts,
            "stop": stop,
            "value_error_estimate": estimated.tolist(),
            "rounding": float(rounding.max()),
            **notes(errors.numpy(), search.beyond),
            "displacement": search.displaced.tolist() if check_multiplicity else None,
            "warm_start": initial is not None,
        },
    )


def _settle(search: "_Search", operator: SymmetricOperator) -> tuple[Tensor, Tensor, Tensor, int]:
    """Run until the explicit residuals hold what the recurrence promises, or cannot.

    Returns:
        values [K], vectors [K, P], residuals [K], products of these residuals.
    """
    checks, last = 0, math.inf
    while True:
        search.run()
        found = torch.from_numpy(search.values[: search.k].copy())
        vectors, images = search.vectors()
        if images is None:
            images = operator.matmat(vectors)
            checks += len(found)
        gaps = images - found.to(vectors)[:, None] * vectors  # [K, P]
        errors = gaps.double().norm(dim=1).cpu()
        status = search.status(
            errors.numpy() if search.stop == "residual" else search.estimated_errors(errors.numpy())
        )
        # The recurrence promised more than the explicit residuals hold: its restarts drop small
        # parts, which another direction brings back; what remains is rounding of the products.
        worst = int(errors.argmax())
        spent = search.basis.matvecs >= search.max_matvecs
        if status is not Status.ROUNDING or spent or float(errors[worst]) > 0.5 * last:
            return found, vectors, errors, checks
        last = float(errors[worst])
        search.refine(gaps[worst])


@dataclass
class _Search:
    """The running state: a basis, its Ritz values, and what they say of the wanted ones.

    Attributes:
        values: Ritz values, the wanted ones first.
        beyond: how far beyond the wanted ones others may lie, but for a small risk.
        ranked: whether that is within the tolerance.
        displaced: by how much missing copies may displace the wanted ones.
        searched: products until the residuals were small; 0 before.
        ranked_at: products until nothing else could lie beyond; 0 before.
    """

    basis: KrylovBasis
    capacity: int
    k: int
    which: End
    stop: StopRule
    tolerance: float
    max_matvecs: int
    check_multiplicity: bool
    searched: int = 0
    ranked_at: int = 0
    ranked: bool = False

    def run(self) -> None:
        """Expand until the wanted values converged and no copies are missing, or products end."""
        basis = self.basis
        while True:
            basis.expand()
            self._update()
            done = self.converged and self.ranked and self.certain
            if done or basis.matvecs >= self.max_matvecs:
                break
            if self.converged and self._looked_enough():
                break
            ready = self.converged and (self.ranked or basis.broke_down)
            probe = ready and (basis.full or not basis.probes)
            if probe or basis.full:
                self._restart(probe=probe)
        self._look_beyond(always=True)

    def refine(self, direction: Tensor) -> None:
        """Go on from the Ritz vectors and a direction that they lack."""
        self._restart(direction=direction)

    def vectors(self) -> tuple[Tensor, Tensor | None]:
        """Return the wanted Ritz vectors [K, P], and A times these if it is known."""
        return self.basis.combine(self._weights[:, : self.k])

    def estimated_errors(self, residuals: np.ndarray) -> np.ndarray:
        """Return estimates of the errors of the wanted values from their explicit residuals."""
        every = np.concatenate([residuals, self._residuals[len(residuals) :]])
        return value_errors(self.values, every)[: self.k]

    def errors(self, residuals: Tensor) -> Tensor:
        """Return how far the wanted values may be from those of their ranks, but for rounding."""
        beyond, displaced = map(torch.from_numpy, (self.beyond, self.displaced))
        return torch.maximum(residuals, beyond) + displaced

    def status(self, errors: np.ndarray) -> Status:
        """Return how it ended, given explicit errors of the wanted values."""
        allowed = self.tolerance * self.scale
        ended = residual_status(errors, allowed=allowed, converged=self.converged)
        if ended is Status.CONVERGED and not self.ranked:
            return Status.RANK
        uncertain = ended is Status.CONVERGED and not self.certain
        return Status.MULTIPLICITY if uncertain else ended

    def _update(self) -> None:
        basis, k = self.basis, self.k
        self.values, self._weights = _in_order(*basis.ritz(), self.which)
        self.scale = float(np.abs(self.values).max())
        allowed = self.tolerance * self.scale
        self._residuals = basis.coupling * np.abs(self._weights[-1])
        errors = self._residuals
        if self.stop == "value":
            errors = value_errors(self.values, errors)
        enough = k if basis.coupling == 0 else min(basis.size, k + _BEYOND)
        self.converged = len(errors) >= enough and bool((errors[:k] <= allowed).all())
        self.certain = False
        if self.converged:
            self._look_beyond()

    def _look_beyond(self, *, always: bool = False) -> None:
        """Find how far beyond the wanted values others may lie, and what copies may displace.

        Not where a glance tells that it is too far, or where it was found already.
        """
        basis, wanted = self.basis, self.values[: self.k]
        allowed = self.tolerance if self.stop == "residual" else math.sqrt(self.tolerance)
        allowed *= self.scale
        if basis.complete:
            self.beyond = self.displaced = np.zeros(len(wanted))
            self.ranked = self.certain = True
            return
        given: dict[str, Any] = {"size": basis.size, "rounding": basis.rounding}
        known = self.ranked and len(self.beyond) == len(wanted) and not basis.broke_down
        if always or not (known and np.abs(wanted - self._ranked_values).max() < 1e-3 * allowed):
            starts = basis.starts
            if not always and too_far(wanted, self.which, starts, **given, allowed=allowed):
                self.ranked = False
                return
            self.beyond, self._before = margins(wanted, self.which, starts, **given)
            self.ranked, self._ranked_values = bool((self.beyond <= allowed).all()), wanted
        self.displaced = np.zeros(len(wanted))
        if self.check_multiplicity:
            self.displaced = displacements(
                wanted, self.which, basis.probes, **given, reach=self._before
            )
        self.certain = bool((self.displaced <= self.tolerance * self.scale).all())

    def _looked_enough(self) -> bool:
        """Whether a multiple of the products of the search did not settle what else is there."""
        basis, wanted = self.basis, self.values[: self.k]
        self.searched = self.searched or basis.matvecs
        if not self.ranked:
            return basis.matvecs >= max(_FEW, _PATIENCE * self.searched)
        self.ranked_at = self.ranked_at or basis.matvecs
        if saw_copy(wanted, self.which, basis.probes, rounding=basis.rounding):
            basis.forget_probes()
            self.ranked_at = basis.matvecs
        return bool(basis.probes) and basis.full and basis.matvecs >= 2 * self.ranked_at

    def _restart(self, *, probe: bool = False, direction: Tensor | None = None) -> None:
        # What a random direction saw in part must not be hidden from the next one.
        more = 0 if probe and self.basis.has_probed else (self.capacity - self.k) // 3
        kept = min(self.capacity - 1, len(self.values), self.k + more)
        self.basis.restart(self.values, self._weights, kept=kept, probe=probe, direction=direction)


# Where the end of the spectrum is dense, what lies beyond is ruled out slowly: as many products are
# spent on it as a multiple of those of the search, or so few that it does not matter.
_PATIENCE, _FEW = 3, 40
_BEYOND = 3  # Ritz values beyond the wanted ones before these are believed: a gap needs two sides


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


def _in_order(values: np.ndarray, weights: np.ndarray, which: End) -> tuple[np.ndarray, np.ndarray]:
    """Return Ritz values and weights, ascending before, with the wanted ones first."""
    keys = {"largest": -values, "smallest": values, "magnitude": -np.abs(values)}
    if which == "both":
        order = np.array(_from_both_ends(len(values)))
    else:
        order = np.argsort(keys[which], kind="stable")
    return values[order], weights[:, order]


def _from_both_ends(count: int) -> list[int]:
    """Return places of an ascending sequence: the last, the first, the last but one, ..."""
    return [number // 2 if number % 2 else count - 1 - number // 2 for number in range(count)]
