"""How images lie in memory: with the channels last, where that makes convolutions faster."""

from collections.abc import Callable

import torch
from torch import nn

from flatkit.objective.reading.sample_set import Samples


def prefers_channels_last(model: nn.Module, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a model is faster on images that have their channels last in memory.

    A rule, not a timing at run time, so that the same call gives the same bits. It is what
    `benchmarks/layouts.py` measured: in float32 on a CPU a gradient takes 0.7 to 1.0 of the time;
    with convolutions in a few groups 0.9 to 1.1 of it, in float64 0.9 to 3.7. Never where torch
    would touch memory that is not its own.

    >>> prefers_channels_last(nn.Conv2d(3, 8, 3), torch.float32, torch.device("cpu"))
    True
    >>> prefers_channels_last(nn.Linear(3, 8), torch.float32, torch.device("cpu"))
    False
    """
    # By class, as the rule must hold before anything has run.
    found = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    few_groups = any(1 < module.groups < module.in_channels for module in found)
    fast = device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return fast and bool(found) and not few_groups and not any(map(_corrupts, model.modules()))


def _corrupts(layer: nn.Module) -> bool:
    """Whether the backward pass of a layer may end the process where channels lie last.

    That of torch 2.13 writes beyond its memory for convolutions with kernels of one pixel
    and stride 2, over 2 to 5 channels on images of even size; wider kernels and 7 channels or more
    were never seen to. It reads memory of nothing for a GroupNorm whose parameters are free and
    whose input is constant.

    >>> _corrupts(nn.Conv2d(4, 8, 1, stride=2)), _corrupts(nn.Conv2d(64, 128, 1, stride=2))
    (True, False)
    """
    if not isinstance(layer, nn.Conv2d):
        return isinstance(layer, nn.GroupNorm)
    # 16, although 7 channels were never seen to fail: it is not tried out on users.
    skips = any(k < s for k, s in zip(layer.kernel_size, layer.stride, strict=True))
    return skips and layer.in_channels < 16


def lay_out(
    samples: Samples, loss_of: Callable[[Samples], float], *, last: bool, tolerance: float
) -> tuple[Samples, str]:
    """Return samples whose images lie in memory as asked, if the model takes them so, and how.

    Args:
        samples: whose inputs may be images [N, C, H, W].
        loss_of: the loss of a few of some samples.
        last: whether the channels are to be last.
        tolerance: relative, by which the loss may differ between the two.

    >>> images = Samples(torch.ones(1, 2, 2, 2), torch.ones(1), torch.arange(1), 1, "all")
    >>> lay_out(images, lambda samples: 0.5, last=True, tolerance=1e-3)[1]
    'channels_last'
    """
    plain = samples.laid_out(torch.contiguous_format)
    if not last:
        return plain, "contiguous"
    turned = samples.laid_out(torch.channels_last)
    try:
        first, second = loss_of(plain), loss_of(turned)
    except Exception:
        # The user's model may raise anything at a layout, or at a few samples, that it does not
        # take. What is wrong whatever the layout, the examination meets again right after.
        return plain, "contiguous"
    # The model may reshape its images by hand, and then sees another order of the numbers.
    if abs(first - second) <= tolerance * abs(first):
        return turned, "channels_last"
    return plain, "contiguous"
