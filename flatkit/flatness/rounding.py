"""Weights as integers of few bits: what rounding does to the loss, and what is to be expected.

Each weight matrix or kernel is rounded to the nearest of 2ᵇ - 1 even steps between -max|w| and
max|w|, as post-training quantisation with one scale a tensor does; vectors (biases, normalisation)
stay as they are. With steps sᵢ the rounding errors are about uniform in ±sᵢ/2, of variance sᵢ²/12,
and independent of the loss, so that ΔL is about ½ Σᵢ sᵢ²/12 · tr Hᵢᵢ over the tensors i.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from flatkit.checks import check_count
from flatkit.objective.parameters import ParameterSpace


class Rounded(NamedTuple):
    """Weights after rounding.

    Attributes:
        theta: the point [P].
        steps: the distance of two levels, by parameter; 0 for what is not rounded.
    """

    theta: Tensor
    steps: tuple[float, ...]


def rounded(theta: Tensor, space: ParameterSpace, bits: int) -> Rounded:
    """Return a point with its matrices and kernels rounded to integers of `bits` bits.

    Args:
        theta: the point [P].
        space: names and shapes of its parts.
        bits: of an integer, 2 at least.

    >>> space = ParameterSpace.of({"weight": torch.ones(1, 3), "bias": torch.ones(1)})
    >>> rounded(torch.tensor([1.0, 0.4, -0.6, 0.3]), space, bits=2)
    Rounded(theta=tensor([ 1.0000,  0.0000, -1.0000,  0.3000]), steps=(1.0, 0.0))
    """
    # Levels on each side of 0: one less than two's complement has
    # below, so that ±max|w| are levels.
    levels = 2 ** (check_count("bits", bits, minimum=2) - 1) - 1
    parts, steps = space.unflatten(theta.detach().clone()), list[float]()
    for part in parts.values():
        largest = float(part.abs().max()) if part.ndim > 1 and part.numel() else 0.0
        step = largest / levels
        if step > 0:
            reals = torch.view_as_real(part) if part.is_complex() else part
            reals.copy_(torch.round(reals / step) * step)
        steps.append(step)
    return Rounded(space.flatten(parts), tuple(steps))


def expected_increase(steps: tuple[float, ...], traces: Tensor) -> Tensor:
    """Return the increase of the loss that the traces of the diagonal blocks lead to expect.

    Args:
        steps: by parameter.
        traces: of the Hessian's diagonal blocks [number of parameters].

    >>> expected_increase((2.0, 0.0), torch.tensor([6.0, 5.0]))
    tensor(1.)
    """
    # An error that is uniform over one step has this variance.
    variances = torch.tensor(steps, dtype=traces.dtype, device=traces.device) ** 2 / 12
    return variances @ traces / 2
