"""Data parallelism: which batch a perturbation belongs to, and means over the replicas."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, distributed

from flatkit.errors import InvalidArgumentError
from flatkit.optim.blockwise import Vector

Batch: TypeAlias = Literal["global", "local"]


@final
class Replicas:
    """The processes that hold copies of a model, as its `DistributedDataParallel` knows them.

    Args:
        model: as the training loop calls it; without the method `no_sync` there is one replica.

    >>> Replicas(None).several
    False
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        parallel = hasattr(model, "no_sync") and distributed.is_available()
        self._group = getattr(model, "process_group", None)
        initialized = parallel and distributed.is_initialized()
        self._count = distributed.get_world_size(self._group) if initialized else 1

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return self._count > 1

    def alone(self) -> AbstractContextManager[None]:
        """Return a context in which backward passes leave each replica its own gradient."""
        return self._model.no_sync() if self.several else _nothing()

    def average_(self, vector: Vector) -> None:
        """Replace a vector by its mean over the replicas; every replica must call this.

        Memory: one more vector for a moment.
        """
        if not self.several:
            return
        for block in vector:
            flat = torch.cat([tensor.reshape(-1) for tensor in block])
            distributed.all_reduce(flat, group=self._group)
            flat /= self._count
            parts = flat.split([tensor.numel() for tensor in block])
            for tensor, part in zip(block, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def any(self, happened: bool, like: Tensor) -> bool:
        """Whether something happened on any replica; every replica must call this.

        Args:
            happened: here.
            like: a tensor on the device that the replicas talk through.
        """
        if not self.several:
            return happened
        flag = torch.tensor([float(happened)], device=like.device)
        distributed.all_reduce(flag, group=self._group)
        return bool(flag.item() > 0)


def check_known(model: Any, what: str) -> None:
    """Check that the model is known where several processes train it.

    Raises:
        InvalidArgumentError: there are several processes and no model.
    """
    ready = distributed.is_available() and distributed.is_initialized()
    if model is None and ready and distributed.get_world_size() > 1:
        raise InvalidArgumentError(
            f"{what} needs the model where several processes run, to know whether to average over "
            "them: pass model=, as the training loop calls it (DistributedDataParallel or not)"
        )


@contextmanager
def _nothing() -> Iterator[None]:
    yield
