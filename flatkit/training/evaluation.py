"""Loss and accuracy over a whole split, with the model in eval mode."""

import torch
from torch import nn

from flatkit.data.dataset import Split
from flatkit.objective.losses import Loss
from flatkit.objective.passes import Evaluation

_CHUNK = 2048
"""Samples a forward pass: it bounds the activations, and is beyond what keeps a GPU busy."""


@torch.no_grad()
def evaluate(model: nn.Module, loss: Loss, split: Split, *, chunk: int = _CHUNK) -> Evaluation:
    """Return the mean loss and the accuracy; sums are taken in float64, exactly weighted.

    Args:
        model: its mode is put back afterwards.
        loss: values of the samples.
        split: on the device of the model.
        chunk: samples a forward pass; it bounds memory.

    >>> eye = nn.Linear(2, 2, bias=False)
    >>> _ = nn.init.eye_(eye.weight)
    >>> from flatkit.objective.losses import MeanSquared
    >>> split = Split(torch.eye(2), torch.tensor([0, 0]))
    >>> evaluate(eye, MeanSquared(), split)          # losses 0 and 1
    Evaluation(loss=0.5, accuracy=0.5)
    """
    training = model.training
    total, correct = 0.0, 0
    try:
        model.eval()
        pieces = zip(split.inputs.split(chunk), split.targets.split(chunk), strict=True)
        for inputs, targets in pieces:
            outputs = model(inputs)
            total += loss(outputs, targets).cpu().double().sum().item()  # mps knows no float64
            correct += int((outputs.argmax(1) == targets).sum())
    finally:
        model.train(training)
    return Evaluation(loss=total / split.samples, accuracy=correct / split.samples)


def gradient_norm(model: nn.Module, loss: Loss, split: Split, *, chunk: int = _CHUNK) -> float:
    """Return the norm of the gradient of the mean loss over a split, with the model in eval mode.

    Neither the gradients that the parameters hold nor the buffers are touched. Cost: a gradient.

    Args:
        model: its mode is put back afterwards.
        loss: values of the samples.
        split: on the device of the model.
        chunk: samples a pass; it bounds memory.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.ones_(model.weight)
    >>> from flatkit.objective.losses import MeanSquared
    >>> split = Split(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]]))
    >>> gradient_norm(model, MeanSquared(), split)   # L = 5 w² / 2
    5.0
    """
    training, parameters = model.training, [p for p in model.parameters() if p.requires_grad]
    totals = [torch.zeros_like(p) for p in parameters]
    try:
        model.eval()
        pieces = zip(split.inputs.split(chunk), split.targets.split(chunk), strict=True)
        for inputs, targets in pieces:
            value = loss(model(inputs), targets).sum() / split.samples
            for total, part in zip(
                totals, torch.autograd.grad(value, parameters, materialize_grads=True), strict=True
            ):
                total += part
    finally:
        model.train(training)
    return float(
        torch.stack([total.double().square().sum().cpu() for total in totals]).sum().sqrt()
    )
