"""How the outputs of a classifier name a class, found out by asking its loss.

Shapes do not tell: outputs [B, 5] against whole numbers [B] may be scores of classes, quantiles of
a count, or a mean and a variance. The loss does: of classes, it falls where the right score rises.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flatkit.objective.pytree import Bundle, first_unit, main_tensor
from flatkit.objective.reading.randomness import undisturbed
from flatkit.objective.reading.weighted_samples import WeightedTargets, plain_targets

NAME_CLASSES = (
    "that name classes: scores [B, C] of classes [B], or one score a sample of two classes, and a "
    "loss that falls as the right score rises"
)
_RISE = 0.5
"""Of a score that is tried: small enough that a squared error to one-hot targets falls too."""
_MOST_CLASSES = 16
"""So many are tried, spread over all of them."""
_LOGITS = (-30.0, -3.0, 3.0, 30.0)
_PROBABILITIES = (0.1, 0.4, 0.6, 0.9)


@dataclass(frozen=True)
class Decision:
    """Which class outputs name.

    Attributes:
        threshold: of one output a sample, above which it is class 1; None where the largest of
            several outputs is taken.

    >>> Decision(None).correct(torch.eye(2), torch.tensor([0, 0]))
    1
    >>> Decision(0.0).correct(torch.tensor([[-1.0], [2.0]]), torch.tensor([0.0, 1.0]))
    2
    """

    threshold: float | None

    def correct(self, outputs: Any, targets: Any) -> int:
        """Return how many of the outputs of a batch name the right class."""
        if isinstance(outputs, Bundle):
            return sum(map(self.correct, outputs.units, targets.units))
        found = main_tensor(outputs)
        assert found is not None  # else there was no decision
        named = found.argmax(1) if self.threshold is None else found.flatten() > self.threshold
        return int((named == self.wanted(targets)).sum())

    def asked(self, outputs: Any) -> int:
        """Return how many classes the outputs of a batch name."""
        if isinstance(outputs, Bundle):
            return sum(map(self.asked, outputs.units))
        found = main_tensor(outputs)
        return 0 if found is None else len(found)

    def right(self, outputs: Any, targets: Any) -> tuple[int, int]:
        """Return how many of how many classes are right."""
        return self.correct(outputs, targets), self.asked(outputs)

    def wanted(self, targets: Any) -> Tensor:
        """Return the class of each sample [B], from classes [B] or [B, 1] or one-hot [B, C]."""
        targets = plain_targets(targets)
        # Columns [B, 1] are classes by number, not one-hot rows of one class.
        if self.threshold is None and targets.ndim == 2 and targets.shape[1] > 1:
            return targets.argmax(1)
        return targets.flatten().long()


def decision_of(loss: Callable[[Any, Any], Tensor], outputs: Any, targets: Any) -> Decision | None:
    """Return how outputs name a class, or None where they are no classes.

    Args:
        loss: of (outputs, targets), asked about outputs of zeros and about single scores. Where it
            raises at these, nothing is known of it and there is no decision.
        outputs: of a batch.
        targets: of all samples.

    >>> labels = torch.tensor([0, 1, 1])
    >>> decision_of(F.cross_entropy, torch.zeros(3, 2), labels)
    Decision(threshold=None)
    >>> decision_of(lambda o, t: (o[:, 0] - t) ** 2, torch.zeros(3, 2), labels)
    """
    found = main_tensor(outputs)
    if isinstance(first_unit(targets), WeightedTargets):
        loss = partial(_unweighted, loss)
    targets = _joined(targets)
    if found is None or not isinstance(targets, Tensor) or targets.is_complex():
        return None
    ask = _Asked(loss, outputs, found.detach(), targets)
    # The user's loss is asked at scores of our own: whatever it draws there is drawn for nothing.
    with undisturbed(), torch.no_grad():
        # Scores of pixels or words are left out: which of their dimensions are classes nobody says.
        if found.ndim == 2 and found.shape[1] > 1:
            return Decision(None) if _of_classes(ask, found.shape[1]) else None
        if found.numel() == len(found) and targets.numel() == len(targets):
            return _of_one_score(ask)
    return None


def _unweighted(loss: Callable[[Any, Any], Tensor], outputs: Any, targets: Tensor) -> Tensor:
    """Return a loss that takes weights for targets without any."""
    ones = torch.ones(len(targets), device=targets.device)
    return loss(outputs, WeightedTargets(targets, ones))


def _joined(targets: Any) -> Any:
    """Return the targets of all samples without weights, those of several batches as one."""
    if not isinstance(targets, Bundle):
        return plain_targets(targets)
    parts = [plain_targets(part) for part in targets.units]
    shapes = {part.shape[1:] if isinstance(part, Tensor) else None for part in parts}
    return torch.cat(parts) if len(shapes) == 1 and None not in shapes else None


class _Asked:
    """A loss that is asked about scores of single samples.

    Args:
        loss: of the user.
        outputs: of a batch; of those that hold more than scores, the scores are replaced.
        scores: their main tensor.
        targets: [N, ...].
    """

    def __init__(self, loss: Any, outputs: Any, scores: Tensor, targets: Tensor) -> None:
        self._loss, self._outputs, self.scores, self.targets = loss, outputs, scores, targets

    def __call__(self, scores: Tensor, targets: Tensor) -> float:
        """Return the loss of one sample; NaN where it raises."""
        try:
            return float(self._loss(self._with(scores), targets.to(self.targets.dtype)).sum())
        except Exception:  # the user's loss at scores that it never meets: it may raise anything
            return float("nan")

    def _with(self, scores: Tensor) -> Any:
        if isinstance(self._outputs, Tensor):
            return scores
        if isinstance(self._outputs, Mapping):
            return {
                key: scores if part is main_tensor(self._outputs) else part
                for key, part in self._outputs.items()
            }
        # An object with `logits`, as those of Hugging Face: the user's own stays as it is.
        # Shallow: the other outputs, as hidden states, are large and only looked at.
        clone = copy.copy(self._outputs)
        clone.logits = scores
        return clone


def _of_classes(ask: _Asked, classes: int) -> bool:
    """Whether the loss falls as the score of the right class rises, and not as another's does."""
    targets = ask.targets
    one_hot = targets.ndim == 2 and targets.shape[1] == classes
    # Rows of several labels, or of shares, name no single class.
    if one_hot and not bool(((targets != 0).sum(1) == 1).all() and (targets.sum(1) == 1).all()):
        return False
    if not one_hot and (targets.is_floating_point() or targets.numel() != len(targets)):
        return False
    # Labels beyond the scores are marks or counts, and no classes of these outputs.
    if not one_hot and (int(targets.min()) < 0 or int(targets.max()) >= classes):
        return False
    return all(
        _rises_alone(ask, wanted, classes, one_hot=one_hot)
        for wanted in torch.linspace(0, classes - 1, min(classes, _MOST_CLASSES)).long().tolist()
    )


