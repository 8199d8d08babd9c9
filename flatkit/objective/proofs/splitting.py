"""How the loss of an objective splits into samples, and what is done where it does not."""

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatkit.devices import free_bytes
from flatkit.errors import NonAdditiveLossError, UserCodeError
from flatkit.objective.proofs.additivity import (
    Gap,
    as_values,
    cuts,
    gap,
    is_weighted_mean,
    loss_splits,
    refuse_coupled,
    refuse_mean,
    refuse_sum,
)
from flatkit.objective.proofs.derivative import rounds
from flatkit.objective.proofs.examination import Found
from flatkit.objective.proofs.sample_weights import counts_that_differ, find_weights, nearby
from flatkit.objective.proofs.spread import spread_rows
from flatkit.objective.pytree import Tree, leaves

if TYPE_CHECKING:
    from flatkit.objective.function import Objective
    from flatkit.objective.passes import Chunk

_LOOKED_AT = 32
"""Samples that are looked at: six evaluations of them are a few hundredths of a gradient of 500."""
_FEWEST = 8
"""Of them also where chunks are smaller: a few may agree by chance, where classes have weights."""
_WEAK = 1e-7
"""Coupling, relative to the loss, that is below the rounding of 32 bits anyway."""
_SHARE = 0.5
"""Of the free memory, that a gradient of all samples at once may take."""


@dataclass
class Look:
    """Samples of an objective, the point at which they are looked at, and their losses there.

    Attributes:
        function: the objective.
        rows: which of its samples.
        theta: the point [P].
        key: what tells apart samples that may count differently [rows].
        whole: their losses [B], or their mean.
        mean_over: what it was found to be a mean over, if that was not known.
    """

    function: "Objective"
    rows: Tensor
    theta: Tensor
    key: Tensor | None = None
    whole: Tensor = field(init=False)
    mean_over: str = ""

    def __post_init__(self) -> None:
        """Evaluate the samples."""
        self.whole = self.values()

    @classmethod
    def at(cls, function: "Objective") -> "Look":
        """Return a look at samples spread over the data, with those that may count otherwise.

        Near θ no two samples lose alike; where there is no number near θ, it is θ itself.

        Args:
            function: the objective; the chunks of `train` BatchNorm are not cut.
        """
        if function.batchnorm == "train":
            return cls(
                function, torch.arange(function.num_rows)[: function.chunk_size], function.theta
            )
        rows, key = telling_rows(function, _LOOKED_AT)
        look = cls(function, rows, nearby(function.theta), key)
        return look if look.whole.isfinite().all() else cls(function, rows, function.theta, key)

    def values(self, rows: Tensor | None = None, theta: Tensor | None = None) -> Tensor:
        """Return the losses of the samples, or of some rows of them, or their mean."""
        function = self.function
        chosen = self.rows if rows is None else self.rows[rows]
        chunk = function.rows(chosen.to(function.device))
        outputs = function.outputs(self.theta if theta is None else theta, chunk)
        return as_values(function.values(outputs, chunk))

    @property
    def chunk(self) -> "Chunk":
        """The samples."""
        return self.function.rows(self.rows.to(self.function.device))

    @property
    def weights(self) -> Tensor:
        """How much each of the samples counts, float64."""
        return self.function.weights[self.rows]

    def gap(self) -> Gap:
        """Return the widest gap between the whole and its parts."""
        cut_at = cuts(len(self.rows), self.key)
        # One cut will do, and it is the last, a random one.
        if self.whole.ndim:  # each sample shows by itself whether it depends on others
            cut_at = cut_at[-1:]
        found = [gap(self.whole, self.values, self.weights, cut) for cut in cut_at]
        return max(found, key=lambda each: each.error)

    def gap_of_loss(self) -> Gap | None:
        """Return the gap of the loss alone, given the outputs; None if these cannot be cut."""
        function = self.function
        outputs = function.outputs(self.theta, self.chunk)
        loss, slack = function.losses, function.slack
        return loss_splits(loss, outputs, self.chunk, self.weights, slack)


