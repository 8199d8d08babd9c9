"""An orthonormal Krylov basis: it restarts, and probes its complement for what it missed."""

import math

import numpy as np
import torch
from torch import Tensor

from flatkit.errors import InvalidArgumentError
from flatkit.spectrum.dot import dot, norm, project_out
from flatkit.spectrum.gauss_rule import Rule, rule_of
from flatkit.spectrum.gram_schmidt import orthogonalise_at_once
from flatkit.spectrum.operators import (
    SymmetricOperator,
    check_finite,
    finite_product,
    random_vector,
)
from flatkit.spectrum.rank import Probe
from flatkit.spectrum.shards import among, in_parts
from flatkit.spectrum.space import Deflation, Space

KEPT_BYTES = 2**30  # bytes of a basis with its images up to which these are kept
# Part of a random vector in a warm start. It alone says what the given vectors may lack, and a
# small part says it late: with 0.05 the rank takes a product or two more than from a random start.
_RANDOM_PART = 0.3
# Part of a vector that is left by a pass of Gram-Schmidt, from which on no second one is needed:
# about 1/√2 (Daniel, Gragg, Kaufman and Stewart, 1976).
_ORTHOGONAL_ENOUGH = 0.7
_COLUMNS = 2**16  # of a basis that are rotated at once
_MOST_RESTARTS = 4  # restarts after which images are given up: each adds a rounding error


