"""float32 that is float32: GPUs may multiply with 10 bits of it (TF32), and do so by default."""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


def is_full() -> bool:
    """Whether products of float32 are computed in float32, on a GPU too.

    >>> is_full() or torch.cuda.is_available()
    True
    """
    return not torch.cuda.is_initialized() or _is_set_full()


@contextmanager
def full_float32() -> Generator[None]:
    """Compute products and convolutions of float32 in float32 on GPUs; put back what was set.

    The numbers of one checkpoint are to be those of the CPU, to rounding; a Hessian is a difference
    of much larger terms, of which TF32 keeps three digits.

    >>> with full_float32():
    ...     torch.backends.cudnn.allow_tf32
    False
    """
    with ExitStack() as stack:
        stack.callback(_set_convolutions())
        stack.callback(_set_products())
        yield


def _set_convolutions() -> Callable[[], None]:
    """Convolve in full; return what puts back what was set."""
    cudnn = torch.backends.cudnn
    try:
        before = cudnn.allow_tf32
    except RuntimeError:  # of torch 2.9 on, where the caller has set them one by one
        return _set_one_by_one(cudnn.conv, cudnn.rnn)  # pyright: ignore
    cudnn.allow_tf32 = False
    return lambda: setattr(cudnn, "allow_tf32", before)


def _set_products() -> Callable[[], None]:
    """Multiply in full; return what puts back what was set."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller has set that of CUDA alone
        matmul = torch.backends.cuda.matmul
        try:
            allowed = matmul.allow_tf32
        except RuntimeError:
            return _set_one_by_one(matmul)
        matmul.allow_tf32 = False
        return lambda: setattr(matmul, "allow_tf32", allowed)
    torch.set_float32_matmul_precision("highest")
    return lambda: torch.set_float32_matmul_precision(before)


def _set_one_by_one(*places: Any) -> Callable[[], None]:
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"

    def put_back() -> None:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value

    return put_back


def _is_set_full() -> bool:
    try:
        allowed = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # some of them differ, as of torch 2.9 on
        return False
    return not any(allowed)
