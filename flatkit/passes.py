"""One pass over the samples: its parts, its result, and the count of passes."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flatkit.errors import InvalidArgumentError


class Chunk(NamedTuple):
    """A part of the samples that goes through the model at once."""

    inputs: Tensor
    targets: Tensor


class Evaluation(NamedTuple):
    """The mean loss and, for a classifier, the fraction of samples classified correctly."""

    loss: float
    accuracy: float | None


@dataclass
class Tally:
    """Passes over all the samples so far; the cost of a measurement is a difference of two.

    >>> Tally(losses=3).since(Tally(losses=1))
    Tally(losses=2, gradients=0, matvecs=0)
    """

    losses: int = 0
    gradients: int = 0
    matvecs: int = 0

    def copy(self) -> "Tally":
        """Return the present state."""
        return Tally(self.losses, self.gradients, self.matvecs)

    def since(self, earlier: "Tally") -> "Tally":
        """Return what was added after `earlier`."""
        return Tally(
            self.losses - earlier.losses,
            self.gradients - earlier.gradients,
            self.matvecs - earlier.matvecs,
        )


def differentiate(scalar: Tensor, point: Tensor, *, create_graph: bool = False) -> Tensor:
    """Return the gradient of a scalar with respect to a point [P].

    Raises:
        InvalidArgumentError: the scalar does not depend on the point.

    >>> point = torch.tensor([3.0], requires_grad=True)
    >>> differentiate((point**2).sum(), point)
    tensor([6.])
    """
    if not scalar.requires_grad:
        raise InvalidArgumentError(
            "the loss does not depend on the parameters; is it computed under torch.no_grad, "
            "or from detached outputs?"
        )
    return torch.autograd.grad(scalar, point, create_graph=create_graph)[0]


def add_correct(correct: int | None, outputs: Any, targets: Tensor) -> int | None:
    """Return `correct` and how many more outputs are right; None unless it is a classifier.

    Args:
        correct: the count so far; None stays None.
        outputs: of a classifier, shape [B, C].
        targets: class indices, shape [B].

    >>> add_correct(1, torch.eye(2), torch.tensor([0, 0]))
    2
    """
    if correct is None or not isinstance(outputs, Tensor) or outputs.ndim != 2:
        return None
    if targets.ndim != 1 or targets.is_floating_point():
        return None
    return correct + int((outputs.argmax(dim=1) == targets).sum())
