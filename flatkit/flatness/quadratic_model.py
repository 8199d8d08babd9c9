"""The quadratic model of the loss at a point, seen from a Krylov subspace of its Hessian."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from flatkit.checks import check_choice, check_count, check_positive
from flatkit.devices.ranks import Ranks
from flatkit.flatness.geometry import Geometry
from flatkit.flatness.trust_region import QuadraticMaximum, quadratic_maximum
from flatkit.spectrum.dot import dot, new_direction, norm, norms
from flatkit.spectrum.operators import DerivedOperator, SymmetricOperator
from flatkit.spectrum.shards import Shards
from flatkit.spectrum.space import Space

_ROUNDINGS = 10
"""Units of rounding of the longest image within which a part of an image is none."""

Quantity: TypeAlias = Literal["loss", "gradient_norm"]


@dataclass(frozen=True)
class ModelMaximum:
    """The maximum over the ball of the quadratic model, within a subspace.

    Attributes:
        value: of gᵀu + ½uᵀHu, or of ‖g + Hu‖, at `u`: at most the maximum of the model.
        shortfall: the maximum of the model is at most value + shortfall, if |λ|max is what the
            model was told.
        u: [P], within the ball.
    """

    value: float
    shortfall: float
    u: Tensor


@final
class ScaledOperator(DerivedOperator):
    """T A T, the Hessian in the coordinates of a geometry.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> ball = Geometry("adaptive", torch.tensor([2.0, 1.0]))
    >>> ScaledOperator(DenseOperator(torch.eye(2)), ball) @ torch.ones(2)
    tensor([4., 1.])
    """

    def __init__(self, operator: SymmetricOperator, geometry: Geometry) -> None:
        super().__init__(operator)
        self.geometry = geometry

    @property
    def ranks(self) -> Ranks:
        """Those of A."""
        return self.operator.ranks

    def matvec(self, vector: Tensor) -> Tensor:
        """Return T A T v."""
        product = self.operator.matvec(self.geometry.displacement(vector))
        return self.geometry.displacement(product)

    def part_of_product(self, vector: Tensor, shards: Shards) -> Tensor:
        """Return this rank's part [P/N] of T A T v."""
        part = self.operator.part_of_product(self.geometry.displacement(vector), shards)
        return part if self.geometry.scale is None else shards.part(self.geometry.scale) * part


