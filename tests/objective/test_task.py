import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

from flatkit.errors import InvalidArgumentError
from flatkit.objective.losses import CrossEntropy
from flatkit.objective.settings import ObjectiveSettings
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


class Stream(IterableDataset):
    """Seven samples that only reading counts."""

    def __iter__(self):
        return ((torch.full((2,), float(number)), 0) for number in range(7))


@pytest.mark.parametrize("data", [(torch.randn(7, 2), torch.zeros(7).long()), Stream()])
@pytest.mark.parametrize(
    ("settings", "used"),
    [({}, 7), ({"samples": 3}, 3), ({"samples": 5, "test_samples": 6}, 6), ({"samples": 99}, 7)],
)
def test_the_samples_bind_the_test_data_too_unless_these_have_a_number_of_their_own(
    data, settings, used
):
    task = Task(MODEL, "cross_entropy", DATA, test_data=data)
    objective = task.objective(ObjectiveSettings(**settings), split="test")
    assert objective.num_samples == used
    assert (objective.samples.drawn == "all") == (used == 7)


def test_more_test_samples_than_there_are_is_refused_under_their_own_name():
    task = Task(MODEL, "cross_entropy", DATA, test_data=DATA)
    with pytest.raises(InvalidArgumentError, match=r"test_samples must be at most 5, .*got 6"):
        task.objective(ObjectiveSettings(test_samples=6), split="test")
