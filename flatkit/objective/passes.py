"""One pass over the samples: its parts, its result, and the count of passes."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from flatkit.errors import InvalidArgumentError, UserCodeError
from flatkit.objective.pytree import Bundle, Tree, Whole, dtype_like, leaves, map_object, map_tree
from flatkit.objective.users_code import REENTRANT
from flatkit.results.cost import Cost


class Chunk(NamedTuple):
    """A part of the samples that goes through the model at once.

    Attributes:
        inputs: a tree of tensors [B, ...].
        targets: a tree of tensors [B, ...].
        weight: what a mean over the chunk counts in the mean over all; the number of samples,
            unless the loss says otherwise.
        units: of batches that cannot be cut, each as a chunk of its own.
        counted: how many samples it holds, where its tensors do not say so.
    """

    inputs: Tree
    targets: Tree
    weight: float
    units: tuple[Any, ...] = ()
    counted: int | None = None

    @property
    def size(self) -> int:
        """The number of samples B."""
        return len(next(leaves(self.inputs))) if self.counted is None else self.counted

    def in_double(self) -> "Chunk":
        """Return the chunk in float64."""

        def double(leaf: Tensor) -> Tensor:
            # Convolutions in float64 are up to four times slower with the channels last.
            plain = torch.contiguous_format
            wide = dtype_like(leaf.dtype, torch.float64)
            return leaf if leaf.dtype == wide else leaf.to(wide, memory_format=plain)

        mapped = map_tree if self.counted is None else map_object
        return self._replace(
            inputs=mapped(double, self.inputs),
            targets=mapped(double, self.targets),
            units=tuple(unit.in_double() for unit in self.units),
        )


class Evaluation(NamedTuple):
    """The mean loss and, for a classifier, the fraction of samples classified correctly."""

    loss: float
    accuracy: float | None


@final
class Counter:
    """Counts passes over all samples; what a measurement cost is the difference of two readings.

    >>> counter = Counter()
    >>> before = counter.read()
    >>> counter.add(gradients=2)
    >>> (counter.read() - before).gradients
    2
    """

    def __init__(self) -> None:
        self._losses = self._gradients = self._matvecs = 0

    def add(self, *, losses: int = 0, gradients: int = 0, matvecs: int = 0) -> None:
        """Count evaluations of the loss, gradients and Hessian-vector products."""
        self._losses += losses
        self._gradients += gradients
        self._matvecs += matvecs

    def read(self) -> Cost:
        """Return what was counted so far, and the time on the clock."""
        return Cost(
            losses=self._losses,
            gradients=self._gradients,
            matvecs=self._matvecs,
            seconds=time.perf_counter(),
        )


def gradients(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    along: Tensor | Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> tuple[Tensor, ...]:
    """Return what `torch.autograd.grad` does, and zeros where nothing depends on an input.

    The zeros that torch 2.4 itself makes require gradients, whether a graph is wanted or not.

    >>> x, y = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    >>> gradients(x.sum(), [x, y])
    (tensor([1., 1.]), tensor([0., 0.]))
    """
    # Zeros for what is not used: torch itself would give None, or raise.
    found = torch.autograd.grad(
        outputs,
        inputs,
        along,
        create_graph=create_graph,
        retain_graph=create_graph if retain_graph is None else retain_graph,
        materialize_grads=True,
    )
    return found if create_graph else tuple(part.detach() for part in found)


def differentiate(scalar: Tensor, point: Tensor, *, create_graph: bool = False) -> Tensor:
    """Return the gradient of a scalar with respect to a point [P].

    It is exactly zero where the scalar depends on other things alone.

    Raises:
        InvalidArgumentError: the scalar depends on nothing, or the model calls `backward` within
            its backward pass.

    >>> point = torch.tensor([3.0], requires_grad=True)
    >>> differentiate((point**2).sum(), point)
    tensor([6.])
    """
    if not scalar.requires_grad:
        raise InvalidArgumentError(
            "the loss does not depend on the parameters; is it computed under torch.no_grad, "
            "or from detached outputs?"
        )
    try:
        (found,) = gradients(scalar, point, create_graph=create_graph)
    except RuntimeError as error:  # of torch: there is no other sign of it
        if "use_reentrant=True" in str(error):
            raise InvalidArgumentError(REENTRANT) from error
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserCodeError(f"the model or the loss has no gradient: {error}") from error
    if point.grad is not None:  # a backward pass inside of this one took it, and it is lost
        point.grad = None
        raise InvalidArgumentError(REENTRANT)
    return found


def arguments(inputs: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return how inputs go into a model: a dict by name, a tuple by position.

    >>> arguments({"x": 1}), arguments((1, 2)), arguments(1)
    (((), {'x': 1}), ((1, 2), {}), ((1,), {}))
    >>> arguments(Whole({"x": 1}))
    (({'x': 1},), {})
    """
    if isinstance(inputs, Whole):
        return (inputs.tree,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    # A named tuple is one argument, whose parts the model takes by their names.
    several = isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields")
    return (tuple(inputs), {}) if several else ((inputs,), {})


def outputs_of(model: nn.Module, inputs: Tree) -> Any:
    """Return what a model makes of inputs, which go into it as `arguments` says.

    >>> outputs_of(nn.Identity(), torch.ones(1))
    tensor([1.])
    """
    given, named = arguments(inputs)
    return model(*given, **named)


def chunk_of(inputs: Tree, targets: Tree, weights: Tensor, counts: Tensor | None = None) -> Chunk:
    """Return some samples as a chunk.

    Args:
        inputs: a tree of tensors [B, ...], or batches that cannot be cut.
        targets: the same.
        weights: what each row counts, [B].
        counts: of batches that cannot be cut, the samples of each.

    >>> chunk_of(torch.ones(2, 1), torch.ones(2), torch.ones(2)).weight
    2.0
    """
    whole = Chunk(inputs, targets, float(weights.sum()))
    if not isinstance(inputs, Bundle) or counts is None:
        return whole
    parts = zip(inputs.units, targets.units, weights.tolist(), counts.tolist(), strict=True)
    units = tuple(Chunk(i, t, weight, (), count) for i, t, weight, count in parts)
    return whole._replace(units=units, counted=int(counts.sum()))


def losses_of(values: Any, chunk: Chunk) -> Tensor:
    """Return what a loss gives for a chunk: one value a sample [B], or their mean.

    Args:
        values: that it gave.
        chunk: of B samples.

    Raises:
        InvalidArgumentError: other values.

    >>> losses_of(torch.ones(2), Chunk(torch.ones(2, 1), None, 2.0))
    tensor([1., 1.])
    """
    if not isinstance(values, Tensor):
        raise InvalidArgumentError(
            "the loss must return a tensor, a value per sample or their mean, got a "
            f"{type(values).__name__}"
        )
    if values.is_complex():
        raise InvalidArgumentError(
            "the loss must be real, got complex numbers; take their modulus or real part"
        )
    if values.ndim and values.shape != (chunk.size,):
        raise InvalidArgumentError(
            f"the loss must return one value per sample, shape [{chunk.size}], "
            f"or their mean, got the shape {list(values.shape)}"
        )
    return values


def share_of(values: Tensor, chunk: Chunk, total: float) -> Tensor:
    """Return the part of a mean that a chunk contributes, from its losses.

    Args:
        values: one a sample [B], or their mean.
        chunk: with its weight.
        total: the weight of all samples.

    >>> share_of(torch.tensor([1.0, 3.0]), Chunk(torch.ones(2, 1), None, 2.0), 4.0)
    tensor(1.)
    """
    # A mean counts as much as its chunk; values of samples hold their weights already.
    return values * (chunk.weight / total) if values.ndim == 0 else values.sum() / total
