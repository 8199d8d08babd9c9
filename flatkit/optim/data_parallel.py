"""Data parallelism: which batch a perturbation belongs to, and means over the processes."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, distributed

from flatkit.errors import InvalidArgumentError
from flatkit.optim.blockwise import Blocks

Batch: TypeAlias = Literal["global", "local"]


@final
class DataParallel:
    """The processes that hold copies of a model, as its `DistributedDataParallel` knows them.

    Args:
        model: as the training loop calls it; without the method `no_sync` there is one process.

    >>> DataParallel(None).has_several
    False
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        parallel = hasattr(model, "no_sync") and distributed.is_available()
        self._group = getattr(model, "process_group", None)
        initialized = parallel and distributed.is_initialized()
        self._count = distributed.get_world_size(self._group) if initialized else 1

    @property
    def has_several(self) -> bool:
        """Whether there is more than one process."""
        return self._count > 1

    def no_sync(self) -> AbstractContextManager[None]:
        """Return a context in which backward passes leave each process its own gradient."""
        return self._model.no_sync() if self.has_several else nullcontext()

    def average_(self, vector: Blocks) -> None:
        """Replace a vector by its mean over the processes; every process must call this.

        Memory: one more vector for a moment.
        """
        if not self.has_several:
            return
        for block in vector:  # one message a block: many small ones cost their latency each
            flat = torch.cat([tensor.reshape(-1) for tensor in block])
            distributed.all_reduce(flat, group=self._group)
            flat /= self._count
            parts = flat.split([tensor.numel() for tensor in block])
            for tensor, part in zip(block, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def any(self, happened: bool, like: Tensor) -> bool:
        """Whether something happened in any process; every process must call this.

        Args:
            happened: here.
            like: a tensor on the device over which the processes communicate.
        """
        if not self.has_several:
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
