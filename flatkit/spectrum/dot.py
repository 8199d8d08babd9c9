"""Dot products and norms of long vectors, right to some tens of roundings of their dtype.

A sum of ten million products of 32 bits, added up one after the other, is off by a thousandth, as
the terms vanish beside the sum. Here parts of the vectors are multiplied in their dtype, 16 bits in
32 as their squares overflow beyond 256, and added up in float64 (blocked summation: Higham,
Accuracy and Stability of Numerical Algorithms, 2002). Where vectors are parts of longer ones, one
on each rank (`spectrum.shards`), the sums are those over all ranks.
"""

import math

import torch
from torch import Tensor

from flatkit.spectrum.shards import Shards, current, whole_vectors

# Entries that are multiplied at once: short enough for 32 bits, long enough for full speed.
_PART = 2**13
# Entries up to which two vectors are multiplied in float64 at once: a tenth of the calls of torch.
_DOUBLED = 2**18
# Of the dtypes that are multiplied as they are: below this, squares may have vanished.
_LEAST = {dtype: torch.finfo(dtype).tiny * 1e16 for dtype in (torch.float32, torch.float64)}


def dot(one: Tensor, other: Tensor) -> Tensor:
    """Return the dot products of vectors, float64 on the CPU.

    Args:
        one: [P] or rows [K, P].
        other: [P] or rows [J, P], of the same dtype.

    Returns:
        [], [K], [J] or [K, J].

    >>> vector = torch.full((10_000_000,), 0.1)
    >>> exact = float(vector[0].double() ** 2 * len(vector))
    >>> abs(float(dot(vector, vector)) / exact - 1) < 1e-5
    True
    """
    found, shards = _own_dot(one, other), current()
    return found if shards is None else shards.ranks.total(found.cpu())


def _own_dot(one: Tensor, other: Tensor) -> Tensor:
    turned = other.mT if other.ndim > 1 else other
    if _is_short(one) and one.dtype == other.dtype:  # nearly all of the time here is torch's calls
        return (one @ turned).double()
    size = one.shape[-1] if one.dtype == torch.float64 or not one.is_cpu else _PART
    wide = torch.promote_types(one.dtype, torch.float32)
    if one.shape[-1] <= size:  # a tenth of the time of the loop for short vectors
        return (one.to(wide) @ turned.to(wide)).cpu().double()
    total = torch.zeros(one.shape[:-1] + other.shape[:-1], dtype=torch.float64)
    if one.is_cpu and one.dtype == other.dtype == torch.float32:  # a third of the calls of torch
        for a, b in zip(one.split(size, dim=-1), turned.split(size, dim=0), strict=True):
            total += a @ b
        return total
    for a, b in zip(one.split(size, dim=-1), turned.split(size, dim=0), strict=True):
        total += (a.to(wide) @ b.to(wide)).cpu().double()
    return total


def dot_in_double(one: Tensor, other: Tensor) -> float:
    """Return the dot product of two vectors [P] that are made float64 first.

    For few products of probes, where 16 bytes a coordinate are no matter.

    >>> dot_in_double(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]))
    11.0
    """
    return float(one.double() @ other.double())


def inner(one: Tensor, other: Tensor) -> float:
    """Return the dot product of two vectors [P] as `dot` does.

    >>> inner(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]))
    11.0
    """
    if one.is_cpu and one.dtype == other.dtype and current() is None:
        if _is_short(one):
            return one.dot(other).item()
        if len(one) <= _DOUBLED:
            return one.double().dot(other.double()).item()
    return float(dot(one, other))


def project_out(rows: Tensor, vector: Tensor) -> Tensor:
    """Return what is left of a vector [P] without its part in the span of orthonormal rows [K, P].

    >>> project_out(torch.tensor([[1.0, 0.0]]), torch.tensor([3.0, 4.0]))
    tensor([0., 4.])
    """
    if _is_short(vector) and vector.dtype == rows.dtype and current() is None:
        return torch.addmv(vector, rows.mT, rows.mv(vector), alpha=-1)
    return vector - dot(rows, vector).to(vector) @ rows


def new_direction(rows: Tensor, vector: Tensor, *, roundings: float) -> Tensor | None:
    """Return the unit vector [P] along what a vector adds to the span of orthonormal rows [K, P].

    Two passes of Gram-Schmidt leave it orthogonal to rounding (Giraud, Langou and Rozložník, 2005).

    Args:
        rows: orthonormal.
        vector: [P].
        roundings: units of rounding of ‖v‖; None is returned if no more than these is left.

    >>> new_direction(torch.tensor([[1.0, 0.0]]), torch.tensor([3.0, 4.0]), roundings=10)
    tensor([0., 1.])
    """
    rest = project_out(rows, project_out(rows, vector))
    left = norm(rest)
    enough = left > roundings * torch.finfo(vector.dtype).eps * norm(vector)
    return rest / left if enough else None


def norm(vector: Tensor) -> float:
    """Return ‖v‖ of a vector [P]; NaN or infinite if its entries are.

    Squares that overflow, or vanish, do no harm.

    >>> norm(torch.tensor([3.0, 4.0])), f"{norm(torch.tensor([3e25, 4e25])):.3g}"
    (5.0, '5e+25')
    """
    shards = current()
    if shards is not None:
        return _norm_of_parts(shards, vector)
    square = inner(vector, vector)
    if _LEAST.get(vector.dtype, _LEAST[torch.float32]) < square < math.inf or vector.numel() == 0:
        return math.sqrt(square)
    scale = float(vector.abs().max())
    if scale == 0 or not math.isfinite(scale):
        return scale
    scaled = vector.double() / scale
    return scale * math.sqrt(float(dot(scaled, scaled)))


def norms(rows: Tensor) -> Tensor:
    """Return ‖v‖ of each row [K, P], float64 [K] on the CPU.

    >>> norms(torch.tensor([[3.0, 4.0]]))
    tensor([5.], dtype=torch.float64)
    """
    return torch.tensor([norm(row) for row in rows], dtype=torch.float64)


def _norm_of_parts(shards: Shards, part: Tensor) -> float:
    with whole_vectors():
        own = norm(part)
    places = torch.zeros(shards.ranks.count, dtype=torch.float64)
    places[shards.ranks.rank] = own
    # The lengths travel, not their squares, which may overflow or vanish on one rank alone.
    return math.hypot(*shards.ranks.total(places).tolist())


def _is_short(vector: Tensor) -> bool:
    """Whether one product in the dtype of these vectors [..., P], on the CPU, is right."""
    wide = vector.dtype is torch.float64
    return vector.is_cpu and (wide or (vector.dtype is torch.float32 and vector.shape[-1] <= _PART))
