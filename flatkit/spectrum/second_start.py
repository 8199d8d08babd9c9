"""A second random start, in the complement of what was found: whether something larger is left."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigvalsh_tridiagonal
from torch import Tensor

from flatkit.spectrum.dot import inner, norm
from flatkit.spectrum.operators import (
    ProjectedOperator,
    SymmetricOperator,
    check_finite,
    random_vector,
)
from flatkit.spectrum.rank import Probe, margins, too_far

# As many products as a multiple of those of the search, or so few that it does not matter.
_PATIENCE, _FEW = 3, 40


@dataclass(frozen=True)
class SecondStart:
    """What a random vector of the complement saw.

    Attributes:
        beyond: how far above the least of the found values another one may lie, but for `RISK`.
        missing: whether one surely lies beyond what is allowed.
        matvecs: products.
    """

    beyond: float
    missing: bool
    matvecs: int

    def margins(self, values: Tensor) -> Tensor:
        """Return by how much each of the found values [K] may be exceeded by its rank's."""
        return (values.min() + self.beyond - values).clamp(min=0.0)


def look_again(
    operator: SymmetricOperator,
    values: Tensor,
    vectors: Tensor,
    *,
    allowed: float,
    spent: int,
    max_matvecs: int,
    generator: torch.Generator,
) -> SecondStart:
    """Return whether an eigenvalue above the found ones was missed, by Lanczos in the complement.

    The recurrence of three terms, whose bound needs no orthogonal basis (`rank.log_unseen`). With
    R = AV − VM, eigenvalues of A lie within ‖R‖ of those found and those of the complement.

    Cost: as many products as a Lanczos search, at most three times those that were spent; memory
    four vectors.

    Args:
        operator: A.
        values: found [K].
        vectors: their vectors [K, P], orthonormal.
        allowed: how far beyond the values another one may lie.
        spent: products of the search.
        max_matvecs: products of search and look.
        generator: draws the start.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.tensor([3.0, 5.0, 1.0, 0.0])))
    >>> found = torch.tensor([3.0]), torch.eye(4)[:1]
    >>> given = {"allowed": 0.01, "spent": 20, "max_matvecs": 99}
    >>> look_again(operator, *found, **given, generator=torch.Generator()).missing
    True
    """
    if operator.size == len(vectors):
        return SecondStart(0.0, False, 0)
    least = float(values.min())
    lanczos = _ThreeTerms(ProjectedOperator(operator, vectors), generator)
    most = min(max_matvecs - spent, max(_FEW, _PATIENCE * spent))
    beyond = math.inf
    while lanczos.steps < most:
        lanczos.step()
        ritz = lanczos.ritz()
        start = max(least, float(ritz[-1]))
        # A Ritz value is a lower bound of the largest eigenvalue: surely one was missed.
        if start - least > allowed:
            return SecondStart(start - least, True, lanczos.steps)
        probe, at = Probe(ritz, lanczos.log_couplings), np.array([start])
        left = allowed - (start - least)
        last = lanczos.ended or lanczos.steps == most
        if not last and too_far(at, "largest", [probe], size=operator.size, allowed=left):
            continue
        further, _ = margins(at, "largest", [probe], size=operator.size)
        beyond = start - least + float(further[0])
        if beyond <= allowed or lanczos.ended:
            break
    return SecondStart(min(beyond, 1e300), False, lanczos.steps)  # finite, as results are JSON


class _ThreeTerms:
    """Lanczos without a basis: the newest two vectors and the tridiagonal matrix."""

    def __init__(self, operator: ProjectedOperator, generator: torch.Generator) -> None:
        self._operator = operator
        vector = operator.project(random_vector(operator, generator=generator))
        self._vector, self._before = vector / norm(vector), torch.zeros_like(vector)
        self._diagonal: list[float] = []
        self._couplings: list[float] = []
        self.log_couplings = 0.0

    @property
    def steps(self) -> int:
        """Products so far."""
        return len(self._diagonal)

    @property
    def ended(self) -> bool:
        """Whether nothing new came: the space is invariant."""
        return self._couplings[-1] == 0

    def step(self) -> None:
        """Multiply the newest vector and find the next."""
        product = self._operator.image(self._vector)
        check_finite(norm(product))
        if self._couplings:
            product.sub_(self._before, alpha=self._couplings[-1])
        self._diagonal.append(inner(self._vector, product))
        product.sub_(self._vector, alpha=self._diagonal[-1])
        # Rounding brings back the found vectors, whose larger eigenvalues would soon prevail.
        product = self._operator.project(product)
        coupling = norm(product)
        self._couplings.append(coupling)
        self.log_couplings += math.log(max(coupling, 1e-300))
        if coupling > 0:
            self._before, self._vector = self._vector, product / coupling

    def ritz(self) -> np.ndarray:
        """Return the Ritz values, ascending."""
        found: Any = eigvalsh_tridiagonal(np.array(self._diagonal), np.array(self._couplings[:-1]))
        return found
