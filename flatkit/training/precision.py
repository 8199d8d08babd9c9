"""Autocast of the passes, and what of it a device can do."""

import warnings

import torch
import torch.nn.functional as F
from torch.amp import GradScaler

from flatkit.errors import InvalidArgumentError
from flatkit.training.config import PRECISIONS

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which a model computes in `bfloat16` or `float16`.

    >>> layer, inputs = torch.nn.Linear(2, 1), torch.ones(1, 2)
    >>> with autocast("bfloat16", torch.device("cpu")):
    ...     layer(inputs).dtype
    torch.bfloat16
    """
    return torch.autocast(device.type, _DTYPES[precision])


def loss_scaler(precision: str, device: torch.device) -> GradScaler:
    """Return what scales losses for `float16`, and does nothing for the others.

    >>> loss_scaler("float16", torch.device("cpu")).scale(torch.ones(1))
    tensor([65536.])
    """
    return GradScaler(device.type, enabled=precision == "float16")


def check_precision(precision: str, device: torch.device) -> None:
    """Check by a small trial that the device computes in this precision.

    Raises:
        InvalidArgumentError: it does not.

    >>> check_precision("float32", torch.device("cpu"))
    """
    if precision == "float32":
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch says so where it ignores autocast
            found = _trial(precision, device)
    except (RuntimeError, UserWarning) as error:
        reason = str(error).splitlines()[0]
    else:
        if found is _DTYPES[precision]:
            return
        reason = f"autocast computes in {found} there"
    others = [name for name in PRECISIONS if name != precision]
    raise InvalidArgumentError(
        f"precision {precision} is not available on {device.type} here ({reason}); choose "
        f"precision {' or '.join(others)}"
    )


def _trial(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a convolution and a product under autocast, after one whole step."""
    # A convolution and a product, whose kernels a device may have for one of the two alone.
    image = torch.ones(1, 1, 3, 3, device=device, requires_grad=True)
    with torch.enable_grad(), autocast(precision, device):
        out = F.conv2d(image, image).flatten(1) @ torch.ones(1, 1, device=device)
    optimizer = torch.optim.SGD([image], lr=0.0)
    scaler = loss_scaler(precision, device)
    scaler.scale(out.float().sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    return out.dtype
