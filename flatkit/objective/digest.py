"""Digests of tensors and of objectives: by them a later run knows that it computes the same."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatkit.errors import InvalidArgumentError, RankError
from flatkit.objective.function import Objective
from flatkit.objective.held_values import held_values
from flatkit.objective.kept import digest_of_tensors
from flatkit.objective.model.captured import held_by
from flatkit.objective.model.habits import Around, Guarded
from flatkit.objective.model.sharded import whole_of
from flatkit.objective.passes import Chunk
from flatkit.objective.pytree import leaves

_KNOWN = (Path(torch.__file__).parent, Path(__file__).parent.parent)
_ROUNDED = 1e-2
"""Relative difference of two losses up to which rounding may have made it."""
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def digest_of(objective: Objective) -> str:
    """Return a digest of the function that an objective is: of all that L(θ) depends on but θ.

    >>> data = (torch.ones(2, 1), torch.zeros(2, 1))
    >>> one, same = (Objective(nn.Linear(1, 1), "mse", data, examine=False) for _ in range(2))
    >>> digest_of(one) == digest_of(same)  # their weights are θ
    True
    >>> digest_of(one) == digest_of(one.block("bias"))  # here one of them is held fixed
    False
    """
    return joined(parts_of(objective))


def parts_of(objective: Objective) -> dict[str, str]:
    """Return digests of all that L(θ) depends on but θ, by what they are of.

    These are the samples in use with their weights, the model with its buffers and the weights that
    are not in θ, the loss with the tensors that it holds, the plain values and constant tensors
    that both hold, how all is cut, the dtype and the device. Of the code of the model and the loss,
    the files in which their classes and functions stand are hashed, unless they are torch's or
    flatkit's: not what these import; of a notebook it is the code itself. Cost: a forward pass of a
    few samples, and the bytes of the samples and of the model, about a second a gigabyte; of a
    model in parts, for which all ranks must ask, when it is first asked for.
    """
    if objective.sharded is None:
        return _parts_of(objective)
    objective.digests = objective.digests or _parts_of(objective)
    return objective.digests


def _parts_of(objective: Objective) -> dict[str, str]:
    about, samples, loss = objective.describe(), objective.samples, users_loss(objective)
    # What was looked at, and how long it took, makes no other function.
    del about["examination"]
    free = set(objective.space.names)
    # The default repr of an object ends in its address, which differs from run to run.
    names = _ADDRESS.sub("", json.dumps([repr(objective.model), *objective.space.names]))
    taken = [*leaves(samples.inputs), *leaves(samples.targets), objective.weights]
    held = [loss, *(thing for _, thing in sorted(held_by([loss]).items()))]
    return {
        "objective": digest_of_tensors(_ADDRESS.sub("", json.dumps(about)), ()),
        "samples": digest_of_tensors("", taken),
        "model": digest_of_tensors(names, _held_fixed([objective.model], free)),
        "loss": digest_of_tensors("", _held_fixed(held, free)),
        "values": digest_of_tensors(*_values(objective, loss)),
        "code": digest_of_tensors(" ".join(_code(objective, loss)), ()),
    }


def check_function(objective: Objective) -> Objective:
    """Return an objective that is the same function and point on all ranks.

    Raises:
        InvalidArgumentError: there are more ranks than samples.
        RankError: on one of them something differs; it is named.
    """
    ranks, rows = objective.ranks, objective.num_rows
    # A rank without a sample would wait in a pass of which it has no part.
    if ranks.count > rows:
        raise InvalidArgumentError(
            f"processes must be at most {rows}, one a sample, got {ranks.count}"
        )
    if ranks.count > 1:
        parts = {f"its {part}": digest for part, digest in parts_of(objective).items()}
        # A model may hold the number of its rank; what such values do is looked at instead.
        del parts["its values"]
        point = digest_of_tensors("", [objective.theta])
        ranks.check_alike({"its weights": point, **parts})
        if objective.sharded is None:
            _check_few(objective)
    return objective


def _check_few(objective: Objective) -> None:
    """Refuse ranks of which the loss of the same samples is another one."""
    own = float(objective.chunk_loss(objective.theta, _few(objective)))
    first, *others = map(float, objective.ranks.gathered(repr(own)))
    for rank, loss in enumerate(others, 1):
        # Machines of several kinds round differently, in 16 bits by some thousandths.
        if not (math.isclose(loss, first, rel_tol=_ROUNDED) or (loss != loss and first != first)):
            raise RankError(
                f"rank {rank} of {objective.ranks.count} differs from rank 0 in the loss of the "
                f"same samples, {loss:.6g} in place of {first:.6g}: the model or the loss holds "
                "another value there; start the same command, with the same files, on all"
            )


def _few(objective: Objective) -> Chunk:
    """Return a few samples; two, as a layer of statistics takes no single one."""
    return objective.spread(2) if objective.divisible else objective.rows(slice(None))


def joined(parts: Mapping[str, str]) -> str:
    """Return one digest of several.

    >>> joined({"samples": "a"}) == joined({"samples": "b"})
    False
    """
    return digest_of_tensors(json.dumps(parts), ())


def users_loss(objective: Objective) -> Any:
    """Return the loss as it was given, without what goes around it."""
    loss: Any = objective.loss_function
    while isinstance(loss, (Around, Guarded)):
        loss = loss.loss if isinstance(loss, Around) else loss.inner
    return loss


def _held_fixed(things: Iterable[Any], free: set[str]) -> Iterator[Tensor]:
    """Yield tensors, and those of modules that are not in θ."""
    for thing in things:
        if isinstance(thing, Tensor):
            yield whole_of(thing)
        elif isinstance(thing, nn.Module):
            for name, tensor in [*thing.named_parameters(), *thing.named_buffers()]:
                if name not in free:
                    yield whole_of(tensor.detach())


def _values(objective: Objective, loss: Any) -> tuple[str, list[Tensor]]:
    """Return the plain values that model and loss hold, as a text, and the constant tensors.

    What a pass changes, as a counter or an activation that a layer keeps, depends on what ran
    before, and is none of them.
    """
    before = held_values(objective.model, loss)
    versions = {id(thing): thing._version for _, thing in before if isinstance(thing, Tensor)}
    if objective.sharded is None:
        objective.chunk_loss(objective.theta, _few(objective))
    after = dict(held_values(objective.model, loss))
    texts: list[str] = []
    tensors: list[Tensor] = []
    for name, thing in before:
        if not isinstance(thing, Tensor):
            texts += [f"{name} {thing}"] if after.get(name) == thing else []
        elif after.get(name) is thing and thing._version == versions[id(thing)]:
            texts.append(name)
            tensors.append(thing)
    return _ADDRESS.sub("", "\n".join(texts)), tensors


def _code(objective: Objective, loss: Any) -> Iterator[str]:
    """Yield digests of the files that define the user's modules and loss."""
    classes = [type(loss), *map(type, objective.model.modules())]
    while isinstance(loss, partial):
        loss = loss.func
    functions = [loss, type(loss).__call__, *(getattr(c, "forward", None) for c in classes)]
    codes = (getattr(function, "__code__", None) for function in functions)
    for file in sorted({code.co_filename for code in codes if code is not None}):
        path = Path(file)
        if path.is_file() and not any(path.is_relative_to(known) for known in _KNOWN):
            yield hashlib.sha256(path.read_bytes()).hexdigest()
