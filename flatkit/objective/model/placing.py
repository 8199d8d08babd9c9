"""Weights that stand in a model from the forward pass until the last derivative has been taken.

What recomputes in the backward pass (activation checkpointing, custom functions) reads the weights
again, so that they must still be those of the forward pass.
"""

from abc import ABC
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map as torch_tree_map

from flatkit.devices import is_ordinary, ordinary_torch
from flatkit.errors import UserCodeError
from flatkit.objective.kept import Passes
from flatkit.objective.model.copier import Copier, notes_on, parameter_places
from flatkit.objective.model.elsewhere import Elsewhere
from flatkit.objective.model.habits import (
    Habits,
    left_for,
    moved,
    observe,
    unexpected_edit,
    versions,
)
from flatkit.objective.model.sharded import ShardedModel
from flatkit.objective.model.widening import Widening, is_narrower
from flatkit.objective.parameters import ParameterSpace, check_like
from flatkit.objective.passes import Chunk, arguments, outputs_of
from flatkit.objective.pytree import Bundle, Tree, dtype_like, first_unit, map_object, map_tree
from flatkit.objective.reading.randomness import undisturbed
from flatkit.objective.users_code import users_code


class PlacedModel(ABC):
    """A private model as a function of one flat vector θ: the half of `Objective` that runs it.

    Attributes:
        space: the names and shapes of the parameters in θ.
        theta: the model's own point [P].
        loss_function: of (outputs, targets), as the user gave it or a copy.
        kept: where dear passes are kept and looked for, if anywhere.
        digests: of what L depends on, where all ranks had to be asked for them.
        narrow: a dtype of 16 bits in which the model computes, where that is not the dtype of θ.
        by_itself: whether it does so by itself: weights and inputs go into it as they are.
    """

    narrow: torch.dtype | None = None
    by_itself: bool = False
    loss_function: Any
    kept: Passes | None
    digests: dict[str, str] | None
    space: ParameterSpace
    theta: Tensor
    _model: nn.Module
    _places: "Places"

    @property
    def num_parameters(self) -> int:
        """P."""
        return self.space.size

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of θ, of all vectors and sums, and unless it is `narrow` of the computation."""
        return self.theta.dtype

    @property
    def device(self) -> torch.device:
        """The device of θ and of the computation."""
        return self.theta.device

    @property
    def elsewhere(self) -> "Elsewhere | None":
        """Where else than in the private model the weights stand, if anywhere."""
        return self._places.elsewhere

    @elsewhere.setter
    def elsewhere(self, places: "Elsewhere | None") -> None:
        self._places.elsewhere = places

    @property
    def reads_kept(self) -> bool:
        """Whether the loss may read what a pass of the model keeps in it, beside its outputs."""
        left = left_for(self.loss_function)
        return left is not None and left.found

    @property
    def sharded(self) -> ShardedModel | None:
        """The user's model, where that is in parts on several ranks and measured in place."""
        return self._places.sharded

    @property
    def is_joint(self) -> bool:
        """Whether each rank of a sharded model takes its part of a chunk (`fully_shard`)."""
        return self.sharded is not None and self.sharded.kind == "fully_shard"

    @property
    def has_double(self) -> bool:
        """Whether there is a copy in float64: not of a model in parts, unless it is that itself."""
        return self.sharded is None or self.dtype == torch.float64

    @contextmanager
    def standing_elsewhere(self) -> Generator[None]:
        """Let the model's own point stand elsewhere too, unless one stands already."""
        if self.elsewhere is None or self.elsewhere.is_standing:
            yield
        else:
            with self.elsewhere.standing(self.space.unflatten(self.theta)):
                yield

    @property
    def model(self) -> nn.Module:
        """The private copy of the model, in the mode in which it is measured."""
        return self._model

    @contextmanager
    def placed(self, theta: Tensor | None = None, *, smooth: bool = True) -> Generator[Tensor]:
        """Let θ stand in the model while values and derivatives are taken; give the point [P].

        The point is a copy of θ that requires gradients: nothing that the model does reaches the
        caller's tensor. Take the last derivative inside: a model that recomputes in the backward
        pass reads the weights again. What is kept for later derivatives takes them inside
        `placed_again`. Contexts of the caller (`no_grad`, `inference_mode`, autocast, a default
        device) are without effect inside.

        Args:
            theta: [P]; the model's own by default.
            smooth: twice differentiable; without, attention may use its faster kernels.

        >>> from flatkit import Objective
        >>> objective = Objective(nn.Linear(1, 1), "mse", (torch.ones(1, 1), torch.zeros(1, 1)))
        >>> with objective.placed(torch.tensor([1.0, 2.0])) as point:
        ...     loss = sum(objective.chunk_loss(point, chunk) for chunk in objective.chunks())
        ...     torch.autograd.grad(loss, point)  # 2·(1 + 2)
        (tensor([6., 6.]),)
        """
        with self._places.ready(smooth):
            theta = self.theta if theta is None else theta
            check_like("theta", theta, self.theta)
            point = theta.detach().clone().requires_grad_(not self._places.habits.values_only)
            with self._places.holding(point, self.space, self._own_parts(point)):
                yield point

    @contextmanager
    def placed_again(self, point: Tensor, *, smooth: bool = True) -> Generator[None]:
        """Let a point that `placed` gave stand in the model again, for further derivatives."""
        places = self._places
        with places.ready(smooth), places.holding(point, self.space, self._own_parts(point)):
            yield

    def stands(self, theta: Tensor) -> bool:
        """Whether the weights in the model are those of a point, as inside of `placed`."""
        return self._places.stands(theta, self.space)

    @contextmanager
    def standing(self, theta: Tensor, *, smooth: bool = True) -> Generator[Tensor]:
        """Let any θ stand in the model, also one of the transforms of torch.func; give the point.

        What can be differentiated already is the point itself, all else is `placed`.
        """
        check_like("theta", theta, self.theta)
        # Of what is taken at a mere value the model must not know: there is one function.
        if not (theta.requires_grad or is_functorch_wrapped_tensor(theta)):
            with self.placed(theta, smooth=smooth) as point:
                yield point
            return
        with self._places.ready(smooth):
            # A copy, as the model may write into them.
            parts = self.space.unflatten(self.narrowed(theta.clone()))
            with self._places.holding(theta, self.space, parts):
                yield theta

    def narrowed(self, tree: Tree) -> Tree:
        """Return tensors as the model computes with them: reals in `narrow`, if there is one."""
        if self.narrow is None or self.by_itself:
            return tree
        narrow = self.narrow
        return map_tree(lambda leaf: leaf.to(dtype_like(leaf.dtype, narrow)), tree)

    def widened(self, outputs: Any) -> Any:
        """Return outputs in the dtype of θ, in which losses and their sums are computed."""
        if self.narrow is None:
            return outputs
        wide = self.dtype

        def widen(leaf: Any) -> Any:
            narrow = isinstance(leaf, Tensor) and is_narrower(leaf.dtype)
            return leaf.to(dtype_like(leaf.dtype, wide)) if narrow else leaf

        return torch_tree_map(widen, outputs)

    def outputs(self, theta: Tensor, chunk: Chunk, *, smooth: bool = True) -> Any:
        """Return what the model makes of a chunk at θ, differentiable in the point that stands.

        Args:
            theta: the point of `placed`, or any other [P], which then stands in the model for this
                call alone.
            chunk: one of `chunks`.
            smooth: as of `placed`, where that is not around.
        """
        if chunk.units:
            return Bundle([self.outputs(theta, unit, smooth=smooth) for unit in chunk.units])
        inputs = self.inputs_of(chunk)
        before = versions(inputs)
        args, kwargs = arguments(inputs)
        around = nullcontext() if self.stands(theta) else self.standing(theta, smooth=smooth)
        with around, users_code("the model", self._model):
            outputs = self._model(*args, **kwargs)
            if self.sharded is not None:
                outputs = self.sharded.whole_outputs(outputs)
        if inputs is chunk.inputs and versions(inputs) != before:
            raise unexpected_edit("the model changes its inputs")
        return outputs

    def losses(self, outputs: Any, targets: Any) -> Any:
        """Return what the loss makes of outputs, with the weights that it holds itself in place."""
        if isinstance(outputs, Bundle):
            pairs = zip(outputs.units, targets.units, strict=True)
            return torch.stack([self.losses(*pair).mean() for pair in pairs]).mean()
        around = nullcontext() if self.elsewhere is None else self.standing_elsewhere()
        with around, self.widening(), users_code("the loss"):
            widens = getattr(self.loss_function, "widens", False)
            return self.loss_function(outputs if widens else self.widened(outputs), targets)

    def _run(self, inputs: Tree) -> Any:
        outputs = self._outputs_or_values(self.theta, Chunk(inputs, None, 1.0))
        return outputs.detach() if isinstance(outputs, Tensor) else outputs

    def _put_into(self, model: nn.Module, sharded: ShardedModel | None = None) -> None:
        """Run another copy of the model from now on, which has the same habits."""
        known = getattr(self, "_places", None)
        self._model, self._places = model, Places(model, sharded)
        self.kept = None  # its buffers may be others, or be changed
        if known is not None:
            self._places.habits, self._places.wide = known.habits, known.wide

    def widen(self, *, yes: bool = True) -> None:
        """Compute in the dtype of θ from now on, also what the model itself does in a narrower."""
        self._places.wide = self.dtype if yes else None

    def widening(self) -> AbstractContextManager[object]:
        """Compute so inside, for who runs the loss or parts of the model outside of `placed`."""
        return nullcontext() if self._places.wide is None else Widening(self._places.wide)

    def narrow_to(self, narrow: torch.dtype, *, by_itself: bool) -> None:
        """Let the model compute in a narrow dtype from now on, as it is or as it is converted."""
        elsewhere, self.narrow, self.by_itself = self.elsewhere, narrow, by_itself
        copier = Copier(narrow)
        self._put_into(self._model if by_itself else copier.copy(self._model))
        if not by_itself:  # the loss stays as it is, and reads what this copy leaves
            self.loss_function = moved(self.loss_function, lambda loss: loss, copier.known)
        self.elsewhere, self._places.wide = elsewhere, None

    def inputs_of(self, chunk: Chunk) -> Tree:
        """Return the inputs of a chunk to run the model on: copies, if it changes them in place."""
        if chunk.counted is not None:  # of any form, and few: as a copy each time
            return map_object(torch.clone, chunk.inputs)
        edits = self._places.habits.edits_inputs
        return self.narrowed(map_tree(torch.clone, chunk.inputs) if edits else chunk.inputs)

    def _outputs_or_values(self, theta: Tensor, chunk: Chunk) -> Any:
        """Return outputs; of a model that runs without gradients alone, from then on without."""
        try:
            return self.outputs(theta, chunk)
        except UserCodeError as error:
            known, self._places.habits = self._places.habits, Habits(draws=False, values_only=True)
            try:
                return self.outputs(theta, chunk)
            except UserCodeError:
                self._places.habits = known
                raise error from error.__cause__

    def _observe(self, loss: Any, inputs: Tree, targets: Tree) -> Habits:
        """Look at what the model and a loss do beside computing, and copy only if need be."""

        def run(given: Tree) -> Any:
            with users_code("the model", self._model):
                return outputs_of(self._model, given)

        with self.placed():
            habits = observe(run, loss, first_unit(inputs), first_unit(targets), self.dtype)
        habits = replace(habits, values_only=self._places.habits.values_only)
        self._places.habits = replace(habits, draws=False)
        return habits

    def _own_parts(self, point: Tensor) -> Mapping[str, Tensor]:
        """Return the parameters at a leaf, differentiable with respect to it.

        Views of one tensor count together how often they were changed: one that a model changes in
        place (rows of an embedding with `max_norm`) would make invalid what others saved for the
        backward pass. Those of `unsafe_split` count by themselves, and take half the time.
        """
        if point.shape != (self.space.size,):
            self.space.unflatten(point)  # tells what is wrong
        parts = torch.unsafe_split_with_sizes(self.narrowed(point), self.space.sizes)
        shaped = self.space.shaped(parts)
        if self._places.habits.sparse and point.requires_grad:
            return {name: _Dense.apply(part) for name, part in shaped.items()}
        return shaped


