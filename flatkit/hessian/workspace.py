"""Scratch space: what kernels of the CPU take for themselves while they run."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flatkit.objective.model.dispatch import tensors_in

_aten = torch.ops.aten
_FAST = (torch.float32, torch.bfloat16, torch.float16)
_WIDE = "AVX512" in torch.backends.cpu.get_cpu_capability()
_BLOCK = 16 if _WIDE else 8
"""Channels in a block of oneDNN's layouts: as many as a register of the processor holds."""


def scratch_bytes(operation: Any, arguments: Sequence[Any], result: Any) -> int:
    """Return the bytes that a kernel takes beside its inputs and results, as far as is known.

    Only convolutions and oneDNN's LSTM take much. In single and half precision oneDNN copies images
    and weights into layouts of its own, unless the channels are last in memory or a group has too
    few channels; other precisions multiply with a matrix of all patches, which holds every pixel
    as often as the kernel has entries. An estimate: 1 to 3 times what malloc gave out in torch 2.13
    (up to 5 times with groups or channels last in float64, 0.6 at worst in bfloat16); for the LSTM
    half of what goes in and comes out, 0.9 to 6 times, and half of what torch 2.4 takes. Zero for
    everything else.

    Args:
        operation: an overload of `torch.ops`.
        arguments: in the order of its schema.
        result: what it returned.

    >>> x, w = torch.zeros(2, 3, 8, 8, dtype=torch.float64), torch.zeros(4, 3, 3, 3).double()
    >>> settings = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    >>> convolution = torch.ops.aten.convolution.default
    >>> y = convolution(x, w, None, *settings)
    >>> scratch_bytes(convolution, (x, w, None, *settings), y)  # 2·8·8 patches of 3·3·3, 8 bytes
    27648
    """
    kind = getattr(operation, "overloadpacket", None)
    if kind in (_aten.mkldnn_rnn_layer, _aten.mkldnn_rnn_layer_backward):
        tensors = tensors_in((arguments, result))
        return sum(tensor.nbytes for tensor in tensors) // 2
    if kind is _aten.convolution:
        images, weight, settings = [arguments[0]], arguments[1], arguments[3:]
        made, outputs = [result], result
    elif kind is _aten.convolution_backward:
        images, weight, settings = list(arguments[:2]), arguments[2], arguments[4:]
        made, outputs = [tensor for tensor in result[:2] if tensor is not None], arguments[0]
    else:
        return 0
    if weight.device.type != "cpu":
        return 0
    if weight.dtype in _FAST and torch.backends.mkldnn.is_available():
        if not _fills_blocks(weight, groups=settings[5]):
            return max(tensor.nbytes for tensor in made)  # of every result a copy, one by one
        return _layouts(images, weight, made, outputs, transposed=settings[3])
    weighs = len(images) == 1 or result[1] is not None
    return _patches(images, weight, made, outputs, settings, weighs=weighs)


def _fills_blocks(weight: Tensor, *, groups: int) -> bool:
    """Whether oneDNN works on blocks of channels, rather than by a plain matrix product a group.

    With AVX2 it does if the channels of a group fill whole blocks, or if each channel is a group;
    channels are padded where there is one group. With AVX-512 it has narrower blocks as well.
    """
    across, along = weight.shape[0] // groups, weight.shape[1]
    return _WIDE or groups == 1 or across == along == 1 or across % 8 == along % 8 == 0


def _layouts(
    images: list[Tensor], weight: Tensor, made: list[Tensor], outputs: Tensor, *, transposed: bool
) -> int:
    """Return the bytes of copies in blocked layouts."""
    if any(map(_channels_last, (*images, weight))):
        weights = 2 * _padded(weight)
        return weights + sum(image.nbytes for image in images if not _channels_last(image))
    total = sum(map(_padded, (*images, weight, *made)))
    total += sum(_padded(t) for t in (*images, weight) if not t.is_contiguous())
    return total + (_padded(outputs) if transposed else 0)


def _patches(
    images: list[Tensor],
    weight: Tensor,
    made: list[Tensor],
    outputs: Tensor,
    settings: Sequence[Any],
    *,
    weighs: bool,
) -> int:
    """Return the bytes of the matrix of all patches, and of copies of what is not contiguous.

    Args:
        images: the inputs, and before them the gradient of the outputs if that is given.
        weight: the kernel.
        made: the results.
        outputs: what the convolution makes, or the gradient of that.
        settings: strides, padding, dilation, whether transposed, output padding, groups.
        weighs: whether it is a forward pass, or gives the gradient of the weight.
    """
    strides, _, dilation, transposed, _, groups = settings[:6]
    inputs, forward = images[-1], len(images) == 1
    # [O, C/groups, *kernel] → entries of a patch; each pixel of the outputs has one.
    entries = math.prod(weight.shape[1:])
    pixels = math.prod((inputs if transposed else outputs).shape[2:])
    # Otherwise ATen goes through the samples one after the other, in the memory of one.
    at_once = forward or (not transposed and (weighs or weight.ndim == 5))
    samples = len(inputs) if at_once and max(dilation) == 1 else 1
    plain = math.prod(weight.shape[2:]) == 1 and max(strides) == 1  # the image itself is the matrix
    total = 0 if plain else samples * pixels * entries * weight.element_size()
    total += sum(image.nbytes for image in images if not image.is_contiguous())
    if groups > 1:  # one after another, of parts of the inputs, and then put together
        total += sum(tensor.nbytes for tensor in (*images, *made))
    return total


def _channels_last(tensor: Tensor) -> bool:
    if tensor.ndim != 4 or tensor.is_contiguous():
        return False
    return tensor.is_contiguous(memory_format=torch.channels_last)


def _padded(tensor: Tensor) -> int:
    """Return the bytes of a tensor whose channels fill whole blocks."""
    channels = max(1, tensor.shape[1])
    return tensor.nbytes // channels * (-(-channels // _BLOCK) * _BLOCK)
