"""What the measures of a large network hold while others work."""

import gc

import pytest
import torch
from torch import nn

from flatkit import Objective, Task, analyze
from flatkit.flatness.average import average_steps
from flatkit.flatness.geometry import Geometry
from flatkit.measures.watching import Silent


def task() -> Task:
    """Return a task of an odd number of parameters, 1,363, in which no other tensor is as large."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 61), nn.ReLU(), nn.Linear(61, 13), nn.ReLU())
    return Task(model, "cross_entropy", (torch.randn(12, 8), torch.randint(13, (12,))))


def vectors_alive(size: int) -> int:
    """Count the memories of so many numbers that tensors hold."""
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    kinds = {each.untyped_storage().data_ptr() for each in found if _numbers(each) == size}
    return len(kinds)


def _numbers(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


class Watching(Silent):
    """Counts vectors between the pieces of an analysis."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def look(self, schedule) -> None:
        """Count."""
        self.counts.append(vectors_alive(schedule.session.objective.num_parameters))


def slice_and_counts():
    watching = Watching()
    report = analyze(
        task(), measures=["loss_slice"], slice_points=9, examine=False, progress=watching
    )
    return report.result("loss_slice"), watching.counts


def test_a_large_network_holds_one_line_of_a_slice_and_has_the_same_numbers(monkeypatch):
    usual, many = slice_and_counts()
    monkeypatch.setattr("flatkit.measures.loss_slice._LARGE", 1)
    drawn_again, few = slice_and_counts()
    assert drawn_again.value == usual.value and drawn_again.error == usual.error
    assert drawn_again.settings == usual.settings
    assert max(many) - max(few) == 4  # of five lines


@pytest.mark.parametrize("geometry", ["l2", "filter"])
def test_the_noise_of_an_average_is_not_held_between_two_pairs(geometry):
    one = task()
    objective = Objective(one.model, one.loss, one.data)
    size, scale = objective.num_parameters, None if geometry == "l2" else objective.theta.abs()
    steps = average_steps(
        objective,
        objective.loss(),
        rho=0.1,
        geometry=Geometry("l2" if scale is None else "filter", scale),
        generator=torch.Generator().manual_seed(0),
    )
    before = vectors_alive(size)
    for _ in range(3):
        next(steps)
        assert vectors_alive(size) == before
