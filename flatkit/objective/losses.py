"""Losses by name. Each returns one value per sample: whoever wants a mean takes it exactly.

A mean of means over batches of unequal size is not the mean over the samples, so no loss here
averages over the batch. Where samples count differently (tokens that are padding, weighted
classes), a loss returns sums and says by `weights` what they are to be divided by.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatkit.checks import check_fraction
from flatkit.errors import InvalidArgumentError
from flatkit.objective.names import LOSSES
from flatkit.objective.pytree import main_tensor
from flatkit.objective.vocabulary import counted, cross_entropy
from flatkit.registry import call_text

LossFunction: TypeAlias = Callable[[Any, Any], Tensor]
"""(outputs, targets) -> loss of every sample [B], or their mean."""


class Loss(Protocol):
    """What the registered losses are: values of the samples, and how to name the loss in a file."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every sample, shape [B]."""
        ...

    def spec(self) -> dict[str, Any]:
        """Return the registry name and the keyword arguments."""
        ...


@dataclass(frozen=True)
class _Registered:
    """A loss that a file names by its registry name and its fields."""

    # No default: a class without a name could be saved and never be found again.
    name: ClassVar[str]
    widens: ClassVar[bool] = False
    """Whether it computes in 32 bits of outputs of 16, and needs no copy of them."""
    later: ClassVar[tuple[str, ...]] = ()
    """Fields that came later: files and texts of before leave them out, and so do those of today
    where they have their defaults."""

    def spec(self) -> dict[str, Any]:
        """Return the registry name and the keyword arguments."""
        usual = {f.name: f.default for f in fields(self) if f.name in self.later}
        given = {key: value for key, value in asdict(self).items() if value != usual.get(key, ...)}
        return {"name": self.name, "kwargs": given}

    def __str__(self) -> str:
        return call_text(self.name, self.spec()["kwargs"])

    def __repr__(self) -> str:
        return call_text(type(self).__name__, self.spec()["kwargs"])


@dataclass(frozen=True, repr=False)
class CrossEntropy(_Registered):
    """Cross-entropy of the softmax of the outputs, in nats.

    With label smoothing s the target is (1 - s) * one_hot + s / C over the C classes
    (Szegedy et al. 2016). Of images against labels [B, H, W] it is the mean over the pixels that
    count.

    Args:
        label_smoothing: s in [0, 1].
        ignore_index: targets of this value do not count.

    >>> import torch
    >>> CrossEntropy()(torch.zeros(2, 4), torch.tensor([0, 3]))    # log 4 each
    tensor([1.3863, 1.3863])
    >>> str(CrossEntropy(label_smoothing=0.1))
    'cross_entropy(label_smoothing=0.1)'
    """

    name = "cross_entropy"
    later = ("ignore_index",)
    widens: ClassVar[bool] = True
    label_smoothing: float = 0.0
    ignore_index: int = -100

    def __post_init__(self) -> None:
        """Check the range."""
        check_fraction("label_smoothing", self.label_smoothing)

    def __call__(self, outputs: Tensor, targets: Any) -> Tensor:
        """Return the loss of every sample; of images, the sum over its pixels.

        Args:
            outputs: logits, shape [B, C] or [B, C, H, W].
            targets: class indices, shape [B] or [B, H, W].

        Raises:
            InvalidArgumentError: other shapes.
        """
        outputs = _main(outputs)
        classes = isinstance(targets, Tensor) and targets.dtype in (torch.int64, torch.uint8)
        if (
            not classes
            or outputs.ndim < 2
            or targets.shape != outputs.shape[:1] + outputs.shape[2:]
        ):
            raise InvalidArgumentError(
                "cross_entropy needs outputs [B, C] and targets [B], or images [B, C, H, W] and "
                f"targets [B, H, W], whole numbers, got {_told(outputs)} and {_told(targets)}; for "
                "targets that are probabilities [B, C] give torch.nn.CrossEntropyLoss()"
            )
        values = cross_entropy(
            outputs,
            targets,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )
        return values.reshape(len(values), -1).sum(1)  # [B, ...] -> [B]

    def weights(self, targets: Tensor) -> Tensor:
        """Return how many labels of every sample count, [B]."""
        return counted(targets, self.ignore_index).reshape(len(targets), -1).sum(1)


