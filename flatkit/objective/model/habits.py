"""What a model and its loss do beside computing a value, found by watching them once.

Inputs that they change in place, random numbers that they draw: what they do is kept from the
user's tensors and states, at a price that only those pay that do it.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from flatkit.errors import InvalidArgumentError, UserCodeError
from flatkit.objective.model.widening import Roundings
from flatkit.objective.pytree import Tree, leaves, map_tree
from flatkit.objective.reading.randomness import random_states
from flatkit.objective.users_code import REENTRANT, users_code

if TYPE_CHECKING:
    from flatkit.objective.model.left import Left

WATCHED = 8
"""Samples at which habits are looked at, spread over all."""


@dataclass(frozen=True)
class Habits:
    """What a model does beside computing; a loss that edits its targets is `Guarded`.

    Attributes:
        edits_inputs: the model changes its inputs in place.
        draws: random numbers are drawn.
        sparse: there are sparse gradients.
        attends: attention is computed, which has kernels without a second derivative.
        values_only: it raises where gradients are recorded (it asks tensors for arrays of NumPy),
            and else does not: it has a value, and no derivative.
        rounds_to: a dtype of fewer bits than θ has in which it computes by itself, under autocast
            or after a cast, whatever the dtype of its weights is.
    """

    edits_inputs: bool = True
    draws: bool = True
    sparse: bool = True
    attends: bool = True
    values_only: bool = False
    rounds_to: torch.dtype | None = None


def observe(
    run: Callable[[Tree], Any],
    loss: Callable[[Any, Any], Any],
    inputs: Tree,
    targets: Tree,
    full: torch.dtype = torch.float32,
) -> Habits:
    """Return the habits of a model and a loss at some samples. Cost: one forward pass of them.

    Where the code of the user raises, every habit is taken for granted: what is wrong is told by
    whoever needs a value.

    Args:
        run: the model, gradients recorded.
        loss: of (outputs, targets); a guarded one is told what was found.
        inputs: of some samples; copies of them are given to the model.
        targets: of the same.
        full: of θ: what is computed in fewer bits is noticed.

    Raises:
        InvalidArgumentError: the model checkpoints its activations in the re-entrant way.

    >>> found = observe(lambda x: x.mul_(2), lambda y, t: (y - t).square(), torch.ones(1), 0)
    >>> found.edits_inputs, found.draws, found.sparse
    (True, False, False)
    """
    # Copies, since whether they are changed is what is looked for.
    given, wanted, before = _copied(inputs), _copied(targets), random_states()
    inner, watch = loss.as_it_is if isinstance(loss, Guarded) else loss, _Watch()
    roundings = Roundings(full)
    try:
        with watch, roundings, users_code("the loss"):
            values = inner(run(given), wanted)
    except UserCodeError:
        values = None
    if watch.reentrant:
        raise InvalidArgumentError(REENTRANT)
    # Nothing is known then, and every habit is the careful default.
    if not isinstance(values, Tensor):
        return Habits(rounds_to=roundings.dtype)
    if isinstance(loss, Guarded):
        loss.edits = _differ(wanted, targets)
    return Habits(
        edits_inputs=_differ(given, inputs),
        attends=watch.attends,
        draws=random_states() != before,
        sparse=any(getattr(node, "_saved_sparse", False) for node in _nodes(values.grad_fn)),
        rounds_to=roundings.dtype,
    )


@final
class Guarded:
    """A loss of the user, which is given copies of the targets where it changes them.

    Args:
        inner: of (outputs, targets).
        left: what a forward pass leaves in the model and the loss reads there, if it reads any.

    Attributes:
        edits: whether it changes them.
    """

    def __init__(self, inner: Callable[[Any, Any], Any], left: "Left | None" = None) -> None:
        self.inner, self.left, self.edits = inner, left, True

    def __call__(self, outputs: Any, targets: Tree) -> Any:
        """Return what the loss returns."""
        if self.edits:
            return self.as_it_is(outputs, _copied(targets))
        before = versions(targets)
        values = self.as_it_is(outputs, targets)
        if versions(targets) != before:
            raise unexpected_edit("the loss changes its targets")
        return values

    def as_it_is(self, outputs: Any, targets: Tree) -> Any:
        """Return what the loss returns, which may change the targets."""
        if self.left is None:
            return self.inner(outputs, targets)
        with self.left.taken():
            return self.inner(outputs, targets)

    def __getattr__(self, name: str) -> Any:
        # `copy` and `pickle` ask for such names before `inner` is set, and would ask without end.
        if name in ("inner", "left") or (name.startswith("__") and name != "__name__"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __str__(self) -> str:
        return str(self.inner)


class Around:
    """A loss of flatkit's own around one of the user.

    Args:
        loss: the one inside.
    """

    def __init__(self, loss: Any) -> None:
        self.loss = loss

    def __str__(self) -> str:
        return str(getattr(self.loss, "__name__", self.loss))


def guarded(loss: Any, left: "Left | None" = None) -> Any:
    """Return a loss that leaves its targets alone: those of flatkit do.

    >>> type(guarded(torch.nn.functional.mse_loss)).__name__
    'Guarded'
    """
    return loss if type(loss).__module__.startswith("flatkit.") else Guarded(loss, left)


def left_for(loss: Any) -> "Left | None":
    """Return what a loss reads that forward passes leave in the model, if it reads any.

    >>> left_for(guarded(torch.nn.functional.mse_loss))
    """
    while isinstance(loss, Around):
        loss = loss.loss
    return loss.left if isinstance(loss, Guarded) else None


def moved(loss: Any, copy: Callable[[Any], Any], known: Callable[[Any], Any]) -> Any:
    """Return a loss, guarded or not, with a copy of what the user gave.

    Args:
        loss: of (outputs, targets).
        copy: gives the copy of what the user gave.
        known: gives the copy of what the private model holds, or None.

    >>> moved(guarded(torch.nn.functional.mse_loss), lambda loss: print, lambda part: None).inner
    <built-in function print>
    """
    if isinstance(loss, Around):
        return type(loss)(moved(loss.loss, copy, known))
    if not isinstance(loss, Guarded):
        return copy(loss)
    other = Guarded(moved(loss.inner, copy, known), loss.left and loss.left.moved(known))
    other.edits = loss.edits
    return other


def versions(tree: Tree) -> int:
    """Return how often the tensors of a tree were changed in place.

    >>> versions((torch.ones(1), torch.ones(1).add_(1)))
    1
    """
    return tree._version if isinstance(tree, Tensor) else sum(x._version for x in leaves(tree))


def unexpected_edit(what: str) -> InvalidArgumentError:
    """Return the error that private samples were changed in place, where that was not seen before.

    Args:
        what: changed them.
    """
    return InvalidArgumentError(
        f"{what} in place at some samples or weights, and not at others; let it work on a "
        "copy (`x = x.clone()` before the in-place operation)"
    )


@final
class _Watch(TorchFunctionMode):
    """Looks for attention, and for re-entrant checkpoints, which compute without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.reentrant = self.attends = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if not (self.reentrant or torch.is_grad_enabled()):
            # Re-entrant checkpoints run a layer without gradients inside of this function.
            code = CheckpointFunction.forward.__code__
            self.reentrant = any(frame.f_code is code for frame in _frames())
        # What has no name is taken for attention: to be
        # wrong so costs time, and otherwise a derivative.
        self.attends |= "attention" in getattr(func, "__name__", "attention")
        return func(*args, **(kwargs or {}))


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe()  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        yield frame
        frame = frame.f_back


def _copied(tree: Tree) -> Tree:
    return map_tree(torch.clone, tree)


def _differ(given: Tree, original: Tree) -> bool:
    """Whether copies were changed, also by NumPy, or by operations that happened to change none."""
    pairs = zip(leaves(given), leaves(original), strict=True)
    return any(copy._version > 0 or not torch.equal(copy, leaf) for copy, leaf in pairs)


def _nodes(root: Any) -> Iterator[Any]:
    """Yield the nodes of a graph of autograd."""
    seen, waiting = set[Any](), [root]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [below for below, _ in node.next_functions]
