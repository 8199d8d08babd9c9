"""Directions, lines and planes against closed forms."""

import math

import numpy as np
import pytest
import torch

from flatkit import Objective, Task
from flatkit.errors import InvalidArgumentError
from flatkit.landscape import (
    LandscapeJob,
    Subspace,
    Surface,
    axis_steps,
    measure_landscape,
    random_direction,
)
from flatkit.measures import AnalysisSettings
from flatkit.measures.loss_slice import as_json
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


def surface_of(objective, vectors, *steps, theta=None, **settings) -> Surface:
    subspace = Subspace("given", objective.theta if theta is None else theta, vectors)
    names = ["t"] if len(steps) == 1 else ["x", "y"]
    axes = {name: np.asarray(each) for name, each in zip(names, steps, strict=True)}
    return LandscapeJob({"train": objective}, subspace, axes, **settings).measure()


def test_lines_of_a_quadratic_are_parabolas():
    matrix = random_symmetric([4.0, 2.0, -1.0])
    linear = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    objective = Objective(*quadratic_task(matrix, linear))
    theta = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    directions = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double()
    steps = axis_steps(-2.0, 2.0, 9)
    quantities = ("loss", "accuracy", "gradient_norm")
    for direction in directions:
        found = surface_of(objective, direction[None], steps, theta=theta, quantities=quantities)
        assert set(found.quantities) == {"loss", "gradient_norm"}  # it is no classifier
        for i, t in enumerate(steps):
            point = theta + t * direction
            loss = 0.5 * point @ matrix @ point + linear @ point
            assert found.quantities["loss"][i] == pytest.approx(float(loss), rel=1e-12, abs=1e-13)
            norm = float((matrix @ point + linear).norm())
            assert found.quantities["gradient_norm"][i] == pytest.approx(norm, rel=1e-12)


def test_a_plane_is_oriented_and_its_centre_is_the_checkpoint():
    case = CASES[0]
    objective, (function, theta) = objective_of(case), reference_function(case)
    first, second = direction_of(objective, 0), direction_of(objective, 1)
    vectors, x, y = torch.stack([first, second]), axis_steps(-1, 1, 5), axis_steps(-0.5, 0.5, 3)
    plane = surface_of(objective, vectors, x, y, quantities=("loss", "accuracy")).quantities
    assert plane["loss"].shape == (3, 5)
    for j, up in enumerate(y):
        for i, right in enumerate(x):
            expected = float(function(theta + right * first + up * second))
            assert plane["loss"][j, i] == pytest.approx(expected, rel=1e-12)
    assert plane["loss"][1, 2] == objective.loss()
    assert plane["accuracy"][1, 2] == objective.accuracy()
    alone = surface_of(objective, vectors, x, y).quantities
    assert set(alone) == {"loss"} and np.array_equal(alone["loss"], plane["loss"])


def test_points_beyond_the_float_range_are_kept_as_infinite_or_as_no_number():
    matrix = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    objective = Objective(*quadratic_task(matrix))
    directions = torch.tensor([[1e200, 0.0], [1e200, 1e200]], dtype=torch.float64)
    found = [
        surface_of(objective, direction[None], [0.0, 1.0]).quantities["loss"]
        for direction in directions
    ]
    assert found[0].tolist() == [0.0, math.inf] and np.isnan(found[1][1])
    assert as_json(np.array(found)) == [[0.0, math.inf], [0.0, None]]


def test_the_middle_of_a_grid_is_exactly_zero():
    for points in (3, 21, 31, 51):
        grid = axis_steps(-0.7, 0.7, points)
        assert grid[points // 2] == 0.0 and grid[0] == -0.7 and grid[-1] == 0.7


@pytest.mark.parametrize(("extent", "points"), [(0.0, 5), (-1.0, 5), (1.0, 4), (1.0, 1)])
def test_grids_of_zero_width_or_without_a_middle_are_refused(extent, points):
    with pytest.raises(InvalidArgumentError):
        AnalysisSettings(extent=extent, slice_points=points)
    if points != 4:  # which has no middle, and gets one where the centre lies
        with pytest.raises(InvalidArgumentError):
            axis_steps(-extent, extent, points)


def test_unknown_choices_are_refused():
    with pytest.raises(InvalidArgumentError, match="normalization"):
        direction_of(objective_of(CASES[0]), normalization="filters")


def test_progress_counts_every_point():
    objective = objective_of(CASES[0])
    seen = []
    subspace = Subspace("given", objective.theta, direction_of(objective)[None])
    LandscapeJob(
        {"train": objective},
        subspace,
        {"t": np.array([-1.0, 0.0, 1.0])},
        quantities=("loss", "gradient_norm"),
    ).measure(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_without_a_preview_all_points_are_taken_in_one_go():
    objective = objective_of(CASES[0])
    vectors = torch.stack([direction_of(objective, seed) for seed in (0, 1)])
    subspace, steps = Subspace("given", objective.theta, vectors), axis_steps(-1, 1, 17)
    counts: dict[str, list[int]] = {"alone": [], "looked at": []}
    found = [
        LandscapeJob({"train": objective}, subspace, {"x": steps, "y": steps}).measure(
            progress=lambda done, _, seen=seen: seen.append(done), preview=preview
        )
        for seen, preview in zip(counts.values(), (None, lambda surface: None), strict=True)
    ]
    assert counts["alone"] == [64, 128, 192, 256, 289]  # full passes, but for the last
    assert counts["looked at"][0] < 64
    np.testing.assert_allclose(*(surface.quantities["loss"] for surface in found), rtol=1e-12)


def test_a_surface_says_how_its_points_went_through_and_why():
    objective = objective_of(CASES[0])
    vectors = direction_of(objective)[None]
    many = surface_of(objective, vectors, [0.0, 1.0]).header["evaluation"]["train"]
    assert many["points_at_once"] == 64 and "linear layers alone" in many["reason"]
    one = surface_of(objective, vectors, [0.0, 1.0], quantities=("loss", "gradient_norm"))
    said = {"points_at_once": 1, "reason": "gradient_norm takes one point at a time"}
    assert one.header["evaluation"]["train"] == said


def test_eigenvector_surfaces_of_several_checkpoints_have_the_widest_range_of_them_all():
    tasks = [Task(*quadratic_task(torch.diag(torch.tensor(values, dtype=torch.float64))))
             for values in ([8.0, 2.0], [0.5, 0.25])]  # fmt: skip
    settings: dict = {"directions": "eigenvectors", "points": 5, "dtype": "float64"}
    sharp, flat = measure_landscape(tasks, **settings)
    reach = math.sqrt(2 / 0.5)  # where the loss of the flatter one has risen by 1
    for surface in (sharp, flat):
        for name in ("x", "y"):
            assert surface.axes[name][[0, -1]] == pytest.approx([-reach, reach], rel=1e-3)
    assert measure_landscape(tasks[:1], **settings)[0].axes["x"][-1] == pytest.approx(0.5, rel=1e-3)
    (own, _) = measure_landscape(tasks, x_range=(-0.1, 0.2), **settings)
    assert own.axes["x"][[0, -1]].tolist() == [-0.1, 0.2]
