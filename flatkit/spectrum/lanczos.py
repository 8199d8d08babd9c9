"""Lanczos with full reorthogonalisation and thick restart, stopped by residuals."""

import math
import time
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from flatkit.checks import check_choice, check_count, check_positive
from flatkit.devices import ordinary_torch
from flatkit.errors import InvalidArgumentError
from flatkit.results.status import Status
from flatkit.spectrum.dot import norms
from flatkit.spectrum.estimate import Estimate, residual_status
from flatkit.spectrum.gauss_rule import Rule
from flatkit.spectrum.krylov import KrylovBasis, basis_for
from flatkit.spectrum.operators import SymmetricOperator, check_k
from flatkit.spectrum.rank import notes
from flatkit.spectrum.ranks import Ranks, largest_magnitude
from flatkit.spectrum.ritz import End, in_order, value_errors
from flatkit.spectrum.shards import among, in_parts
from flatkit.spectrum.space import Deflation, Space, gaps
from flatkit.spectrum.steps import Steps

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
    M + 1 where 2M + 1 would take more than 1 GiB; of several ranks each keeps its part.

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
    search = Lanczos(
        operator,
        k=k,
        which=which,
        tolerance=tolerance,
        max_matvecs=max_matvecs,
        max_basis=max_basis,
        stop=stop,
        check_multiplicity=check_multiplicity,
        initial=initial,
        generator=generator,
    )
    while not search.done:
        search.step()
    return search.estimate()