def prove_parts(look: Look, *, chosen: bool) -> Found:
    """Return how the loss splits; weigh the samples, or measure all at once, where that is right.

    Args:
        look: at the objective.
        chosen: whether `chunk_size` was given.

    Raises:
        NonAdditiveLossError: the loss is a sum; or a mean that counts samples in an unknown way;
            or samples depend on each other, and do not go through the model at once.
    """
    function, size = look.function, len(look.rows)
    if size == 1:
        return True, "one sample", None
    if function.batchnorm == "train":
        return _prove_loss(look)
    try:
        found = look.gap()
    except UserCodeError as error:  # a model may take no fewer samples
        look.values()  # raises again what has nothing to do with the cut
        return _as_one_batch(look, None, f"a batch is not to be cut, as {error}", chosen)
    if found.error <= function.slack and not look.whole.ndim:
        found = max(found, look.gap_of_loss() or found, key=lambda each: each.error)
    if found.error <= function.slack:
        per = "values of samples agree" if look.whole.ndim else "means of parts add up"
        return True, f"cuts of {size} samples: {per}", found.error
    if not look.whole.ndim:
        return _prove_mean(look, found, chosen)
    return _as_one_batch(look, found, _where(look), chosen)


def prove_apart(look: Look, precise: "Objective", *, chosen: bool) -> Found:
    """Return whether a loss that splits in 32 bits does so in 64: weak coupling hides in rounding.

    Cost: two evaluations of the samples that are looked at, in float64.

    Args:
        look: at the objective.
        precise: its copy in float64.
        chosen: whether `chunk_size` was given.

    Raises:
        NonAdditiveLossError: samples depend on each other, and do not go through at once.
    """
    theta = look.theta.double()

    def values(rows: Tensor) -> Tensor:
        chunk = look.function.rows(look.rows[rows].to(precise.device)).in_double()
        return as_values(precise.values(precise.outputs(theta, chunk), chunk))

    size = len(look.rows)
    try:
        found = gap(values(torch.arange(size)), values, look.weights, cuts(size)[-1])
    except UserCodeError as error:
        return None, f"float64 does not pass ({error})", None
    if found.error <= _WEAK:
        return True, f"cuts of {size} samples agree in float64 too", found.error
    if rounds(precise, theta, look.chunk.in_double()):
        return None, "the model computes in 32 bits", found.error
    where = f"the model or the loss, by {found.error:.1g} of it"
    return _as_one_batch(look, found, where, chosen)


def _prove_mean(look: Look, found: Gap, chosen: bool) -> Found:
    """Say what a number is that is no plain mean: a sum, a weighted mean, or of the whole batch."""
    function, slack = look.function, look.function.slack
    if found.sum_error <= slack:
        raise refuse_sum(found, len(look.rows), function.num_samples)
    # Twice as far from θ on the same line: a second point at which no two samples lose alike.
    further = 2 * look.theta - function.theta
    # At one point alone some weights always explain the number.
    points = look.values, partial(look.values, theta=further)
    if not is_weighted_mean(*points, len(look.rows), tolerance=100 * slack):
        return _as_one_batch(look, found, _where(look), chosen)
    if function.model_takes_mean or not _reweigh(look):
        if _why_not_at_once(look, chosen):
            raise refuse_mean(found)
        function.as_one_batch()
        return False, "a mean in which samples count differently: measured as one batch", None
    rows, key = telling_rows(function, _LOOKED_AT)
    error = Look(function, rows, look.theta, key).gap().error
    if error > slack:
        raise refuse_mean(found)
    return True, f"weighted means of parts add up ({look.mean_over})", error


def _reweigh(look: Look) -> bool:
    """Weigh the samples by what shows in their targets, if that explains the mean."""
    function = look.function
    # Of single labels a class may be left out or weighted: whoever wrote the loss is to say so.
    ways = counts_that_differ(function.samples.targets, function.num_rows, classes=False)
    if not ways:
        return False

    try:
        weights, look.mean_over = find_weights(
            partial(function.mean_of, look.theta),
            ways,
            function.num_rows,
            tolerance=0.1 * function.slack,
        )
    except NonAdditiveLossError:
        return False
    function.weigh(weights)
    return True