def _rises_alone(ask: _Asked, wanted: int, classes: int, *, one_hot: bool) -> bool:
    number = torch.tensor([wanted], device=ask.scores.device)
    target = F.one_hot(number, classes) if one_hot else number.view(1, *ask.targets.shape[1:])
    level = ask.scores.new_zeros(1, classes)
    right, wrong = level.clone(), level.clone()
    right[0, wanted] = wrong[0, (wanted + 1) % classes] = _RISE
    before = ask(level, target)
    # Strictly, so that a constant is no loss of classes; nor is NaN, which compares as False.
    return ask(right, target) < before <= ask(wrong, target)


def _of_one_score(ask: _Asked) -> Decision | None:
    """Return the decision by one score, where the loss always falls towards the right side."""
    if not bool(((ask.targets == 0) | (ask.targets == 1)).all()):
        return None
    if _falls(ask, _LOGITS):
        return Decision(0.0)
    # A probability of 3 is none: a loss of probabilities
    # answers NaN or raises there, as BCELoss does.
    outside = ask(_one(ask, 3.0), _label(ask, 1))
    if outside != outside and _falls(ask, _PROBABILITIES):  # NaN: it takes probabilities alone
        return Decision(0.5)
    return None


def _falls(ask: _Asked, scores: tuple[float, ...]) -> bool:
    for label, along in ((1, scores), (0, scores[::-1])):
        losses = [ask(_one(ask, score), _label(ask, label)) for score in along]
        steady = all(a >= b for a, b in pairwise(losses))
        # Far out it may be flat, as a sigmoid is in 32 bits; between the middle two it must fall.
        if not (steady and losses[1] > losses[2]):
            return False
    return True


def _one(ask: _Asked, score: float) -> Tensor:
    return ask.scores.new_full((1, *ask.scores.shape[1:]), score)


def _label(ask: _Asked, label: int) -> Tensor:
    return torch.full((1, *ask.targets.shape[1:]), label, device=ask.targets.device)
