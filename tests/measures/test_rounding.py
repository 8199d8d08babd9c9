"""Rounded weights: levels counted, increase by hand, prediction against the closed form."""

import numpy
import pytest
import torch
from torch import nn

import flatkit
from flatkit.errors import InvalidArgumentError
from flatkit.flatness.rounding import rounded
from flatkit.objective.parameters import ParameterSpace


def test_weights_take_the_nearest_of_even_levels_and_vectors_stay():
    generator = torch.Generator().manual_seed(0)
    weights = {
        "a": torch.randn(30, 20, generator=generator),
        "b": torch.randn(7, generator=generator),
    }
    space = ParameterSpace.of(weights)
    for bits in (2, 4, 8):
        point = rounded(space.flatten(weights), space, bits)
        parts, (step, none) = space.unflatten(point.theta), point.steps
        levels = numpy.unique((parts["a"] / step).round().numpy())
        assert len(levels) <= 2**bits - 1
        assert float(parts["a"].abs().max()) == pytest.approx(float(weights["a"].abs().max()))
        assert float((parts["a"] - weights["a"]).abs().max()) <= step / 2 * (1 + 1e-5)
        assert torch.equal(parts["b"], weights["b"])
        assert none == 0


def test_increase_and_prediction_of_a_linear_model():
    """L is a quadratic, so that ΔL = g·d + d'Hd / 2 and tr H are closed forms."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(200, 12, generator=generator, dtype=torch.float64)
    model = nn.Linear(12, 3, dtype=torch.float64)
    with torch.no_grad():
        targets = model(inputs)  # the minimum, so that g = 0
    report = flatkit.analyze(
        model, "mse", (inputs, targets), measures=["rounding"], bits=[8, 3], progress=False
    )
    weight = model.weight.detach()
    hessian = 2 * inputs.T @ inputs / len(inputs) / 3  # of each row of the weight
    for bits in (8, 3):
        result = report.result("rounding", bits=bits)
        step = float(weight.abs().max()) / (2 ** (bits - 1) - 1)
        moved = torch.round(weight / step) * step - weight
        increase = 0.5 * float((moved @ hessian * moved).sum())
        assert result.value == pytest.approx(increase, rel=1e-9)
        predicted = step**2 / 24 * 3 * float(hessian.trace())
        error = result.settings["predicted_error"]
        assert abs(result.settings["predicted"] - predicted) <= 4 * error + 1e-12
        assert 0.2 < predicted / increase < 5  # errors of rounding are about uniform


def test_bits_that_cannot_be_are_refused():
    with pytest.raises(InvalidArgumentError, match="bits"):
        flatkit.AnalysisSettings(bits=[1])