@dataclass(frozen=True, repr=False)
class MeanSquared(_Registered):
    """Squared error, averaged over the outputs of a sample; class indices become one-hot vectors.

    >>> import torch
    >>> MeanSquared()(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]]))  # (1 + 9) / 2
    tensor([5.])
    >>> MeanSquared()(torch.tensor([[1.0, 3.0]]), torch.tensor([1]))           # (1 + 4) / 2
    tensor([2.5000])
    """

    name = "mse"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every sample.

        Args:
            outputs: shape [B, ...].
            targets: the same shape, or class indices of shape [B] with outputs [B, C].

        Raises:
            InvalidArgumentError: other shapes.
        """
        outputs = _main(outputs)
        classes = targets.ndim == 1 and outputs.ndim == 2 and outputs.shape[1] > 1
        if classes and not targets.is_floating_point():
            targets = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)  # [B] -> [B, C]
        if outputs.shape != targets.shape:
            raise InvalidArgumentError(
                "mse needs targets of the shape of the outputs, or class indices [B], "
                f"got {list(targets.shape)} for {list(outputs.shape)}"
            )
        difference = outputs - targets
        squares = difference.square()
        if difference.is_complex():
            squares = torch.view_as_real(difference).square().sum(-1)  # |z|²
        return squares.reshape(len(outputs), -1).mean(1)  # [B, ...] -> [B]


@dataclass(frozen=True, repr=False)
class TokenCrossEntropy(_Registered):
    """Cross-entropy averaged over the tokens that count, not over the sequences.

    Args:
        ignore_index: targets of this value (padding) do not count.
        shift: the outputs at a place are about the target at the next one, as in causal language
            models whose targets are their inputs.

    >>> loss = TokenCrossEntropy()
    >>> targets = torch.tensor([[0, 1, -100], [2, -100, -100]])
    >>> loss(torch.zeros(2, 3, 4), targets), loss.weights(targets)    # log 4 for each of 3 tokens
    (tensor([2.7726, 1.3863]), tensor([2, 1]))
    """

    name = "token_cross_entropy"
    class_dim: ClassVar[int] = -1
    widens: ClassVar[bool] = True
    ignore_index: int = -100
    shift: bool = False

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the losses of the tokens of every sequence, [B].

        Args:
            outputs: logits, shape [B, T, C].
            targets: class indices, shape [B, T].

        Raises:
            InvalidArgumentError: other shapes.
        """
        outputs = _main(outputs)
        if outputs.ndim != 3 or targets.shape != outputs.shape[:2]:
            raise InvalidArgumentError(
                "token_cross_entropy needs outputs [B, T, C] and targets [B, T], "
                f"got {list(outputs.shape)} and {list(targets.shape)}"
            )
        if self.shift:
            # The last score has no word to be held against, and the first word no score.
            outputs, targets = outputs[:, :-1], targets[:, 1:]
        outputs = outputs.transpose(1, 2)  # [B, C, T]
        values = cross_entropy(outputs, targets, ignore_index=self.ignore_index)
        return values.sum(1)  # [B, T] -> [B]

    def weights(self, targets: Tensor) -> Tensor:
        """Return how many tokens of every sequence count, [B]."""
        targets = targets[:, 1:] if self.shift else targets
        return counted(targets, self.ignore_index).sum(1)


@dataclass(frozen=True, repr=False)
class ModelLoss(_Registered):
    """The loss that the model itself returns, as those of Hugging Face do when given labels.

    It is one number a batch. How batches are to be weighted, by their samples or by the labels
    that count, is found out by the objective.

    >>> ModelLoss()({"loss": torch.tensor(0.5)}, None)
    tensor(0.5000)
    """

    name = "model"

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """Return `outputs.loss`, `outputs["loss"]`, or the first of a tuple.

        Raises:
            InvalidArgumentError: there is none.
        """
        loss = getattr(outputs, "loss", None)
        if loss is None and isinstance(outputs, Mapping):
            loss = outputs.get("loss")
        if isinstance(outputs, tuple) and outputs:  # (loss, logits), as of `return_dict=False`
            loss = outputs[0]
        # A model may also return its loss alone.
        loss = outputs if isinstance(outputs, Tensor) and outputs.ndim == 0 else loss
        if not isinstance(loss, Tensor) or loss.ndim > 1:
            keys = f" of {', '.join(map(str, outputs))}" if isinstance(outputs, Mapping) else ""
            raise InvalidArgumentError(
                "the loss 'model' needs a model that returns its loss (outputs.loss, or first in a "
                f"tuple), got {type(outputs).__name__}{keys} without one; does the batch hold the "
                "labels? Of several losses give their sum: lambda outputs, targets: ..."
            )
        return loss


