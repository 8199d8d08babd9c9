"""How data come into an objective: collected, divided between model and loss, tried, converted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from flatkit.errors import UserCodeError
from flatkit.objective.private_model import accepted_inputs
from flatkit.objective.pytree import Tree
from flatkit.objective.randomness import undisturbed
from flatkit.objective.samples import Data, Samples, collect, default_chunk_size
from flatkit.objective.targets import check_classes, fitted


class Taken(NamedTuple):
    """Samples as model and loss take them.

    Attributes:
        samples: on the device of the computation, in its dtype.
        trial: what the model made of the first few.
    """

    samples: Samples
    trial: Any


def take_in(
    data: Data,
    *,
    samples: int | None,
    seed: int,
    model: nn.Module,
    run: Callable[[Tree], Any],
    loss: Callable[[Any, Any], Any],
    dtype: torch.dtype,
    device: torch.device,
    at_once: int | None,
) -> Taken:
    """Return samples whose inputs the model and whose targets the loss takes.

    Args:
        data: as of `Objective`.
        samples: how many; all by default.
        seed: of their draw.
        model: whose arguments name inputs.
        run: inputs of some samples -> outputs of the model.
        loss: of (outputs, targets).
        dtype: of the computation.
        device: of the computation.
        at_once: how many samples statistics of a batch need; None where they need none.

    Raises:
        InvalidArgumentError: the data are none, or do not fit the model or the loss.
        UserCodeError: data set, model or loss raises.
    """
    drawn = collect(data, samples=samples, seed=seed)
    if isinstance(drawn.inputs, Mapping):
        drawn = replace(drawn, inputs=accepted_inputs(model, drawn.inputs))
    drawn = drawn.to(dtype, device).laid_out(torch.contiguous_format)
    sizes = [2, default_chunk_size(drawn)] if at_once is None else [at_once]
    few, trial = _tried([drawn.rows(slice(size)) for size in sizes], run)
    form = fitted(loss, trial, few.targets, drawn.targets)
    check_classes(loss, trial, form.targets)
    return Taken(replace(drawn, targets=form.targets, converted=form.how), trial)


def _tried(parts: Sequence[Samples], run: Callable[[Tree], Any]) -> tuple[Samples, Any]:
    """Return the first samples that the model takes, and its outputs.

    Raises:
        UserCodeError: it takes none; of the last ones.
    """
    for part in parts[:-1]:
        try:
            return part, _outputs(part, run)
        except UserCodeError:  # a model may take no batch of so few
            continue
    return parts[-1], _outputs(parts[-1], run)


@torch.no_grad()
def _outputs(part: Samples, run: Callable[[Tree], Any]) -> Any:
    with undisturbed():
        return run(part.inputs)
