"""LOBPCG: a block of vectors at once, which sees an eigenvalue as often as it is there."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from flatkit.checks import check_count, check_positive
from flatkit.devices import ordinary_torch
from flatkit.results.status import Status
from flatkit.spectrum.dot import dot, norm, norms, project_out
from flatkit.spectrum.estimate import Estimate, residual_norms, residual_status
from flatkit.spectrum.operators import (
    ProjectedOperator,
    SymmetricOperator,
    check_k,
    finite_product,
    random_vector,
    refuse_noisy,
)
from flatkit.spectrum.rank import notes
from flatkit.spectrum.second_start import look_again
from flatkit.spectrum.shards import among

_GUARDS = 2  # vectors beyond k: the last ones of a block converge slowly


@ordinary_torch()
def lobpcg(
    operator: SymmetricOperator,
    *,
    k: int = 1,
    tolerance: float = 1e-4,
    max_matvecs: int = 2000,
    initial: Tensor | None = None,
    generator: torch.Generator,
) -> Estimate:
    """Return the k largest eigenvalues by a locally optimal block iteration (Knyazev, 2001).

    Each step takes the best of the space of the block X, its residuals and its last move. A
    cluster, or an eigenvalue of multiplicity up to k, is found with all its vectors, where a
    single-vector Lanczos method may report it once. For separate eigenvalues `lanczos` needs
    fewer products.

    A second random start, in the complement of what was found, tells whether a larger eigenvalue
    was missed, but for a probability of 0.1 % (`look_again`); how far above one may lie is part of
    the error, and the status is `rank` where that exceeds the tolerance.

    Cost: k + 2 products a step, at the price of a block, and those of a Lanczos search; memory
    6·(k + 2) vectors, of which each of several ranks keeps its part.

    Args:
        operator: A, symmetric.
        k: how many eigenvalues.
        tolerance: on the residual, relative to the largest magnitude seen.
        max_matvecs: products in all but the last k; when spent, the status is `budget`.
        initial: vectors [J, P] to start from.
        generator: draws the rest of the start.

    Raises:
        InvalidArgumentError: k > P, or an argument out of range.
        NonFiniteError: a product is not finite.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> operator = DenseOperator(torch.diag(torch.tensor([3.0, 3.0, 1.0, 0.0])))
    >>> [round(x, 3) for x in lobpcg(operator, k=2, generator=torch.Generator()).value.tolist()]
    [3.0, 3.0]
    """
    check_k(operator, k)
    refuse_noisy(operator, "lobpcg")
    check_positive("tolerance", tolerance)
    check_count("max_matvecs", max_matvecs)
    operator = operator.sharded()
    with among(operator.shards):
        return _search(operator, k, tolerance, max_matvecs, initial, generator)


def _search(
    operator: SymmetricOperator,
    k: int,
    tolerance: float,
    max_matvecs: int,
    initial: Tensor | None,
    generator: torch.Generator,
) -> Estimate:
    started = time.perf_counter()
    size = min(operator.size, k + _GUARDS)
    block = _start(operator, size, initial, generator)
    spent, second = 0, None
    while True:
        found = _iterate(operator, block, k, tolerance=tolerance, max_matvecs=max_matvecs - spent)
        spent += found.matvecs
        if not found.converged or spent >= max_matvecs:
            break
        second = look_again(
            operator,
            found.values,
            found.vectors,
            allowed=tolerance * found.scale,
            spent=spent,
            max_matvecs=max_matvecs,
            generator=generator,
        )
        spent += second.matvecs
        if not second.missing or spent >= max_matvecs:
            break
        larger = _largest_of_the_rest(operator, found, tolerance, max_matvecs - spent, generator)
        spent += larger.matvecs
        block = _start(operator, size, torch.cat([larger.vectors, found.vectors]), generator)
    errors = residual_norms(operator, found.values, found.vectors)
    beyond = torch.zeros_like(errors) if second is None else second.margins(found.values)
    allowed = tolerance * found.scale
    status = residual_status(errors, allowed=allowed, converged=found.converged)
    ranked = second is not None and bool((beyond <= allowed).all())
    return Estimate(
        value=found.values,
        error=torch.maximum(errors, beyond)
        + operator.product_errors(found.vectors, found.values, scale=found.scale),
        error_kind="residual",
        status=Status.RANK if status is Status.CONVERGED and not ranked else status,
        matvecs=spent + len(errors),
        seconds=time.perf_counter() - started,
        held=found.vectors,
        shards=operator.shards,
        notes={
            "block": size,
            "warm_start": initial is not None,
            **notes(errors.numpy(), None if second is None else beyond.numpy()),
        },
    )


@dataclass(frozen=True, eq=False)
class _Block:
    """What an iteration ended with: the k largest of a block."""

    values: Tensor
    vectors: Tensor
    scale: float
    matvecs: int
    converged: bool


def _largest_of_the_rest(
    operator: SymmetricOperator,
    found: _Block,
    tolerance: float,
    max_matvecs: int,
    generator: torch.Generator,
) -> _Block:
    """Return the largest eigenvalue in the complement of what was found."""
    rest = ProjectedOperator(operator, found.vectors)
    size = min(1 + _GUARDS, operator.size - len(found.vectors))
    drawn = [rest.project(row) for row in _start(operator, size, None, generator)]
    block = _orthonormal(torch.stack(drawn))
    return _iterate(rest, block, 1, tolerance=tolerance, max_matvecs=max_matvecs)


def _iterate(
    operator: SymmetricOperator, block: Tensor, k: int, *, tolerance: float, max_matvecs: int
) -> _Block:
    """Improve a block of orthonormal rows until the residuals are small or products end."""
    size = len(block)
    products = finite_product(operator, block)
    matvecs, move = len(block), block[:0]
    while True:
        values, turn = torch.linalg.eigh(dot(block, products))
        order = turn.flip(1).T.to(block)
        block, products, values = order @ block, order @ products, values.flip(0)
        gaps = products - values.to(block)[:, None] * block  # [size, P]
        scale = float(values.abs().max())
        residuals = norms(gaps[:k])
        converged = bool((residuals <= tolerance * scale).all())
        if converged or matvecs >= max_matvecs:
            break
        # Near the end residuals, last move and block nearly depend on each other: without an
        # orthonormal basis the small problem below would be singular to rounding.
        fresh = _orthonormal(torch.cat([gaps, move]), against=block)
        if not len(fresh):  # the block is invariant
            converged = True
            break
        basis = torch.cat([block, fresh])
        images = torch.cat([products, finite_product(operator, fresh)])
        matvecs += len(fresh)
        small = dot(basis, images)  # [M, M], M ≤ 3·size
        _, weights = torch.linalg.eigh((small + small.T) / 2)
        best = weights.flip(1)[:, :size].T.to(block)  # [size, M]
        move = best[:, size:] @ fresh  # what is new of the block: Knyazev's P
        block, products = best @ basis, best @ images
    vectors = block[:k] / norms(block[:k]).to(block)[:, None]
    return _Block(values[:k].cpu(), vectors, scale, matvecs, converged)


def _start(
    operator: SymmetricOperator, size: int, initial: Tensor | None, generator: torch.Generator
) -> Tensor:
    drawn = torch.stack([random_vector(operator, generator=generator) for _ in range(size)])
    if initial is not None:
        known = initial.to(drawn)
        if known.shape[-1] != operator.length:  # given whole
            assert operator.shards is not None
            known = operator.shards.part(known)
        drawn = torch.cat([known.reshape(-1, operator.length), drawn])
    return _orthonormal(drawn)[:size]


def _orthonormal(vectors: Tensor, *, against: Tensor | None = None) -> Tensor:
    """Return an orthonormal basis of the rows, without what lies in known orthonormal rows."""
    rows, kept = torch.empty_like(vectors), 0
    for vector in vectors:
        size = norm(vector)
        if size == 0:
            continue
        vector = vector / size
        for _ in range(2):  # twice is enough for orthogonality to rounding
            if against is not None and len(against):
                vector = project_out(against, vector)
            if kept:
                vector = project_out(rows[:kept], vector)
        rest = norm(vector)
        if rest > 100 * torch.finfo(vector.dtype).eps:
            rows[kept] = vector / rest
            kept += 1
    return rows[:kept]