@final
class QuadraticModel:
    """g and H of a loss at a point, H through its products with an orthonormal basis Q.

    The basis holds given vectors (approximate eigenvectors), then g, Hg, H²g, ... until it is full,
    and random vectors with their products where these end.
    Within it, both maxima over a round ball are exact (`quadratic_maximum`); one more product tells
    how far the maximum over the whole space can be away.

    H Q is kept as its parts along Q and along what lies beside it: one direction of a Krylov space,
    and one of the newest vector.

    Cost: a product for each vector of the basis; memory M vectors and these few.

    Args:
        operator: H.
        gradient: g [P].
        vectors: [K, P] to start the basis with.
        space: whose vectors and images start the basis, at no product.
        max_basis: M at most.
        fill: the basis now; else `extend` does it.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> hessian = DenseOperator(torch.diag(torch.tensor([3.0, 1.0])))
    >>> model = QuadraticModel(hessian, torch.zeros(2), vectors=torch.eye(2))
    >>> round(model.maximum("gradient_norm", rho=0.1, slope=3.0).value, 6)
    0.3
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        gradient: Tensor,
        *,
        vectors: Tensor | Sequence[Tensor] = (),
        space: Space | None = None,
        max_basis: int = 24,
        fill: bool = True,
    ) -> None:
        check_count("max_basis", max_basis)
        self.operator, self.gradient = operator, gradient
        known = 0 if space is None else space.size
        room = min(operator.size, max(max_basis, known + len(vectors)))
        self._rows = gradient.new_empty(room, gradient.numel())
        self._count, self._size = 0, 0.0  # of the longest image
        # Q H = inside Q + outside U, with U [J, P] orthogonal to Q.
        self._inside, self._outside = torch.zeros(2, 0, 0, dtype=torch.float64)
        self._beside = gradient.new_empty(0, gradient.numel())
        if space is not None:
            self._take(space.vectors)
            self._keep(space.images)
        self._generator = torch.Generator().manual_seed(0)
        for vector in vectors:
            self._add(vector)
        self._holds_gradient = False
        if fill:
            self.extend(max_basis)

    def extend(self, max_basis: int) -> None:
        """Let the basis grow to M vectors: products of the newest, or chance where these end."""
        room = min(self.operator.size, max_basis) - len(self._rows)
        if room > 0:
            more = self._rows.new_empty(room, self._rows.shape[1])
            self._rows = torch.cat([self._rows, more])
        while self._count < min(max_basis, len(self._rows)):
            # H times the newest direction spans what Hᵏg would, without the powers that overflow.
            goes_on = self._holds_gradient and self._count
            self._holds_gradient = True
            if self._add(self._images(_last(self._count)) if goes_on else self.gradient):
                continue
            drawn = torch.randn(self.gradient.numel(), generator=self._generator)
            if not self._add(drawn.to(self.gradient)):
                return

    @property
    def room(self) -> int:
        """How many vectors the basis has room for."""
        return len(self._rows)

    @property
    def basis(self) -> Tensor:
        """Q [M, P], orthonormal rows."""
        return self._rows[: self._count]

    @property
    def products(self) -> Tensor:
        """Q H [M, P], made anew."""
        return self.space.images

    @property
    def space(self) -> Space:
        """Q, not copied, and Q H."""
        return self.first()

    def first(self, size: int | None = None, matvecs: int = 0) -> Space:
        """Return the first vectors of Q, not copied, and their images.

        Args:
            size: how many; by default all.
            matvecs: what their images took.
        """
        first = slice(size)
        every = torch.eye(self._count, dtype=torch.float64)
        return Space(self.basis[first], self._images(every[first]), matvecs)

    def _add(self, vector: Tensor) -> bool:
        """Extend the basis by what is new in a vector; return whether there was anything."""
        if self._count == len(self._rows):
            return False
        direction = new_direction(self.basis, vector, roundings=100)
        if direction is None:
            return False
        self._take(direction[None])
        self._keep(self.operator.matvec(direction)[None])
        return True

    def _take(self, directions: Tensor) -> None:
        """Add orthonormal directions [K, P] to the basis, whose parts lie beside it no more."""
        before, self._count = self._count, self._count + len(directions)
        self._rows[before : self._count] = directions
        along = dot(self._beside, directions)  # [J, K]
        self._inside = torch.cat([self._inside, self._outside @ along], dim=1)
        self._beside -= along.to(directions) @ directions
        lengths = norms(self._beside) * norms(self._outside.T)
        if not bool((kept := lengths > self._rounding).all()):
            self._beside, self._outside = self._beside[kept], self._outside[:, kept]

    def _keep(self, images: Tensor) -> None:
        """Take apart the images [K, P] of the newest directions: along the basis, and beside it."""
        parts = dot(images, self.basis)  # [K, M]
        self._inside = torch.cat([self._inside, parts])
        self._size = max(self._size, *norms(images).tolist())
        rest = (images - parts.to(images) @ self.basis) / (self._size or 1.0)
        # Of a Krylov space all of these lie along one direction, but for rounding.
        turn = torch.linalg.eigh(dot(rest, rest))[1]
        rest = turn.T.to(rest) @ rest
        lengths = norms(rest)
        kept = self._size * lengths > self._rounding
        outside = self._size * (turn * lengths)[:, kept]
        self._beside = torch.cat([self._beside, (rest / lengths.to(rest)[:, None])[kept]])
        self._outside = torch.block_diag(self._outside, outside)

    @property
    def _rounding(self) -> float:
        """Length of what counts as rounding of an image."""
        return _ROUNDINGS * torch.finfo(self._rows.dtype).eps * self._size

    def _images(self, weights: Tensor) -> Tensor:
        """Return W Q H [K, P] of weights W [K, M]."""
        rows, beside = self.basis, self._beside
        weights = weights.double().cpu()
        return (weights @ self._inside).to(rows) @ rows + (weights @ self._outside).to(
            rows
        ) @ beside

    def ritz_weights(self, count: int) -> Tensor:
        """Return weights [K, M] whose products with Q are the Ritz vectors of largest |λ|.

        Args:
            count: K at most.

        >>> from flatkit.spectrum.operators import DenseOperator
        >>> hessian = DenseOperator(torch.diag(torch.tensor([-3.0, 1.0])))
        >>> model = QuadraticModel(hessian, torch.ones(2))
        >>> (model.ritz_weights(1) @ model.basis).abs().round(decimals=4)
        tensor([[1., 0.]])
        """
        values, parts = np.linalg.eigh(_symmetric(self._inside))
        order = np.argsort(-np.abs(values), kind="stable")[:count]
        return torch.from_numpy(parts.T[order].copy()).to(self.basis)

    def maximum(self, quantity: Quantity, *, rho: float, slope: float = math.inf) -> ModelMaximum:
        """Return the maximum of the model over ‖u‖ ≤ ρ, within the basis, and what it may lack.

        With the multiplier μ and the residual r of the stationarity in the whole space, no point of
        the ball exceeds the quadratic here by more than 2ρ‖r‖ + 2ρ²·max(0, Λ − μ), where Λ is the
        largest eigenvalue of its matrix (H, or H² for ½‖g + Hu‖²).

        Args:
            quantity: `loss` or `gradient_norm`.
            rho: ρ > 0.
            slope: |λ|max of H, with its error added; without it nothing bounds the shortfall.
        """
        found, weights = self._secular(quantity, rho)
        u = weights @ self.basis
        moved = self.gradient + self.image(u)  # g + Hu [P]
        # The gradient of gᵀu + ½uᵀHu is g + Hu, that of ½‖g + Hu‖² is
        # H(g + Hu): at a maximum each is μu.
        slopes = moved if quantity == "loss" else self.operator.matvec(moved)
        residual = norm(slopes - found.multiplier * u)
        excess = max(0.0, (slope if quantity == "loss" else slope**2) - found.multiplier)
        gap = 2 * rho * residual + 2 * rho**2 * excess
        if quantity == "loss":
            return ModelMaximum(found.value, gap, u)
        value = norm(moved)
        most = float(np.hypot(value, math.sqrt(2 * gap)))  # from ½‖·‖² ≤ ½ value² + gap
        return ModelMaximum(value, most - value, u)

    def within_basis(self, quantity: Quantity, rho: float) -> tuple[float, Tensor]:
        """Return the maximum over ‖u‖ ≤ ρ within the basis, and u [P]. Cost: no product."""
        found, weights = self._secular(quantity, rho)
        u = weights @ self.basis
        return (found.value if quantity == "loss" else norm(self.gradient + self.image(u))), u

    def best_weights(self, quantity: Quantity, rho: float) -> Tensor:
        """Return the weights [M] whose product with Q is that maximum's u. Cost: no product."""
        return self._secular(quantity, rho)[1]

    def image(self, vector: Tensor) -> Tensor:
        """Return H v [P] of a vector within the basis. Cost: no product."""
        return self._images(dot(self.basis, vector))

    def _secular(self, quantity: Quantity, rho: float) -> tuple[QuadraticMaximum, Tensor]:
        check_choice("quantity", quantity, ("loss", "gradient_norm"))
        check_positive("rho", rho)
        inside, outside, linear = self._inside, self._outside, dot(self.basis, self.gradient)
        matrix = inside  # of Q H Qᵀ, or of Q H² Qᵀ
        if quantity == "gradient_norm":
            matrix = inside @ inside.T + outside @ dot(self._beside, self._beside) @ outside.T
            linear = inside @ linear + outside @ dot(self._beside, self.gradient)
        found = quadratic_maximum(_symmetric(matrix), linear.numpy(), rho)
        return found, torch.from_numpy(found.point).to(self.basis)


def _last(count: int) -> Tensor:
    """Return the weights [M] of the last of some vectors."""
    return torch.eye(count, dtype=torch.float64)[-1]


def _symmetric(matrix: Tensor) -> np.ndarray:
    return (0.5 * (matrix + matrix.T)).numpy()
