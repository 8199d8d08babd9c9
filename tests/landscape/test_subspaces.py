"""Directions of every kind, against closed forms, NumPy's SVD and dense Hessians."""

import numpy as np
import pytest
import torch

from flatkit import HessianOperator, Objective
from flatkit.errors import InvalidArgumentError
from flatkit.landscape import (
    LandscapeJob,
    Subspace,
    Waypoint,
    eigen_subspace,
    given_subspace,
    line_between,
    pca_subspace,
    plane_through,
    random_subspace,
)
from flatkit.objective.parameters import ParameterSpace
from tests.cases import CASES, dense_hessian, quadratic_task, random_symmetric

SPACE = ParameterSpace(("weight", "bias"), ((3, 4), (3,)))


def trajectory(steps=12, size=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    walk = torch.randn(steps, size, generator=g, dtype=torch.float64).cumsum(0)
    return [Waypoint(f"epoch {n}", point) for n, point in enumerate(walk)]


@pytest.mark.parametrize("normalization", ["filter", "layer", "none"])
@pytest.mark.parametrize("one_dimensional", ["zero", "whole"])
def test_what_happens_to_biases_is_a_choice_that_the_result_keeps(normalization, one_dimensional):
    theta = torch.randn(15, generator=torch.Generator().manual_seed(0)).double()
    subspace = random_subspace(
        SPACE, theta, seed=3, normalization=normalization, one_dimensional=one_dimensional
    )
    biases = subspace.vectors[:, 12:]
    assert bool((biases == 0).all()) == (one_dimensional == "zero")
    said = subspace.describe()
    assert (said["normalization"], said["one_dimensional"]) == (normalization, one_dimensional)
    assert said["norms"] == pytest.approx(subspace.vectors.norm(dim=1).tolist())
    if normalization != "none" and one_dimensional == "whole":
        assert torch.allclose(biases.norm(dim=1), theta[12:].norm())


def test_the_curvature_along_an_eigenvector_is_its_eigenvalue():
    case = CASES[0]
    objective = Objective(case.build(), case.loss, case.data())
    subspace = eigen_subspace(HessianOperator(objective), objective.theta, tolerance=1e-8)
    dense = np.linalg.eigvalsh(dense_hessian(case).numpy())[::-1]
    assert subspace.settings["eigenvalues"] == pytest.approx(dense[:2].tolist(), rel=1e-6)
    h = 1e-3
    for number, expected in enumerate(dense[:2]):
        axes = {"x": np.array([-h, 0, h]), "y": np.array([-h, 0, h])}
        loss = LandscapeJob({"train": objective}, subspace, axes).measure().quantities["loss"]
        line = loss[1, :] if number == 0 else loss[:, 1]
        assert (line[0] - 2 * line[1] + line[2]) / h**2 == pytest.approx(expected, rel=1e-4)
    assert subspace.cosine == pytest.approx(0.0, abs=1e-8)
    assert subspace.vectors.norm(dim=1).tolist() == pytest.approx([1.0, 1.0])


def test_principal_axes_and_explained_variance_are_those_of_the_svd():
    waypoints = trajectory()
    subspace = pca_subspace(waypoints)
    points = np.stack([waypoint.theta.numpy() for waypoint in waypoints])
    _, singular, right = np.linalg.svd(points - points.mean(0), full_matrices=False)
    shares = singular**2 / (singular**2).sum()
    assert subspace.settings["explained_variance"] == pytest.approx(shares[:2].tolist(), rel=1e-10)
    cosines = np.abs(subspace.vectors.numpy() @ right[:2].T)
    np.testing.assert_allclose(cosines, np.eye(2), atol=1e-10)


def test_the_path_and_its_steps_out_of_the_plane_give_back_every_distance():
    waypoints = trajectory()
    subspace = pca_subspace(waypoints)
    assert subspace.path is not None
    last = waypoints[-1].theta
    for waypoint, at, off in zip(
        waypoints, subspace.path["at"], subspace.path["off_plane"], strict=True
    ):
        in_plane = subspace.centre + torch.tensor(at).double() @ subspace.vectors
        assert float((waypoint.theta - in_plane).norm()) == pytest.approx(off, rel=1e-9, abs=1e-9)
        whole = float((waypoint.theta - last).norm())
        assert np.hypot(np.linalg.norm(at), off) == pytest.approx(whole, rel=1e-9, abs=1e-9)
    assert subspace.path["at"][-1] == [0.0, 0.0] and subspace.path["off_plane"][-1] == 0.0
    assert subspace.path["off_plane"][0] > 1.0  # forty dimensions do not fit into a plane
    ends = [marker["off_plane"] for marker in subspace.markers]
    assert ends == [subspace.path["off_plane"][0], 0.0]


def test_a_trajectory_in_a_plane_lies_in_its_principal_plane():
    g = torch.Generator().manual_seed(1)
    basis = torch.randn(2, 30, generator=g).double()
    places = torch.randn(8, 2, generator=g).double()
    subspace = pca_subspace([Waypoint(str(n), p @ basis + 5) for n, p in enumerate(places)])
    assert subspace.path is not None
    assert max(subspace.path["off_plane"]) < 1e-10
    assert sum(subspace.settings["explained_variance"]) == pytest.approx(1.0)


def test_a_trajectory_on_a_line_spans_no_plane():
    waypoints = [Waypoint(str(t), t * torch.arange(1.0, 5.0)) for t in range(4)]
    with pytest.raises(InvalidArgumentError, match="draw a line"):
        pca_subspace(waypoints)
    assert pca_subspace(waypoints, dimensions=1).settings["explained_variance"] == pytest.approx(
        [1.0]
    )
    with pytest.raises(InvalidArgumentError, match="all the same"):
        pca_subspace([Waypoint(str(t), torch.ones(4)) for t in range(4)])


def test_a_plane_through_three_checkpoints_holds_each_at_its_place():
    waypoints = trajectory(3)
    subspace = plane_through(*waypoints)
    gram = subspace.vectors @ subspace.vectors.T
    assert torch.allclose(gram, torch.eye(2).double(), atol=1e-12)
    for waypoint, marker in zip(waypoints, subspace.markers, strict=True):
        place = subspace.centre + torch.tensor(marker["at"]).double() @ subspace.vectors
        assert torch.allclose(place, waypoint.theta, atol=1e-12)
    assert subspace.markers[1]["at"][1] == 0.0


def test_a_line_between_checkpoints_has_each_ones_own_loss_at_its_end():
    case = next(case for case in CASES if "batchnorm" in case.name)
    models = [case.build(), case.build()]
    with torch.no_grad():
        for p in models[1].parameters():
            p.add_(0.3)
        models[1][1].running_var.mul_(3.0)  # type: ignore[index]
    objectives = [Objective(model, case.loss, case.data()) for model in models]
    waypoints = [
        Waypoint(
            name,
            objective.theta,
            {n: b for n, b in model.named_buffers() if b.is_floating_point()},
        )
        for name, objective, model in zip("ab", objectives, models, strict=True)
    ]
    subspace = line_between(*waypoints)
    axes = {"t": np.array([0.0, 0.5, 1.0])}
    surface = LandscapeJob(
        {"train": objectives[0]}, subspace, axes, statistics="interpolate"
    ).measure()
    loss = surface.quantities["loss"]
    assert loss[0] == objectives[0].loss()
    assert loss[2] == pytest.approx(objectives[1].loss(), rel=1e-12)
    fixed = LandscapeJob({"train": objectives[0]}, subspace, axes).measure().quantities["loss"]
    assert fixed[2] != pytest.approx(loss[2], rel=1e-3)  # the statistics of the first
    other = torch.randn(
        len(waypoints[0].theta), generator=torch.Generator().manual_seed(0)
    ).double()
    third = {name: buffer + 0.7 for name, buffer in waypoints[0].buffers.items()}
    waypoints.append(Waypoint("c", other, third))
    plane = plane_through(*waypoints)
    places = np.array([marker["at"] for marker in plane.markers])
    assert plane.buffers is not None
    for waypoint, (x, y) in zip(waypoints, places, strict=True):
        for name, (base, right, up) in plane.buffers.items():
            assert torch.allclose(base + x * right + y * up, waypoint.buffers[name], atol=1e-12)


def test_given_vectors_are_taken_as_they_are_or_scaled():
    theta = torch.randn(15, generator=torch.Generator().manual_seed(0)).double()
    vectors = torch.randn(2, 15, generator=torch.Generator().manual_seed(1)).double()
    subspace = given_subspace(SPACE, theta, vectors)
    assert torch.equal(subspace.vectors, vectors)
    assert subspace.describe()["normalization"] == "as given"
    scaled = given_subspace(SPACE, theta, vectors[0], normalization="filter").vectors[0]
    assert torch.allclose(scaled[:12].view(3, 4).norm(dim=1), theta[:12].view(3, 4).norm(dim=1))
    assert torch.allclose(scaled[12:].norm(), theta[12:].norm())


@pytest.mark.parametrize(
    ("vectors", "named"),
    [
        (torch.zeros(2, 15), "zero"),
        (torch.ones(2, 15), "parallel"),
        (torch.ones(2, 14), "another architecture"),
        (torch.full((1, 15), float("nan")), "finite"),
        (torch.eye(3, 15), "one or two"),
    ],
)
def test_directions_that_span_nothing_are_refused(vectors, named):
    with pytest.raises(InvalidArgumentError, match=named):
        Subspace("given", torch.zeros(15), vectors)


@pytest.mark.parametrize(
    ("waypoints", "named"),
    [
        ([Waypoint("a", torch.zeros(3)), Waypoint("b", torch.zeros(4))], "architecture"),
        ([Waypoint("a", torch.zeros(3)), Waypoint("b", torch.zeros(3))], "same weights"),
        ([Waypoint("a", torch.zeros(3)), Waypoint("b", torch.full((3,), torch.nan))], "b has NaN"),
        (
            [Waypoint("a", torch.zeros(3), {"x": torch.ones(1)}), Waypoint("b", torch.ones(3))],
            "buffers",
        ),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused_by_name(waypoints, named):
    with pytest.raises(InvalidArgumentError, match=named):
        line_between(*waypoints)


def test_three_checkpoints_on_a_line_span_no_plane():
    with pytest.raises(InvalidArgumentError, match="lie on a line"):
        plane_through(*(Waypoint(str(t), t * torch.ones(5)) for t in range(3)))


def test_the_planes_of_a_quadratic_are_exact_in_every_quantity():
    matrix = random_symmetric([4.0, 2.0, -1.0, 0.5])
    objective = Objective(*quadratic_task(matrix, torch.arange(4.0).double()))
    theta = torch.tensor([0.5, -1.0, 2.0, 0.1]).double()
    vectors = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).double()
    subspace = Subspace("given", theta, vectors)
    axes = {"x": np.linspace(-1, 1, 5), "y": np.linspace(-2, 1, 4)}
    quantities = ("loss", "gradient_norm", "top_eigenvalue")
    found = LandscapeJob({"train": objective}, subspace, axes, quantities=quantities).measure()
    for j, y in enumerate(axes["y"]):
        for i, x in enumerate(axes["x"]):
            point = theta + x * vectors[0] + y * vectors[1]
            loss = 0.5 * point @ matrix @ point + torch.arange(4.0).double() @ point
            norm = (matrix @ point + torch.arange(4.0)).norm()
            assert found.quantities["loss"][j, i] == pytest.approx(float(loss), rel=1e-12)
            assert found.quantities["gradient_norm"][j, i] == pytest.approx(float(norm), rel=1e-12)
    np.testing.assert_allclose(found.quantities["top_eigenvalue"], 4.0, rtol=1e-3)
