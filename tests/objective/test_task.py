import pytest
import torch
from torch import nn

from flatkit.errors import InvalidArgumentError
from flatkit.objective.losses import CrossEntropy
from flatkit.objective.task import Task

MODEL = nn.Linear(2, 3)
DATA = (torch.zeros(5, 2), torch.zeros(5, dtype=torch.long))


def test_a_loss_may_be_a_name_or_a_callable():
    assert Task(MODEL, "cross_entropy", DATA).loss == CrossEntropy()
    own = nn.CrossEntropyLoss(reduction="none")
    assert Task(MODEL, own, DATA).loss is own


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "mlp"}, "model must be a torch.nn.Module"),
        ({"loss": "cross_entrpy"}, "did you mean 'cross_entropy'"),
        ({"loss": 3}, "loss must be a callable"),
        ({"data": DATA[0]}, "data must be two tensors .*got Tensor"),
        ({"data": (DATA[0], [0] * 5)}, "data must be two tensors"),
        ({"data": (DATA[0], DATA[1][:4])}, "got 5 and 4"),
        ({"data": (DATA[0][:0], DATA[1][:0])}, "at least one"),
        ({"test_data": (DATA[0],)}, "test_data must be two tensors"),
    ],
)
def test_parts_that_cannot_be_measured_are_refused(changes, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Task(**{"model": MODEL, "loss": "cross_entropy", "data": DATA, **changes})
