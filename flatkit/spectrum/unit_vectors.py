"""The diagonal of a small operator, entry by entry: no sampling error."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flatkit.spectrum.dot import norm
from flatkit.spectrum.operators import SymmetricOperator, finite_product
from flatkit.spectrum.standard_error import rounding_error

_ENTRIES = 2**22
"""Numbers of a block of unit vectors at most."""


class ExactTrace(NamedTuple):
    """The trace of an operator, or of a diagonal block of it.

    Attributes:
        value: the trace.
        rounding: how far the rounding of the products may have moved it.
    """

    value: float
    rounding: float


def unit_products(operator: SymmetricOperator, places: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return entries A_ii of the diagonal and the lengths ‖A eᵢ‖ of the columns.

    Cost: a product each.

    Args:
        operator: A.
        places: i, each once, [K].

    Returns:
        Two float64 tensors [K] on the CPU.

    Raises:
        NonFiniteError: a product is not finite.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> operator = DenseOperator(torch.tensor([[3.0, 4.0], [4.0, 1.0]]))
    >>> unit_products(operator, [0])
    (tensor([3.], dtype=torch.float64), tensor([5.], dtype=torch.float64))
    """
    entries, lengths = [], []
    for block in torch.as_tensor(places).split(max(1, _ENTRIES // operator.size)):
        units = torch.zeros(len(block), operator.size, dtype=operator.dtype, device=operator.device)
        rows = torch.arange(len(block))
        units[rows, block] = 1
        products = finite_product(operator, units)  # [K, P]
        entries.append(products[rows, block].double().cpu())
        lengths += [norm(product) for product in products]
    return torch.cat(entries), torch.tensor(lengths, dtype=torch.float64)


def exact_trace(operator: SymmetricOperator, places: Sequence[int] | None = None) -> ExactTrace:
    """Return the trace, or that of the block of some coordinates. Cost: a product each.

    >>> from flatkit.spectrum.operators import DenseOperator
    >>> exact_trace(DenseOperator(torch.tensor([[3.0, 4.0], [4.0, 1.0]]))).value
    4.0
    """
    entries, lengths = unit_products(operator, range(operator.size) if places is None else places)
    value = float(entries.sum())
    frobenius = norm(lengths)
    return ExactTrace(value, rounding_error(operator.rounding, frobenius=frobenius, value=value))
