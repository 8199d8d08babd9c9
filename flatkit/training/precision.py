"""Autocast of the passes, and what of it a device can do."""

import warnings

import torch
import torch.nn.functional as F

from flatkit.errors import InvalidArgumentError

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context in which a model computes; it changes nothing for `float32`.

    >>> layer, inputs = torch.nn.Linear(2, 1), torch.ones(1, 2)
    >>> with autocast("bfloat16", torch.device("cpu")):
    ...     layer(inputs).dtype
    torch.bfloat16
    """
    if precision == "float32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, _DTYPES[precision])


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
    others = [name for name in ("float32", *_DTYPES) if name != precision]
    raise InvalidArgumentError(
        f"precision {precision} is not available on {device.type} here ({reason}); choose "
        f"precision {' or '.join(others)}"
    )


def _trial(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a convolution and a product under autocast, forward and backward."""
    image = torch.ones(1, 1, 3, 3, device=device, requires_grad=True)
    with torch.enable_grad(), autocast(precision, device):
        out = F.conv2d(image, image).flatten(1) @ torch.ones(1, 1, device=device)
    out.float().sum().backward()
    return out.dtype
