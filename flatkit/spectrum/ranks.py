"""What a Lanczos search knows of the ranks of its values: what may lie beyond, what copies hide."""

from typing import Any

import numpy as np

from flatkit.spectrum.krylov import KrylovBasis
from flatkit.spectrum.multiplicity import displacements, saw_copy
from flatkit.spectrum.rank import hidden_beyond, margins, too_far

# Where the end of the spectrum is dense, what lies beyond is ruled out slowly: as many products are
# spent on it as a multiple of those of the search, or so few that it does not matter.
_PATIENCE, _FEW = 3, 40


class Ranks:
    """How far the wanted values may be from the eigenvalues of their ranks.

    Args:
        which: as of `lanczos`.
        check_multiplicity: whether copies of multiple eigenvalues count.

    Attributes:
        beyond: how far beyond the wanted values others may lie, but for a small risk, [K].
        displaced: by how much missing copies may displace them, [K].
        known: whether the margins are within what is allowed.
        certain: whether the displacements are within the tolerance.
    """

    def __init__(self, which: str, *, check_multiplicity: bool) -> None:
        self._which, self._check_multiplicity = which, check_multiplicity
        self.beyond = self.displaced = self._before = self._values = np.zeros(0)
        self.known = self.certain = False
        self._searched = 0  # products until the residuals were small
        self._known_at = 0  # products until nothing else could lie beyond

    def look(
        self,
        basis: KrylovBasis,
        wanted: np.ndarray,
        *,
        allowed: float,
        displaced: float,
        always: bool = False,
    ) -> None:
        """Find how far beyond the wanted values others may lie, and what copies may displace.

        Not where a glance tells that it is too far, or where it was found already.

        Args:
            basis: what was seen.
            wanted: Ritz values [K].
            allowed: how far beyond them others may lie.
            displaced: what copies may displace.
            always: look in any case.
        """
        if basis.complete:
            self.beyond = self.displaced = np.zeros(len(wanted))
            self.known = self.certain = True
            return
        given: dict[str, Any] = {"size": basis.size, "rounding": basis.rounding}
        known = self.known and len(self.beyond) == len(wanted) and not basis.broke_down
        if always or not (known and np.abs(wanted - self._values).max() < 1e-3 * allowed):
            starts = basis.starts
            if not always and too_far(wanted, self._which, starts, **given, allowed=allowed):
                self.known = False
                return
            self.beyond, self._before = margins(wanted, self._which, starts, **given)
            self.known, self._values = bool((self.beyond <= allowed).all()), wanted
        self.displaced = np.zeros(len(wanted))
        if self._check_multiplicity:
            self.displaced = displacements(
                wanted, self._which, basis.probes, **given, reach=self._before
            )
        self.certain = bool((self.displaced <= displaced).all())

    def looked_enough(self, basis: KrylovBasis, wanted: np.ndarray) -> bool:
        """Whether a multiple of the products of the search did not settle what else is there."""
        self._searched = self._searched or basis.matvecs
        if not self.known:
            return basis.matvecs >= max(_FEW, _PATIENCE * self._searched)
        self._known_at = self._known_at or basis.matvecs
        # A copy was found: it is now among the Ritz values, and a new probe must look beyond it.
        if saw_copy(wanted, self._which, basis.probes, rounding=basis.rounding):
            basis.forget_probes()
            self._known_at = basis.matvecs
        return bool(basis.probes) and basis.full and basis.matvecs >= 2 * self._known_at

    def errors(self, wanted: np.ndarray, residuals: np.ndarray, *, narrow: float) -> np.ndarray:
        """Return how far the wanted values [K] may be from those of their ranks, but for rounding.

        Args:
            wanted: Ritz values, those that were looked at.
            residuals: explicit ones [K].
            narrow: margins up to which hold one eigenvalue, or copies of it.
        """
        hidden = hidden_beyond(wanted, self._which, self.beyond, allowed=narrow)
        return np.maximum(np.maximum(residuals, self.beyond) + self.displaced, hidden)


def largest_magnitude(basis: KrylovBasis, values: np.ndarray) -> tuple[float, float]:
    """Return a lower bound of |λ|max and how far beyond it that may be, but for rounding.

    Args:
        basis: what was seen.
        values: its Ritz values.
    """
    # Every Ritz value is a Rayleigh quotient, and so no larger in magnitude than |λ|max.
    starts = basis.starts  # also what restarts dropped bounds λ from within
    every = np.concatenate([values, *(start.values for start in starts)])
    largest = every[np.abs(every).argmax()][None]
    beyond = np.zeros(1)
    if not basis.complete:
        given: dict[str, Any] = {"size": basis.size, "rounding": basis.rounding}
        beyond, _ = margins(largest, "magnitude", starts, **given)
    return float(np.abs(largest[0])), float(beyond[0])