class KrylovBasis:
    """An orthonormal Krylov basis V and the projection T = V A Vᵀ onto it.

    Of several ranks each keeps its part of every vector, and what is returned are such parts.

    Args:
        operator: A, symmetric.
        capacity: vectors at most.
        generator: draws the start.
        initial: vectors [J, P] to start from.
        keep_images: also keep A V, so that products with combinations of V cost none; not where
            both take more than `KEPT_BYTES`.
        at_once: wait for the device once a step (`gram_schmidt`); by default on CUDA, for whole
            vectors.

    Attributes:
        operator: A, of vectors as they are kept.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        capacity: int,
        generator: torch.Generator,
        initial: Tensor | None = None,
        *,
        keep_images: bool = False,
        at_once: bool | None = None,
    ) -> None:
        self.operator, self._generator = operator.sharded(), generator
        start, random_part = self._start_of(initial)
        self._rows = torch.empty(capacity + 1, len(start), dtype=start.dtype, device=start.device)
        self._rows[0] = start
        fits = 2 * self._rows.nbytes <= KEPT_BYTES
        self._images = torch.empty_like(self._rows[:-1]) if keep_images and fits else None
        whole = self.operator.shards is None
        self._at_once = start.is_cuda and whole if at_once is None else at_once
        self._projection = np.zeros((capacity, capacity))
        self._capacity, self._size = capacity, 0
        self.coupling = math.inf  # ‖the part of A v_last outside the basis‖
        self.matvecs = self.restarts = 0  # the first also counts those before a restart
        self._first = 0.0  # length of the first product
        self.asymmetry = 0.0  # |uᵀAv − vᵀAu| / (‖Av‖ + ‖Au‖) of the first two directions
        self._steps = 0  # expansions since the last random direction
        self._log_couplings = 0.0  # of these
        self.has_probed = False  # to a random direction after the start
        self._probe_start = 0  # where the last random direction stands; 0: none since the start
        self._probes: list[Probe] = []
        self._dropped: list[np.ndarray] = []  # Ritz values, at restarts
        self._log_start = -math.log(random_part)  # and of the couplings since the start
        self.broke_down = False  # whether the Krylov space of the start was invariant
        self._ended: Probe | None = None  # what the start saw until another direction was taken
        # Directions that were dropped, and the parts along these of A times the basis [capacity].
        self._outside: list[tuple[Tensor, np.ndarray]] = []
        self._random_start = initial is None
        self._rule: Rule | None = None  # of the start, when its first cycle ended

    @property
    def size(self) -> int:
        """P."""
        return self.operator.size

    @property
    def rounding(self) -> float:
        """By how much a Ritz value may be off because of the dtype."""
        return 10 * torch.finfo(self._rows.dtype).eps * float(np.abs(self._projection).max())

    @property
    def lost(self) -> float:
        """By how much residuals of the recurrence may be off: each restart rounds once more."""
        return (1 + self.restarts) * self.rounding

    @property
    def full(self) -> bool:
        """Whether there is no room for another vector."""
        return self._size == self._capacity

    @property
    def complete(self) -> bool:
        """Whether it spans the whole space."""
        return self._size == self.operator.size

    @property
    def probes(self) -> list[Probe]:
        """What random directions after the start saw, of the complement of what was known then."""
        if self._probe_start == 0 or self._steps == 0:
            return self._probes
        return [*self._probes, self._probe()]

    @property
    def starts(self) -> list[Probe]:
        """What independent random vectors saw of the whole spectrum.

        The start, until it was left for another direction; and those that went on where its Krylov
        space, and theirs, were invariant.
        """
        if self.broke_down:
            return [self._start(), *self.probes]
        return [self._start()]

    @property
    def nbytes(self) -> int:
        """Bytes that this process keeps of the basis and its images."""
        return self._rows.nbytes + (0 if self._images is None else self._images.nbytes)

    def rule(self) -> Rule | None:
        """Return the Gauss rule of the start, of its first cycle; None of a warm start."""
        if self._rule is None and self._random_start:
            return rule_of(self._projection[: self._size, : self._size], ended=self.coupling == 0)
        return self._rule

    def _start(self) -> Probe:
        if self._ended is not None:
            return self._ended
        return Probe(np.concatenate([*self._dropped, self.ritz()[0]]), self._log_start)

    def _probe(self) -> Probe:
        part = slice(self._probe_start, self._size)
        return Probe(np.linalg.eigvalsh(self._projection[part, part]), self._log_couplings)

    def expand(self) -> None:
        """Multiply the newest direction, extend T, and find the next direction."""
        with among(self.operator.shards):  # no function around it: the way to a product is short
            known = self.operator.known_near(self._rows[self._size])
            if known is None:
                product = self.operator.unchecked(self._rows[self._size])
            else:
                self._rows[self._size], product = known
            self._extend(product)

    def _extend(self, product: Tensor) -> None:
        """Take the product with the newest direction."""
        last, before = self._size, self.coupling
        if self._images is not None:
            self._images[last] = product
        if self._at_once:
            told = orthogonalise_at_once(self._rows[: last + 1], product)
            self._refuse_infinite(told.size)
            size, coefficients, self.coupling = told
        else:
            size = norm(product)
            self._refuse_infinite(size)
            coefficients, self.coupling = self._orthogonalise(product, count=last + 1)
        if last == 0:
            self._first = size
        elif self.matvecs == 1:  # uᵀAv is v's part of Au, which is what was left of that
            scale = size + self._first
            self.asymmetry = abs(float(coefficients[0]) - before) / scale if scale else 0.0
        self._projection[last, : last + 1] = self._projection[: last + 1, last] = coefficients
        self._size, self.matvecs, self._steps = last + 1, self.matvecs + 1, self._steps + 1
        step = math.log(max(self.coupling, 1e-300))  # finite for a coupling of 0
        self._log_couplings += step
        self._log_start += step
        # Less than some roundings of the product: the space is invariant, the rest is noise.
        if self.coupling > 10 * torch.finfo(product.dtype).eps * size and not self.complete:
            self._rows[self._size] = product / self.coupling
        else:
            self._break_down()

    def _refuse_infinite(self, size: float) -> None:
        """Refuse a product that is not finite; the operator itself says best why."""
        if not math.isfinite(size):
            self.operator.matvec(self._rows[self._size])
            check_finite(size)

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Return Ritz values [M], ascending, and weights [M, M] in columns."""
        return np.linalg.eigh(self._projection[: self._size, : self._size])

    @in_parts
    def span(self, count: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Return orthonormal vectors V [M, P], and A V unless restarts wore it out.

        Where images are not kept, it is that of the recurrence A V = T V + β v eᵀ, v the newest
        direction, and of what points along directions that were dropped: off by their rounding.

        Args:
            count: of the Ritz vectors of largest magnitude; by default a copy of the basis.
        """
        basis = self._rows[: self._size]
        weights = np.eye(self._size)
        if count is not None:
            values, every = self.ritz()
            weights = every[:, np.argsort(-np.abs(values), kind="stable")[:count]]
        turn = torch.as_tensor(weights.T.copy()).to(basis)  # [K, M]
        vectors = basis.clone() if count is None else turn @ basis
        if self._images is not None:
            images = self._images[: self._size]
            return vectors, images.clone() if count is None else turn @ images
        if self.restarts > _MOST_RESTARTS:
            return vectors, None
        inside = self._projection[: self._size, : self._size] @ weights  # [M, K]
        images = torch.as_tensor(inside.T.copy()).to(basis) @ basis
        if self.coupling > 0:
            images += self.coupling * turn[:, -1:] * self._rows[self._size]
        for vector, parts in self._outside:
            along = torch.as_tensor(parts[: self._size] @ weights).to(basis)
            images += along[:, None] * self._beside(vector)
        return vectors, images

    @in_parts
    def space(self, count: int | None = None) -> Space:
        """Return whole vectors and their images, as of `span`; by products where it has none."""
        vectors, images = self.span(count)
        spent = 0 if images is not None else len(vectors)
        images = finite_product(self.operator, vectors) if images is None else images
        return Space(self._whole(vectors), self._whole(images), spent)

    @in_parts
    def deflation(self, *, copied: bool) -> Deflation:
        """Return the whole basis, copied or not, and what T says of its images."""
        projection = self._projection[: self._size, : self._size].copy()
        lost = [
            np.linalg.norm(parts) * norm(self._beside(vector)) for vector, parts in self._outside
        ]
        length = math.hypot(float(np.linalg.norm(projection)), self.coupling, *map(float, lost))
        rows = self._whole(self._rows[: self._size])
        copied = copied and self.operator.shards is None
        return Deflation(rows.clone() if copied else rows, torch.from_numpy(projection), length)

    @in_parts
    def combine(self, weights: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Return the vectors [K, P] of weights [M, K], normalised, and A times these if kept.

        The images are off as a product is, the weights having the norm 1.
        """
        columns = torch.as_tensor(weights.copy()).to(self._rows).T
        vectors = columns @ self._rows[: self._size]
        norms = torch.tensor([[norm(vector)] for vector in vectors]).to(vectors)
        images = None if self._images is None else columns @ self._images[: self._size] / norms
        return vectors / norms, images

    def _turn(self, weights: np.ndarray) -> None:
        """Let the vectors of weights [M, K], normalised, be the first of the basis, in its place.

        Some columns at a time, so that nothing as large as the basis stands beside it.
        """
        columns, kept = torch.as_tensor(weights.copy()).to(self._rows).T, weights.shape[1]
        held = [self._rows] if self._images is None else [self._rows, self._images]
        for rows in held:
            for part in rows.split(_COLUMNS, dim=1):
                part[:kept] = columns @ part[: self._size]
        for number, row in enumerate(self._rows[:kept]):
            size = norm(row)
            for rows in held:
                rows[number] /= size

    def _whole(self, vectors: Tensor) -> Tensor:
        return vectors if self.operator.shards is None else self.operator.shards.whole(vectors)

    def _beside(self, vector: Tensor) -> Tensor:
        """Return what a vector [P] has outside the basis."""
        return project_out(self._rows[: self._size], vector)

    def _drop_newest(self, weights: np.ndarray, *, dropped: bool) -> None:
        """Bring what lies outside the basis to the Ritz vectors of weights [M, kept]."""
        kept, outside = weights.shape[1], self._outside
        self._outside = [
            (self._beside(vector), parts[: self._size] @ weights) for vector, parts in outside
        ]
        if dropped and self.coupling > 0:
            newest = self._rows[self._size].clone()
            self._outside.append((newest, self.coupling * weights[-1]))
        self._outside = [
            (vector, np.pad(parts, (0, self._capacity - kept)))
            for vector, parts in self._outside
            if np.abs(parts).max() * norm(vector) > self.lost
        ]

    @in_parts
    def restart(
        self,
        values: np.ndarray,
        weights: np.ndarray,
        *,
        kept: int,
        probe: bool = False,
        direction: Tensor | None = None,
    ) -> None:
        """Keep the first Ritz vectors and the newest direction.

        Args:
            values: Ritz values [M], the best ones first.
            weights: [M, M] in columns.
            kept: how many Ritz vectors.
            probe: go on from a random direction instead of the newest.
            direction: go on from this direction [P] instead.
        """
        self._probes = self.probes
        self._rule = self.rule()
        self._random_start = False
        if probe or direction is not None:
            self._ended = self._start()
        self._dropped.append(values[kept:])
        newest = self._rows[self._size].clone() if direction is None else direction.clone()
        if self.restarts >= _MOST_RESTARTS:
            self._images = None
        self._drop_newest(weights[:, :kept], dropped=probe or direction is not None)
        self._turn(weights[:, :kept])
        if direction is not None:
            newest /= self._orthogonalise(newest, count=kept)[1]
        self._rows[kept] = newest
        self._projection[:] = 0
        self._projection[range(kept), range(kept)] = values[:kept]
        self.restarts += 1
        self._size, self._probe_start = kept, 0
        if probe:
            self._continue_at_random()

    def forget_probes(self) -> None:
        """Forget them, as what they found has become part of what is known."""
        self._probes, self._probe_start = [], 0

    def _orthogonalise(self, vector: Tensor, *, count: int) -> tuple[np.ndarray, float]:
        """Remove the basis from a vector in place; return what was removed, and the length left.

        The two newest directions, which hold most of a product, go first; then one pass over all
        is enough unless it takes a good part of what was left (Daniel, Gragg, Kaufman and Stewart,
        1976).
        """
        removed, left = np.zeros(count), math.inf  # inf: the first pass is never the last
        for begin in (max(0, count - 2), 0, 0):
            rows = self._rows[begin:count]
            part = dot(rows, vector)
            vector -= part.to(vector) @ rows  # in place: the caller's product becomes the direction
            removed[begin:] += part.numpy()
            before, left = left, norm(vector)
            if begin == 0 and left > _ORTHOGONAL_ENOUGH * before:
                break
        return removed, left

    def _break_down(self) -> None:
        """Go on from a random direction: the space is invariant, its Ritz values are exact."""
        self.coupling = 0.0
        self._rule = self.rule()
        self.broke_down = self.broke_down or self._ended is None
        self._ended = self._start()
        if self._probe_start:
            self._probes.append(self._probe())
        if not self.complete:
            self._continue_at_random()

    @in_parts
    def _start_of(self, initial: Tensor | None) -> tuple[Tensor, float]:
        """Return a unit vector [P] to start from, and how much of it is random."""
        return _start_of(self.operator, self._generator, initial)

    def _continue_at_random(self) -> None:
        """Let a random direction be the next."""
        vector = random_vector(self.operator, generator=self._generator)
        _, left = self._orthogonalise(vector, count=self._size)
        self._rows[self._size] = vector / left
        self._steps, self._probe_start, self._log_couplings = 0, self._size, 0.0
        self.has_probed = True


def _start_of(
    operator: SymmetricOperator, generator: torch.Generator, initial: Tensor | None
) -> tuple[Tensor, float]:
    """Return a unit vector [P] to start from, and how much of it is random."""
    drawn = random_vector(operator, generator=generator)
    drawn /= norm(drawn)
    if initial is None:
        return drawn, 1.0
    known = initial.to(drawn).reshape(-1, operator.size).sum(0)
    known = known if operator.shards is None else operator.shards.part(known)
    length = norm(known)
    if not math.isfinite(length):
        raise InvalidArgumentError("initial has NaN or infinite entries")
    if length == 0:
        return drawn, 1.0
    start = known / length + _RANDOM_PART * drawn
    whole = norm(start)
    return start / whole, _RANDOM_PART / whole


def basis_for(k: int, max_basis: int | None) -> int:
    """Return how many vectors a basis for k eigenvalues has, 2k + 18 by default.

    >>> basis_for(5, None)
    28
    """
    if max_basis is None:
        return 2 * k + 18
    if max_basis < k + 2:
        raise InvalidArgumentError(f"max_basis must be at least k + 2 = {k + 2}, got {max_basis}")
    return max_basis
