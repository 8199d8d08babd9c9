"""Symmetric linear operators: what the spectral methods see of a Hessian."""

import math
from abc import ABC, abstractmethod
from typing import final

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from flatkit.checks import check_count
from flatkit.devices.ranks import ALONE, Ranks
from flatkit.errors import InvalidArgumentError, NonFiniteError, NotSymmetricError
from flatkit.spectrum.dot import inner, norm, project_out
from flatkit.spectrum.shards import Shards, whole_vectors

_INEXACT, _BLURRED = 1e-2, 0.1
"""Asymmetry that inexact products may explain at most, but for those that are mostly rounding."""


class SymmetricOperator(ABC):
    """A symmetric P×P matrix known through its products; the input is never modified.

    Attributes:
        size: P.
        dtype: of the vectors that it takes and returns.
        device: of these vectors.
        shards: how the vectors that it takes are cut, where each rank holds its part; else None.
    """

    size: int
    dtype: torch.dtype
    device: torch.device
    shards: Shards | None = None

    @property
    def ranks(self) -> Ranks:
        """The processes that multiply together."""
        return ALONE

    @property
    def length(self) -> int:
        """Numbers of a vector that this process holds: P, or its part."""
        return self.size if self.shards is None else self.shards.length

    @property
    def rounding(self) -> float:
        """How far products are off, relative to the largest eigenvalue, as far as is known."""
        return 4 * torch.finfo(self.dtype).eps

    @property
    def noise(self) -> float:
        """Part of the largest eigenvalue that no residual falls below, however many the products.

        Not 0 where products are far less exact than the dtype of their vectors; a search that is
        there stops, and says so by the status `rounding`.
        """
        return 0.0

    @property
    def parts(self) -> tuple[int, ...]:
        """Sizes of consecutive parts of the vector that belong together, such as layers."""
        return (self.size,)

    def product_errors(self, vectors: Tensor, values: Tensor, *, scale: float) -> Tensor:
        """Return by how much products with unit vectors may be off, ‖Ãv − Av‖, float64 [K].

        By default, and at most, what `rounding` makes of the scale. An operator that can measure
        its error along given vectors says less: there it is often far smaller.

        Args:
            vectors: v [K, P], unit rows.
            values: vᵀAv [K].
            scale: the largest magnitude of an eigenvalue.
        """
        return torch.full((len(vectors),), self.rounding * scale, dtype=torch.float64)

    @abstractmethod
    def matvec(self, vector: Tensor) -> Tensor:
        """Return the product with a vector [P] as a new vector [P]."""

    def unchecked(self, vector: Tensor) -> Tensor:
        """Return the product [P], which may hold NaN: to look would be to wait for the device."""
        return self.matvec(vector)

    def matmat(self, vectors: Tensor) -> Tensor:
        """Return the products with the rows of a block [K, P], as rows [K, P]."""
        return torch.stack([self.matvec(vector) for vector in vectors])

    def part_of_product(self, vector: Tensor, shards: Shards) -> Tensor:
        """Return this rank's part [P/N] of the product with a vector [P]."""
        return shards.part(self.matvec(vector))

    @property
    def is_kept(self) -> bool:
        """Whether products are kept, for a run that goes on."""
        return False

    def known_near(self, vector: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return a vector that is another [P] but for rounding, and its product; None if unknown.

        A search that takes it in place of its own goes on as the run before, in which sums were
        rounded otherwise.
        """
        return None

    def sharded(self) -> "SymmetricOperator":
        """Return the same matrix for vectors of which each rank holds its part; alone, itself."""
        if self.ranks.count == 1 or self.shards is not None:
            return self
        return ShardedOperator(self, Shards(self.ranks, self.size))

    @final
    def __matmul__(self, other: Tensor) -> Tensor:
        """Return A v for v of shape [P], or A V for V of shape [P, K]."""
        if other.ndim not in (1, 2) or other.shape[0] != self.size:
            raise InvalidArgumentError(
                f"the right factor must have the shape [{self.size}] or [{self.size}, K], "
                f"got {list(other.shape)}"
            )
        return self.matvec(other) if other.ndim == 1 else self.matmat(other.T).T

    def to_scipy(self) -> LinearOperator:
        """Return the operator for SciPy's iterative solvers, such as `eigsh`."""

        def product(vector: np.ndarray) -> np.ndarray:
            argument = torch.as_tensor(vector.reshape(-1)).to(self.device, self.dtype)
            return self.matvec(argument).double().cpu().numpy()

        return LinearOperator((self.size, self.size), matvec=product, dtype="float64")  # type: ignore[call-arg]


@final
class DenseOperator(SymmetricOperator):
    """An explicit matrix.

    >>> DenseOperator(torch.tensor([[2.0, 1.0], [1.0, 0.0]])) @ torch.tensor([1.0, 0.0])
    tensor([2., 1.])
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InvalidArgumentError(f"matrix must be square, got {list(matrix.shape)}")
        self.matrix = matrix
        self.size, self.dtype, self.device = matrix.shape[0], matrix.dtype, matrix.device

    def matvec(self, vector: Tensor) -> Tensor:
        """Return the product with a vector [P]."""
        return self.matrix @ vector

    def matmat(self, vectors: Tensor) -> Tensor:
        """Return the products with the rows of a block [K, P]."""
        return vectors @ self.matrix.T


class DerivedOperator(SymmetricOperator):
    """What is made of another operator A, as large and as exact as it.

    Args:
        operator: A.
    """

    def __init__(self, operator: SymmetricOperator) -> None:
        self.operator = operator
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device

    @property
    def rounding(self) -> float:
        """That of A."""
        return self.operator.rounding

    @property
    def noise(self) -> float:
        """That of A."""
        return self.operator.noise


@final
class ShardedOperator(DerivedOperator):
    """The same matrix, of whose vectors each rank holds its part.

    A product is one gathering of the vector and one sum of which each rank gets its part: together
    the bytes of one all-reduce of P numbers.

    Args:
        operator: A, which all ranks multiply with together.
        shards: of its vectors.
    """

    def __init__(self, operator: SymmetricOperator, shards: Shards) -> None:
        super().__init__(operator)
        self.shards = shards

    @property
    def parts(self) -> tuple[int, ...]:
        """Those of A, of whole vectors."""
        return self.operator.parts

    def product_errors(self, vectors: Tensor, values: Tensor, *, scale: float) -> Tensor:
        """Return by how much products with unit vectors may be off; a whole one at a time."""
        assert self.shards is not None
        found: list[Tensor] = []
        for vector, value in zip(vectors, values, strict=True):
            whole = self.shards.whole(vector)[None]
            with whole_vectors():
                found.append(self.operator.product_errors(whole, value[None], scale=scale))
        return torch.cat(found)

    def matvec(self, vector: Tensor) -> Tensor:
        """Return the part [P/N] of the product with the vector of a part."""
        assert self.shards is not None
        whole = self.shards.whole(vector)
        with whole_vectors():
            return self.operator.part_of_product(whole, self.shards)

    def known_near(self, vector: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the parts of a vector that is another but for rounding, and of its product."""
        if self.shards is None or not self.operator.is_kept:
            return None
        whole = self.shards.whole(vector)
        with whole_vectors():
            found = self.operator.known_near(whole)
        return None if found is None else (self.shards.part(found[0]), self.shards.part(found[1]))


@final
class ShiftedOperator(DerivedOperator):
    """A + σI.

    >>> ShiftedOperator(DenseOperator(torch.eye(2)), 3.0) @ torch.tensor([1.0, 2.0])
    tensor([4., 8.])
    """

    def __init__(self, operator: SymmetricOperator, shift: float) -> None:
        super().__init__(operator)
        self.shift, self.shards = shift, operator.shards

    def matvec(self, vector: Tensor) -> Tensor:
        """Return A v + σ v."""
        return self.operator.matvec(vector) + self.shift * vector


@final
class ProjectedOperator(DerivedOperator):
    """PAP, where P projects onto the orthogonal complement of given orthonormal vectors.

    With the vectors of known eigenvalues this is deflation: those eigenvalues become 0, and an
    iteration that starts in the complement stays there.

    >>> matrix = torch.diag(torch.tensor([5.0, 1.0]))
    >>> ProjectedOperator(DenseOperator(matrix), torch.tensor([[1.0, 0.0]])) @ torch.ones(2)
    tensor([0., 1.])
    """

    def __init__(self, operator: SymmetricOperator, vectors: Tensor) -> None:
        super().__init__(operator)
        self.vectors, self.shards = vectors, operator.shards  # vectors: [K, P], orthonormal rows

    def project(self, vector: Tensor) -> Tensor:
        """Return the part of a vector that is orthogonal to the known ones."""
        return project_out(self.vectors, vector)

    def matvec(self, vector: Tensor) -> Tensor:
        """Return P A P v."""
        return self.image(self.project(vector))

    def image(self, vector: Tensor) -> Tensor:
        """Return P A v of a vector that is orthogonal to the known ones already."""
        return self.project(self.operator.matvec(vector))


def check_symmetric(
    operator: SymmetricOperator, *, generator: torch.Generator, tolerance: float | None = None
) -> float:
    """Return how far the operator is from symmetric, as |uᵀAv − vᵀAu| / (‖u‖‖Av‖ + ‖v‖‖Au‖).

    One random pair u, v: an operator that fails is not symmetric; one that passes may still be.
    Cost: 2 products.

    Args:
        operator: any operator.
        generator: draws u and v.
        tolerance: what is allowed; the default is 1e-3 in 32 bits and 1e-8 in 64 bits, or twice the
            known error of products, up to 1 %.

    Raises:
        NotSymmetricError: the tolerance is exceeded.

    >>> check_symmetric(DenseOperator(torch.eye(3)), generator=torch.Generator().manual_seed(0))
    0.0
    """
    u, v = (random_vector(operator, generator=generator) for _ in range(2))
    au, av = operator.matvec(u), operator.matvec(v)
    scale = norm(u) * norm(av) + norm(v) * norm(au)
    asymmetry = abs(inner(u, av) - inner(v, au)) / scale if scale > 0 else 0.0
    return refuse_asymmetry(operator, asymmetry, tolerance)


def refuse_asymmetry(
    operator: SymmetricOperator, asymmetry: float, tolerance: float | None = None
) -> float:
    """Return how far an operator is from symmetric, if that is within the tolerance.

    Args:
        operator: any operator.
        asymmetry: |uᵀAv − vᵀAu| for some u and v, relative to their scale.
        tolerance: as of `check_symmetric`.

    Raises:
        NotSymmetricError: the tolerance is exceeded.

    >>> refuse_asymmetry(DenseOperator(torch.eye(3)), 1e-7)
    1e-07
    """
    allowed = tolerance or (1e-8 if operator.dtype == torch.float64 else 1e-3)
    if tolerance is None:  # products that are known to be less exact are no fault of the matrix
        # Beyond that most is rounding, of which the errors of results tell.
        noise = operator.rounding >= (1 if operator.noise else _BLURRED)
        most = math.inf if operator.noise else _INEXACT
        allowed = math.inf if noise else max(allowed, min(2 * operator.rounding, most))
    if asymmetry > allowed:
        raise NotSymmetricError(
            f"the operator is not symmetric: uᵀAv and vᵀAu differ by {asymmetry:.1e} of their "
            f"scale (allowed {allowed:.0e}); eigenvalue methods here need a symmetric one"
        )
    return asymmetry


def refuse_noisy(operator: SymmetricOperator, method: str) -> None:
    """Refuse an operator whose products are far less exact than the dtype of its vectors.

    Args:
        operator: any operator.
        method: what neither stops at such noise nor says what it does to its answer.

    Raises:
        InvalidArgumentError: it says the way out.

    >>> refuse_noisy(DenseOperator(torch.eye(2)), "power iteration")
    """
    if operator.noise > 0:
        raise InvalidArgumentError(
            f"{method} needs products that are exact but for rounding, and these are right to "
            f"{operator.noise:.1e} (relative), as in bfloat16; use lanczos, or dtype float32"
        )


def check_k(operator: SymmetricOperator, k: int) -> int:
    """Return k if the operator has so many eigenvalues.

    Raises:
        InvalidArgumentError: k < 1 or k > P.

    >>> check_k(DenseOperator(torch.eye(2)), 2)
    2
    """
    if check_count("k", k) > operator.size:
        raise InvalidArgumentError(
            f"k must be at most {operator.size}, the number of parameters, got {k}"
        )
    return k


def check_finite(product: Tensor | float) -> None:
    """Refuse products with an operator, or the norm of one, that are NaN or infinite.

    Raises:
        NonFiniteError: some entry is.

    >>> check_finite(torch.tensor([1.0, float("nan")]))
    Traceback (most recent call last):
    flatkit.errors.NonFiniteError: a product with the operator has NaN or infinite entries
    """
    finite = product.isfinite().all() if isinstance(product, Tensor) else math.isfinite(product)
    if not finite:
        raise NonFiniteError("a product with the operator has NaN or infinite entries")


def finite_product(operator: SymmetricOperator, vectors: Tensor) -> Tensor:
    """Return the product with a vector [P], or those with the rows of a block [K, P].

    Raises:
        NonFiniteError: some entry is NaN or infinite.
    """
    products = operator.matvec(vectors) if vectors.ndim == 1 else operator.matmat(vectors)
    check_finite(products)
    return products


def random_vector(operator: SymmetricOperator, *, generator: torch.Generator) -> Tensor:
    """Return a standard normal vector [P], the same for every dtype and device of the operator.

    Where vectors are parts, it is that of the same vector, however many ranks there are.

    >>> operator = DenseOperator(torch.eye(3, dtype=torch.float64))
    >>> random_vector(operator, generator=torch.Generator().manual_seed(0)).dtype
    torch.float64
    """
    vector = torch.randn(operator.size, generator=generator, dtype=torch.float32)
    vector = vector if operator.shards is None else operator.shards.part(vector)
    return vector.to(operator.device, operator.dtype)
