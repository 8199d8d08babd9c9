"""What a file means beside its names: pruned weights, codes of quantised ones, dtypes."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from flatkit.errors import CheckpointError

_REAL: Mapping[torch.dtype, torch.dtype] = MappingProxyType(
    {
        torch.complex32: torch.float16,
        torch.complex64: torch.float32,
        torch.complex128: torch.float64,
    }
)
# Half a bfloat16 has no complex dtype of its own.
_COMPLEX: Mapping[torch.dtype, torch.dtype] = MappingProxyType(
    {real: wide for wide, real in _REAL.items()} | {torch.bfloat16: torch.complex64}
)
# Names that programs for quantised weights put beside the codes, in the same module.
_SCHEMES: Mapping[str, str] = MappingProxyType(
    {
        "qzeros": "GPTQ or AWQ",
        "scales": "GPTQ or AWQ",
        "g_idx": "GPTQ",
        "SCB": "8 bits of bitsandbytes",
        "weight_format": "8 bits of bitsandbytes",
        "absmax": "4 bits of bitsandbytes",
        "quant_map": "4 bits of bitsandbytes",
        "weight_scale": "8 bits with scales",
        "weight_scale_inv": "8 bits with scales",
        "weight_zero_point": "8 bits with scales",
        "scale_weight": "8 bits with scales",
        "_scale": "8 bits with scales",
    }
)
_WAY_OUT = (
    "codes mean nothing without their scales: dequantise them with the program that wrote the "
    "file, and save a state_dict of floating-point weights"
)


def unpruned(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as a model wants them that is pruned, or is not, unlike the file.

    `torch.nn.utils.prune` keeps `weight` as `weight_orig` and `weight_mask`, whose product it is.

    Args:
        tensors: of the file, under the names of the model.
        own: of the model.

    Raises:
        CheckpointError: the mask of the model would change a weight of the file.

    >>> file = {"weight_orig": torch.tensor([2.0, 3.0]), "weight_mask": torch.tensor([1.0, 0.0])}
    >>> unpruned(file, {"weight": torch.zeros(2)})
    {'weight': tensor([2., 0.])}
    """
    result = dict(tensors)
    for name in own:
        orig, mask = f"{name}_orig", f"{name}_mask"
        if {orig, mask} <= tensors.keys() and orig not in own and name not in tensors:
            result[name] = result.pop(orig) * result.pop(mask).to(tensors[orig].dtype)
    for name, tensor in tensors.items():
        orig, mask = f"{name}_orig", f"{name}_mask"
        if name in own or not {orig, mask} <= own.keys() or {orig, mask} & tensors.keys():
            continue
        kept = own[mask].to(tensor)
        if tensor.shape == kept.shape and not torch.equal(tensor * kept, tensor):
            lost = int((tensor * kept != tensor).sum())
            raise CheckpointError(
                f"the model is pruned, and its mask would set {lost} weights of {name} to zero, "
                "which the file has; load the file into the model before that is pruned"
            )
        result[orig], result[mask] = result.pop(name), own[mask]
    return result


def refuse_codes(path: str, tensors: Mapping[str, Tensor], own: Iterable[str]) -> None:
    """Refuse weights that are codes, by the scales that stand beside them.

    Args:
        path: of the file.
        tensors: of the file, under the names of the model.
        own: names of the model, which may have scales itself.

    Raises:
        CheckpointError: there are such.
    """
    known = set(own)
    _refuse_packed(path, tensors, known)
    codes: dict[str, str] = {}  # module -> a tensor of codes in it
    for name, tensor in tensors.items():
        if _is_code(tensor):
            codes.setdefault(_parent(name), name)
    for name in tensors:
        if name in known:
            continue
        parent, leaf = _parent(name), name.rpartition(".")[2]
        scheme = _SCHEMES.get(leaf) or ("8 bits with scales" if leaf.endswith("_scale") else None)
        # The 4-bit ones of bitsandbytes lie one level lower: `weight.absmax` beside `weight`.
        below = parent if parent in tensors and _is_code(tensors[parent]) else None
        code = codes.get(parent) or below
        if scheme and code:
            dtype = str(tensors[code].dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{path} holds quantised weights ({scheme}): {code} has {dtype} codes with {name} "
                f"beside them; {_WAY_OUT}"
            )


