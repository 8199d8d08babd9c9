"""Directions, slices and planes against closed forms."""

import math

import pytest
import torch

from flatkit import Objective
from flatkit.errors import InvalidArgumentError
from flatkit.landscape import loss_plane, loss_slice, random_direction
from flatkit.landscape.old_surface import symmetric_grid
from tests.cases import CASES, quadratic_task, random_symmetric, reference_function


def objective_of(case) -> Objective:
    return Objective(case.build(), case.loss, case.data())


def direction_of(objective, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    return random_direction(objective.space, objective.theta, generator=generator, **settings)


def test_every_filter_gets_the_norm_of_the_weights_filter():
    case = next(case for case in CASES if "batchnorm" in case.name)
    objective = objective_of(case)
    direction, model = direction_of(objective), case.build()
    at = 0
    for parameter in model.parameters():
        part = direction[at : at + parameter.numel()].reshape(parameter.shape)
        at += parameter.numel()
        if parameter.ndim < 2:
            assert part.abs().max() == 0
            continue
        for row, filters in zip(part, parameter.detach(), strict=True):
            assert float(row.norm()) == pytest.approx(float(filters.norm()), rel=1e-12)


def test_one_dimensional_parameters_can_be_normalised_whole():
    objective = objective_of(CASES[0])
    direction = direction_of(objective, one_dimensional="whole")
    parts, weights = (objective.space.unflatten(v) for v in (direction, objective.theta))
    for name in ("0.bias", "2.bias"):
        assert float(parts[name].norm()) == pytest.approx(float(weights[name].norm()), rel=1e-12)


def test_layers_and_unit_length_are_the_other_normalisations():
    objective = objective_of(CASES[0])
    layer = objective.space.unflatten(direction_of(objective, normalization="layer"))
    weight = objective.space.unflatten(objective.theta)["0.weight"]
    assert float(layer["0.weight"].norm()) == pytest.approx(float(weight.norm()), rel=1e-12)
    row = layer["0.weight"][0]
    assert float(row.norm()) != pytest.approx(float(weight[0].norm()), rel=1e-3)
    assert float(direction_of(objective, normalization="none").norm()) == pytest.approx(1.0)


def test_random_directions_are_nearly_orthogonal_and_follow_the_seed():
    torch.manual_seed(0)
    model = torch.nn.Linear(200, 100)
    objective = Objective(model, "mse", (torch.zeros(2, 200), torch.zeros(2, 100)))
    one, two = direction_of(objective, 0), direction_of(objective, 1)
    cosine = float(one @ two / (one.norm() * two.norm()))
    assert abs(cosine) < 0.03  # 1/√20,000 = 0.007; uniform draws would give 0.75
    assert torch.equal(one, direction_of(objective, 0))


def test_a_slice_of_a_quadratic_is_the_parabola():
    matrix = random_symmetric([4.0, 2.0, -1.0])
    linear = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    objective = Objective(*quadratic_task(matrix, linear))
    theta = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    directions = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double()
    steps = symmetric_grid(2.0, 9)
    found = loss_slice(objective, theta, directions=directions, coordinate=steps)
    for row in range(2):
        for i, t in enumerate(steps):
            point = theta + t * directions[row]
            loss = 0.5 * point @ matrix @ point + linear @ point
            assert found.loss[row][i] == pytest.approx(float(loss), rel=1e-12, abs=1e-13)
            norm = float((matrix @ point + linear).norm())
            assert found.gradient_norm is not None
            assert found.gradient_norm[row][i] == pytest.approx(norm, rel=1e-12)
    assert found.accuracy is None


def test_a_plane_is_oriented_and_its_centre_is_the_checkpoint():
    case = CASES[0]
    objective, (function, theta) = objective_of(case), reference_function(case)
    first, second = direction_of(objective, 0), direction_of(objective, 1)
    x, y = symmetric_grid(1.0, 5), symmetric_grid(0.5, 3)
    plane = loss_plane(objective, first=first, second=second, x=x, y=y)
    assert (len(plane.loss), len(plane.loss[0])) == (3, 5)
    for j, up in enumerate(y):
        for i, right in enumerate(x):
            expected = float(function(theta + right * first + up * second))
            assert plane.loss[j][i] == pytest.approx(expected, rel=1e-12)
    assert plane.loss[1][2] == objective.loss()
    assert plane.accuracy is not None and plane.accuracy[1][2] == objective.accuracy()
    alone = loss_plane(objective, first=first, second=second, x=x, y=y, with_accuracy=False)
    assert alone.loss == plane.loss and alone.accuracy is None


def test_points_beyond_the_float_range_are_kept_as_infinite_or_as_no_number():
    matrix = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    objective = Objective(*quadratic_task(matrix))
    directions = torch.tensor([[1e200, 0.0], [1e200, 1e200]], dtype=torch.float64)
    found = loss_slice(
        objective, directions=directions, coordinate=[0.0, 1.0], with_gradient_norm=False
    )
    assert found.loss == [[0.0, math.inf], [0.0, None]]


def test_the_middle_of_a_grid_is_exactly_zero():
    for points in (3, 21, 31, 51):
        grid = symmetric_grid(0.7, points)
        assert grid[points // 2] == 0.0 and grid[0] == -0.7 and grid[-1] == 0.7


@pytest.mark.parametrize(("extent", "points"), [(0.0, 5), (-1.0, 5), (1.0, 4), (1.0, 1)])
def test_grids_of_zero_width_or_without_a_middle_are_refused(extent, points):
    with pytest.raises(InvalidArgumentError):
        symmetric_grid(extent, points)


def test_unknown_choices_are_refused():
    with pytest.raises(InvalidArgumentError, match="normalization"):
        direction_of(objective_of(CASES[0]), normalization="filters")


def test_progress_counts_every_point():
    objective = objective_of(CASES[0])
    seen = []
    directions = torch.stack([direction_of(objective)])
    loss_slice(
        objective,
        directions=directions,
        coordinate=[-1, 0, 1],
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