class WeightedMean:
    """A mean-reduced `nn.CrossEntropyLoss` or `nn.NLLLoss` as sums and weights.

    With class weights w and an ignored class, torch divides by the sum of the weights of the
    targets, which differs from batch to batch.

    Args:
        module: copied.

    >>> loss = WeightedMean(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])))
    >>> targets = torch.tensor([0, 1])
    >>> loss(torch.zeros(2, 2), targets), loss.weights(targets)       # log 2, and 3 log 2
    (tensor([0.6931, 2.0794]), tensor([1., 3.], dtype=torch.float64))
    """

    def __init__(self, module: nn.CrossEntropyLoss | nn.NLLLoss) -> None:
        self._module = copy.deepcopy(module)
        weight = module.weight
        # Sums of weights divide every loss: in float32 a million labels would lose digits.
        self._weight = None if weight is None else weight.detach().cpu().double()

    @property
    def ignore_index(self) -> int:
        """Targets of this value do not count."""
        return self._module.ignore_index

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the sum of the weighted losses of every sample, [B]."""
        values = self._values(_main(outputs), targets)
        return values.reshape(len(values), -1).sum(1)

    def _values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        module, weight = self._module, self._module.weight
        if weight is not None:  # not `module.to`: it would keep a tensor of a transform of torch
            weight = weight.to(outputs.device, outputs.dtype)
        given: dict[str, Any] = {"ignore_index": module.ignore_index}
        if isinstance(module, nn.NLLLoss):
            return F.nll_loss(outputs, targets, weight, reduction="none", **given)
        given["label_smoothing"] = module.label_smoothing
        if weight is None and not targets.is_floating_point() and outputs.ndim > 1:
            return cross_entropy(outputs, targets, **given)
        return F.cross_entropy(outputs, targets, weight, reduction="none", **given)

    def weights(self, targets: Tensor) -> Tensor:
        """Return the sum of the weights of the targets of every sample, [B]."""
        if targets.is_floating_point():  # probabilities [B, C, ...]: torch divides by their number
            return torch.full((len(targets),), targets[0, 0].numel(), dtype=torch.float64)
        targets = targets.cpu().long()
        counts = counted(targets, self._module.ignore_index)
        weights = counts.double()
        if self._weight is not None:
            # Targets that do not count may lie outside of the weights: class 0 stands in.
            weights = weights * self._weight[targets * counts]
        return weights.reshape(len(targets), -1).sum(1)

    def __str__(self) -> str:
        settings = {
            "weight": None if self._weight is None else self._weight.tolist(),
            "ignore_index": self._module.ignore_index,
            "label_smoothing": getattr(self._module, "label_smoothing", 0.0),
        }
        return call_text(type(self._module).__name__, settings)


def as_sums(loss: Any) -> Any:
    """Return a loss of torch that divides by the weights of a batch as sums and weights.

    >>> str(as_sums(nn.NLLLoss()))
    'NLLLoss(weight=None, ignore_index=-100, label_smoothing=0.0)'
    """
    # The functions too: as a mean over each chunk they would divide by other labels every time.
    plain = {F.cross_entropy: nn.CrossEntropyLoss, F.nll_loss: nn.NLLLoss}
    if getattr(loss, "__hash__", None) and loss in plain:
        loss = plain[loss]()
    if type(loss) in (nn.CrossEntropyLoss, nn.NLLLoss) and loss.reduction == "mean":
        return loss if _smooths_what_counts_for_nothing(loss) else WeightedMean(loss)
    return loss


def _smooths_what_counts_for_nothing(loss: Any) -> bool:
    """Whether targets of a class of weight 0 add to the sum of a loss, and not to what divides it.

    Smoothing spreads their labels over classes that count: no mean over samples is made so.
    """
    smooths = getattr(loss, "label_smoothing", 0.0) > 0
    return smooths and loss.weight is not None and bool((loss.weight == 0).any())


def _main(outputs: Any) -> Tensor:
    tensor = main_tensor(outputs)
    if tensor is None:
        raise InvalidArgumentError(
            f"the model returns a {type(outputs).__name__} without logits; give a loss function "
            "of (outputs, targets) that takes from it what it needs"
        )
    return tensor


def _told(part: Any) -> str:
    return str(list(part.shape)) if isinstance(part, Tensor) else f"a {type(part).__name__}"


def name_of(loss: Any) -> str:
    """Return what a report calls a loss.

    >>> name_of(F.mse_loss), name_of(MeanSquared())
    ('mse_loss', 'mse()')
    """
    if isinstance(loss, nn.Module) or not hasattr(loss, "__name__"):
        return str(loss)
    return str(getattr(loss, "__name__", loss))


def build_loss(spec: Mapping[str, Any]) -> Loss:
    """Return the loss that a `spec()` names.

    Raises:
        InvalidArgumentError: unknown name or arguments.

    >>> build_loss(CrossEntropy(label_smoothing=0.1).spec())
    CrossEntropy(label_smoothing=0.1)
    """
    return LOSSES.build(spec["name"], **spec["kwargs"])
