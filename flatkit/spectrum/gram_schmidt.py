"""Gram-Schmidt on a device: what the host must know of it comes in one piece."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Told(NamedTuple):
    """What a vector lost to a basis.

    Attributes:
        size: its length before.
        removed: its parts along the rows, [K].
        left: its length after.
    """

    size: float
    removed: np.ndarray
    left: float


def orthogonalise_at_once(rows: Tensor, vector: Tensor) -> Told:
    """Remove orthonormal rows [K, P] from a vector [P] in place, with one transfer to the host.

    A host that looks at each length decides whether a second pass is needed, and waits for the
    device each time. Here both passes are made always (Giraud, Langou and Rozložník, 2005), after
    one over the two newest rows, which hold most of a product with a symmetric matrix. Lengths are
    summed up in float64, so that squares do not overflow.

    Args:
        rows: the basis.
        vector: what is left of it is in its place.

    >>> vector = torch.tensor([3.0, 4.0])
    >>> told = orthogonalise_at_once(torch.tensor([[1.0, 0.0]]), vector)
    >>> told.size, told.removed.tolist(), told.left, vector
    (5.0, [3.0], 4.0, tensor([0., 4.]))
    """
    count = len(rows)
    told = torch.zeros(count + 2, dtype=torch.float64, device=vector.device)
    told[0] = torch.linalg.vector_norm(vector, dtype=torch.float64)
    # The passes add up: what a later one still finds belongs to the coefficients as well.
    for begin in (max(0, count - 2), 0, 0):
        part = rows[begin:].mv(vector)
        vector.addmv_(rows[begin:].mT, part, alpha=-1)
        told[1 + begin : 1 + count] += part
    told[-1] = torch.linalg.vector_norm(vector, dtype=torch.float64)
    size, *removed, left = told.tolist()  # waits for the device
    return Told(size, np.array(removed), left)
