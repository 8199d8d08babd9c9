"""Digests of tensors and of objectives: by them a later run knows that it computes the same."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatkit.objective.function import Objective
from flatkit.objective.kept import digest_of_tensors
from flatkit.objective.model.captured import held_by
from flatkit.objective.model.habits import Around, Guarded
from flatkit.objective.pytree import leaves

_KNOWN = (Path(torch.__file__).parent, Path(__file__).parent.parent)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def digest_of(objective: Objective) -> str:
    """Return a digest of the function that an objective is: of all that L(θ) depends on but θ.

    These are the samples in use with their weights, the model with its buffers and the weights that
    are not in θ, the loss with the tensors that it holds, how all is cut, the dtype and the device.
    Of the code of the model and the loss, the files in which their classes and functions stand are
    hashed, unless they are torch's or flatkit's: not what these import. Cost: the bytes of the
    samples and of the model are hashed once, about a second a gigabyte.

    >>> data = (torch.ones(2, 1), torch.zeros(2, 1))
    >>> one, same = (Objective(nn.Linear(1, 1), "mse", data, examine=False) for _ in range(2))
    >>> digest_of(one) == digest_of(same)  # their weights are θ
    True
    >>> digest_of(one) == digest_of(one.block("bias"))  # here one of them is held fixed
    False
    """
    about = objective.describe()
    del about["examination"]
    words = [repr(objective.model), *objective.space.names, *_code(objective)]
    text = _ADDRESS.sub("", json.dumps([about, words]))
    return digest_of_tensors(text, _tensors(objective))


def _tensors(objective: Objective) -> Iterator[Tensor]:
    samples, own = objective.samples, set(objective.space.names)
    yield from leaves(samples.inputs)
    yield from leaves(samples.targets)
    yield objective.weights
    yield from _held_fixed(objective.model, own)
    loss = _users_loss(objective)
    held: list[Any] = [loss, *(thing for _, thing in sorted(held_by([loss]).items()))]
    for thing in held:
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, nn.Module):
            yield from _held_fixed(thing, own)


def _held_fixed(module: nn.Module, free: set[str]) -> Iterator[Tensor]:
    """Yield the tensors of a module that are not in θ, by name."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name not in free:
            yield tensor


def _code(objective: Objective) -> Iterator[str]:
    """Yield digests of the files that define the user's modules and loss."""
    loss = _users_loss(objective)
    classes = [type(loss), *map(type, objective.model.modules())]
    functions = [loss, type(loss).__call__, *(getattr(c, "forward", None) for c in classes)]
    codes = (getattr(function, "__code__", None) for function in functions)
    for file in sorted({code.co_filename for code in codes if code is not None}):
        path = Path(file)
        if path.is_file() and not any(path.is_relative_to(known) for known in _KNOWN):
            yield hashlib.sha256(path.read_bytes()).hexdigest()


def _users_loss(objective: Objective) -> Any:
    """Return the loss as it was given, without what goes around it."""
    loss: Any = objective.loss_function
    while isinstance(loss, (Around, Guarded)):
        loss = loss.loss if isinstance(loss, Around) else loss.inner
    return loss