@final
class Places:
    """The places of a model's parameters, in which other tensors can stand for a while.

    A parameter is replaced wherever it stands, also in several modules.

    Args:
        model: a private copy, which nobody else runs.
        sharded: that model, where it is the user's own, in parts on several ranks.

    Attributes:
        habits: what the model and its loss do beside computing.
        elsewhere: where else the tensors stand meanwhile.
        wide: computes all in this dtype, also what the model itself does in a narrower one.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> space = ParameterSpace.of(dict(layer.named_parameters()))
    >>> point = torch.tensor([3.0])
    >>> with Places(layer).holding(point, space, space.unflatten(point)):
    ...     layer(torch.ones(1, 1))
    tensor([[3.]])
    >>> isinstance(layer.weight, nn.Parameter)
    True
    """

    def __init__(self, model: nn.Module, sharded: ShardedModel | None = None) -> None:
        self.sharded = sharded
        slots = {prefix: vars(module)["_parameters"] for prefix, module in model.named_modules()}
        self._slots: list[tuple[dict[str, Tensor | None], str, str]] = [
            (slots[prefix], own, name) for (prefix, own), name in parameter_places(model).items()
        ]
        self._notes = notes_on(model)
        self._has_recurrence = any(isinstance(m, nn.RNNBase) for m in model.modules())
        self._standing: tuple[Tensor, ParameterSpace] | None = None
        self.habits = Habits(draws=False)  # until it is known whether two values are the same
        self.elsewhere: Elsewhere | None = None
        self.wide: torch.dtype | None = None

    def stands(self, point: Tensor, space: ParameterSpace) -> bool:
        """Whether the weights in the model are those of a point."""
        now = self._standing
        return now is not None and now[0] is point and now[1] is space

    @contextmanager
    def holding(
        self, point: Tensor, space: ParameterSpace, parts: Mapping[str, Tensor]
    ) -> Generator[None]:
        """Let the parts of a point stand in the model; those of before come back at the end.

        Args:
            point: [P].
            space: its names and shapes.
            parts: its parameters by name.
        """
        slots = self._slots if self.sharded is None else ()
        taken = [(slot, own, parts[name]) for slot, own, name in slots if name in parts]
        before = [(slot, own, slot[own]) for slot, own, _ in taken]
        standing, self._standing = self._standing, (point, space)
        try:
            if self.sharded is not None:
                with self.sharded.holding(parts):
                    yield
                return
            for slot, own, part in taken:
                slot[own] = part
            for name in self._notes.keys() & parts.keys():
                vars(parts[name]).update(self._notes[name])
            with nullcontext() if self.elsewhere is None else self.elsewhere.standing(parts):
                yield
        finally:
            for slot, own, tensor in before:
                slot[own] = tensor
            self._standing = standing

    @contextmanager
    def ready(self, smooth: bool) -> Generator[None]:
        """Set torch up for derivatives; `smooth` leaves out kernels that have no second one."""
        attends, recurs = smooth and self.habits.attends, smooth and self._has_recurrence
        plain = not (attends or recurs or self.habits.draws or self.wide)
        if plain and torch.is_grad_enabled() and is_ordinary():
            yield  # to enter nothing takes a tenth of a gradient of a small network
            return
        with ExitStack() as stack:
            stack.enter_context(ordinary_torch())
            if self.habits.draws:
                stack.enter_context(undisturbed())
            if not torch.is_grad_enabled():
                stack.enter_context(torch.enable_grad())
            if attends:
                # The flash kernels of attention have no second derivative; the plain one has.
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if recurs:  # nor have those of cuDNN
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            if self.wide:
                stack.enter_context(Widening(self.wide))
            yield


@final
class _Dense(torch.autograd.Function):
    """The same tensor, of which no gradient is sparse: views of a vector take none."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return part.clone()  # a view could not be written into

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore
        return gradient.to_dense() if gradient.is_sparse else gradient
