"""Models whose weights lie in parts on several ranks: of `fully_shard` (FSDP2), and of DTensors.

They are measured in place, by all ranks together: a point is written into the parts that each rank
holds, or stands in their stead, and what was there comes back bit for bit. Vectors of θ are whole
on every rank.
"""

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn

from flatkit.devices.joining import current
from flatkit.devices.together import Together
from flatkit.errors import InvalidArgumentError, RankError
from flatkit.objective.model.copier import refuse_without_values
from flatkit.objective.pytree import map_object

Kind: TypeAlias = Literal["fully_shard", "DTensor"]
_PLAIN = (
    "gather a full state dict (torch.distributed.checkpoint.state_dict.get_model_state_dict with "
    "full_state_dict) and load it into the plain model"
)


def kind_of(model: nn.Module) -> Kind | None:
    """Return how the weights of a model are cut into parts; None where they are whole.

    >>> kind_of(nn.Linear(1, 1)) is None
    True
    """
    if any(_is_fsdp(module) for module in model.modules()):
        return "fully_shard"
    return "DTensor" if any(_is_parts(p) for p in model.parameters()) else None


def whole_of(tensor: Tensor) -> Tensor:
    """Return a tensor with all its entries, gathered where it is a DTensor; all ranks must ask.

    >>> whole_of(torch.ones(1))
    tensor([1.])
    """
    return tensor.full_tensor() if _is_parts(tensor) else tensor  # pyright: ignore


