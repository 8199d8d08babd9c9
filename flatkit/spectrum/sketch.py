"""A sketch of the range of an operator, and the trace by leaving out each vector: XTrace."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flatkit.spectrum.dot import dot, dot_in_double, new_direction, norm, project_out
from flatkit.spectrum.operators import SymmetricOperator, finite_product
from flatkit.spectrum.sign_draws import SignDraws, random_signs
from flatkit.spectrum.standard_error import rounding_error


class Sketch:
    """Random vectors Ω, A Ω, an orthonormal basis Q of the latter, and A Q; rows are vectors.

    Attributes:
        operator: A, symmetric.
        generator: draws the vectors.
        basis: Q [n, P].
        matvecs: products that were made.
    """

    def __init__(self, operator: SymmetricOperator, generator: torch.Generator) -> None:
        self.operator, self.generator = operator, generator
        empty = torch.empty(0, operator.size, dtype=operator.dtype, device=operator.device)
        self._probes = self._images = self.basis = self._products = empty
        self._useless: list[int] = []
        self._seen = 0  # images that the basis was made of
        self.matvecs = 0

    @property
    def size(self) -> int:
        """How many vectors were drawn."""
        return len(self._probes)

    @property
    def dependent(self) -> bool:
        """Whether the image of a vector lay in the span of those before, to rounding.

        Then the basis may hold the range, or what is left of it may be small. It may also be
        neither: in few dimensions random signs depend on each other by chance.
        """
        return bool(self._useless)

    def adopt(self, draws: Sequence[tuple[Tensor, Tensor]], *, spent: int) -> None:
        """Begin with random signs whose images are known, pairs [P], after so many products."""
        self.matvecs = spent
        self._probes = torch.stack([probe for probe, _ in draws])
        self._images = torch.stack([image for _, image in draws])

    def growing(self, size: int) -> Iterator[None]:
        """Draw vectors until there are so many, a product at a time."""
        while self.size < size:
            probe = random_signs(self.operator, self.generator)[None]
            image = self._multiply(probe)
            self._probes = torch.cat([self._probes, probe])
            self._images = torch.cat([self._images, image])
            yield
        for number in range(self._seen, size):
            self._extend(number, self._images[number])
        self._seen = size
        while len(self._products) < len(self.basis):
            newest = self.basis[len(self._products)][None]
            self._products = torch.cat([self._products, self._multiply(newest)])
            yield

    def projected_trace(self) -> float:
        """Return tr Qᵀ A Q."""
        return sum(map(dot_in_double, self.basis, self._products))

    @property
    def rounding(self) -> float:
        """How far the rounding of the products may have moved that trace."""
        frobenius = math.hypot(*map(norm, self._products))
        value = self.projected_trace()
        return rounding_error(self.operator.rounding, frobenius=frobenius, value=value)

    def plain(self) -> SignDraws:
        """Return the draws of Hutchinson's estimator that its vectors are."""
        draws = SignDraws()
        for probe, image in zip(self._probes, self._images, strict=True):
            draws.add(probe, image)
        return draws

    def plain_error(self) -> float:
        """Return the standard error that Hutchinson's estimator has for as many products."""
        return self.plain().error * math.sqrt(self.size / self.matvecs)

    def draws_of_the_rest(self) -> SignDraws:
        """Return the draws zᵀ P A P z, P = I - Q Qᵀ, of vectors that the basis was not made of.

        Cost: none, as A z and A Q are known.
        """
        draws = SignDraws()
        for number in self._useless:
            probe, image = self._probes[number], self._images[number]
            inside = self.basis.double() @ probe.double()
            rest = image - (inside @ self._products.double()).to(image)
            draws.add(probe, project_out(self.basis, rest))
        return draws

    def xtrace(self) -> tuple[float, float]:
        """Return the mean of the leave-one-out estimates and its jackknife standard error."""
        q, z = self.basis.double(), self._products.double()  # [n, P]
        omega, y = self._probes.double(), self._images.double()
        scale = norm(self._images[0])  # squares of large numbers overflow
        squares = torch.stack([one @ other for one, other in zip(omega, y, strict=True)])
        whole = _Projected(q @ y.T / scale, q @ omega.T, q @ z.T / scale, squares / scale)
        fewer = whole.without_each().estimate()
        spread = (fewer - fewer.mean()).square().sum() * (len(q) - 1) / len(q)
        return scale * float(whole.estimate()), scale * math.sqrt(float(spread))

    def _multiply(self, vectors: Tensor) -> Tensor:
        self.matvecs += len(vectors)
        return finite_product(self.operator, vectors)

    def _extend(self, number: int, image: Tensor) -> None:
        direction = new_direction(self.basis, image, roundings=30)
        if direction is None:
            self._useless.append(number)
        else:
            self.basis = torch.cat([self.basis, direction[None]])


def share_left(images: Sequence[Tensor]) -> float:
    """Return which share of ‖A‖²_F a sketch of all but one of these images leaves.

    An image Az is independent of the others: what is left of it outside their span Q tells
    ‖(I − QQᵀ)A‖²_F. Their Gram matrix G knows it: the square of that distance is 1/(G⁻¹)ᵢᵢ.

    Args:
        images: of random signs, [P] each.

    >>> round(share_left([torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])]), 3)
    0.5
    """
    rows = torch.stack(list(images))
    rows = rows / (rows.abs().max() or 1.0)
    gram = dot(rows, rows)
    total = float(gram.trace())
    if total == 0:
        return 0.0
    least = 10 * torch.finfo(rows.dtype).eps * total * torch.eye(len(gram), dtype=gram.dtype)
    return min(1.0, float((1 / torch.linalg.inv(gram + least).diagonal()).sum()) / total)


class _Projected(NamedTuple):
    """What XTrace needs of n vectors, in the basis Q of their images: n×n matrices, or many such.

    Attributes:
        images: Qᵀ A Ω, [..., n, n].
        probes: Qᵀ Ω.
        projected: Qᵀ A Q.
        squares: ωᵢᵀ A ωᵢ, [..., n].
    """

    images: Tensor
    probes: Tensor
    projected: Tensor
    squares: Tensor

    def estimate(self) -> Tensor:
        """Return the mean of the n estimates that leave one vector out of the projection each."""
        normals = torch.linalg.inv(self.images).mT  # column i ⊥ the images of all but the i-th
        normals = normals / torch.linalg.vector_norm(normals, dim=-2, keepdim=True)
        kept = self.probes - normals * (normals * self.probes).sum(-2, keepdim=True)
        trace = self.projected.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
        on_sketch = trace - (normals * (self.projected @ normals)).sum(-2)
        bent = self.projected @ kept - 2 * self.images
        return (on_sketch + self.squares + (kept * bent).sum(-2)).mean(-1)

    def without_each(self) -> "_Projected":
        """Return the same for all vectors but the i-th, for every i [n, ...]."""
        count = len(self.squares)
        rest = torch.arange(count)[None, :].expand(count, -1)  # [n, n]
        rest = rest[rest != torch.arange(count)[:, None]].view(count, count - 1)
        turn, images = torch.linalg.qr(self.images.T[rest].mT)  # [n, n, n - 1]
        return _Projected(
            images,
            turn.mT @ self.probes.T[rest].mT,
            turn.mT @ self.projected @ turn,
            self.squares[rest],
        )
