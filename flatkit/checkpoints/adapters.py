"""Adapters of PEFT: put into a model that has their places, or added to the weights of its base.

Such a file holds the adapter alone. The other weights are those that the model brings, so that it
must have been loaded (`from_pretrained`) before.

LoRA (Hu et al. 2021) adds (α / r) B A to a weight W. Other kinds can be put into a model of PEFT
and not be added here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from flatkit.checkpoints.conversions import in_numbers, widest
from flatkit.checkpoints.matching import Shape, namings
from flatkit.checkpoints.placing import Stored
from flatkit.errors import CheckpointError

_PREFIX = "base_model.model."
_LORA = re.compile(r"^(?P<module>.*)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?$")
_FOREIGN = re.compile(r"\.(lora_|ia3_|vera_|hada_|lokr_|oft_|boft_|hra_|adaption_|prompt)")
# Of these the base of the adapter is not W: they start from a part of W that they take out of it.
_OTHER_BASES = ("pissa", "olora", "corda", "loftq")
_UNKNOWN = ("use_dora", "layer_replication", "lora_bias", "alora_invocation_tokens")


def with_base(
    model: nn.Module, stored: Stored, config: Mapping[str, Any]
) -> tuple[Stored, list[str]]:
    """Return an adapter with the weights of the model around it, as `place` takes them.

    Args:
        model: of PEFT, with places for the adapter, or its base; with the weights of the base.
        stored: the adapter.
        config: what its `adapter_config.json` says.

    Returns:
        Tensors for all names of the model, and a note of what is whose.

    Raises:
        CheckpointError: the model has several adapters, or the adapter cannot be added to it.
    """
    own = {name: item for name, item in model.state_dict().items() if isinstance(item, Tensor)}
    adapters = list(getattr(model, "peft_config", None) or {})
    if len(adapters) > 1:
        raise CheckpointError(
            f"the model has several adapters ({', '.join(adapters)}); build it with the one that "
            f"{stored.path} is of"
        )
    if adapters:
        tensors = _into_places(own, stored, adapters[0])
        note = "an adapter, around which the weights are the model's own"
    else:
        tensors = _merged(model, own, stored, config)
        count = sum(tensor is not own.get(name) for name, tensor in tensors.items())
        note = f"LoRA added to {count} of the model's own weights"
    return replace(stored, tensors=tensors, versions={}), [note]


def _into_places(own: Mapping[str, Tensor], stored: Stored, adapter: str) -> dict[str, Tensor]:
    """Return the tensors under the names of a model of PEFT, which have the adapter's in them."""
    bare = {_without(name, adapter): name for name in own}
    given = {bare.get(name, name): tensor for name, tensor in stored.tensors.items()}
    # What the adapter has a place for must come from the file: `place` misses it if it does not.
    places = {name for short, name in bare.items() if short != name}
    rest = {name: tensor for name, tensor in own.items() if name not in places}
    return {**rest, **given}


def _without(name: str, adapter: str) -> str:
    """Return a name as a file of an adapter has it.

    >>> _without("fc.lora_A.default.weight", "default")
    'fc.lora_A.weight'
    """
    name = name.replace(f".modules_to_save.{adapter}.", ".")
    return name.replace(f".{adapter}.", ".").removesuffix(f".{adapter}")


@dataclass
class _Pair:
    """The two matrices of one module.

    Attributes:
        parts: `A` and `B`.
        embedding: whether they are of an embedding.
    """

    parts: dict[str, Tensor]
    embedding: bool