def own_box(tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return what this rank holds of a tensor, in its own memory, and where that begins.

    Raises:
        InvalidArgumentError: it is cut by a mesh of several dimensions, or this torch is too old.

    >>> own_box(torch.ones(2, 1))
    (tensor([[1.],
            [1.]]), (0, 0))
    """
    local, offsets = _local(tensor), [0] * tensor.ndim
    if _is_parts(tensor):
        _check_torch()
        parts: Any = tensor
        if parts.device_mesh.ndim != 1:
            raise InvalidArgumentError("a mesh of several dimensions is not taken")
        (placement,) = parts.placements
        if placement.is_shard():
            dimension = placement.dim % tensor.ndim
            along = torch.arange(tensor.shape[dimension], device=local.device)
            # torch is asked which rows these are: it cuts uneven parts by a rule of its own.
            own = _local(_cut(along, tensor, dimension=0))
            offsets[dimension] = int(own[0]) if len(own) else 0
    return local, tuple(offsets)


@final
class ShardedModel:
    """The user's own model, in parts on several ranks, as a place for points.

    Args:
        model: of `fully_shard`, or with parameters that are DTensors.
        kind: which of the two.

    Attributes:
        ranks: that hold it, which make every pass together.

    Raises:
        InvalidArgumentError: it cannot be measured in place; the message says the way out.
    """

    def __init__(self, model: nn.Module, kind: Kind) -> None:
        _check_torch()
        self.model, self.kind = model, kind
        self._check_ranks()
        self.settle()
        self._check_weights()
        self.ranks = Together(current())
        self._spoilt = False  # by a pass that ended in the middle
        self._gathers = False  # whether gradients are asked of the hooks of fully_shard
        self._replicated = 0  # how many contexts treat plain tensors as replicated
        self._own = dict(model.named_parameters())
        names = {id(parameter): name for name, parameter in self._own.items()}
        # Tied weights stand in several places, and all of them are to be found.
        slots = [vars(module)["_parameters"] for module in model.modules()]
        every = [(slot, own, p) for slot in slots for own, p in slot.items() if p is not None]
        self._slots = [(slot, own, names[id(p)]) for slot, own, p in every]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """On which each rank has its parts."""
        return next(self.model.parameters()).device

    def settle(self) -> None:
        """Let every rank hold no more than its part: FSDP may keep weights whole after a pass."""
        for module in self.model.modules():
            if _is_fsdp(module):
                module.reshard()  # pyright: ignore

    @contextmanager
    def holding(self, parts: Mapping[str, Tensor]) -> Generator[None]:
        """Let the weights of a point stand in the model, in the mode in which it is measured.

        Args:
            parts: whole parameters by name, the same on all ranks.
        """
        with ExitStack() as stack:
            if self.kind == "fully_shard":
                stack.enter_context(self._reset_after_errors())
            # From here on a rank that fails alone would leave the others waiting inside of torch.
            stack.enter_context(self.ranks.in_model())
            stack.enter_context(_evaluating(self.model))
            if self.kind == "DTensor":
                stack.enter_context(self._standing(parts))
                stack.enter_context(self._replicating())
            else:
                stack.enter_context(self._written(parts))
            yield

    @contextmanager
    def _reset_after_errors(self) -> Generator[None]:
        """Let hooks forget a pass that an error ended on all ranks.

        Else whole weights of a point that is gone would stand in the model, as if of the next pass.
        """
        if self._spoilt:
            raise InvalidArgumentError(
                "an error ended a pass within this model, and fully_shard of this torch goes on "
                "from it with wrong weights; build the model anew, or use a torch with "
                "FSDPModule.reset_iter_state"
            )
        try:
            yield
        except RankError:  # the others do not go on
            raise
        except BaseException:
            for module in _roots(self.model):
                reset = getattr(module, "reset_iter_state", None)
                self._spoilt |= reset is None
                if reset is not None:
                    reset()
            raise

    def whole_outputs(self, outputs: Any) -> Any:
        """Return outputs with every DTensor whole, differentiable.

        Those of `fully_shard` have no derivatives but inside of `own_gradients`, where its hooks
        gather them: else they would be zeros for whoever differentiates.
        """
        if self.kind != "DTensor":
            return outputs if self._gathers else map_object(torch.Tensor.detach, outputs)
        return map_object(lambda x: _ToWhole.apply(x) if _is_parts(x) else x, outputs)

    @contextmanager
    def own_gradients(self) -> Generator[None]:
        """Let the model have no gradients inside; the user's come back."""
        before = [(parameter, parameter.grad) for parameter in self.model.parameters()]
        self._gathers = True
        try:
            for parameter, _ in before:
                parameter.grad = None
            yield
        finally:
            self._gathers = False
            self.settle()
            for parameter, gradient in before:
                parameter.grad = gradient

    def gradients(self) -> Mapping[str, Tensor]:
        """Return what this rank has of the gradients that a backward pass left, by name.

        They are of the shapes of the parameters, zero beside the parts of this rank, so that all
        ranks together add up to N times the mean of N ranks that `fully_shard` takes.
        """
        self.settle()
        return {name: self._share_of(p) for name, p in self.model.named_parameters()}

    def _share_of(self, parameter: Tensor) -> Tensor:
        share = torch.zeros(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        # Where none came, this rank has nothing to add, but must still take part in the sum.
        gradient: Any = parameter.grad
        if gradient is None:
            return share
        if not _is_parts(gradient):  # of one that nobody shards or adds up
            return share.copy_(gradient).div_(self.ranks.count)
        if not gradient.placements[0].is_shard():
            whole = whole_of(gradient)  # by all: where it is `Partial`, they add it up
            return share if self.ranks.rank else share.copy_(whole)
        local, offsets = own_box(gradient)
        box = (slice(at, at + n) for at, n in zip(offsets, local.shape, strict=True))
        share[tuple(box)] = local
        return share

    @contextmanager
    def _written(self, parts: Mapping[str, Tensor]) -> Generator[None]:
        """Write parameters into the parts of this rank, and their own bits at the end."""
        self.settle()
        held = [(_local(p), p, parts[n]) for n, p in self.model.named_parameters() if n in parts]
        # Bits, not the vector θ: what was in another dtype or is NaN comes back as it was.
        before = [local.clone() for local, _, _ in held]
        try:
            with torch.no_grad():
                for local, parameter, part in held:
                    local.copy_(_local(_cut(part.detach(), parameter)))
            yield
        finally:
            self.settle()
            with torch.no_grad():
                for (local, _, _), bits in zip(held, before, strict=True):
                    local.copy_(bits)

    @contextmanager
    def _standing(self, parts: Mapping[str, Tensor]) -> Generator[None]:
        """Let DTensors of the parameters stand in the modules, differentiable in them."""
        cut = {name: self._cut(part, self._own[name]) for name, part in parts.items()}
        before = [(slot, own, slot[own]) for slot, own, _ in self._slots]
        try:
            for slot, own, name in self._slots:
                slot[own] = cut.get(name, slot[own])
            yield
        finally:
            for slot, own, tensor in before:
                slot[own] = tensor

    def _cut(self, whole: Tensor, like: Tensor) -> Tensor:
        if _is_parts(like):
            return _ToParts.apply(whole, like)  # pyright: ignore
        # Else gradients that come of DTensors would be such.
        return _Replicated.apply(whole, next(p for p in self._own.values() if _is_parts(p)))

    @contextmanager
    def _replicating(self) -> Generator[None]:
        """Let plain tensors go with DTensors: they are the same on all ranks."""
        from torch.distributed.tensor.experimental import implicit_replication

        with ExitStack() as stack:
            if self._replicated == 0:
                stack.enter_context(implicit_replication())
            self._replicated += 1
            try:
                yield
            finally:
                self._replicated -= 1

    def _check_ranks(self) -> None:
        meshes = {p.device_mesh for p in self.model.parameters() if _is_parts(p)}  # pyright: ignore
        count = current().count
        if any(mesh.ndim != 1 for mesh in meshes) or len(meshes) > 1:
            raise InvalidArgumentError(
                "the model is sharded over several meshes, or one of several dimensions (HSDP, "
                f"FSDP with tensor parallelism), and one of one dimension is measured; {_PLAIN}"
            )
        # A job of more ranks than the mesh would have ranks that hold nothing of the model.
        sizes = {mesh.size() for mesh in meshes}
        if sizes and sizes != {count}:
            raise InvalidArgumentError(
                f"the model is sharded over {sizes.pop()} ranks, and {count} measure it; start all "
                "by torchrun and call this inside `with flatkit.devices.joining.joined():`"
            )

    def _check_weights(self) -> None:
        for name, parameter in self.model.named_parameters():
            refuse_without_values(parameter, name)
        dtypes = {parameter.dtype for parameter in self.model.parameters()}
        if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
            raise InvalidArgumentError(
                "a sharded model is measured in the dtype of its weights, all of them float32 or "
                f"all float64, and these are {', '.join(sorted(map(str, dtypes)))}; convert it "
                f"before it is sharded, or {_PLAIN}"
            )


def _check_torch() -> None:
    from torch.distributed import tensor  # takes a second, but for who has such a model

    if not hasattr(tensor, "DTensor"):
        raise InvalidArgumentError(f"a sharded model needs torch 2.5 or newer; {_PLAIN}")


def _is_fsdp(module: nn.Module) -> bool:
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)


def _roots(model: nn.Module) -> list[Any]:
    """Return the outermost modules of `fully_shard` that a pass has gone through before."""
    every = {name: module for name, module in model.named_modules() if _is_fsdp(module)}
    inner = {name for name in every for outer in every if name != outer and _within(name, outer)}
    outermost: list[Any] = [module for name, module in every.items() if name not in inner]
    return [module for module in outermost if module._get_fsdp_state()._is_root]


def _within(name: str, outer: str) -> bool:
    return not outer or name.startswith(f"{outer}.")


def _is_parts(tensor: Any) -> bool:
    return type(tensor).__name__ == "DTensor" or (
        isinstance(tensor, nn.Parameter) and type(tensor.data).__name__ == "DTensor"
    )


def _local(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor, in its own memory."""
    return tensor.detach().to_local() if _is_parts(tensor) else tensor.detach()  # pyright: ignore


def _cut(whole: Tensor, like: Tensor, *, dimension: int | None = None) -> Tensor:
    """Return a tensor that all ranks have whole, cut as another; nothing is sent.

    Args:
        whole: the same on all ranks.
        like: a DTensor, or a tensor that is not cut.
        dimension: along which, in place of those of the other.
    """
    if not _is_parts(like):
        return whole
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh: Any = like.device_mesh  # pyright: ignore
    replicated = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    placements: Any = like.placements if dimension is None else [Shard(dimension)]  # pyright: ignore
    return replicated.redistribute(mesh, placements)


@final
class _ToParts(torch.autograd.Function):
    """The same numbers, cut into parts; whole ones come back to whoever differentiates.

    As one tensor that all ranks hold together this is the identity, and so is its derivative, of
    every order. What torch differentiates by itself (`redistribute`) has no second one.
    """

    @staticmethod
    def forward(ctx: Any, whole: Tensor, like: Tensor) -> Tensor:  # pyright: ignore
        return _cut(whole.detach(), like)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore
        return (_ToWhole.apply(gradient) if _is_parts(gradient) else gradient), None


@final
class _ToWhole(torch.autograd.Function):
    """The same numbers, whole on every rank."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor) -> Tensor:  # pyright: ignore
        ctx.like = parts.detach()
        return whole_of(parts.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore
        like = ctx.like
        if any(placement.is_partial() for placement in like.placements):
            return _Replicated.apply(gradient, like)
        return _ToParts.apply(gradient, like)


@final
class _Replicated(torch.autograd.Function):
    """The same numbers as a DTensor that is whole on every rank."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, like: Tensor) -> Tensor:  # pyright: ignore
        from torch.distributed.tensor import DTensor, Replicate

        mesh: Any = like.device_mesh  # pyright: ignore
        return DTensor.from_local(whole.detach(), mesh, [Replicate()] * mesh.ndim, run_check=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore
        return (_ToWhole.apply(gradient) if _is_parts(gradient) else gradient), None


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    """Let the user's model be in evaluation mode inside, each module as it was afterwards."""
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training
