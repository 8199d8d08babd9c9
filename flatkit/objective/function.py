"""The objective L(θ): the mean loss over named samples as a function of one flat vector."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor, nn

from flatkit.checks import check_choice, check_count
from flatkit.devices import ordinary_torch
from flatkit.devices.joining import current
from flatkit.devices.ranks import ALONE
from flatkit.errors import InvalidArgumentError
from flatkit.objective.decisions import NAME_CLASSES, Decision, decision_of
from flatkit.objective.joint import joint_loss, joint_value
from flatkit.objective.kept import ask
from flatkit.objective.losses import LossFunction, ModelLoss, as_sums, name_of
from flatkit.objective.model.copier import Copier
from flatkit.objective.model.habits import WATCHED, guarded, moved
from flatkit.objective.model.layout import lay_out, prefers_channels_last
from flatkit.objective.model.left import Left
from flatkit.objective.model.one_function import make_one_function
from flatkit.objective.model.placing import PlacedModel
from flatkit.objective.model.private_model import BatchNormMode, private_copy
from flatkit.objective.model.sharded import whole_of
from flatkit.objective.model.sizing import rows_at_once
from flatkit.objective.names import LOSSES
from flatkit.objective.narrowing import (
    NARROW,
    check_dtype,
    compute_narrowly,
    compute_widely,
    name_of_dtype,
    narrowed_like,
    start_widely,
)
from flatkit.objective.over_samples import OverSamples, sums
from flatkit.objective.parameters import ParameterSpace
from flatkit.objective.passes import (
    Chunk,
    Counter,
    Evaluation,
    differentiate,
    losses_of,
    share_of,
)
from flatkit.objective.proofs.completeness import Search, complete
from flatkit.objective.proofs.examination import NOT_EXAMINED, Check, Examination
from flatkit.objective.proofs.prove import check_finite, examine_all, smooth_part
from flatkit.objective.proofs.sample_weights import find_own_weights
from flatkit.objective.proofs.spread import spread_rows
from flatkit.objective.pytree import Bundle
from flatkit.objective.reading.intake import Taker, take_in
from flatkit.objective.reading.randomness import undisturbed
from flatkit.objective.reading.sample_set import Samples
from flatkit.objective.reading.samples import Data

_IN_PARTS = Check("complete", None, "not looked at: the weights lie in parts on several ranks")


class Objective(PlacedModel, OverSamples):
    """The mean loss of a model over samples, as a function of one flat vector θ of shape [P].

    L(θ) = (1/N) Σₙ ℓ(model_θ(xₙ), yₙ), added up over chunks that are weighted by their size, so
    that with BatchNorm in `eval` mode any chunking, also a ragged one, gives the same value up to
    rounding. Weight decay is not part of L, dropout is off.

    Where samples count differently (padding that a loss ignores, class weights), L is Σ wₙℓₙ / Σ wₙ
    over all the samples: the one number that a single batch of all of them would give.

    The model is copied once: parameters, buffers, modes, gradients and random state of the user's
    model are never touched. One whose weights lie in parts on several ranks (`fully_shard`, or
    DTensors of one mesh) is measured in place by all of them together, inside of
    `flatkit.devices.joining.joined`: its weights, modes and gradients come back bit for bit, and
    vectors of θ are whole on every rank. θ holds the parameters with `requires_grad`, tied ones
    once; the others are constants.

    On construction it is examined (`examine=True`): what is wrong is an error that names the
    cause, and what was found is kept as `examination`. A loss that returns one number is checked
    to be a mean over samples; one that returns a value per sample needs no check.
    `nn.CrossEntropyLoss` and `nn.NLLLoss` are taken apart into sums and weights.

    Args:
        model: maps a batch of inputs to outputs; inputs in a dict go to it by name, those that
            it takes.
        loss: a name in `flatkit.objective.LOSSES` (`model`: the loss that the model returns), or a
            function of (outputs, targets) that returns one value per sample, shape [B], or their
            mean. If a batch is a dict, its `labels` (or `label`, `targets`, `target`, `y`) are the
            targets, or the whole dict if it has none of these.
        data: a pair (inputs [N, ...], targets [N, ...]), a dict or longer tuple of tensors, a
            data set of samples, or a DataLoader over one (its order does not matter, every sample
            counts once).
        samples: how many of the samples to use, drawn without replacement by `seed`; or all. Of
            an iterable data set they are the first.
        batchnorm: `eval` uses the running statistics; `train` those of each chunk, in which case
            `chunk_size` is part of the function that is measured, and must be given.
        chunk_size: samples that go through the model at once; by default about a million numbers.
        dtype: or its name; every operation computes in it, also where the model itself casts to
            16 bits or runs under autocast; by default that of the parameters (float32 for 16-bit
            ones), and what the model does in 16 bits by itself is noise, as of bfloat16. That is
            the dtype of the model's weights and activations alone: θ, losses, sums over chunks and
            all vectors stay in float32, and `exact` is the same function without it.
        device: computes there; by default where the parameters are.
        loss_parameters: make parameters of the loss that require gradients part of θ, named
            `loss.` and so on; without, such a loss is refused.
        examine: prove on construction that this is one function of θ, made of samples; without,
            `examination` and every report say that nothing was proved.

    Raises:
        InvalidArgumentError: the arguments do not fit together, or the model does not compute in
            bfloat16.
        NonDeterministicError: two evaluations differ.
        NonAdditiveLossError: the loss is not a mean over samples.
        NonFiniteError: the weights or the inputs are not finite.
        WrongGradientError: what autograd gives is not the derivative of the loss.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> data = (torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]]))
    >>> objective = Objective(model, "mse", data)
    >>> objective.loss(torch.tensor([2.0]))  # (2² + 4²) / 2
    10.0
    >>> objective.gradient(torch.tensor([2.0]))  # 2·2·(1² + 2²) / 2
    tensor([10.])
    """

    exact: "Objective | None" = None
    """The same function without, where the model computes in a narrow dtype."""

    @ordinary_torch()
    @undisturbed()
    def __init__(
        self,
        model: nn.Module,
        loss: str | LossFunction,
        data: Data,
        *,
        samples: int | None = None,
        seed: int = 0,
        batchnorm: BatchNormMode = "eval",
        chunk_size: int | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        loss_parameters: bool = False,
        examine: bool = True,
    ) -> None:
        check_choice("batchnorm", batchnorm, get_args(BatchNormMode))
        if batchnorm == "train" and chunk_size is None:
            raise InvalidArgumentError(
                "batchnorm='train' needs `chunk_size`: the loss then depends on the batching"
            )
        at_once = chunk_size if batchnorm == "train" else None
        named = LOSSES.build(loss) if isinstance(loss, str) else loss
        dtype = check_dtype(dtype)
        wide = torch.float32 if dtype in NARROW else dtype
        private = private_copy(model, batchnorm, wide, device)
        users = private.copier.copied(as_sums(named))
        self.loss_function = guarded(users, Left.of(users, private.copier))
        self._put_into(private.model, private.sharded)
        free = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        self.space = ParameterSpace.of(free)
        self.theta = self.space.flatten({name: whole_of(p.detach()) for name, p in free.items()})
        self.batchnorm: BatchNormMode = batchnorm
        self.divisible = batchnorm == "eval"  # whether L is the same however samples are cut
        self.ranks = current() if self.sharded is None else self.sharded.ranks
        self.ranks.check_device(self.device)
        self._counter, self.digests = Counter(), None
        self.engine_choices: dict[Any, Any] = {}
        by_itself = start_widely(self, private.source)
        search = None if self.sharded else Search(private, named, users)
        if search is not None:  # the model is a copy
            make_one_function(self._model)
            self.elsewhere = search.watched
        taker = Taker(self._model, self.loss_function, self._run, self.dtype, self.device, at_once)
        with self.standing_elsewhere():
            taken = take_in(data, taker, samples=samples, seed=seed)
        self.samples, self.loss_function, self._trial = taken
        some = self.samples.rows(spread_rows(self.num_rows, at_once or WATCHED).to(self.device))
        habits = self._observe(self.loss_function, some.inputs, some.targets)
        compute_widely(self, habits.rounds_to, some)
        weights, mean_over = find_own_weights(self)
        self.weigh(weights)
        self.chunk_size = check_count("chunk_size", chunk_size or rows_at_once(self))
        completed = _IN_PARTS
        if search is not None:
            completed = complete(self, search, loss_parameters=loss_parameters)
        self.memory_format = self._lay_out()
        check_finite(self.space.unflatten(self.theta), self.samples.inputs, self.loss)
        self.examination = Examination(mean_over, NOT_EXAMINED)
        if examine:
            found = examine_all(self, mean_over, chosen=chunk_size is not None)
            self.examination = found.adding(completed)
        self._places.habits = habits  # from now on random states are put back by each evaluation
        compute_narrowly(self, dtype, habits.rounds_to if by_itself else None)

    def describe(self) -> dict[str, Any]:
        """Return which function this is, ready for JSON."""
        of_loss = [name for name in self.space.names if name.startswith("loss.")]
        return {
            **self.samples.describe(),
            "mean_over": self.examination.mean_over,
            "examination": self.examination.describe(),
            "loss": name_of(self.loss_function),
            "batchnorm": self.batchnorm,
            "dropout": "off",
            "weight_decay": "not included",
            "chunk_size": self.chunk_size,
            "dtype": name_of_dtype(self),
            "device": str(self.device),
            "parameters": self.num_parameters,
            **({"loss_parameters": of_loss} if of_loss else {}),
            # Left out where it is the usual one: half-done landscapes of before have no such key.
            **({"memory_format": "channels_last"} if self.memory_format == "channels_last" else {}),
        }

    def chunk_loss(self, theta: Tensor, chunk: Chunk, *, smooth: bool = True) -> Tensor:
        """Return the part of L(θ) that a chunk contributes, differentiable in θ; they add to L.

        Args:
            theta: the point of `placed`, of which derivatives may be taken until its end. Any other
                [P] stands in the model for this call alone; if it does not require gradients, the
                value does not either.
            chunk: one of `chunks`.
            smooth: twice differentiable; without, attention may use its faster kernels.
        """
        around = nullcontext(theta) if self.stands(theta) else self.standing(theta, smooth=smooth)
        with around as point:
            if self.is_joint:
                part = joint_loss(self, point, chunk)
            else:
                part = self.share(self.outputs(point, chunk), chunk)
        return part if point is theta else part.detach()

    @ordinary_torch()
    def evaluate(self, theta: Tensor | None = None) -> Evaluation:
        """Return the mean loss and accuracy at θ (the model's own by default), in one pass."""
        asked = ask(self, "value", theta, losses=1)
        if asked.answer:
            return Evaluation(*asked.answer)
        found = sums(3)
        with self.placed(theta) as point, self.ranks.adding(sums=found):
            for chunk in self.chunks(losses=1):
                found += torch.tensor(self._value(point, chunk), dtype=found.dtype)
        loss, correct, named = found.tolist()
        return Evaluation(*asked.keep(loss, None if self.decision is None else correct / named))

    def loss(self, theta: Tensor | None = None) -> float:
        """Return L(θ); it may be infinite or NaN far away. Cost: one forward pass."""
        return self.evaluate(theta).loss

    def accuracy(self, theta: Tensor | None = None) -> float:
        """Return the fraction of samples classified correctly.

        Raises:
            InvalidArgumentError: the outputs are no classes.
        """
        accuracy = self.evaluate(theta).accuracy
        if accuracy is None:
            raise InvalidArgumentError(f"accuracy needs outputs {NAME_CLASSES}")
        return accuracy

    @ordinary_torch()
    def loss_and_gradient(self, theta: Tensor | None = None) -> tuple[float, Tensor]:
        """Return L(θ) and ∇L(θ) of shape [P]. Cost: one gradient."""
        asked = ask(self, "gradient", theta, gradients=1)
        if asked.answer:
            return asked.answer
        loss, gradient = sums(1), torch.zeros_like(self.theta)
        with self.placed(theta) as point, self.ranks.adding(gradient, loss):
            parts: list[Tensor] = []
            for chunk in self.chunks(gradients=1):
                part = self.chunk_loss(point, chunk)
                gradient += differentiate(part, point)
                parts.append(part.detach())
            for number in torch.stack(parts).tolist() if parts else ():  # one wait for the device
                loss += number
        return asked.keep(float(loss), gradient)

    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """Return ∇L(θ) of shape [P]. Cost: one gradient."""
        return self.loss_and_gradient(theta)[1]

    def block(self, patterns: str | Sequence[str]) -> "Objective":
        """Return the same loss as a function of some of the parameters, the others held fixed.

        Its Hessian is the diagonal block of the Hessian that belongs to them.

        Args:
            patterns: shell patterns of parameter names, e.g. `layer3.*`.

        Raises:
            InvalidArgumentError: a pattern matches no free parameter.

        >>> data = (torch.ones(1, 1), torch.zeros(1, 1))
        >>> Objective(nn.Linear(1, 1), "mse", data).block("b*").space.names
        ('bias',)
        """
        names = self.space.matching([patterns] if isinstance(patterns, str) else patterns)
        part = copy.copy(self)
        parts = self.space.unflatten(self.theta)
        # Chosen anew: of fewer parameters another engine may be faster.
        part.engine_choices, part.digests = {}, None
        part.kept = self.kept and self.kept.part(names, self.theta)
        part.space = ParameterSpace.of({name: parts[name] for name in names})
        part.theta = part.space.flatten({name: parts[name] for name in names})
        part.exact = self.exact and self.exact.block(patterns)
        part.examination = smooth_part(part, self.examination)
        return part

    def with_model(self, model: nn.Module) -> "Objective":
        """Return the same function of θ with the buffers of a model of the same parameters.

        Of an objective in 16 bits they are those of its `exact`, and copied when it is made.
        """
        if self.exact is not None:
            return narrowed_like(self.exact.with_model(model), self)
        other, copier = copy.copy(self), Copier()
        copier.adopt(self._model, model)
        other._put_into(model)
        other.loss_function = moved(self.loss_function, copier.copied, copier.known)
        other.elsewhere = self.elsewhere and self.elsewhere.moved(copier)
        return other

    def alone(self) -> "Objective":
        """Return the same function as this process computes it alone, over all the samples.

        It counts in a place of its own.
        """
        if self.ranks.count == 1:
            return self
        other = copy.copy(self)
        other.ranks, other._counter = ALONE, Counter()
        other.exact = self.exact and self.exact.alone()
        if self.sharded is None:  # else all ranks are at it, and all are told what is kept
            other.kept = self.kept and self.kept.alone()
        return other

    def in_double(self) -> "Objective":
        """Return a copy that computes in float64; its chunks are to be converted by the caller."""
        if self.exact is not None:
            return self.exact.in_double()
        precise = copy.copy(self)
        precise._counter, precise.engine_choices = Counter(), {}
        if self.sharded is not None or self.dtype == torch.float64:  # the same model will do
            precise.kept = None
            return precise
        copier = Copier(torch.float64)
        precise._put_into(copier.copy(self._model))
        precise._places.wide = self._places.wide and torch.float64
        precise.loss_function = moved(self.loss_function, copier.copied, copier.known)
        precise.elsewhere = self.elsewhere and self.elsewhere.moved(copier)
        precise.theta = self.theta.double()
        return precise

    @cached_property
    @ordinary_torch()
    def decision(self) -> Decision | None:
        """How the outputs name a class; None where they are none."""
        return decision_of(self.losses, self._trial, self.samples.targets)

    def share(self, outputs: Any, chunk: Chunk) -> Tensor:
        """Return the part of L that the outputs of a chunk contribute, a scalar."""
        if isinstance(outputs, Bundle):
            pairs = zip(outputs.units, chunk.units, strict=True)
            return torch.stack([self.share(part, unit) for part, unit in pairs]).sum()
        return share_of(self.values(outputs, chunk), chunk, self.total_weight)

    def values(self, outputs: Any, chunk: Chunk) -> Tensor:
        """Return the loss of every sample of a chunk, [B], or their mean, a scalar.

        Of batches that cannot be cut it is the mean of each, as if that were a sample.
        """
        if isinstance(outputs, Bundle):
            pairs = zip(outputs.units, chunk.units, strict=True)
            shares = [self.share(part, unit) / unit.weight for part, unit in pairs]
            return torch.stack(shares) * self.total_weight
        return losses_of(self.losses(outputs, chunk.targets), chunk)

    def _value(self, point: Tensor, chunk: Chunk) -> tuple[float, int, int]:
        """Return what a chunk adds to L at a placed point, and how many of how many are right."""
        if self.is_joint:
            return joint_value(self, point, chunk)
        decision, outputs = self.decision, self.outputs(point, chunk)  # as it asks a loss: first
        right, asked = (0, 0) if decision is None else decision.right(outputs, chunk.targets)
        return float(self.share(outputs, chunk).detach()), right, asked

    def mean_of(self, theta: Tensor, rows: Tensor) -> float:
        """Return the loss of some samples at θ, where that is one number."""
        part = self.samples.rows(rows.to(self.device))
        chunk = Chunk(part.inputs, part.targets, 1.0)
        return float(self.values(self.outputs(theta, chunk), chunk).detach())

    def _lay_out(self) -> str:
        """Put the images into the layout that is fastest; return which that is."""
        if self.device.type != "cpu" or self.samples.counts is not None or self.sharded:
            return "as given"
        few = slice(2 if self.batchnorm == "eval" else self.chunk_size)

        def loss_of(samples: Samples) -> float:
            part = samples.rows(few)
            chunk = Chunk(part.inputs, part.targets, 1.0)
            return float(self.chunk_loss(self.theta, chunk))

        last = prefers_channels_last(self._model, self.dtype, self.device)
        self.samples, name = lay_out(self.samples, loss_of, last=last, tolerance=self.slack)
        return name

    @property
    def model_takes_mean(self) -> bool:
        """Whether the model itself returns the loss, one number."""
        return isinstance(self.loss_function, ModelLoss)

    @property
    def slack(self) -> float:
        """How exactly means must add up in the dtype of the computation, relatively."""
        # Models that return their loss often compute it in float32, whatever their weights are.
        dtype = torch.float32 if self.model_takes_mean else self.dtype
        return 1e3 * torch.finfo(dtype).eps
