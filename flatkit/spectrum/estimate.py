"""What a spectral method returns: a value, how wrong it may be, whether it converged, the cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import Tensor

from flatkit.results.status import Status
from flatkit.spectrum.dot import norms
from flatkit.spectrum.operators import SymmetricOperator
from flatkit.spectrum.shards import Shards


@dataclass(frozen=True)
class Estimate:
    """An estimate of eigenvalues or of a trace.

    Attributes:
        value: float64 on the CPU; eigenvalues [K], largest first, or a trace, shape [].
        error: of the same shape; its meaning is `error_kind`.
        error_kind: `residual`: ‖Av − μv‖ with ‖v‖ = 1 and the rounding of the products, so that
            some eigenvalue lies within it; and as far as one of a higher rank may have been missed,
            but for the probability `unseen_risk` of the notes, where `unseen_within` is no None.
            `standard_error`: of a mean over random probes.
        status: `CONVERGED`, `BUDGET`, `ROUNDING` (the products are not exact enough for the
            tolerance), `RANK` (larger ones are not ruled out) or `MULTIPLICITY`; its
            `advice` says what that means for the value.
        matvecs: products with the operator.
        seconds: wall-clock time.
        held: eigenvectors as orthonormal rows, if any; of several ranks each holds a part.
        notes: what else was seen, ready for JSON.
        shards: how the vectors are cut; None where they are whole.
    """

    value: Tensor
    error: Tensor
    error_kind: Literal["residual", "standard_error"]
    status: Status
    matvecs: int
    seconds: float
    held: Tensor | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    shards: Shards | None = None

    @property
    def vectors(self) -> Tensor | None:
        """Eigenvectors [K, P] as orthonormal rows, if any.

        Where each rank holds a part they are gathered anew each time, and all ranks must ask.
        """
        if self.held is None or self.shards is None:
            return self.held
        return self.shards.whole(self.held)

    @property
    def converged(self) -> bool:
        """Whether the tolerance was met."""
        return self.status is Status.CONVERGED


def residual_status(errors: Tensor | np.ndarray, *, allowed: float, converged: bool) -> Status:
    """Return how an iteration ended, given what it thought and its explicit residuals.

    A recurrence that converged may promise more than the residuals hold: twice the tolerance is
    rounding.

    >>> residual_status(np.array([1e-3]), allowed=1e-4, converged=True).name
    'ROUNDING'
    """
    if not converged:
        return Status.BUDGET
    within = bool((errors <= 2 * allowed).all()) or allowed == 0
    return Status.CONVERGED if within else Status.ROUNDING


def residual_norms(operator: SymmetricOperator, values: Tensor, vectors: Tensor) -> Tensor:
    """Return ‖Av − μv‖ for each pair (μ, v), computed from products. Cost: K products.

    Args:
        operator: A.
        values: μ [K].
        vectors: v [K, P], unit rows.

    >>> import torch
    >>> from flatkit.spectrum.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.tensor([3.0, 1.0])))
    >>> residual_norms(operator, torch.tensor([3.0]), torch.tensor([[1.0, 0.0]]))
    tensor([0.], dtype=torch.float64)
    """
    products = operator.matmat(vectors)
    return norms(products - values.to(vectors)[:, None] * vectors)
