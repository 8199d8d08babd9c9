"""What is asked for wrongly is answered with help, wherever settings are taken."""

import pytest
import torch
from torch import nn

import flatkit
from flatkit.errors import InvalidArgumentError
from flatkit.measures.report import plan

DATA = (torch.ones(4, 1), torch.zeros(4, 1))
TASK = flatkit.Task(nn.Linear(1, 1, bias=False), "mse", DATA)

TAKERS = {
    "analyze": lambda **given: flatkit.analyze(TASK, progress=False, **given),
    "compare": lambda **given: flatkit.compare({"a": TASK}, progress=False, **given),
    "plan": lambda **given: plan(TASK, **given),
    "AnalysisSettings": flatkit.AnalysisSettings,
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize(
    ("given", "help"),
    [
        ({"measure": ["loss"]}, "did you mean 'measures'?"),
        ({"measures": "loss"}, "measures must be a list, got 'loss'; write measures=['loss']"),
        ({"measures": 5}, "measures must be a list"),
        ({"rho": 0.05}, "rho must be a list, got 0.05; write rho=[0.05]"),
        ({"rhos": [0.05]}, "did you mean 'rho'?"),
    ],
)
def test_a_wrong_setting_of_an_analysis_is_answered_with_the_right_one(taker, given, help):
    with pytest.raises(InvalidArgumentError) as caught:
        TAKERS[taker](**given)
    assert help in str(caught.value)


@pytest.mark.parametrize(
    ("call", "help"),
    [
        (lambda: flatkit.measure_landscape([TASK], point=5), "did you mean 'points'?"),
        (lambda: flatkit.measure_landscape([TASK], quantities="loss"), "quantities=['loss']"),
        (lambda: flatkit.measure_landscape(TASK), "sources must be a list"),  # type: ignore[arg-type]
        (lambda: flatkit.TrainingConfig(epoch=3), "did you mean 'epochs'?"),  # type: ignore[call-arg]
        (lambda: flatkit.TrainingConfig(log="csv"), "write log=['csv']"),
        (lambda: flatkit.train({"epochs": 3}, "x"), "write TrainingConfig(**config)"),  # type: ignore[arg-type]
        (lambda: flatkit.analyze(TASK, settings={"seed": 1}), "write AnalysisSettings(**settings)"),  # type: ignore[arg-type]
        (lambda: flatkit.analyze(5), "what is analyzed must be a model"),  # type: ignore[arg-type]
    ],
)
def test_so_is_one_of_a_landscape_a_training_or_a_subject(call, help, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgumentError) as caught:
        call()
    assert help in str(caught.value)
    assert not list(tmp_path.iterdir())
