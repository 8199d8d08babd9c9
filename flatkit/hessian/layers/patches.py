"""The gradient of a convolution's weight as one matrix product, of all patches of the images.

oneDNN's own kernel reaches half the speed of its other convolutions where many channels stand over
few pixels, as in the later stages of a ResNet; a matrix product is as fast as these.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_PIXELS, _CHANNELS = 256, 128
"""Of the outputs at most, of the inputs at least: `benchmarks/products.py` found patches faster."""
_BLOCK = 2**20
"""Numbers of patches that are made at once: they are to stay in a cache of the processor."""


def has_channels_last(images: Tensor) -> bool:
    """Whether images [B, C, H, W] have their channels last in memory.

    >>> x = torch.zeros(1, 2, 4, 4)
    >>> has_channels_last(x.contiguous(memory_format=torch.channels_last)), has_channels_last(x)
    (True, False)
    """
    if images.ndim != 4 or images.is_contiguous():
        return False
    return images.is_contiguous(memory_format=torch.channels_last)


def prefers_patches(images: Tensor, gradient: Tensor, *, groups: int) -> bool:
    """Whether patches are the faster way.

    A rule and no timing, so that the same call gives the same bits.

    Args:
        images: x, [B, C, H, W].
        gradient: that of the outputs, [B, O, H, W].
        groups: of the convolution.

    >>> x = torch.zeros(1, 128, 4, 4)
    >>> last = x.contiguous(memory_format=torch.channels_last)
    >>> prefers_patches(last, last, groups=1), prefers_patches(x, x, groups=1)
    (True, False)
    """
    if not has_channels_last(images) or groups != 1 or images.device.type != "cpu":
        return False
    many = images.shape[1] >= _CHANNELS and gradient.shape[2:].numel() <= _PIXELS
    return many and images.dtype == torch.float32


def weight_gradient(
    pairs: Sequence[tuple[Tensor, Tensor]],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return ∂/∂W of Σ ⟨g, W ∗ x⟩ over pairs of g [B, O, ...] and x [B, C, H, W], [O, C, ...].

    Args:
        pairs: gradients of the outputs, and images.
        kernel: height and width.
        stride: down and along.
        padding: zeros above and below, and on the left and right.
        dilation: down and along.

    >>> one, pair = torch.ones(1, 1, 2, 2), [1, 1]
    >>> weight_gradient([(one, one)], pair, pair, [0, 0], pair)
    tensor([[[[4.]]]])
    """
    (gradient, images), *_ = pairs
    channels = images.shape[1]
    found = images.new_zeros(gradient.shape[1], math.prod(kernel) * channels)  # [O, H·W·C]
    for gradient, images in pairs:
        patches = _patches(images, gradient.shape[2:], kernel, stride, padding, dilation)
        at_once = max(1, _BLOCK // patches[0].numel())
        slopes = gradient.permute(0, 2, 3, 1)  # [B, H, W, O]
        for part, slope in zip(patches.split(at_once), slopes.split(at_once), strict=True):
            found.addmm_(slope.flatten(0, 2).T, part.reshape(-1, found.shape[1]))
    return found.view(-1, *kernel, channels).permute(0, 3, 1, 2)


def _patches(
    images: Tensor,
    places: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return the patch at every place as a view, [B, *places, *kernel, C]."""
    down, along = padding
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, along, along, down, down)).contiguous()
    image, row, pixel, _ = padded.stride()
    return padded.as_strided(
        (len(images), *places, *kernel, images.shape[1]),
        (image, stride[0] * row, stride[1] * pixel, dilation[0] * row, dilation[1] * pixel, 1),
    )
