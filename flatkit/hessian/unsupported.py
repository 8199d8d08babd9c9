"""What stands in the way of an engine, told apart from faults of flatkit's own."""

from collections.abc import Generator
from contextlib import contextmanager

from flatkit.errors import FlatkitError


class UnsupportedError(FlatkitError):
    """An engine cannot multiply with this model; the message says what stands in the way."""


@contextmanager
def torch_derivatives() -> Generator[None, None, None]:
    """Turn what torch raises where an operation has no such derivative into `UnsupportedError`.

    It stands around calls of torch's derivatives alone. That an operation has none cannot be asked
    before; `RuntimeError` (`NotImplementedError` among them) is the narrowest class torch has.

    >>> import torch
    >>> with torch_derivatives():
    ...     torch.autograd.grad(torch.ones(1), torch.ones(1))
    Traceback (most recent call last):
        ...
    flatkit.hessian.unsupported.UnsupportedError: element 0 of tensors does not require grad ...
    """
    try:
        yield
    except RuntimeError as error:
        raise UnsupportedError(" ".join(str(error).split())[:200]) from error
