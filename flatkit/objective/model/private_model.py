"""Private copies of models, so that the user's own is never touched, and what they take."""

from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from flatkit.errors import InvalidArgumentError
from flatkit.objective.model.copier import Copier, refuse_uncopyable, unwrapped
from flatkit.objective.model.sharded import Kind, ShardedModel, kind_of
from flatkit.objective.model.shared_memory import refuse_shared_memory

BatchNormMode: TypeAlias = Literal["eval", "train"]


class PrivateModel(NamedTuple):
    """A model that is nobody else's, and where it comes from.

    Attributes:
        model: the copy.
        source: the user's model, unwrapped.
        modules: of the user's, each with its copy.
        copier: made the copy, and knows what it holds.
        sharded: of a model in parts on several ranks, which is the user's own.
    """

    model: nn.Module
    source: nn.Module
    modules: list[tuple[nn.Module, nn.Module]]
    copier: Copier
    sharded: ShardedModel | None = None


def private_copy(
    model: nn.Module,
    batchnorm: BatchNormMode,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> PrivateModel:
    """Return a copy of a model in the mode in which it is measured, without gradients.

    Args:
        model: left as it is; of a compiled, parallel or averaged one, what it wraps.
        batchnorm: `train` lets BatchNorm use the statistics of each batch, and remember none.
        dtype: by default that of the parameters, float32 for 16-bit ones.
        device: by default where they are.

    Raises:
        InvalidArgumentError: it is TorchScript, without values, or in shards and cannot be measured
            in place as that is asked.

    >>> private_copy(nn.Dropout(), "eval", None, None).model.training
    False
    """
    kind = kind_of(model)
    if kind is not None:
        return _in_place(model, kind, batchnorm, dtype, device)
    refuse_uncopyable(model)
    model = unwrapped(model)
    refuse_shared_memory(model)
    copier = Copier(_dtype_of(model) if dtype is None else dtype, device)
    # Dropout off and running statistics in use: else L would be another function in every pass.
    private = copier.copy(model).eval()
    if batchnorm == "train":
        for module in private.modules():
            if isinstance(module, _BatchNorm):
                module.train()
                module.track_running_stats = False  # batch statistics, nothing remembered
    return PrivateModel(private, model, list(copier.modules), copier)


def _in_place(
    model: nn.Module,
    kind: Kind,
    batchnorm: BatchNormMode,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> PrivateModel:
    """Return a model in parts on several ranks, which no rank could copy whole."""
    sharded = ShardedModel(model, kind)
    asked = torch.device(sharded.device if device is None else device)
    if dtype not in (None, sharded.dtype) or asked.type != sharded.device.type:
        raise InvalidArgumentError(
            f"a sharded model is measured in place, in {sharded.dtype} on {sharded.device.type}; "
            "leave out dtype and device, or convert it before it is sharded"
        )
    if batchnorm == "train":
        raise InvalidArgumentError(
            "batchnorm='train' takes the statistics of a chunk, of which each rank has a part in a "
            "sharded model; use batchnorm='eval'"
        )
    return PrivateModel(model, model, [], Copier(sharded.dtype), sharded)


def _dtype_of(model: nn.Module) -> torch.dtype:
    # float64 only where all weights have it: one float32 layer among them rounds the others anyway.
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point() or p.is_complex()}
    wide = bool(dtypes) and dtypes <= {torch.float64, torch.complex128}
    return torch.float64 if wide else torch.float32