def _merged(
    model: nn.Module, own: Mapping[str, Tensor], stored: Stored, config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the weights of a base with LoRA added."""
    _check_kind(stored, config)
    pairs, whole = _sorted(stored)
    shapes: dict[str, Shape] = {name: tuple(tensor.shape) for name, tensor in own.items()}
    wanted: dict[str, Shape] = {**dict.fromkeys(f"{m}.weight" for m in pairs), **_shapes(whole)}
    names = namings(model, shapes, wanted)[0].names
    result = {**own, **{names[name]: tensor for name, tensor in whole.items()}}
    for module, pair in pairs.items():
        name = names[f"{module}.weight"]
        if name not in own or set(pair.parts) != {"A", "B"}:
            raise CheckpointError(
                f"{stored.path} is an adapter of {config.get('base_model_name_or_path')}, and the "
                f"model has no {name} that it belongs to; build that model, or one of PEFT with it"
            )
        _refuse_tied(own, name, stored.path)
        if not own[name].is_floating_point():
            raise CheckpointError(
                f"{stored.path} cannot be added to {name}, which has {own[name].dtype} codes in "
                "the model; load the base without quantisation"
            )
        delta = _delta(pair, own[name], model.get_submodule(name.rpartition(".")[0]))
        if delta.shape != own[name].shape:
            raise CheckpointError(
                f"{stored.path} changes {name} of shape {list(delta.shape)}, and the model has "
                f"{list(own[name].shape)}; build the model that the adapter is of"
            )
        dtype = widest([own[name].dtype, *(in_numbers(t).dtype for t in pair.parts.values())])
        scaled = _scale(module, pair, config) * delta
        # Added in float64, and rounded once.
        result[name] = (own[name].double().cpu() + scaled).to(dtype or torch.float32)
    return result


def _check_kind(stored: Stored, config: Mapping[str, Any]) -> None:
    """Refuse adapters that are not (α / r) B A on top of the base's weights."""
    kind, start = config.get("peft_type"), str(config.get("init_lora_weights")).lower()
    why = f"of the kind {kind}" if kind != "LORA" else ""
    why = why or next((f"has {key}" for key in _UNKNOWN if config.get(key)), "")
    if start.startswith(_OTHER_BASES):
        why = f"starts from {start}, which changes the base"
    if why:
        raise CheckpointError(
            f"{stored.path} is an adapter that {why}, and cannot be added to the weights of its "
            "base here; put it into a model of PEFT (peft.get_peft_model), or save "
            "peft_model.merge_and_unload()"
        )


def _sorted(stored: Stored) -> tuple[dict[str, _Pair], dict[str, Tensor]]:
    """Return module -> its matrices, and what the file replaces whole (a head, biases)."""
    pairs: dict[str, _Pair] = {}
    whole: dict[str, Tensor] = {}
    for full, tensor in stored.tensors.items():
        name = full.removeprefix(_PREFIX)
        found = _LORA.match(name)
        if found is not None:
            pair = pairs.setdefault(found["module"], _Pair({}, bool(found["embedding"])))
            pair.parts[found["side"]] = tensor
        elif _FOREIGN.search(f".{name}"):
            raise CheckpointError(
                f"{stored.path} is an adapter with {full}, which cannot be added to the weights of "
                "its base here; put it into a model of PEFT (peft.get_peft_model), or save "
                "peft_model.merge_and_unload()"
            )
        else:
            # So PEFT calls the layer that it has wrapped.
            whole[name.replace(".base_layer.", ".")] = tensor
    return pairs, whole


def _delta(pair: _Pair, weight: Tensor, module: nn.Module) -> Tensor:
    """Return B A in float64, in the layout of a weight."""
    a, b = (in_numbers(pair.parts[side]).double() for side in "AB")
    if weight.dim() > 2:  # of a convolution: B has kernels of one pixel
        # B [out, r, 1, 1] times A [r, in, h, w].
        return torch.einsum("or,r...->o...", b.flatten(1), a)
    product = b @ a
    # `Conv1D` of transformers multiplies as x @ W, an embedding by rows.
    transposed = pair.embedding or type(module).__name__ == "Conv1D"
    return product.T if transposed else product


def _scale(module: str, pair: _Pair, config: Mapping[str, Any]) -> float:
    """Return α / r, or α / √r where the adapter is rank-stabilised (Kalajdzievski 2023)."""
    rank = pair.parts["A"].shape[0]
    patterns = config.get("alpha_pattern") or {}
    # PEFT takes the first pattern that is the end of the module's name.
    alphas = (alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    alpha = float(next(alphas, config.get("lora_alpha", rank)))
    return alpha / (sqrt(rank) if config.get("use_rslora") else rank)


def _refuse_tied(own: Mapping[str, Tensor], name: str, path: str) -> None:
    """Refuse to change a weight that another part of the model uses, too."""
    for other, tensor in own.items():
        if other != name and tensor.data_ptr() == own[name].data_ptr() and tensor.numel():
            raise CheckpointError(
                f"{path} changes {name} alone, and the model uses one tensor for it and {other}; "
                "put the adapter into a model of PEFT (peft.get_peft_model)"
            )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