def _prove_loss(look: Look) -> Found:
    """Look at the loss alone, where the model's outputs depend on the batch by choice."""
    function = look.function
    found = look.gap_of_loss()
    if found is None:
        return None, "BatchNorm depends on the batch, and the outputs cannot be cut", None
    if found.error <= function.slack:
        return (
            True,
            "given the outputs of a chunk, the loss is a mean over its samples",
            found.error,
        )
    if not look.whole.ndim and found.sum_error <= function.slack:
        raise refuse_sum(found, len(look.rows), function.num_samples)
    if function.num_chunks > 1:
        what = "samples depend on each other in the loss, whatever the model does"
        raise refuse_coupled(found, what, function.num_rows, "BatchNorm takes each chunk alone")
    return False, "does not split: measured as one batch", None


def _where(look: Look) -> str:
    """Return whether the loss or the model makes samples depend on each other.

    Raises:
        NonAdditiveLossError: the model does, and the loss of its outputs is a sum.
    """
    function = look.function
    found = look.gap_of_loss()
    if found is None:
        return "the model or the loss"
    if found.error > function.slack >= found.sum_error:
        raise refuse_sum(found, look.chunk.size, function.num_samples)
    return "the model" if found.error <= function.slack else "the loss"


def _as_one_batch(look: Look, found: Gap | None, where: str, chosen: bool) -> Found:
    """Measure all samples at once, if that is not against what was asked for."""
    if found is not None:
        where = f"samples depend on each other in {where}"
    if but := _why_not_at_once(look, chosen):
        raise refuse_coupled(found, where, look.function.num_rows, but)
    look.function.as_one_batch()
    return False, f"{where}: measured as one batch", None


def _why_not_at_once(look: Look, chosen: bool) -> str:
    """Return why all samples cannot go through the model at once; nothing if they can."""
    function = look.function
    if function.chunk_size >= function.num_rows:
        return ""
    if chosen:
        return f"got chunk_size={function.chunk_size}"
    if not _fits_in_memory(function, look.chunk, look.theta):
        return "all at once would take more than half of the free memory"
    return ""


def _fits_in_memory(function: "Objective", few: "Chunk", theta: Tensor) -> bool:
    """Whether a gradient of all samples at once takes less than half of the free memory.

    It is told from what autograd keeps for a few samples.

    Args:
        function: whose samples.
        few: some of them.
        theta: a point.
    """
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        # By storage: views and saved slices of one tensor hold its memory once.
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        function.chunk_loss(theta.detach().requires_grad_(), few)
    # A product by double backward keeps about three times what a gradient does.
    needed = 3 * sum(held.values()) * function.num_rows / few.size
    return needed <= _SHARE * free_bytes(function.device)


def telling_rows(function: "Objective", most: int) -> tuple[Tensor, Tensor | None]:
    """Return samples spread over the data, and those that have most and least of what may be odd.

    Beside them what tells these apart [rows], or None where nothing shows.

    Args:
        function: the objective.
        most: how many; fewer where a chunk has fewer.
    """
    size = min(most, max(function.chunk_size, _FEWEST))
    rows = spread_rows(function.num_rows, size)
    of_targets = counts_that_differ(function.samples.targets, function.num_rows)
    inputs = _whole_numbers(function.samples.inputs)
    # Targets first: only so many rows are looked at.
    ways = {**of_targets, **counts_that_differ({"inputs": inputs}, function.num_rows)}
    if not ways:
        return rows, None
    if len(rows) < function.num_rows:
        ends = [row for way in ways.values() for row in (int(way.argmax()), int(way.argmin()))]
        told = torch.tensor(list(dict.fromkeys(ends))[: size // 2], dtype=torch.int64)
        # As many fewer of those that are spread, evenly over the data again.
        kept = rows[torch.linspace(0, size - 1, size - len(told)).long()]
        rows = torch.cat([kept, told]).unique()
    counts = torch.stack([way[rows] / way.max() for way in (of_targets or ways).values()])
    # Random shares: two ways of counting that run against each other leave the key no constant.
    mixed = torch.rand(len(counts), generator=torch.Generator().manual_seed(0)).double()
    return rows, mixed @ counts


def _whole_numbers(inputs: Tree) -> list[Tensor]:
    """Return inputs that may be words, among which are those of padding, or masks."""
    return [leaf for leaf in leaves(inputs) if not (leaf.is_floating_point() or leaf.is_complex())]
