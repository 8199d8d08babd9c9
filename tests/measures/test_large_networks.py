"""What the measures of a large network hold while others work."""

import gc

import pytest
import torch
from torch import nn

from flatkit import Objective, Task, analyze
from flatkit.flatness.average import average_steps
from flatkit.flatness.geometry import Geometry
from flatkit.measures.settings import AnalysisSettings
from flatkit.measures.watching import Silent


@pytest.fixture(autouse=True)
def only_new_objects():
    """Hide from the census what other tests have left: it takes most of the time."""
    gc.collect()
    gc.freeze()


def task() -> Task:
    """Return a task of an odd number of parameters, 1,363, in which no other tensor is as large."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 61), nn.ReLU(), nn.Linear(61, 13), nn.ReLU())
    return Task(model, "cross_entropy", (torch.randn(12, 8), torch.randint(13, (12,))))


def vectors_alive(size: int) -> int:
    """Count the vectors of so many numbers that tensors hold, one or several in a memory."""
    # Not those of torch's caches, which have no memory.
    kinds = (torch.Tensor, torch.nn.Parameter)
    found = [thing for thing in gc.get_objects() if type(thing) in kinds]
    memories = {each.untyped_storage().data_ptr(): _numbers(each) for each in found}
    return sum(numbers // size for numbers in memories.values() if numbers % size == 0)


def _numbers(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


class Watching(Silent):
    """Counts vectors between the pieces of an analysis."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def look(self, schedule) -> None:
        """Count."""
        self.counts.append(vectors_alive(schedule.session.objective.num_parameters))


def result_and_counts(measure):
    settings = AnalysisSettings(measures=[measure], slice_points=9, plane_points=5, examine=False)
    watching = Watching()
    report = analyze(task(), settings=settings, progress=watching)
    return report.result(measure), watching.counts


@pytest.mark.parametrize(("measure", "held"), [("loss_slice", 5), ("loss_plane", 2)])
def test_a_large_network_holds_no_direction_of_a_landscape_and_has_the_same_numbers(
    measure, held, monkeypatch
):
    usual, many = result_and_counts(measure)
    monkeypatch.setattr("flatkit.measures.loss_slice._LARGE", 1)
    drawn_again, few = result_and_counts(measure)
    assert drawn_again.value == usual.value and drawn_again.error == usual.error
    assert drawn_again.settings == usual.settings
    assert max(many) - max(few) == held


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