class Lanczos:
    """Thick-restart Lanczos a product at a time; `lanczos` is its run to the end.

    What it computes next depends on its arguments alone, never on what it was asked; `max_matvecs`
    only ends it. Its answers before the end cost no product. Of several ranks each keeps its part
    of every vector, and all must ask alike.

    Args:
        operator: A, symmetric; the others as of `lanczos`.

    Attributes:
        operator: A, of vectors as they are kept.
        capacity: vectors of the basis at most.
        done: whether the wanted values converged, or the products are spent.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.tensor([3.0, 1.0, -5.0])))
    >>> search = Lanczos(operator, generator=torch.Generator())
    >>> search.step()
    >>> search.matvecs, search.done, bool(search.estimate().value <= 3)
    (1, False, True)
    """

    @ordinary_torch()
    def __init__(
        self,
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
    ) -> None:
        self.operator, self._k = operator.sharded(), check_k(operator, k)
        check_choice("which", which, get_args(End))
        self._which: End = which
        self._stop = check_choice("stop", stop, get_args(StopRule))
        self._tolerance = check_positive("tolerance", tolerance)
        self._least = max(tolerance, operator.noise)  # below it more products change nothing
        self._max_matvecs = check_count("max_matvecs", max_matvecs)
        self.capacity = min(operator.size, basis_for(k, max_basis))
        self._check_multiplicity, self._warm_start = check_multiplicity, initial is not None
        started = time.perf_counter()
        self._basis = KrylovBasis(operator, self.capacity, generator, initial, keep_images=True)
        self._seconds = time.perf_counter() - started
        self._next: Callable[[], None] | None = None  # what comes before the next product
        self._answer: Estimate | None = None
        self._checks, self._last = 0, math.inf  # products of residuals; the largest when it settled
        self._ranks = Ranks(which, check_multiplicity=check_multiplicity)

    @property
    def done(self) -> bool:
        """Whether no further step changes the answer."""
        return self._answer is not None

    @property
    def matvecs(self) -> int:
        """Products so far."""
        return self._basis.matvecs + self._checks

    @property
    def asymmetry(self) -> float:
        """How far from symmetric the first two products show A to be, as of `check_symmetric`."""
        return self._basis.asymmetry

    @ordinary_torch()
    def step(self) -> None:
        """Multiply once, and draw what follows from it.

        Cost: a product; at the end k more where the images of the basis were given up.
        """
        if self.done:
            return
        started = time.perf_counter()
        if self._next is not None:
            self._next()
            self._next = None
        self._basis.expand()
        self._update()
        if self._is_over():
            self._settle(started)
        else:
            self._prepare()
            self._seconds += time.perf_counter() - started

    @property
    def excess(self) -> float:
        """How many times the tolerance the largest residual is; infinite without k values."""
        if self.done:
            return 1.0
        if self._basis.matvecs == 0 or len(self.values) < self._k:
            return math.inf
        allowed = self._least * self._scale
        return max(2.0, float(self._residuals[: self._k].max()) / allowed if allowed else math.inf)

    def steps(self) -> Steps[Estimate]:
        """Yield after each step how to ask for the estimate."""
        while not self.done:
            self.step()
            yield self.estimate

    @ordinary_torch()
    def estimate(self) -> Estimate:
        """Return what is known now; at the end the answer. Cost: no product.

        Before k products there are fewer than k values. Until the end the status is `budget`, and
        the rounding is taken for the most that it may be.

        Raises:
            InvalidArgumentError: no product was made.
        """
        if self._answer is not None:
            return self._answer
        self._check_begun()
        ranks = copy(self._ranks)
        self._look(ranks)
        vectors, images = self._basis.combine(self._weights[:, : self._k])
        if images is None:
            residuals = torch.from_numpy(self._residuals[: self._k] + self._basis.lost)
        else:
            with among(self.operator.shards):
                residuals = norms(gaps(vectors, images, self.values))
        rounding = torch.full_like(residuals, self.operator.rounding * self._scale)
        return self._estimate(ranks, vectors, residuals, rounding, Status.BUDGET)

    @ordinary_torch()
    def magnitude(self) -> tuple[float, float]:
        """Return a lower bound of |λ|max, and how far beyond it |λ|max may be.

        But for the probability `rank.RISK`. Cost: no product.

        Raises:
            InvalidArgumentError: no product was made.
        """
        self._check_begun()
        value, beyond = largest_magnitude(self._basis, self._values)
        return value, beyond + self.operator.rounding * value

    @ordinary_torch()
    def space(self, count: int | None = None) -> Space:
        """Return the Krylov space of now. Cost: no product, or M after more than four restarts.

        Args:
            count: of Ritz vectors, those of largest magnitude, as each takes the memory of two;
                by default all that there is.

        Raises:
            InvalidArgumentError: no product was made.
        """
        self._check_begun()
        return self._basis.space(count)

    @ordinary_torch()
    def deflation(self) -> Deflation:
        """Return the Krylov space of now, for a trace, or raise as `space` does.

        Cost: at the end no memory, before a copy.
        """
        self._check_begun()
        return self._basis.deflation(copied=not self.done)

    def rule(self) -> Rule | None:
        """Return the Gauss rule of the random start, for a density; None of a warm one.

        Of the first cycle: at most `max_basis` nodes. Cost: no product.

        Raises:
            InvalidArgumentError: no product was made.
        """
        self._check_begun()
        return self._basis.rule()

    @property
    def values(self) -> np.ndarray:
        """The wanted of the Ritz values, at most k."""
        return self._values[: self._k]

    def _check_begun(self) -> None:
        if self._basis.matvecs == 0:
            raise InvalidArgumentError("nothing is known before the first step of Lanczos")

    def _is_over(self) -> bool:
        """Whether the wanted values converged and no copies are missing, or products ended."""
        done = self._converged and self._ranks.known and self._ranks.certain
        ended = done or self._basis.matvecs >= self._max_matvecs
        return ended or (self._converged and self._ranks.looked_enough(self._basis, self.values))

    def _prepare(self) -> None:
        """Restart before the next product where there is no room, or others are to be seen."""
        basis = self._basis
        ready = self._converged and (self._ranks.known or basis.broke_down)
        probe = ready and (basis.full or not basis.probes)
        if probe or basis.full:
            self._next = partial(self._restart, probe=probe)

    @in_parts
    def _settle(self, started: float) -> None:
        """End, unless the explicit residuals hold less than the recurrence promises, and can more.

        Its restarts drop small parts, which another direction brings back; what remains is rounding
        of the products.
        """
        self._look(self._ranks)
        vectors, images = self._basis.combine(self._weights[:, : self._k])
        if images is None:
            images = self.operator.matmat(vectors)
            self._checks += len(vectors)
        left = gaps(vectors, images, self.values)
        residuals = norms(left)
        worst = int(residuals.argmax())
        status = self._status(residuals.numpy())
        spent = self._basis.matvecs >= self._max_matvecs
        if status is not Status.ROUNDING or spent or float(residuals[worst]) > 0.5 * self._last:
            ours = torch.from_numpy(self.values.copy())
            rounding = self.operator.product_errors(vectors, ours, scale=self._scale)
            if status is Status.CONVERGED and self.operator.noise > 0:
                status = self._status((residuals + rounding).numpy())
            self._seconds += time.perf_counter() - started
            self._answer = self._estimate(self._ranks, vectors, residuals, rounding, status)
            return
        self._last = float(residuals[worst])
        self._next = partial(self._restart, direction=left[worst].clone())
        self._seconds += time.perf_counter() - started

    def _estimate(
        self, ranks: Ranks, vectors: Tensor, residuals: Tensor, rounding: Tensor, status: Status
    ) -> Estimate:
        seen, narrow = residuals.numpy(), self._far + 2 * self._basis.lost
        errors = ranks.errors(self.values, seen, narrow=narrow)
        return Estimate(
            value=torch.from_numpy(self.values.copy()),
            error=torch.from_numpy(errors) + rounding,
            error_kind="residual",
            status=status,
            matvecs=self.matvecs,
            seconds=self._seconds,
            held=vectors,
            shards=self.operator.shards,
            notes={
                "basis": self.capacity,
                "restarts": self._basis.restarts,
                "stop": self._stop,
                "value_error_estimate": self._estimated_errors(seen).tolist(),
                "rounding": float(rounding.max()),
                **notes(seen, ranks.beyond),
                "displacement": ranks.displaced.tolist() if self._check_multiplicity else None,
                "warm_start": self._warm_start,
                **({} if self.operator.shards is None else {"bytes_of_basis": self._basis.nbytes}),
            },
        )

    def _estimated_errors(self, residuals: np.ndarray) -> np.ndarray:
        """Return estimates of the errors of the wanted values from their explicit residuals."""
        rest = self._residuals[len(residuals) :]
        return value_errors(self._values, np.concatenate([residuals, rest]))[: self._k]

    def _status(self, residuals: np.ndarray) -> Status:
        """Return how it ended, given the explicit residuals of the wanted values."""
        errors = residuals if self._stop == "residual" else self._estimated_errors(residuals)
        allowed = self._tolerance * self._scale
        ended = residual_status(errors, allowed=allowed, converged=self._converged)
        if ended is Status.CONVERGED and not self._ranks.known:
            return Status.RANK
        uncertain = ended is Status.CONVERGED and not self._ranks.certain
        return Status.MULTIPLICITY if uncertain else ended

    def _update(self) -> None:
        """Find what the new product says of the wanted values."""
        basis, k = self._basis, self._k
        self._values, self._weights = in_order(*basis.ritz(), self._which)
        self._scale = float(np.abs(self._values).max())
        allowed = self._least * self._scale
        self._residuals = seen = basis.coupling * np.abs(self._weights[-1])
        errors = value_errors(self._values, seen) if self._stop == "value" else seen
        enough = k if basis.coupling == 0 else min(basis.size, k + _BEYOND)
        self._converged = len(errors) >= enough and bool((errors[:k] <= allowed).all())
        self._ranks.certain = False
        if self._converged:
            self._look(self._ranks, always=False)

    @property
    def _far(self) -> float:
        """How far beyond the wanted values others may lie."""
        allowed = self._least if self._stop == "residual" else math.sqrt(self._least)
        return allowed * self._scale

    def _look(self, ranks: Ranks, *, always: bool = True) -> None:
        given = {"allowed": self._far, "displaced": self._least * self._scale}
        ranks.look(self._basis, self.values, **given, always=always)

    def _restart(self, *, probe: bool = False, direction: Tensor | None = None) -> None:
        # What a random direction saw in part must not be hidden from the next one.
        more = 0 if probe and self._basis.has_probed else (self.capacity - self._k) // 3
        kept = min(self.capacity - 1, len(self._values), self._k + more)
        go_on = partial(self._basis.restart, kept=kept, probe=probe, direction=direction)
        go_on(self._values, self._weights)


_BEYOND = 3  # Ritz values beyond the wanted ones before these are believed: a gap needs two sides
