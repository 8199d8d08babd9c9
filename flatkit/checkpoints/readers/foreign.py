"""What a file holds and flatkit does not read, in words, and how to save it readably."""

import re
from collections.abc import Container, Mapping
from typing import Any, TypeGuard

from flatkit.files.plain_pickle import Record

_TENSOR = re.compile(
    r"tensor|parameter$|buffer$|_rebuild_wrapper|_rebuild_njt|^array$", re.IGNORECASE
)
CODES = "safetensors.tensor_of_"
"""How the name of a safetensors tensor begins whose entries share bytes; its dtype follows."""
_OF_CODES = (
    "codes of quantised weights ({}, of which several share a byte), which mean nothing without "
    "their scales and cannot be differentiated; take the file of the unquantised weights, or "
    "dequantise them with the program that wrote it and save float32 or bfloat16"
)
_RUNS = "its making would run code of another program"
_KINDS: Mapping[str, str] = {
    "_rebuild_sparse_tensor": "a sparse tensor; save it dense, as tensor.to_dense()",
    "_rebuild_qtensor": "a quantised tensor, whose codes cannot be differentiated; save "
    "tensor.dequantize()",
    "_rebuild_nested_tensor": "a nested tensor; save its parts, tensor.unbind()",
    "NestedTensor": "a nested tensor; save its parts, tensor.unbind()",
    "_rebuild_meta_tensor_no_storage": "a tensor of the meta device, which has no values",
    "UninitializedParameter": "a parameter of a lazy layer that has not run; run it, then save",
    "UninitializedBuffer": "a buffer of a lazy layer that has not run; run it, then save",
    "DTensor": "a DTensor, of which a process holds a part; save tensor.full_tensor()",
    "ShardedTensor": "a part of a tensor; save the whole with torch.distributed.checkpoint",
    "_rebuild_tensor_v2": "a conjugated or negated view; save tensor.resolve_conj().resolve_neg()",
    "array": "an array of a dtype that NumPy has no name for, as bfloat16; save it as float32",
    "_rebuild_tensor_v3": "a tensor of a dtype that flatkit does not know",
}


def is_tensor(item: Any) -> TypeGuard[Record]:
    """Whether a record is of a tensor whose entries are not read: sparse, quantised, a part.

    >>> is_tensor(Record("torch._utils._rebuild_sparse_tensor", ()))
    True
    """
    return isinstance(item, Record) and bool(_TENSOR.search(item.name.rpartition(".")[2]))


def is_module(item: Any) -> TypeGuard[Record]:
    """Whether a record is of a whole `nn.Module`, with its weights inside."""
    return isinstance(item, Record) and isinstance(item.state, dict) and "_modules" in item.state


def tensor_in_words(record: Record) -> str:
    """Return what such a tensor is and what to do, with the name that the pickle calls.

    >>> tensor_in_words(Record("torch.distributed.tensor.DTensor", ()))
    'torch.distributed.tensor.DTensor: a DTensor, of which a process holds a part; save
    tensor.full_tensor()'
    """
    if record.name.startswith(CODES):
        return f"{record.name}: {_OF_CODES.format(record.name.removeprefix(CODES))}"
    return f"{record.name}: {_KINDS.get(record.name.rpartition('.')[2], _RUNS)}"


def refusal_of_object(path: str, record: Record, key: str, kind: str) -> str:
    """Return why a whole object is not read, and how to save what is in it.

    Args:
        path: of the file.
        record: the object.
        key: under which it stands in the file; empty where it is the file.
        kind: `pickle`, or of torch.
    """
    reader = f"import torch; x = torch.load({path!r}, weights_only=False)"
    if kind == "pickle":
        reader = (
            f"import pathlib, pickle, torch; x = pickle.loads(pathlib.Path({path!r}).read_bytes())"
        )
    part = f"x = x[{key!r}]; " if key else ""
    return (
        f"{path} is refused: it contains whole objects such as {record.name}, and loading them "
        "would run code from the file; save a state_dict instead. Where you trust the file, "
        f"convert it once: {reader}; {part}"
        "torch.save(x.state_dict(), 'weights.pt')"
    )


def first_object(content: Any, names: Container[str]) -> tuple[str, Record] | None:
    """Return the object that a file without readable weights has them in, and its key.

    Args:
        content: of the file.
        names: keys under which weights stand.
    """
    if isinstance(content, Record):
        return "", content
    items = content.items() if isinstance(content, Mapping) else ()
    records = [(str(key), item) for key, item in items if isinstance(item, Record)]
    # An optimizer or a configuration is an object, too, and not what is looked for.
    likely = [pair for pair in records if is_module(pair[1]) or pair[0] in names]
    return next(iter(likely), None)