def _refuse_packed(path: str, tensors: Mapping[str, Tensor], own: set[str]) -> None:
    """Refuse layers of `torch.ao`, whose codes lie packed in objects and leave their scales."""
    for name in tensors:
        parent, leaf = _parent(name), name.rpartition(".")[2]
        weight = f"{parent}.weight" if parent else "weight"
        # Layers that only observe ranges (QAT) have scales too, and their weights beside them.
        if leaf == "zero_point" and name not in own and weight in own and weight not in tensors:
            raise CheckpointError(
                f"{path} holds quantised weights (torch.ao): {name} is there and no {weight}; "
                f"{_WAY_OUT}"
            )


def refuse_lossy(path: str, name: str, tensor: Tensor, target: Tensor) -> None:
    """Refuse a tensor whose values a tensor of the model cannot hold, whatever its precision.

    Raises:
        CheckpointError: whole numbers for weights, complex numbers for real ones, or floating-point
            numbers that are not whole for whole ones.
    """
    theirs, ours = (str(item.dtype).removeprefix("torch.") for item in (tensor, target))
    said = f"{path}: {name} is {theirs} in the file and {ours} in the model"
    is_number = tensor.is_floating_point() or tensor.is_complex()
    if (target.is_floating_point() or target.is_complex()) and not is_number:
        raise CheckpointError(
            f"{said}; if these are the codes of quantised weights, {_WAY_OUT}; if they are plain "
            "whole numbers, save them as floating-point ones"
        )
    if tensor.is_complex() and not target.is_complex():
        raise CheckpointError(f"{said}: its imaginary part would be lost; build a complex model")
    if not target.is_floating_point() and not target.is_complex():
        # There and back: fractions, NaN and what is beyond the range come back changed.
        back = tensor.to(target.dtype).to(tensor.dtype)
        if not torch.equal(back, tensor):
            raise CheckpointError(f"{said}, which cannot hold its values")


def in_numbers(tensor: Tensor) -> Tensor:
    """Return a tensor of 8-bit floats in float32, which holds each of them; others as they are.

    >>> in_numbers(torch.ones(1).to(torch.float8_e4m3fn)).dtype
    torch.float32
    """
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize == 1 else tensor


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype | None:
    """Return the real floating dtype in which all values are exact, or None without any.

    >>> widest([torch.float16, torch.bfloat16]), widest([torch.complex128, torch.float32])
    (torch.float32, torch.float64)
    """
    real = {_REAL.get(dtype, dtype) for dtype in dtypes}
    found = {dtype for dtype in real if dtype.is_floating_point}
    # Models do not compute in 8 bits: such a file is widened too.
    if len(found) <= 1 and all(dtype.itemsize > 1 for dtype in found):
        return next(iter(found), None)
    return torch.float64 if torch.float64 in found else torch.float32


def in_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert floating parameters and buffers to a dtype, complex ones to that of its width.

    `Module.to` would drop the imaginary parts.

    >>> model = nn.ParameterList([torch.ones(1, dtype=torch.complex64)])
    >>> in_precision(model, torch.float64)
    >>> model[0].dtype
    torch.complex128
    """

    def converted(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(_COMPLEX[dtype])
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    model._apply(converted)  # pyright: ignore[reportPrivateUsage]


def is_in_precision(model: nn.Module, dtype: torch.dtype) -> bool:
    """Whether `in_precision` would change nothing."""
    tensors = [*model.parameters(), *model.buffers()]
    return all(
        tensor.dtype == _COMPLEX[dtype]
        if tensor.is_complex()
        else tensor.dtype == dtype or not tensor.is_floating_point()
        for tensor in tensors
    )


def _is_code(tensor: Tensor) -> bool:
    # Counters of steps are scalars and indices int64; neither is a code.
    small = tensor.dtype.itemsize == 1 and tensor.dtype != torch.bool
    return tensor.dim() > 0 and (small or tensor.dtype in (torch.int16, torch.int32))


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
