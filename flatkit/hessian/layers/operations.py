"""What is known of torch's operations: which act entry by entry, are linear, or ask for a shape."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _scaled_clip(x: Tensor, *_: Any) -> Tensor:
    """Return hard sigmoid, whose derivative torch cannot differentiate."""
    return F.relu6(x + 3) / 6


ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.LogSigmoid,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Softplus,
    nn.Softsign,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardshrink,
    nn.Softshrink,
    nn.Threshold,
)
"""Modules that act on every entry by itself."""

ACTIVATION_FUNCTIONS: Mapping[Any, Callable[..., Tensor]] = {
    **{
        function: function
        for function in (
            torch.relu,
            torch.tanh,
            torch.sigmoid,
            F.relu,
            F.relu6,
            F.leaky_relu,
            F.elu,
            F.gelu,
            F.silu,
            F.mish,
            F.softplus,
            F.tanh,
            F.sigmoid,
            F.hardtanh,
            F.hardswish,
        )
    },
    F.hardsigmoid: _scaled_clip,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
"""Functions and methods that act on every entry by itself; in-place flags are dropped."""

LINEAR_MODULES: tuple[type[nn.Module], ...] = (
    nn.Flatten,
    nn.Unflatten,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
    nn.ReflectionPad1d,
    nn.ReflectionPad2d,
    nn.ReplicationPad1d,
    nn.ReplicationPad2d,
    nn.ReplicationPad3d,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.Upsample,
    nn.UpsamplingNearest2d,
    nn.UpsamplingBilinear2d,
    nn.Unfold,
    nn.Fold,
)
"""Modules that are linear in their input and have no parameters."""

LINEAR = _words(
    """
    flatten unflatten ravel view view_as reshape permute transpose swapaxes swapdims movedim
    moveaxis t squeeze unsqueeze expand expand_as broadcast_to contiguous clone getitem select
    narrow index_select take_along_dim gather diagonal unfold flip roll rot90 tril triu trace
    repeat tile repeat_interleave mean sum cumsum neg avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d pixel_shuffle pixel_unshuffle
    channel_shuffle fold interpolate upsample
    """
)
"""Functions and methods that are linear in their first argument, where it alone depends on
parameters."""

RESHAPING = _words(
    "rows flatten unflatten ravel view_as reshape squeeze unsqueeze contiguous clone"
)
"""Those that leave the entries in their order."""

ENTRY_BY_ENTRY = _words(
    """
    exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal sin cos tan sinh cosh asinh
    atan erf erfc abs pow clamp clip clamp_min clamp_max logsigmoid log_sigmoid selu celu
    softsign softshrink hardshrink tanhshrink threshold _threshold
    """
)
"""More functions and methods that act on every entry by itself; other arguments are numbers."""

SPLITTING = _words(
    """
    chunk split split_with_sizes tensor_split unbind hsplit vsplit
    """
)
"""Functions and methods that return several linear parts of one tensor."""

JOINING = frozenset(("cat", "concat", "concatenate"))
"""Functions of (tensors, dim) that join tensors along a dimension."""

DROPPING = _words(
    """
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout
    """
)
"""Functions of (tensor, p, training) that return the tensor outside of training."""

FACTS = _words(
    """
    shape ndim dtype device layout itemsize nbytes names requires_grad is_cuda is_cpu is_sparse
    is_leaf is_quantized is_meta is_nested is_mkldnn is_mps is_xpu
    """
)
"""Attributes of a tensor that do not depend on its entries."""

QUERIES = _words(
    """
    size dim ndimension numel nelement stride is_floating_point is_complex is_contiguous
    is_signed element_size get_device storage_offset is_tensor
    """
)
"""Methods and functions that answer what does not depend on the entries of a tensor."""

IN_PLACE = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
}
"""Operators that may write into their first argument, and what returns the same in new memory."""

IN_PLACE_METHODS = _words(
    """
    add_ sub_ subtract_ mul_ multiply_ div_ divide_ pow_ neg_ exp_ log_ sqrt_ rsqrt_ square_
    abs_ relu_ sigmoid_ tanh_ clamp_ clip_ masked_fill_ elu_ leaky_relu_ hardtanh_ selu_ celu_
    threshold_
    """
)
"""Methods and functions that write into their first argument, whose names without the last sign
return the same in new memory."""

FRESH = _words(
    """
    add sub subtract mul multiply div divide truediv pow matmul bmm mm addmm baddbmm neg cat
    concat concatenate stack linear bilinear einsum conv1d conv2d conv3d conv_transpose1d
    conv_transpose2d conv_transpose3d batch_norm layer_norm group_norm instance_norm rms_norm
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d mean sum softmax log_softmax relu relu6 leaky_relu elu gelu silu mish
    softplus tanh sigmoid hardtanh hardswish hardsigmoid exp log sqrt rsqrt square clone
    embedding max min amax amin var std zeros_like ones_like rand_like
    scaled_dot_product_attention size numel dim
    """
)
"""Functions and methods whose result never shares memory with their arguments; of `einsum`, only
where it has several. What may return an argument, as `contiguous` or `reshape`, is not here."""

FRESH_ROOMS = _words(
    """
    conv batchnorm instancenorm normalization pooling sparse rnn
    """
)
"""Files of `torch.nn.modules` with modules of which the same is true."""


def rows(x: Tensor) -> Tensor:
    """Return each sample as a row, [B, ...] as [B, features].

    >>> rows(torch.ones(2, 3, 4)).shape
    torch.Size([2, 12])
    """
    return x.reshape(len(x), -1)


def name_of(target: Any) -> str | None:
    """Return the name of a method, or of a function of torch or `operator`; None of another one.

    >>> name_of("view"), name_of(torch.relu), name_of(operator.add), name_of(print)
    ('view', 'relu', 'add', None)
    """
    return target if isinstance(target, str) else _NAMES.get(target)


_NAMES: dict[Any, str] = {
    function: name
    for room in (torch, operator, F)
    for name, function in vars(room).items()
    if callable(function) and not isinstance(function, type) and not name.startswith("__")
}
