"""Targets as a loss takes them: converted where that changes no number, else explained.

Labels come as int32, bool, floats, columns [B, 1] or one-hot rows; a loss of torch takes one form
each. A loss is tried on a few samples as they are, and where it raises, on the same labels in
another form. What is converted is recorded; a form that would change a number is none.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flatkit.errors import FlatkitError, InvalidArgumentError, UserCodeError
from flatkit.objective.model.habits import Guarded
from flatkit.objective.pytree import Tree, leaves, main_tensor, map_object, map_tree
from flatkit.objective.users_code import users_code


class Form(NamedTuple):
    """Targets in one form.

    Attributes:
        targets: as many trees as were given.
        how: what was done to them; empty for nothing.
    """

    targets: list[Tree]
    how: str


def fitted(
    loss: Callable[[Any, Any], Any], outputs: Any, few: Tree, targets: Sequence[Tree]
) -> Form:
    """Return targets in the first form that a loss takes.

    Args:
        loss: of (outputs, targets).
        outputs: of a few samples, without a graph.
        few: their targets.
        targets: those of all samples as one tree, or a tree a batch.

    Raises:
        InvalidArgumentError: the loss spreads outputs over targets of another shape.
        UserCodeError: the loss takes no form; the error is that of the targets as they are.

    >>> labels = torch.tensor([[1], [0]], dtype=torch.int32)
    >>> fitted(torch.nn.CrossEntropyLoss(), torch.zeros(2, 3), labels, [labels])
    Form(targets=[tensor([1, 0])], how='int32 [2, 1] to int64 [2]')
    """
    try:
        _tried(loss, outputs, few)
    except FlatkitError as error:
        first = error
    else:
        _refuse_spreading(loss, outputs, targets[0])
        for tree in targets:
            check_classes(loss, outputs, tree)
        return Form(list(targets), "")
    scores = main_tensor(outputs)
    # In step: the form that a few samples take must exist for all of them.
    for some, *all_of_them in zip(*(_forms(tree, scores) for tree in (few, *targets)), strict=True):
        if some is None or any(tree is None for tree in all_of_them):
            continue
        try:
            _tried(loss, outputs, some)
        except FlatkitError:
            continue  # the error to be told is the first
        for tree in all_of_them:
            check_classes(loss, outputs, tree)
        return Form(all_of_them, f"{_told(targets[0])} to {_told(all_of_them[0])}")
    for tree in targets:
        check_classes(loss, outputs, tree)
    raise _explained(first, outputs, few)


def check_classes(loss: Any, outputs: Any, targets: Tree) -> None:
    """Refuse classes that the outputs have no score for, where the loss says what classes are.

    Args:
        loss: of torch's or flatkit's own those that have an `ignore_index` take classes; what one
            of a user means by it, as for pixels of one score or for counts, nobody knows.
        outputs: of some samples; scores [B, C, ...], of tokens [B, T, C].
        targets: of all samples.

    Raises:
        InvalidArgumentError: some lie outside 0, ..., C - 1, or there is one class alone.

    >>> check_classes(torch.nn.NLLLoss(), torch.zeros(2, 3), torch.tensor([0, 2, -100]))
    """
    inner = loss.inner if isinstance(loss, Guarded) else loss
    known = isinstance(inner, (nn.CrossEntropyLoss, nn.NLLLoss)) or inner is loss
    scores, ignored = main_tensor(outputs), getattr(loss, "ignore_index", None) if known else None
    if scores is None or ignored is None or not isinstance(targets, Tensor) or scores.ndim < 2:
        return
    classes = scores.shape[getattr(loss, "class_dim", 1)]
    if classes == 1:
        raise InvalidArgumentError(
            "the outputs have one score a sample, and the cross-entropy of one class is 0 whatever "
            "the weights; for two classes by one score give torch.nn.BCEWithLogitsLoss()"
        )
    if targets.is_floating_point():  # shares of the classes
        return
    counted = targets[targets != ignored]
    if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= classes):
        outside = counted[(counted < 0) | (counted >= classes)]
        raise InvalidArgumentError(
            f"the targets hold {int(outside[0])}, and the outputs have scores of {classes} "
            f"classes, 0 to {classes - 1}; where it marks what does not count, give a loss with "
            f"`ignore_index`, e.g. torch.nn.CrossEntropyLoss(ignore_index={int(outside[0])})"
        )


def _tried(loss: Callable[[Any, Any], Any], outputs: Any, targets: Tree) -> None:
    """Evaluate and differentiate a loss, if it can."""
    # With a gradient, as some losses take whole numbers forwards and fail only backwards.
    leaf = outputs.detach().requires_grad_() if isinstance(outputs, Tensor) else outputs
    with users_code("the loss"), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = loss(leaf, map_object(torch.clone, targets))  # it may write into them
        if not isinstance(value, Tensor):
            raise InvalidArgumentError(
                f"the loss must return a tensor, a value per sample or their mean, got a "
                f"{type(value).__name__}"
            )
        if isinstance(leaf, Tensor) and value.requires_grad:
            torch.autograd.grad(value.sum(), leaf, allow_unused=True)


def _refuse_spreading(loss: Any, outputs: Any, targets: Tree) -> None:
    """Refuse a loss that takes each output against the targets of all samples.

    Outputs [B, 1] and targets [B] broadcast to [B, B], which is hardly ever meant. It shows in that
    the target of one sample moves the slope of another, and no longer does in one shape.
    """
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return
    if not (outputs.ndim and targets.ndim):
        return
    if (
        outputs.shape == targets.shape
        or outputs[0].numel() != targets[0].numel()
        or len(outputs) < 2
    ):
        return
    other = (targets != targets[0]).reshape(len(targets), -1).any(1).nonzero()
    if not len(other):
        return
    # Two samples of different targets, at random scores: were they the same, nothing would show.
    pair = targets[[0, int(other[0])]]
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, *outputs.shape[1:], generator=generator).to(outputs)
    if _meet(loss, scores, pair) and _meet(loss, scores, pair.reshape(scores.shape)) is False:
        raise InvalidArgumentError(
            f"the loss holds outputs {_shape(outputs)} against targets {_shape(targets)}, which "
            "broadcast: every output against every target. Give targets of the shape of the "
            "outputs, e.g. targets[:, None], or a model that returns [B]"
        )


def _meet(loss: Any, scores: Tensor, pair: Tensor) -> bool | None:
    """Whether the slope at a first output depends on the target of a second; None if it raises."""
    try:
        slopes = [_slope(loss, scores, targets)[0] for targets in (pair, pair[[0, 0]])]
    except FlatkitError:
        return None
    return not torch.allclose(*slopes, rtol=1e-4, atol=1e-6)


def _slope(loss: Any, scores: Tensor, targets: Tree) -> Tensor:
    leaf = scores.detach().requires_grad_()
    with users_code("the loss"), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.autograd.grad(loss(leaf, targets).sum(), leaf, materialize_grads=True)[0]


def _forms(targets: Tree, scores: Tensor | None) -> Iterator[Tree | None]:
    """Yield other forms of the same labels, always as many; None where one would not be exact."""
    yield _mapped(targets, _whole)
    if not isinstance(targets, Tensor) or scores is None or not (targets.ndim and scores.ndim):
        return
    column = targets.squeeze(1) if targets.ndim > 1 and targets.shape[1] == 1 else None
    yield column
    yield None if column is None else _whole(column)
    yield _numbers(targets, scores)
    yield _like(targets, scores)
    yield _classes(targets, scores)


def _mapped(targets: Tree, function: Callable[[Tensor], Tensor | None]) -> Tree | None:
    found = [function(leaf) for leaf in leaves(targets)]
    if any(leaf is None for leaf in found):
        return None
    rest = iter(found)
    return map_tree(lambda _: next(rest), targets)  # type: ignore[arg-type, return-value]


def _whole(labels: Tensor) -> Tensor | None:
    """Return labels as int64, if all are whole numbers."""
    if labels.is_complex():
        return None
    # NaN as a whole number is undefined; a half is none and fails the comparison.
    whole = labels.nan_to_num(0.5).long() if labels.is_floating_point() else labels.long()
    return whole if bool((whole == labels).all()) else None


def _numbers(labels: Tensor, scores: Tensor) -> Tensor | None:
    """Return labels in the dtype of the scores, if that holds them exactly."""
    if labels.is_floating_point() or labels.is_complex() or not scores.is_floating_point():
        return None
    found = labels.to(scores.dtype)
    return found if bool((found.to(torch.float64) == labels.to(torch.float64)).all()) else None


def _like(labels: Tensor, scores: Tensor) -> Tensor | None:
    """Return labels [B] as [B, 1], or the reverse, and as numbers, as the scores are."""
    if tuple(n for n in labels.shape[1:] if n != 1) != tuple(n for n in scores.shape[1:] if n != 1):
        return None
    shaped = labels.reshape(len(labels), *scores.shape[1:])
    return shaped if labels.is_floating_point() else _numbers(shaped, scores)


def _classes(labels: Tensor, scores: Tensor) -> Tensor | None:
    """Return the classes [B, ...] of one-hot labels [B, C, ...]."""
    if labels.shape[1:] != scores.shape[1:] or labels.ndim < 2 or labels.shape[1] < 2:
        return None
    one_hot = ((labels == 0) | (labels == 1)).all() and ((labels != 0).sum(1) == 1).all()
    return labels.to(torch.uint8).argmax(1) if bool(one_hot) else None


def _explained(error: FlatkitError, outputs: Any, targets: Tree) -> FlatkitError:
    """Return an error that also says what the loss was given."""
    scores = main_tensor(outputs)
    if isinstance(error, InvalidArgumentError):  # of a named loss, which tells the shapes itself
        return error
    given = type(outputs).__name__ if scores is None else _told(scores)
    explained = UserCodeError(
        f"{error}; the loss was given outputs {given} and targets {_told(targets)}"
    )
    explained.__cause__ = error.__cause__
    return explained


def _shape(tensor: Tensor) -> str:
    """Return a shape with B for the samples."""
    return f"[{', '.join(['B', *map(str, tensor.shape[1:])])}]"


def _told(tree: Tree) -> str:
    """Return dtype and shape of a tensor, or what else something is."""
    if isinstance(tree, Tensor):
        return f"{str(tree.dtype).removeprefix('torch.')} {list(tree.shape)}"
    parts = ", ".join(map(_told, leaves(tree)))
    return f"{type(tree).__name__} of {parts}" if parts else type(tree).__name__
