"""Loss and accuracy over a whole split, with the model in eval mode."""

import torch
from torch import nn

from flatkit.data.dataset import Split
from flatkit.objective.decisions import Decision
from flatkit.objective.losses import LossFunction
from flatkit.objective.passes import Evaluation, outputs_of
from flatkit.training.rows import Rows

_LARGEST = Decision(None)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loss: LossFunction,
    split: Split | Rows,
    *,
    decision: Decision | None = _LARGEST,
    chunk: int | None = None,
) -> Evaluation:
    """Return the mean loss and the accuracy; sums are taken in float64, exactly weighted.

    Args:
        model: its mode is put back afterwards.
        loss: values of the samples, or their mean.
        split: on the device of the model.
        decision: how outputs name a class; None where they name none.
        chunk: samples a forward pass; it bounds memory. By default that of the samples.

    >>> eye = nn.Linear(2, 2, bias=False)
    >>> _ = nn.init.eye_(eye.weight)
    >>> from flatkit.objective.losses import MeanSquared
    >>> split = Split(torch.eye(2), torch.tensor([0, 0]))
    >>> evaluate(eye, MeanSquared(), split)          # losses 0 and 1
    Evaluation(loss=0.5, accuracy=0.5)
    """
    training, rows = model.training, Rows.of(split)
    total, correct, named = 0.0, 0, 0
    try:
        model.eval()
        for part in rows.chunks(chunk):
            # No autocast here, whatever the precision of the training: evaluations are float32.
            outputs = outputs_of(model, part.inputs)
            values = loss(outputs, part.targets).cpu().double()  # mps knows no float64
            total += part.total(values).item()
            if decision is not None:
                right, asked = decision.right(outputs, part.targets)
                correct, named = correct + right, named + asked
    finally:
        model.train(training)
    return Evaluation(loss=total / rows.weight, accuracy=correct / named if named else None)


def gradient_norm(
    model: nn.Module, loss: LossFunction, split: Split | Rows, *, chunk: int | None = None
) -> float:
    """Return the norm of the gradient of the mean loss over a split, with the model in eval mode.

    Neither the gradients that the parameters hold nor the buffers are touched. Cost: a gradient.

    Args:
        model: its mode is put back afterwards.
        loss: values of the samples, or their mean.
        split: on the device of the model.
        chunk: samples a pass; it bounds memory. By default that of the samples.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.ones_(model.weight)
    >>> from flatkit.objective.losses import MeanSquared
    >>> split = Split(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]]))
    >>> gradient_norm(model, MeanSquared(), split)   # L = 5 w² / 2
    5.0
    """
    training, rows = model.training, Rows.of(split)
    parameters = [p for p in model.parameters() if p.requires_grad]
    totals = [torch.zeros_like(p) for p in parameters]
    try:
        model.eval()
        for part in rows.chunks(chunk):
            # Divided before the sum, so that chunks add up to the gradient of the mean.
            value = part.total(loss(outputs_of(model, part.inputs), part.targets)) / rows.weight
            for total, part in zip(
                totals, torch.autograd.grad(value, parameters, materialize_grads=True), strict=True
            ):
                total += part
    finally:
        model.train(training)
    # The modulus of complex entries; on the CPU, as mps knows no float64.
    squares = [total.abs().cpu().double().square().sum() for total in totals]
    return float(torch.stack(squares).sum().sqrt())
